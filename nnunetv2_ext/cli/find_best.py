"""`nnunetv2_ext find_best`: nnU-Net's search for the best model or pair, over explicit models.

The stock command takes every trainer with every plans identifier and fails on pairs that were never trained.
"""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunetv2_ext.cli.options import add_processes, processes
from nnunetv2_ext.data.splits import NNUNET_FOLDS
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import (
    REFERENCES,
    check_output_file,
    dataset_name,
    nnunet_folder,
    read_plans,
    unwritable,
    write_json,
)
from nnunetv2_ext.inference.models import Found, Model, parse_models
from nnunetv2_ext.inference.trained import Fault, as_script, description_of, fault_of_fold, reference_voxels
from nnunetv2_ext.text import counted, listed, markdown_table, told_apart

if TYPE_CHECKING:
    from nnunetv2_ext.evaluation.scores import Scores

EXAMPLE = """example:
  nnunetv2_ext find_best -d 42 -m MNetTrainer:MNetPlans:3d_fullres nnUNetTrainer:nnUNetPlans:3d_fullres -f 0 1 2 3 4"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """nnU-Net's flags, with `-m` in place of `-tr`, `-p` and `-c`."""
    parser.epilog = EXAMPLE
    parser.add_argument("-d", dest="dataset", required=True, help="id or name of the data set")
    parser.add_argument(
        "-m", dest="models", nargs="+", required=True, metavar="TRAINER:PLANS:CONFIG", help="the models to compare"
    )
    parser.add_argument("-f", dest="folds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="folds")
    parser.add_argument("--disable_ensembling", action="store_true", help="compare single models only")
    parser.add_argument("--no_overwrite", action="store_true", help="keep merged and ensembled files that exist")
    parser.add_argument(
        "-device",
        choices=["cpu", "cuda", "mps"],
        help="in the commands of missing trainings (default: nnU-Net's, cuda)",
    )
    add_processes(parser, "processes")
    parser.add_argument(
        "-o", dest="output", type=Path, metavar="FILE", help="write what is best, .json, which predict takes as -m FILE"
    )


def run(args: argparse.Namespace) -> int:
    """Check that all is there, then hand over to nnU-Net, which prints how to predict; last a table."""
    at_once = processes(args)
    if min(args.folds) < 0:
        raise InputError(f"-f {listed(args.folds, separator=' ')}", "folds from 0 on", "correct it")
    if args.output is not None and args.output.suffix != ".json":
        raise InputError(f"-o {args.output}", "a file .json", "choose one")
    check_output_file(args.output, "-o")
    models = parse_models(args.models)
    folds = list(dict.fromkeys(args.folds))
    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        nnunet_folder(variable)
    results = nnunet_folder("nnUNet_results")
    dataset = dataset_name(args.dataset)
    ensembling = not args.disable_ensembling and len(models) > 1
    device = f" -device {args.device}" if args.device else ""
    check_models(results / dataset, models, folds, ensembling=ensembling, flags=device)

    from nnunetv2.evaluation.find_best_configuration import find_best_configuration

    found = find_best_configuration(
        dataset,
        [{"plans": m.plans, "configuration": m.configuration, "trainer": m.trainer} for m in models],
        allow_ensembling=ensembling,
        num_processes=at_once,
        overwrite=not args.no_overwrite,
        folds=folds,
    )
    if len(folds) < NNUNET_FOLDS:
        print(f"\nThat files are missing, of which nnU-Net warns, is as asked: folds {listed(folds)} were compared.")
    print(f"\nThese instructions are kept in {results / dataset / 'inference_instructions.txt'}\n")
    best = _best(found)
    if args.output is not None:
        try:
            write_json(args.output, Found(dataset, best, [str(fold) for fold in folds])._asdict())
        except OSError as error:
            raise unwritable(args.output, error) from None
    if len(best) > 1:
        named = f"-d {dataset} -f {listed(folds, separator=' ')} -m {listed(best, separator=' ')}"
        print(f"nnunetv2_ext predict {named} -i INPUT_FOLDER -o OUTPUT_FOLDER")
        print("does in one step what these instructions do before the postprocessing, and checks that models agree.\n")
    _print_table(results / dataset, models, folds, found["all_results"])
    return 0


def _best(found: Mapping[str, Any]) -> list[str]:
    """The best model, or the two of the best ensemble, as `TRAINER:PLANS:CONFIG`."""
    keys = ("trainer", "plans_identifier", "configuration")
    return [":".join(one[key] for key in keys) for one in found["best_model_or_ensemble"]["selected_model_or_models"]]


def _print_table(folder: Path, models: Sequence[Model], folds: Sequence[int], results: Mapping[str, float]) -> None:
    """Dice of each label, of models and ensembles, and whether an ensemble is better than its members.

    Args:
        folder: results of the data set.
        results: mean Dice by nnU-Net's identifier of a model or an ensemble.
    """
    from nnunetv2.utilities.file_path_utilities import folds_tuple_to_string

    from nnunetv2_ext.evaluation.means import COUNTS, beside, with_counts
    from nnunetv2_ext.evaluation.scores import Scores

    titles = {model.folder_name: str(model) for model in models}
    singles, ensembles = {}, {}
    for identifier in results:
        if identifier in titles:
            merged = folder / identifier / f"crossval_results_folds_{folds_tuple_to_string(folds)}"
            singles[identifier] = (titles[identifier], merged)
        else:
            _, *members, _ = identifier.split("___")
            title = " + ".join(titles[member] for member in members)
            ensembles[identifier] = (title, folder / "ensembles" / identifier)
    scores = Scores(tuple(line for named in (*singles.values(), *ensembles.values()) for line in _dice(*named).lines))
    rows = []
    for model in scores.models:
        means = [
            *((scores.mean(model, label, "Dice"), [label]) for label in scores.labels),
            (scores.mean_of_labels(model, "Dice"), list(scores.labels)),
        ]
        cells = (with_counts(f"{mean:.3f}", beside(scores, model, labels, "Dice")) for mean, labels in means)
        rows.append([model, *cells])
    print(markdown_table(["model", *scores.labels, "mean Dice"], rows))
    if any("(" in cell for row in rows for cell in row[1:]):
        print(f"\n{COUNTS}")
    if ensembles:
        single, ensemble = (max(results[name] for name in group) for group in (singles, ensembles))
        verdict = "The ensemble helped" if ensemble > single else "The ensemble did not help"
        of_ensemble, of_single = told_apart(ensemble, single)
        print(f"\n{verdict}: mean Dice {of_ensemble}, the best single model {of_single}.")


def _dice(model: str, folder: Path) -> "Scores":
    """The Dice of a folder that nnU-Net has evaluated, by the names of its labels."""
    from nnunetv2_ext.evaluation.scores import read_dice_scores

    remedy = "run again without --no_overwrite"
    names = _summary_keys(folder, remedy)
    return read_dice_scores(model, folder / "summary.json", remedy, names=names)


def _summary_keys(folder: Path, remedy: str) -> dict[str, str]:
    """What nnU-Net's summaries call each label of a model or of merged predictions.

    Raises:
        InputError: as `_description`, or labels that nnU-Net refuses.
    """
    from nnunetv2_ext.evaluation.segmentations import labels_of

    return labels_of(description_of(folder, remedy), folder / "dataset.json").keys


def check_models(
    dataset_folder: Path, models: Sequence[Model], folds: Sequence[int], *, ensembling: bool, flags: str = ""
) -> None:
    """Check that nnU-Net's search will find all it needs.

    Args:
        flags: what trainings are to be started with beside their names.

    Raises:
        InputError: all that is missing, with the commands that make it; or models that cannot be compared.
    """
    from nnunetv2_ext.cli.train import as_jobs
    from nnunetv2_ext.doctor.dataset import replan
    from nnunetv2_ext.doctor.examination import Subject

    dataset = dataset_folder.name
    preprocessed = nnunet_folder("nnUNet_preprocessed") / dataset
    faults = []
    if not (preprocessed / REFERENCES).is_dir():
        command = f"nnUNetv2_preprocess -d {dataset} -plans_name {models[0].plans} -c {models[0].configuration}"
        faults.append(Fault(f"no folder {preprocessed / REFERENCES}", command))
    trainings, lacking = [], []
    for model in models:
        plans = preprocessed / f"{model.plans}.json"
        subject = Subject(dataset, model.configuration, model.trainer, model.plans)
        known = read_plans(plans, f"{'remove it, then ' * plans.is_file()}{replan(subject)}")["configurations"]
        if model.configuration not in known:
            raise InputError(
                f"the configuration {model.configuration}", f"one that {plans} has: {', '.join(known)}", "correct -m"
            )
        for fold in folds:
            fault = fault_of_fold(dataset_folder, model, fold, probabilities=ensembling, flags=flags)
            trainings += [fault] if fault else []
            lacking += [(model, fold)] if fault else []
    if faults or trainings:
        jobs = as_jobs(dataset, lacking, flags)
        got = f"{len(trainings)} of {len(models) * len(folds)} trainings missing or incomplete"
        raise InputError(
            got if trainings else faults[0].what,
            f"fold{'s' * (len(folds) > 1)} {' '.join(map(str, folds))} of every model, trained and validated"
            + (" with --npz, which ensembles need" if ensembling else ""),
            "\n  ".join(["run", *as_script([*faults, *trainings])]) + f"{jobs}\nand then this command again",
        )
    _check_comparable(dataset_folder, models, folds)
    _check_labels(dataset_folder, models[0], folds)


def _check_comparable(dataset_folder: Path, models: Sequence[Model], folds: Sequence[int]) -> None:
    """Every model must mean the same by its labels and predict each case once; nnU-Net does not look at either."""
    from nnunetv2_ext.evaluation.folder import validated
    from nnunetv2_ext.inference.members import Member, check_members

    again = "train the model again"
    folders = [dataset_folder / model.folder_name for model in models]
    check_members([Member(f.name, description_of(f, again), read_plans(f / "plans.json", again)) for f in folders])
    check_same_cases({f.name: validated(f, folds, description_of(f, again)["file_ending"]) for f in folders})


def check_same_cases(models: Mapping[str, Mapping[str, Path]]) -> None:
    """Refuse models that validated different cases.

    Args:
        models: the predictions of each, by its name and case.

    Raises:
        InputError: a case that only one of two models predicted.
    """
    (name, first), *others = models.items()
    for other, files in others:
        if differing := sorted(first.keys() ^ files.keys()):
            raise InputError(
                f"{counted(differing, 'case')} that only one of {name} and {other} validated",
                "the same cases for each model",
                "train them on the same splits_final.json, and name the same folds with -f",
            )


def _check_labels(dataset_folder: Path, model: Model, folds: Sequence[int]) -> None:
    """Every label must be in some reference: else nnU-Net's mean Dice of a model that is right is not a number.

    nnU-Net would compare these by the order of the models, or stop with an error after the work is done.
    """
    folder = dataset_folder / model.folder_name
    labels = _summary_keys(folder, "train the model again")
    of_fold = {fold: reference_voxels(folder / f"fold_{fold}" / "validation") or Counter() for fold in folds}
    total = sum(of_fold.values(), Counter())
    scored = {key for voxels in of_fold.values() for key in voxels}
    lacking = {name: key for name, key in labels.items() if key in scored and not total[key]}
    if not lacking:
        return
    others = []
    for path in sorted(folder.glob("fold_[0-9]*/validation/summary.json")):
        fold = path.parent.parent.name.removeprefix("fold_")
        voxels = reference_voxels(path.parent) or Counter()
        if fold.isdecimal() and int(fold) not in folds and any(voxels[key] for key in lacking.values()):
            others.append(fold)
    remedy = (
        "compare the other labels, in validation/summary.json of each fold; for a search, take it out of dataset.json, "
        "plan and train again"
    )
    named = f"fold{'s' * (len(folds) > 1)} {listed(folds, separator=' ')}"
    raise InputError(
        f"no voxel of {listed(lacking)} in any reference of {named}, so that the mean Dice of a model that finds none "
        "is not a number",
        "each label in the reference of at least one validated case",
        f"add -f {' '.join(others)}, where it occurs" if others else remedy,
    )
