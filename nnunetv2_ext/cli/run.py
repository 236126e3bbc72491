"""`nnunetv2_ext run`: the whole way of a data set, from plans to the report, as jobs; the same command goes on."""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import dataset_name, nnunet_folder, raw_folder, read_json
from nnunetv2_ext.inference.models import parse_models, read_found
from nnunetv2_ext.jobs.engine import engines, standing
from nnunetv2_ext.jobs.graph import AS_USUAL, BEST, STEPS, How, Wishes, afterwards, trainings, write_splits
from nnunetv2_ext.jobs.record import ENDED, BLOCKED, FINISHED, LOG, Job, jobs_folder, read_jobs
from nnunetv2_ext.jobs.table import Row, in_order, lines, rows
from nnunetv2_ext.jobs.way import PRESETS, Way, open_output, planning, to_submit
from nnunetv2_ext.text import counted, duration, listed

EXAMPLE = """examples:
  nnunetv2_ext run -d 42                                       a first look: two networks, two folds, short trainings
  nnunetv2_ext run -d 42 --preset full --gpus 0 1 -o submission
  nnunetv2_ext run -d 42 --preset full --on slurm -m MNetTrainer:MNetPlans:3d_fullres -i new_images -o submission

The same command again goes on where it was; Ctrl-C ends the waiting, not the jobs: nnunetv2_ext jobs -d 42 shows them,
and --cancel ends them. Exit status: 0 all is done, 1 a job failed, 2 bad input.
"""
QUIET_SECONDS = 30.0
"""Where the output is no terminal, how far the trainings are is told no more often than this."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to train and to predict, and on what."""
    parser.epilog = EXAMPLE
    parser.add_argument("-d", dest="dataset", required=True, metavar="ID", help="id or name of the data set")
    told = "quick: a first look, full: five folds as published"
    parser.add_argument("--preset", default="quick", metavar="NAME", help=f"models, folds and length; {told}")
    parser.add_argument(
        "-m", dest="models", nargs="+", metavar="TRAINER:PLANS:CONFIG", help="the models (default: the preset's)"
    )
    parser.add_argument("-f", dest="folds", nargs="+", metavar="FOLD", help="folds (default: the preset's)")
    parser.add_argument("--epochs", metavar="N", help="of every training (default: the preset's)")
    parser.add_argument("--iterations", metavar="N", help="of every epoch (default: the preset's)")
    parser.add_argument(
        "-i", dest="images", type=Path, metavar="IN", help="images to predict (default: imagesTs of the data set)"
    )
    parser.add_argument(
        "-r", dest="labels", type=Path, metavar="LABELS", help="of these images (default: labelsTs, beside imagesTs)"
    )
    parser.add_argument("--each-fold", action="store_true", help="predict with each fold by itself, too")
    parser.add_argument(
        "-o",
        dest="output",
        type=Path,
        metavar="OUT",
        help="folder for predictions, evaluation and report (default: DATASET_PRESET)",
    )


def run(args: argparse.Namespace) -> int:
    """Go the way; tells where its results are."""
    way, how, wishes = _way(args), how_of(args), Wishes(each_fold=args.each_fold, labels=args.labels)
    status = go(way, how, wishes)
    return status or tell_results(way)


def tell_results(way: Way) -> int:
    """Say what is best and where everything is."""
    found = read_found(way.output / BEST)
    print(f"best by the validations: {listed(found.models, separator=' + ')}; nnunetv2_ext predict -m {way.output / BEST}")
    page = way.output / "report.html"
    print(f"Open the report: python -m webbrowser {shlex.quote(page.as_uri())}")
    return 0


def go(way: Way, how: How, wishes: Wishes = AS_USUAL) -> int:
    """Submit what is lacking of each part of the way, and wait for it.

    Returns:
        0, or 1 where a job has failed; says which, and why.

    Raises:
        InputError: a request that cannot be done, of which nothing is submitted.
    """
    folder = jobs_folder(way.dataset)
    engines()[how.engine].check(how.resources)
    plans = planning(way, read_jobs(folder), how)
    open_output(way)
    try:
        if _submit_and_follow(way.dataset, plans, how):
            return 1
        folds, models = [str(fold) for fold in way.folds], way.models
        seen = standing(folder, read_jobs(folder))
        wanted = trainings(way.dataset, models, folds, seen, how)
        write_splits(way.dataset, wanted.cases)
        steps = [step for step in STEPS if step != "predict" or way.images is not None]
        if way.images is None:
            print(f"no images to predict: neither -i nor imagesTs of {way.dataset}; the validations are evaluated")
        after = afterwards(
            way.dataset, models, folds, steps, way.output, {}, how, after=wanted.last, images=way.images, wishes=wishes
        )
        return 1 if _submit_and_follow(way.dataset, [*wanted.jobs, *after.jobs], how) else 0
    except KeyboardInterrupt:
        there = f"nnunetv2_ext jobs -d {way.dataset}"
        print(f"\nThe jobs go on: {there} shows them, {there} --cancel ends them, this command again waits for them.")
        raise


def _submit_and_follow(dataset: str, wanted: Sequence[Job], how: How) -> bool:
    """Whether a job failed of those that are submitted here or under way."""
    folder = jobs_folder(dataset)
    known = read_jobs(folder)
    lacking = to_submit(wanted, known, standing(folder, known), dataset)
    if lacking:
        folder.mkdir(parents=True, exist_ok=True)
        engines()[how.engine].submit(folder, lacking)
    return follow(dataset, [job.name for job in wanted])
