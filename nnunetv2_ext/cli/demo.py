"""`nnunetv2_ext demo`: draws synthetic phantoms into a folder of its own, and goes the whole way with them as `run`."""

import argparse
import os
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_ext import register
from nnunetv2_ext.cli.run import cancel, follow_way
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import FOLDER_VARIABLES, read_json, write_json
from nnunetv2_ext.inference.models import Model, parse_models
from nnunetv2_ext.jobs.way import PAGE, PREDICTIONS, PRESETS, SCORES, Way, members
from nnunetv2_ext.locks import ended_in_order, held
from nnunetv2_ext.planning.options import flag_of
from nnunetv2_ext.text import listed

DATASET = "Dataset999_Phantom"
CONFIGURATION = "3d_fullres"
FOLDS = (0, 1)
MODELS: dict[str, Model] = dict(zip(("MNet", "nnU-Net"), parse_models(PRESETS["quick"].models), strict=True))
"""Those of the preset quick, by what the tables call them."""
SETTINGS, REPORT = "demo.json", "report"
"""The first is written first: a folder that holds it was made by this command, so that --overwrite may empty it."""
CAVEAT = "Trainings this short show that all steps work; which network is better takes longer ones on real data."
BASELINE = "Threshold per label"
MEANING = (
    "It is the best interval of intensities for each label, chosen on the unseen cases themselves. It needs no "
    "training, and what does not beat it has learnt little."
)
# nnU-Net splits into five folds
RANGES = {
    "epochs": (1, 10_000),
    "iterations": (1, 10_000),
    "training_cases": (5, 1000),
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
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the phantoms")
    parser.add_argument("--epochs", type=int, default=10, metavar="N", help="epochs of each training")
    parser.add_argument("--iterations", type=int, default=20, metavar="N", help="training iterations per epoch")
    parser.add_argument("--training-cases", type=int, default=24, metavar="N", help="number of training cases")
    parser.add_argument("--unseen-cases", type=int, default=8, metavar="N", help="number of cases to predict")
    parser.epilog = "example:\n  nnunetv2_ext demo --output demo    # about 8 minutes on two cores, 1 GB of disk"


def run(args: argparse.Namespace) -> int:
    """Draw, go the way, print the table; whatever ends this command ends its jobs."""
    start = time.monotonic()
    _check(args)
    output = args.output.resolve()
    _refuse_folder(output, args.overwrite)
    with held(output, SETTINGS, "a demo"):
        _set_environment(output, args.device)
        _empty(output, args)
        print(f"Demo in {output}; {args.training_cases} training and {args.unseen_cases} unseen phantoms are drawn.")
        raw = output / "nnUNet_raw" / DATASET
        _draw(raw, args)
        notes = [_baseline(raw), CAVEAT]
        way = Way(
            DATASET,
            tuple(MODELS.values()),
            FOLDS,
            output / REPORT,
            raw / "imagesTs",
            raw / "labelsTs",
            epochs=args.epochs,
            iterations=args.iterations,
            device=args.device,
            each_fold=True,
            titles={model: title for title, model in MODELS.items()},
            title="Demo: unseen phantoms",
            note=" ".join(reversed(notes)),
        )
        try:
            with ended_in_order():
                failed = follow_way(way, _how(args))
        except BaseException:
            cancel(DATASET)
            raise
        if failed:
            return failed
    _tell(way, notes)
    page = way.output / PAGE
    print(f"Total {(time.monotonic() - start) / 60:.1f} min. Tables, picture and report: {page.parent}")
    print(f"Open the report: python -m webbrowser {shlex.quote(page.as_uri())}")
    return 0
