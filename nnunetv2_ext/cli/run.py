"""`nnunetv2_ext run`: the whole way of a data set, from plans to the report, as jobs; the same command goes on."""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_ext.cli.options import folds_of, number
from nnunetv2_ext.cli.train import add_places, how_of
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import dataset_name, nnunet_folder, raw_folder
from nnunetv2_ext.inference.models import parse_models, read_found
from nnunetv2_ext.text import counted, duration, listed

if TYPE_CHECKING:
    from nnunetv2_ext.jobs.graph import How
    from nnunetv2_ext.jobs.record import Job
    from nnunetv2_ext.jobs.table import Row
    from nnunetv2_ext.jobs.way import Way

EXAMPLE = """examples:
  nnunetv2_ext run -d 42                                       a first look: two networks, two folds, short trainings
  nnunetv2_ext run -d 42 --preset full --gpus 0,1 -o submission
  nnunetv2_ext run -d 42 --preset full --on slurm --gres gpu:1 -i new_images -o submission
  nnunetv2_ext run -d 42 -m MNetTrainer:MNetTrialPlans:3d_fullres --epochs 50 -f 0 -device cpu --jobs 2

The same command again goes on where it was. Ctrl-C ends the waiting, not the jobs: nnunetv2_ext jobs -d 42 shows them,
and --cancel ends them. Exit status: 0 all is done, 1 a job is not well, 2 bad input.
"""
QUIET_SECONDS = 30.0
"""Where the output is no terminal, how far the trainings are is told no more often than this."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to train and to predict, and where."""
    parser.epilog = EXAMPLE
    parser.add_argument("-d", dest="dataset", required=True, metavar="ID", help="id or name of the data set")
    parser.add_argument(
        "--preset",
        default="quick",
        metavar="NAME",
        help="quick: a first look; full: five folds, each method as its authors train it",
    )
    parser.add_argument(
        "-m", dest="models", nargs="+", metavar="TRAINER:PLANS:CONFIG", help="the models (default: the preset's)"
    )
    parser.add_argument("-f", dest="folds", nargs="+", metavar="FOLD", help="folds (default: the preset's)")
    parser.add_argument("--epochs", metavar="N", help="of every training (default: the preset's)")
    parser.add_argument(
        "--iterations", metavar="N", help="of an epoch, and a twentieth of it to validate (default: the preset's)"
    )
    parser.add_argument(
        "-i", dest="images", type=Path, metavar="IMAGES", help="folder of images to predict (default: imagesTs)"
    )
    parser.add_argument("-r", dest="labels", type=Path, metavar="LABELS", help="of these (default: those beside them)")
    parser.add_argument("--each-fold", action="store_true", help="predict with each fold by itself, too")
    parser.add_argument(
        "-o",
        dest="output",
        type=Path,
        metavar="OUT",
        help="folder for predictions, evaluation and report (default: DATASET_PRESET)",
    )
    add_places(parser)


def run(args: argparse.Namespace) -> int:
    """Go the way; tells where its results are."""
    way, how = _way(args), how_of(args)
    try:
        status = go(way, how)
    except KeyboardInterrupt:
        there = f"nnunetv2_ext jobs -d {int(way.dataset[7:10])}"
        print(f"\nThe jobs go on: {there} shows them, {there} --cancel ends them; this command again waits for them.")
        raise
    if status == 0:
        tell_results(way)
    return status


def _way(args: argparse.Namespace) -> "Way":
    """What the flags ask for.

    Raises:
        InputError: an unknown preset, models or folds that are none, numbers or paths that make no sense.
    """
    from nnunetv2_ext.jobs.graph import Wishes
    from nnunetv2_ext.jobs.way import PRESETS, Way

    if args.preset not in PRESETS:
        raise InputError(f"--preset {args.preset}", f"one of {listed(PRESETS)}", "choose one")
    preset = PRESETS[args.preset]
    dataset = dataset_name(args.dataset)
    raw = raw_folder(dataset)
    lengths = {"epochs": preset.epochs, "iterations": preset.iterations}
    for name in lengths:
        if (given := number(getattr(args, name), int, f"--{name}")) is not None:
            if not 1 <= given <= 100_000:
                raise InputError(f"--{name} {given}", "a number from 1 to 100000", "correct it")
            lengths[name] = given
    images = args.images
    if images is not None and not (images.is_dir() and any(images.iterdir())):
        raise InputError(f"-i {images}", "a folder of images", "check the path")
    if images is None and raw is not None and any((raw / "imagesTs").glob("*")):
        images = raw / "imagesTs"
    if args.labels is not None:
        if images is None:
            raise InputError(f"-r {args.labels} without images", "-i, or imagesTs of the data set", "add -i")
        if not (args.labels.is_dir() and any(args.labels.iterdir())):
            raise InputError(f"-r {args.labels}", "a folder of labels", "check the path")
    output = args.output or Path(f"{dataset}_{args.preset}")
    return Way(
        dataset,
        tuple(parse_models(args.models or preset.models)),
        tuple(folds_of(args.folds)) or preset.folds,
        output.resolve(),
        None if images is None else images.resolve(),
        preset.training,
        lengths["epochs"],
        lengths["iterations"],
        Wishes(each_fold=args.each_fold, labels=None if args.labels is None else args.labels.resolve()),
    )


