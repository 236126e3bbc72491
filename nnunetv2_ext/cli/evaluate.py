"""`nnunetv2_ext evaluate`: every metric of predictions, by case and label, against their references."""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunetv2_ext.cli.find_best import check_same_cases
from nnunetv2_ext.cli.options import add_processes, folds_of, number, processes, value_of
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import REFERENCES, dataset_name, file_state, nnunet_folder, raw_folder, read_json
from nnunetv2_ext.inference.models import model_folder, parse_models
from nnunetv2_ext.inference.trained import as_script, fault_of_fold
from nnunetv2_ext.planning.options import flag_of
from nnunetv2_ext.text import listed
from nnunetv2_ext.weights.files import FINAL, trained_folds

if TYPE_CHECKING:
    from nnunetv2_ext.evaluation.folder import Evaluation
    from nnunetv2_ext.evaluation.metrics import Settings
    from nnunetv2_ext.evaluation.segmentations import Labels

EXAMPLE = """examples:
  nnunetv2_ext evaluate -r labelsTs -p predictions -o scores
  nnunetv2_ext evaluate -r labelsTs -p mnet -p unet --names MNet U-Net --tolerance 2 tumour=1 -o scores
  nnunetv2_ext evaluate -d 42 -m MNetTrainer:MNetPlans:3d_fullres nnUNetTrainer:nnUNetPlans:3d_fullres -o scores

The same command again goes on where it was stopped. Exit status: 0 all cases are measured, 2 bad input.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Folders or models, and what metrics depend on."""
    parser.epilog = EXAMPLE
    parser.add_argument("-o", dest="output", type=Path, required=True, metavar="OUT", help="folder to write to")
    folders = parser.add_argument_group("folders of label files")
    folders.add_argument("-r", dest="references", type=Path, metavar="LABELS", help="the references")
    folders.add_argument(
        "-p",
        dest="predictions",
        type=Path,
        action="extend",
        nargs="+",
        metavar="PREDICTIONS",
        help="the predictions of a model, named as the references; several for several models",
    )
    folders.add_argument("--names", nargs="+", metavar="NAME", help="of the models (default: those of their folders)")
    folders.add_argument(
        "-djfile",
        dest="description",
        type=Path,
        metavar="FILE",
        help="dataset.json that names the labels (default: beside the predictions, else beside or in LABELS)",
    )
    models = parser.add_argument_group("or the cross-validation of trained models")
    models.add_argument("-d", dest="dataset", metavar="ID", help="id or name of the data set")
    models.add_argument("-m", dest="models", nargs="+", metavar="TRAINER:PLANS:CONFIG", help="the models")
    models.add_argument("-f", dest="folds", nargs="+", metavar="FOLD", help="folds (default: those that are trained)")
    settings = parser.add_argument_group("what metrics depend on")
    settings.add_argument(
        "--tolerance", nargs="+", metavar="MM", help="of NSD; of single labels as LABEL=MM beside it (default: 1)"
    )
    settings.add_argument(
        "--empty",
        metavar="MM",
        help="distance where only one of both masks is empty (default: the diagonal of the image)",
    )
    settings.add_argument("--connectivity", metavar="N", help="of lesions: 6, 18 or 26 neighbours (default: 26)")
    settings.add_argument(
        "--lesion-iou", metavar="SHARE", help="intersection over union from which on a lesion is found (default: 0.1)"
    )
    add_processes(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace another evaluation in OUT")
    parser.add_argument("--disable_progress_bar", action="store_true", help="no progress on stderr")


def run(args: argparse.Namespace) -> int:
    """Check, measure, tell."""
    words = sys.stdout
    with redirect_stdout(io.StringIO()):  # nnU-Net's readers print
        return _run(args, words)


def _run(args: argparse.Namespace, words: Any) -> int:
    from nnunetv2_ext.evaluation.folder import evaluate
    from nnunetv2_ext.evaluation.means import means_table

    at_once = min(processes(args), os.cpu_count() or 1)  # threads that compute
    settings = _settings(args)
    evaluation = _of_models(args, settings) if _names_models(args) else _of_folders(args, settings)
    if unknown := [name for name in settings.tolerances if name not in evaluation.labels.of]:
        got = f"--tolerance of {listed(unknown)}"
        raise InputError(got, f"labels of {evaluation.labels.told}: {listed(evaluation.labels.of)}", "correct it")
    progress = not args.disable_progress_bar and sys.stderr is not None
    scores = evaluate(evaluation, args.output, processes=at_once, overwrite=args.overwrite, progress=progress)
    print(means_table(scores), file=words)
    files = "metrics.csv and summary.json" if len(scores.models) == 1 else "metrics.csv, and summary.json of each model"
    cases = f"{len(scores.cases)} case{'s' * (len(scores.cases) != 1)}"
    print(f"\n{cases} measured: {files} in {args.output}", file=words)
    return 0


def _settings(args: argparse.Namespace) -> "Settings":
    """What metrics depend on.

    Raises:
        InputError: a value that is none.
    """
    from nnunetv2_ext.evaluation.metrics import Settings

    given: dict[str, Any] = {"tolerances": {}}
    for text in args.tolerance or ():
        label, equals, value = text.rpartition("=")
        millimetres = value_of(value, float, "--tolerance")
        if equals:
            if label in given["tolerances"]:
                got = f"--tolerance {listed(args.tolerance, separator=' ')}"
                raise InputError(got, f"one number for {label}", "leave the others out")
            given["tolerances"][label] = millimetres
        elif "tolerance" in given:
            got = f"--tolerance {listed(args.tolerance, separator=' ')}"
            raise InputError(got, "one number for all labels, LABEL=MM for others", "write the label before it")
        else:
            given["tolerance"] = millimetres
    for name, kind in (("empty", float), ("connectivity", int), ("lesion_iou", float)):
        if (value := number(getattr(args, name), kind, flag_of(name))) is not None:
            given[name] = value
    return Settings(**given)


def _names_models(args: argparse.Namespace) -> bool:
    """Whether models are given, and not folders.

    Raises:
        InputError: both, or neither whole.
    """
    folders = {"-r": args.references, "-p": args.predictions, "--names": args.names, "-djfile": args.description}
    models = {"-d": args.dataset, "-m": args.models, "-f": args.folds}
    of_folders, of_models = ([flag for flag, value in flags.items() if value] for flags in (folders, models))
    wanted = "-r and -p, or -d and -m"
    if of_folders and of_models:
        raise InputError(f"{listed(of_folders)} beside {listed(of_models)}", wanted, "leave one of both out")
    needed = {"-d", "-m"} if of_models else {"-r", "-p"}
    if lacking := sorted(needed - {*of_folders, *of_models}):
        raise InputError(f"no {listed(lacking)}", wanted, f"add {listed(lacking, separator=' and ')}")
    return bool(of_models)


# --- folders ---


def _of_folders(args: argparse.Namespace, settings: "Settings") -> "Evaluation":
    from nnunetv2_ext.data.sidecar import SIDECAR, read_sidecar
    from nnunetv2_ext.evaluation.folder import Evaluation, Predicted, files_in

    references, predictions = args.references, args.predictions
    for place, folder in enumerate(predictions):
        if folder.resolve() == references.resolve():
            raise InputError(f"{folder} as -r and as -p", "two folders", "correct one of them")
        if folder.resolve() in [other.resolve() for other in predictions[:place]]:
            raise InputError(f"-p {folder} twice", "a folder for each model", "leave one out")
    for folder in (references, *predictions):
        if not folder.is_dir():
            what = f"{folder}, a file" if folder.exists() else f"no folder {folder}"
            raise InputError(what, "a folder of label files", "check the path")
    names = _names(args.names, predictions)
    labels = _labels(args.description, references, predictions)
    files = files_in(references, labels.ending)
    models = []
    for name, folder in zip(names, predictions, strict=True):
        of_folder = files_in(folder, labels.ending)
        models.append(Predicted(name, of_folder, model_folders=_refuse_older(folder, of_folder.values())))
    home = references.resolve().parent
    sidecar = None
    if references.resolve().name in ("labelsTr", REFERENCES) and (home / SIDECAR).is_file():
        sidecar = read_sidecar(home, home.name)
        sidecar = sidecar if files.keys() <= sidecar.cases.keys() else None
    return Evaluation(files, models, labels, settings, sidecar, _images(references.resolve()))


def _images(references: Path) -> Path | None:
    """The folder of the images, where it lies as nnU-Net has it: `imagesTr` for `labelsTr` or `gt_segmentations`."""
    images = references.with_name(references.name.removesuffix("_thin").replace("labels", "images"))
    if references.name == REFERENCES:
        images = (raw_folder(references.parent.name) or references.parent) / "imagesTr"
    return images if images.is_dir() and images != references else None


def _names(given: Sequence[str] | None, folders: Sequence[Path]) -> list[str]:
    """The names of the models: those given, or of their folders, with as many parents as tell them apart.

    Raises:
        InputError: another number of names, one twice, or one that cannot be a folder's.
    """
    if given is None:
        lengths = [1] * len(folders)
        while True:
            names = ["_".join(f.resolve().parts[-n:]).strip("/") for f, n in zip(folders, lengths, strict=True)]
            if len(set(names)) == len(names):
                return names
            lengths = [n + (names.count(name) > 1) for n, name in zip(lengths, names, strict=True)]
    odd = [name for name in given if not name.strip() or "/" in name or "\\" in name or name in (".", "..")]
    if len(given) != len(folders) or len(set(given)) != len(given) or odd:
        got = f"--names {listed(given, separator=' ')}"
        expected = f"a name for each of {len(folders)} -p, all different, which folders can have"
        raise InputError(got, expected, "correct them")
    return list(given)


def _labels(given: Path | None, references: Path, predictions: Sequence[Path]) -> "Labels":
    """The labels, by the dataset.json that is given, or by those beside the files, which must agree.

    Raises:
        InputError: none, or one that nnU-Net refuses, or two that mean something else by the labels.
    """
    from nnunetv2_ext.evaluation.segmentations import descriptions, labels_of

    remedy = "give it with -djfile"
    if given is not None:
        return labels_of(read_json(given, "check the path"), given)
    paths = descriptions(predictions, references)
    if not paths:
        where = f"no dataset.json in {listed(predictions)}, nor beside or in {references}"
        raise InputError(where, "one that names the labels", remedy)
    first = labels_of(read_json(paths[0], remedy), paths[0])
    for path in paths[1:]:
        try:
            other = labels_of(read_json(path, remedy), path)
        except InputError:  # another program's
            continue
        _refuse_other_labels(first, other, remedy="give the one that holds for all with -djfile")
    return first


def _refuse_other_labels(one: "Labels", other: "Labels", *, remedy: str) -> None:
    """Refuse two descriptions that mean something else by the labels.

    Raises:
        InputError: they do.
    """
    both = [{**labels.values, "ignore": labels.ignore, "file_ending": labels.ending} for labels in (one, other)]
    for name in {**both[0], **both[1]}:
        values = [of.get(name, "none") for of in both]
        if values[0] != values[1]:
            told = [listed(v, separator=" and ") if isinstance(v, tuple) else v for v in values]
            got = f"'{name}' = {told[0]} in {one.told}, but {told[1]} in {other.told}"
            raise InputError(got, "the same labels", remedy)


def _refuse_older(folder: Path, files: Any) -> tuple[Path, ...]:
    """The folders of the models that made predictions, as far as predict.json and nnU-Net's folders tell.

    Raises:
        InputError: a model has changed since.
    """
    from nnunetv2_ext.inference.record import sources

    found = sources(folder)
    oldest = min(path.stat().st_mtime for path in files)
    for source in found:
        for name, digest in source.files.items():
            path = source.folder / name
            if path.is_file() and _changed(path) > oldest and file_state(path).digest != digest:
                again = "predict again, with nnunetv2_ext predict ... --overwrite"
                if source.predictions != folder:
                    again += f" for {source.predictions}, then average again with nnunetv2_ext ensemble ... --overwrite"
                got = f"predictions in {folder} that are older than {path}"
                raise InputError(got, "those of the model as it is now", again)
    return tuple(dict.fromkeys(source.folder for source in found if source.folder.is_dir()))


def _changed(path: Path) -> float:
    """When a file was written or put there."""
    status = path.stat()
    return max(status.st_mtime, status.st_ctime)


# --- models ---


def _of_models(args: argparse.Namespace, settings: "Settings") -> "Evaluation":
    from nnunetv2_ext.data.preprocessed import find_sidecar
    from nnunetv2_ext.data.sidecar import SIDECAR
    from nnunetv2_ext.evaluation.folder import Evaluation, Predicted, validated
    from nnunetv2_ext.evaluation.segmentations import labels_of

    models, dataset, asked = parse_models(args.models), dataset_name(args.dataset), folds_of(args.folds)
    preprocessed = nnunet_folder("nnUNet_preprocessed") / dataset
    references, raw = preprocessed / REFERENCES, raw_folder(dataset)
    if not references.is_dir():
        command = f"nnUNetv2_preprocess -d {dataset} -plans_name {models[0].plans} -c {models[0].configuration}"
        raise InputError(f"no folder {references}", "the references of the training cases", f"run {command}")
    found: list[Predicted] = []
    labels = None
    for model in models:
        folder = model_folder(str(model), dataset)
        folds = asked or trained_folds(folder, None, FINAL)
        faults = {fold: fault_of_fold(folder.parent, model, fold) for fold in folds}
        if lacking := [fault for fault in faults.values() if fault is not None]:
            from nnunetv2_ext.cli.train import as_jobs

            jobs = as_jobs(dataset, [(model, fold) for fold, fault in faults.items() if fault is not None])
            remedy = "\n  ".join(["run", *as_script(lacking)]) + f"{jobs}\nand then this command again"
            raise InputError(listed(fault.what for fault in lacking), "folds that are trained and validated", remedy)
        of_model = labels_of(read_json(folder / "dataset.json", "train the model again"), folder / "dataset.json")
        labels = labels or of_model
        _refuse_other_labels(labels, of_model, remedy="train them on the same labels")
        files = validated(folder, folds, of_model.ending)
        found.append(Predicted(str(model), files, (folder,), tuple(folds)))
    check_same_cases({one.model: one.files for one in found})
    assert labels is not None
    sidecar = None
    if (preprocessed / SIDECAR).is_file() or (raw is not None and (raw / SIDECAR).is_file()):
        sidecar = find_sidecar(preprocessed, dataset)
    of_cases = {case: references / f"{case}{labels.ending}" for case in found[0].files}
    return Evaluation(of_cases, found, labels, settings, sidecar, _images(references))
