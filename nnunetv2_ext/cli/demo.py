"""`nnunetv2_ext demo`: the whole way on synthetic phantoms, in a folder of its own.

Draws a data set, plans, preprocesses, trains MNet and nnU-Net's own network on two folds each with one short training
block, predicts unseen cases with every fold and with the ensemble of folds, and writes scores, a table, a picture and
the report.
"""

import argparse
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_ext import register
from nnunetv2_ext.cli.steps import Steps
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import FOLDER_VARIABLES, read_json, write_json
from nnunetv2_ext.planning.options import flag_of
from nnunetv2_ext.text import listed

if TYPE_CHECKING:
    from nnunetv2_ext.evaluation.scores import Scores
    from nnunetv2_ext.evaluation.segmentations import Labels

DATASET_ID, DATASET = 999, "Dataset999_Phantom"
CONFIGURATION = "3d_fullres"
FOLDS = (0, 1)
SETTINGS = "demo.json"
"""Written first: a folder that holds it was made by this command, so that --overwrite may remove it."""
CAVEAT = "Trainings this short show that all steps work; which network is better takes longer ones on real data."
BASELINE = "Threshold per label"
MEANING = (
    "It is the best interval of intensities for each label, chosen on the unseen cases themselves. It needs no "
    "training, and what does not beat it has learnt little."
)


@dataclass(frozen=True)
class Contender:
    """A planner, its plans and a trainer, to be trained with the same training block as the others."""

    title: str
    planner: str
    plans: str
    trainer: str