def go(way: "Way", how: "How") -> int:
    """Submit what is lacking of each part of the way, and wait for it.

    Returns:
        0, or 1 where a job is not well; says which, and why.

    Raises:
        InputError: a request that cannot be done, of which nothing is submitted.
    """
    from nnunetv2_ext.jobs.engine import engines, standing
    from nnunetv2_ext.jobs.graph import STEPS, afterwards, trainings, write_splits
    from nnunetv2_ext.jobs.record import jobs_folder, read_jobs
    from nnunetv2_ext.jobs.way import open_output, planning

    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        nnunet_folder(variable)
    folder = jobs_folder(way.dataset)
    engines()[how.engine].check(how.resources)
    plans = planning(way, standing(folder, read_jobs(folder)), how)
    open_output(way)
    if _submit_and_follow(way.dataset, plans, how):
        return 1
    seen = standing(folder, read_jobs(folder))
    wanted = trainings(way.dataset, way.models, way.folds, seen, how)
    if wanted.cases and set(way.folds) != {"all"}:
        write_splits(way.dataset, wanted.cases)
    after = afterwards(
        way.dataset,
        way.models,
        way.folds,
        STEPS,
        way.output,
        how,
        after=wanted.last,
        images=way.images,
        wishes=way.wishes,
    )
    for sentence in after.told:
        print(sentence)
    return _submit_and_follow(way.dataset, [*wanted.jobs, *after.jobs], how, wanted.last)


def _submit_and_follow(dataset: str, wanted: "Sequence[Job]", how: "How", also: Sequence[str] = ()) -> int:
    """0 once the wanted jobs have finished, and those under way that are named; 1 where one is not well."""
    from nnunetv2_ext.cli.jobs import revive
    from nnunetv2_ext.jobs.engine import engines, standing
    from nnunetv2_ext.jobs.graph import refuse_other_engine
    from nnunetv2_ext.jobs.record import jobs_folder, read_jobs
    from nnunetv2_ext.jobs.way import to_submit

    folder = jobs_folder(dataset)
    known = read_jobs(folder)
    lacking = to_submit(wanted, known, standing(folder, known), dataset)
    refuse_other_engine(lacking, known, how.engine)
    if lacking:
        engines()[how.engine].submit(folder, lacking)
    else:  # a queue that was just started is no dead one
        revive([dataset])
    return follow(dataset, [*also, *(job.name for job in wanted)])


def follow(dataset: str, names: Sequence[str]) -> int:
    """Wait for jobs: with the table of `jobs` on a terminal, else with a line where one begins or ends, and now and
    then one of what runs.

    Returns:
        0, or 1 where a job is not well.
    """
    from nnunetv2_ext.cli.jobs import EVERY, status, watch
    from nnunetv2_ext.jobs.record import BLOCKED, FINISHED, RUNNING, WAITING
    from nnunetv2_ext.jobs.table import rows

    if sys.stdout.isatty():
        return watch([dataset], names)
    states: dict[str, str] = {}
    told = time.monotonic()
    while True:
        found = [row for row in rows(dataset) if row.job.name in names]
        if not states and (done := [row.job.name for row in found if row.seen.state == FINISHED]):
            print(f"done already: {counted(done, 'job')}", flush=True)
            states |= dict.fromkeys(done, FINISHED)
        late = time.monotonic() - told > QUIET_SECONDS
        told = time.monotonic() if late else told
        for row in found:
            state = row.seen.state
            changed = state not in (WAITING, BLOCKED, states.get(row.job.name))
            if changed or (late and state == RUNNING and row.progress is not None):
                print(_line(row), flush=True)
            states[row.job.name] = state
        if not any(state in (WAITING, RUNNING) for state in states.values()):
            if blocked := [name for name, state in states.items() if state == BLOCKED]:
                print(f"{counted(blocked, 'job')} cannot run after that; this command again goes on")
            return status(found)
        time.sleep(EVERY)


def _line(row: "Row") -> str:
    """How a job stands, in a line; where it is not well, why, and where its log is."""
    from nnunetv2_ext.jobs.record import RUNNING
    from nnunetv2_ext.jobs.table import WRONG

    line = f"{row.job.name}: {row.seen.state}"
    last = row.state.attempts[-1] if row.state.attempts else None
    if row.seen.state == RUNNING and row.progress is not None:
        told = f"epoch {row.progress.epochs_done} of {row.progress.epochs or '?'}"
        line += f", {'validates' if row.progress.validates else told}"
    elif last is not None and last.ended is not None:
        line += f" after {duration(last.ended - last.began)}"
    if row.seen.state in WRONG:
        line += f": {row.reason}\n  log: {row.log}"
    return line


def tell_results(way: "Way") -> None:
    """Print the table of the evaluation, what is best, and where the page is."""
    from nnunetv2_ext.evaluation.means import means_table
    from nnunetv2_ext.evaluation.scores import read_scores
    from nnunetv2_ext.jobs.graph import BEST, EVALUATION, PAGE

    print("", means_table(read_scores(way.output / EVALUATION)), "", sep="\n")
    if (best := way.output / BEST).is_file():
        print(f"Best by the validations: {listed(read_found(best).models, separator=' + ')}")
        print(f"  nnunetv2_ext predict -m {shlex.quote(str(best))} -i IMAGES -o LABELS")
    print(f"Open the report: python -m webbrowser {shlex.quote((way.output / PAGE).as_uri())}")
