"""`nnunetv2_ext demo`: synthetic phantoms in a folder of its own, with which it goes the whole way, as `run` does."""

import argparse
import os
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_ext import register
from nnunetv2_ext.cli.run import go
from nnunetv2_ext.cli.train import found
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import FOLDER_VARIABLES, nnunet_folder, read_json, unwritable, write_json
from nnunetv2_ext.inference.models import parse_models
from nnunetv2_ext.locks import ended_in_order, held
from nnunetv2_ext.planning.options import flag_of
from nnunetv2_ext.text import browser_command, listed

if TYPE_CHECKING:
    from nnunetv2_ext.jobs.graph import How
    from nnunetv2_ext.jobs.whole_run import WholeRun

DATASET_ID, DATASET = 999, "Dataset999_Phantom"
TITLES = ("MNet", "nnU-Net")
"""What the tables call the models of the preset quick."""
SETTINGS, REPORT = "demo.json", "report"
"""A folder that holds the first was made by this command, so that --overwrite may empty it."""
TRAINING = ("--preset", "short", "--lr", "0.004")
"""Of the training block: a rate at which phantoms are learnt in a hundred steps."""
CAVEAT = "Trainings this short show that all steps work; which network is better takes longer ones on real data."
BASELINE = "Threshold per label"
MEANING = (
    "It is the best interval of intensities for each label, chosen on the unseen cases themselves. It needs no "
    "training, and what does not beat it has learnt little."
)
SIZE = 48
"""Voxels of a phantom along x and y: a quarter fewer than usual, which trains faster."""
RANGES = {
    "epochs": (1, 10_000),
    "iterations": (1, 10_000),
    "training_cases": (5, 1000),  # nnU-Net splits into five folds
    "unseen_cases": (1, 1000),
    "seed": (0, 2**32 - 1),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to write, how long to train, on what."""
    parser.add_argument("--output", type=Path, default=Path("demo"), metavar="FOLDER", help="folder to write to")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what an earlier demo left there; any other folder is refused"
    )
    parser.add_argument("-device", choices=("cpu", "cuda", "mps"), default="cpu", help="where to train and predict")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of phantoms and trainings")
    parser.add_argument("--epochs", type=int, default=5, metavar="N", help="epochs of each training")
    parser.add_argument("--iterations", type=int, default=18, metavar="N", help="training iterations per epoch")
    parser.add_argument("--training-cases", type=int, default=20, metavar="N", help="number of training cases")
    parser.add_argument("--unseen-cases", type=int, default=6, metavar="N", help="number of cases to predict")
    parser.epilog = "example:\n  nnunetv2_ext demo --output demo    # about 8 minutes on two cores, 1 GB of disk"


def run(args: argparse.Namespace) -> int:
    """Draw, go the way, print the table. Unless this command is killed, its jobs end with it."""
    start = time.monotonic()
    _check(args)
    output = args.output.resolve()
    _refuse_folder(output, overwrite=args.overwrite)
    with held(output, SETTINGS, "a demo"):
        _set_environment(output, args.device)
        _refuse_jobs()
        _empty(output, args)
        try:
            print(f"Demo in {output}: drawing {args.training_cases} training and {args.unseen_cases} unseen phantoms")
            raw = output / "nnUNet_raw" / DATASET
            _draw(raw, args)
            baseline = _baseline(raw)
            notes = [_sentence(baseline), CAVEAT]
            way = _way(output, args, note=" ".join(reversed(notes)))
            with ended_in_order():
                status = go(way, _how(args.device))
            if status == 0:
                _write_table(way, baseline, notes)
        except BaseException:
            _cancel()
            print("\nThe demo is ended, and its jobs with it. --overwrite begins anew.")
            raise
    if status:
        print(f"The demo has not come to its end; {output} is left as it is. --overwrite begins anew.")
        return status
    page = output / REPORT / "report.html"
    print(f"Total {(time.monotonic() - start) / 60:.1f} min. Tables, picture and report: {page.parent}")
    print(f"Open the report: {browser_command(page)}")
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse what would fail later on.

    Raises:
        InputError: a number out of range, or a device that is not there.
    """
    for name, (least, most) in RANGES.items():
        if not least <= getattr(args, name) <= most:
            got = f"{flag_of(name)} {getattr(args, name)}"
            raise InputError(got, f"a number from {least} to {most}", "choose one")
    if args.device != "cpu":
        import torch

        backend = torch.cuda if args.device == "cuda" else torch.backends.mps
        if not backend.is_available():
            raise InputError(f"-device {args.device}", "a device that PyTorch finds here", "choose -device cpu")


def _refuse_folder(output: Path, *, overwrite: bool) -> None:
    """Make the output folder, or see that it may be filled.

    Raises:
        InputError: it is in use, and no earlier demo that may be replaced, or it cannot be made.
    """
    if output.exists():
        if not output.is_dir():
            raise InputError(f"--output {output}, a file", "a folder", "choose another name")
        if any(output.iterdir()):
            if not overwrite:
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
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"--output {output} ({error.strerror})"
        raise InputError(what, "a folder that can be written", "choose another") from None


def _refuse_jobs() -> None:
    """Refuse the folder of a demo that was killed, but whose jobs run.

    Raises:
        InputError: there are such; with the command that ends them.
    """
    from nnunetv2_ext.jobs.engine import standing
    from nnunetv2_ext.jobs.graph import under_way
    from nnunetv2_ext.jobs.record import jobs_folder, read_jobs

    folder = Path(os.environ["nnUNet_results"])
    if not folder.is_dir():
        return
    jobs = jobs_folder(DATASET)
    if running := [name for name, seen in standing(jobs, read_jobs(jobs)).items() if under_way(seen)]:
        raise InputError(
            f"the folder of a demo whose jobs run ({listed(running, shown=2)})",
            "one in which nothing runs",
            f"end them: nnUNet_results={shlex.quote(str(folder))} nnunetv2_ext jobs -d {DATASET_ID} --cancel",
        )


def _empty(output: Path, args: argparse.Namespace) -> None:
    """Remove what an earlier demo left, and write the settings of this one.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        for path in output.iterdir():
            if SETTINGS not in path.name:  # nor the lock on it
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        settings = {name: str(value) for name, value in vars(args).items() if not callable(value) and name != "command"}
        write_json(output / SETTINGS, {name: value for name, value in settings.items() if name != "parser"})
        for variable in FOLDER_VARIABLES:
            (output / variable).mkdir()
    except OSError as error:
        raise unwritable(output, error) from None


def _set_environment(output: Path, device: str) -> None:
    """nnU-Net's variables for this process and its jobs: folders within `output`, few worker processes."""
    for variable in FOLDER_VARIABLES:
        os.environ[variable] = str(output / variable)
    # The network keeps the cores busy; on a GPU the augmentation would be the bottleneck.
    workers = 1 if device == "cpu" else min(8, os.cpu_count() or 1)
    os.environ.setdefault("nnUNet_n_proc_DA", str(workers))
    os.environ.setdefault("nnUNet_def_n_proc", "1")  # each one that nnU-Net starts imports PyTorch anew
    register()


def _draw(raw: Path, args: argparse.Namespace) -> None:
    from nnunetv2_ext.data.phantom import write_phantoms

    write_phantoms(
        raw,
        training=args.training_cases,
        test=args.unseen_cases,
        seed=args.seed,
        size=SIZE,
        processes=os.cpu_count() or 1,
    )


def _way(output: Path, args: argparse.Namespace, note: str) -> "WholeRun":
    """What the preset quick does, with this length."""
    from nnunetv2_ext.jobs.afterwards import Wishes
    from nnunetv2_ext.jobs.whole_run import PRESETS, WholeRun

    models = tuple(parse_models(PRESETS["quick"].models))
    return WholeRun(
        DATASET,
        models,
        PRESETS["quick"].folds,
        output / REPORT,
        output / "nnUNet_raw" / DATASET / "imagesTs",
        (*TRAINING, "--seed", str(args.seed)),
        args.epochs,
        args.iterations,
        Wishes(dict(zip(models, TITLES, strict=True)), title="Demo: unseen phantoms", note=note),
    )


def _how(device: str) -> "How":
    """Two jobs at a time on the CPU, one on a GPU."""
    from nnunetv2_ext.jobs.graph import How
    from nnunetv2_ext.jobs.record import Resources

    if device == "cuda":
        return How(resources=Resources(gpus=found(device)[1]), device=device)
    return How(resources=Resources(jobs=2 if device == "cpu" else 1), device=device)


def _cancel() -> None:
    """End all jobs of the demo."""
    from nnunetv2_ext.jobs.engine import engines
    from nnunetv2_ext.jobs.record import jobs_folder, read_jobs

    folder = jobs_folder(DATASET)
    engines()["local"].cancel(folder, list(read_jobs(folder).values()))


def _baseline(raw: Path) -> dict[str, float]:
    """What intensity alone can do: the Dice of each label."""
    from nnunetv2_ext.data.phantom import LABELS
    from nnunetv2_ext.data.volumes import read_volume
    from nnunetv2_ext.evaluation.threshold import threshold_dice

    truths = sorted((raw / "labelsTs").glob("*.nii.gz"))
    images = [read_volume(raw / "imagesTs" / path.name.replace(".nii.gz", "_0000.nii.gz")) for path in truths]
    by_value = threshold_dice(images, [read_volume(path) for path in truths])
    return {name: by_value[value] for name, value in LABELS.items() if value in by_value}


def _sentence(dice: Mapping[str, float]) -> str:
    each = listed(f"{name} {value:.3f}" for name, value in dice.items())
    return f"{BASELINE}: mean Dice {sum(dice.values()) / len(dice):.3f} ({each}). {MEANING}"


def _write_table(way: "WholeRun", baseline: Mapping[str, float], notes: Sequence[str]) -> None:
    """Print and write the table, with rows of the baseline, and draw cases, into the folder `report`."""
    from nnunetv2_ext.evaluation.means import means_table
    from nnunetv2_ext.evaluation.scores import Score, Scores, read_scores
    from nnunetv2_ext.evaluation.segmentations import labels_of
    from nnunetv2_ext.jobs.afterwards import EVALUATION, PREDICTIONS
    from nnunetv2_ext.report.cases import choose, draw, find_cases

    raw, report, model = nnunet_folder("nnUNet_raw") / DATASET, way.output, way.models[0]
    scores = read_scores(report / EVALUATION)
    scores += Scores(tuple(Score(BASELINE, "", label, "Dice", value) for label, value in baseline.items()))
    text = "\n\n".join([means_table(scores), *notes]) + "\n"
    (report / "table.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")
    labels = labels_of(read_json(raw / "dataset.json", "run the demo anew"), raw / "dataset.json")
    cases = find_cases(raw / "imagesTs", report / PREDICTIONS / model.folder_name, raw / "labelsTs")
    best = choose(cases, labels, 3, processes=os.cpu_count() or 1, progress=False)
    heading = f"{TITLES[0]}, ensemble of {len(way.folds)} folds, on unseen phantoms"
    draw(cases, best, labels, report / "cases.png", heading=heading, note=CAVEAT, window=(-160.0, 300.0))