CONTENDERS = (
    Contender("MNet", "MNetPlanner", "MNetPlans", "MNetTrainer"),
    Contender("nnU-Net", "ExperimentPlanner", "nnUNetPlans", "nnUNetTrainer"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to write, how long to train, on what."""
    parser.add_argument("--output", type=Path, default=Path("demo"), metavar="FOLDER", help="folder to write to")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what an earlier demo left there; any other folder is refused"
    )
    parser.add_argument("-device", choices=("cpu", "cuda", "mps"), default="cpu", help="where to train and predict")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the phantoms")
    parser.add_argument("--epochs", type=int, default=10, metavar="N", help="epochs of each training")
    parser.add_argument("--iterations", type=int, default=20, metavar="N", help="training iterations per epoch")
    parser.add_argument("--training-cases", type=int, default=24, metavar="N", help="number of training cases")
    parser.add_argument("--unseen-cases", type=int, default=8, metavar="N", help="number of cases to predict")
    parser.epilog = "example:\n  nnunetv2_ext demo --output demo    # about 25 minutes on two cores, 1 GB of disk"


def run(args: argparse.Namespace) -> int:
    """Run all steps; prints the table."""
    _check(args)
    output = args.output.resolve()
    _make_folder(output, args)
    _set_environment(output, args.device)
    # Only now: nnU-Net and PyTorch read some of these variables when they are imported.
    import torch

    if args.device == "cpu":
        torch.set_num_threads(os.cpu_count() or 1)
    from nnunetv2_ext.data.phantom import LABELS, write_phantoms
    from nnunetv2_ext.evaluation.means import means_table

    steps = Steps(total=5 + len(CONTENDERS) * len(FOLDS), log=output / "log.txt")
    print(f"Demo in {output}; nnU-Net's own messages go to log.txt there.")
    raw = output / "nnUNet_raw" / DATASET
    with steps.step(f"draw {args.training_cases} training and {args.unseen_cases} unseen phantoms"):
        write_phantoms(
            raw,
            training=args.training_cases,
            test=args.unseen_cases,
            seed=args.seed,
            processes=os.cpu_count() or 1,
            progress=lambda done, total: steps.advance(f"{done} of {total}"),
        )
    with steps.step("plan and preprocess"):
        _plan_and_preprocess()
    for contender in CONTENDERS:
        for fold in FOLDS:
            with steps.step(f"train {contender.trainer}, fold {fold}, {args.epochs} epochs"):
                _train(contender, fold, args)
    members = [(contender, folds) for contender in CONTENDERS for folds in (*((fold,) for fold in FOLDS), FOLDS)]
    with steps.step(f"predict the unseen phantoms with {len(members)} models"):
        for done, (contender, folds) in enumerate(members):
            steps.advance(f"{done} of {len(members)}")
            _predict(contender, folds, output, args.device)
    with steps.step("evaluate"):
        scores = _evaluate(members, output)
        notes = [_baseline(raw, LABELS), CAVEAT]
    with steps.step("write the report"):
        _report(output, means_table(scores), notes)
    print("", means_table(scores), "", *notes, sep="\n")
    page = output / "report" / "report.html"
    print(f"Total {steps.elapsed() / 60:.1f} min. Tables, picture and report: {page.parent}")
    print(f"Open the report: python -m webbrowser {shlex.quote(page.as_uri())}")
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse what would fail later on.

    Raises:
        InputError: a number out of range, or a device that is not there.
    """
    # nnU-Net splits into five folds
    ranges = {
        "epochs": (1, 10_000),
        "iterations": (1, 10_000),
        "training_cases": (5, 1000),
        "unseen_cases": (1, 1000),
        "seed": (0, 2**32 - 1),
    }
    for name, (least, most) in ranges.items():
        if not least <= getattr(args, name) <= most:
            got = f"{flag_of(name)} {getattr(args, name)}"
            raise InputError(got, f"a number from {least} to {most}", "choose one")
    if args.device != "cpu":
        import torch

        backend = torch.cuda if args.device == "cuda" else torch.backends.mps
        if not backend.is_available():
            raise InputError(f"-device {args.device}", "a device that PyTorch finds here", "choose -device cpu")


def _make_folder(output: Path, args: argparse.Namespace) -> None:
    """Make the output folder, empty but for the settings.

    Raises:
        InputError: it is in use (and no demo to overwrite), or cannot be made.
    """
    if output.exists():
        if not output.is_dir():
            raise InputError(f"--output {output}, a file", "a folder", "choose another name")
        if any(output.iterdir()):
            if not args.overwrite:
                raise InputError(
                    f"the folder {output}, which is not empty",
                    "a new or empty folder",
                    "choose another --output, or add --overwrite to replace an earlier demo",
                )
            if not (output / SETTINGS).is_file():
                raise InputError(
                    f"--overwrite for {output}, which no demo made (it lacks {SETTINGS})",
                    "the folder of an earlier demo",
                    "choose another --output",
                )
            shutil.rmtree(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        settings = {name: str(value) for name, value in vars(args).items() if not callable(value) and name != "command"}
        write_json(output / SETTINGS, settings)
    except OSError as error:
        raise InputError(
            f"--output {output} ({error.strerror})", "a folder that can be written", "choose another"
        ) from None


def _set_environment(output: Path, device: str) -> None:
    """nnU-Net's variables for this process and its children: folders within `output`, few worker processes."""
    for variable in FOLDER_VARIABLES:
        folder = output / variable
        folder.mkdir()
        os.environ[variable] = str(folder)
    # The network keeps the cores busy; on a GPU the augmentation would be the bottleneck with one worker.
    workers = 1 if device == "cpu" else min(8, os.cpu_count() or 1)
    os.environ.setdefault("nnUNet_n_proc_DA", str(workers))
    os.environ.setdefault("nnUNet_def_n_proc", "2")
    # Threads that wait for each other should sleep: spinning, they take the cores from the augmentation and from each
    # other, and one step of a busy machine can take ten times as long. PyTorch reads this when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    register()


def _plan_and_preprocess() -> None:
    """Plans of every contender; nnU-Net's first, because ours take over the data that they preprocess."""
    from nnunetv2_ext.planning.api import plan_and_preprocess

    for contender in reversed(CONTENDERS):
        plan_and_preprocess(
            DATASET_ID,
            planner=contender.planner,
            configurations=(CONFIGURATION,),
            progress=False,
        )


def _train(contender: Contender, fold: int, args: argparse.Namespace) -> None:
    """Train one fold."""
    from nnunetv2_ext.training.run import train_fold

    train_fold(
        DATASET_ID,
        CONFIGURATION,
        fold,
        trainer=contender.trainer,
        plans=contender.plans,
        training={"epochs": args.epochs, "iterations_per_epoch": args.iterations, "val_iterations_per_epoch": 2},
        device=args.device,
    )


def _name(contender: Contender, folds: Sequence[int]) -> str:
    return f"{contender.trainer}_" + ("ensemble" if len(folds) > 1 else f"fold_{folds[0]}")


def _model(contender: Contender, output: Path) -> Path:
    """The folder of its trained model."""
    return output / "nnUNet_results" / DATASET / f"{contender.trainer}__{contender.plans}__{CONFIGURATION}"


def _predict(contender: Contender, folds: Sequence[int], output: Path, device: str) -> None:
    """Predict the unseen cases with one fold, or with the mean of several."""
    from nnunetv2_ext.inference.folder import predict_folder
    from nnunetv2_ext.inference.predictor import Predictor

    predictor = Predictor(_model(contender, output), folds=folds, device=device)
    outcome = predict_folder(
        predictor, output / "nnUNet_raw" / DATASET / "imagesTs", output / "predictions" / _name(contender, folds)
    )
    for case, sentence in outcome.failed.items():
        raise InputError(f"{case}, which was not predicted ({sentence})", "labels of every case", "see log.txt")


def _labels(output: Path) -> "Labels":
    """What the values of the phantoms' labels mean."""
    from nnunetv2_ext.evaluation.segmentations import labels_of

    description = output / "nnUNet_raw" / DATASET / "dataset.json"
    return labels_of(read_json(description, "run the demo anew"), description)


def _evaluate(members: Sequence[tuple[Contender, Sequence[int]]], output: Path) -> "Scores":
    """Measure the predictions of every member, into the folder `report`."""
    from nnunetv2_ext.evaluation.folder import Evaluation, Predicted, evaluate, files_in

    raw = output / "nnUNet_raw" / DATASET
    models = []
    for contender, folds in members:
        title = f"{contender.title}, " + (f"ensemble of {len(folds)}" if len(folds) > 1 else f"fold {folds[0]}")
        files = files_in(output / "predictions" / _name(contender, folds), ".nii.gz")
        models.append(Predicted(title, files, (_model(contender, output),), tuple(map(str, folds))))
    evaluation = Evaluation(
        files_in(raw / "labelsTs", ".nii.gz"),
        models,
        _labels(output),
        images=raw / "imagesTs",
    )
    return evaluate(evaluation, output / "report", processes=os.cpu_count() or 1)


def _baseline(raw: Path, labels: Mapping[str, int]) -> str:
    """What intensity alone can do, in a sentence."""
    from nnunetv2_ext.data.volumes import read_volume
    from nnunetv2_ext.evaluation.threshold import threshold_dice

    truths = sorted((raw / "labelsTs").glob("*.nii.gz"))
    images = [read_volume(raw / "imagesTs" / path.name.replace(".nii.gz", "_0000.nii.gz")) for path in truths]
    by_value = threshold_dice(images, [read_volume(path) for path in truths])
    dice = {name: by_value[value] for name, value in labels.items() if value in by_value}
    each = listed(f"{name} {value:.3f}" for name, value in dice.items())
    return f"{BASELINE}: mean Dice {sum(dice.values()) / len(dice):.3f} ({each}). {MEANING}"


def _report(output: Path, table: str, notes: Sequence[str]) -> None:
    """Table, picture and page in the folder `report`."""
    from nnunetv2_ext.report.cases import choose, draw, find_cases
    from nnunetv2_ext.report.page import write_report

    raw, report = output / "nnUNet_raw" / DATASET, output / "report"
    (report / "table.md").write_text("\n\n".join([table, *notes]) + "\n", encoding="utf-8")
    labels = _labels(output)
    cases = find_cases(raw / "imagesTs", output / "predictions" / _name(CONTENDERS[0], FOLDS), raw / "labelsTs")
    best = choose(cases, labels, 3, processes=os.cpu_count() or 1, progress=False)
    heading = f"{CONTENDERS[0].title}, ensemble of {len(FOLDS)} folds, on unseen phantoms"
    draw(cases, best, labels, report / "cases.png", heading=heading, note=CAVEAT, window=(-160.0, 300.0))
    title = "Demo: unseen phantoms"
    write_report([report], report / "report.html", title=title, note=" ".join(reversed(notes)))
