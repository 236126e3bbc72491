"""`nnunetv2_ext run`: the whole way of a data set, from plans to the report, as jobs; the same command goes on."""

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_ext.cli.options import folds_of, number
from nnunetv2_ext.cli.train import add_places, how_of, images_of
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import FOLDER_VARIABLES, dataset_name, nnunet_folder
from nnunetv2_ext.inference.models import parse_models, read_found
from nnunetv2_ext.text import listed

if TYPE_CHECKING:
    from nnunetv2_ext.jobs.graph import How
    from nnunetv2_ext.jobs.way import Way

EXAMPLE = """examples:
  nnunetv2_ext run -d 42                                       a first look: two networks, two folds, short trainings
  nnunetv2_ext run -d 42 --preset full --gpus 0,1 -o submission
  nnunetv2_ext run -d 42 --preset full --on slurm --gres gpu:1 -i new_images -o submission
  nnunetv2_ext run -d 42 -m MNetTrainer:MNetTrialPlans:3d_fullres --epochs 50 -f 0 -device cpu --jobs 2

The same command again goes on where it was. Ctrl-C ends the waiting, not the jobs: nnunetv2_ext jobs -d 42 shows them,
and --cancel ends them. Exit status: 0 all is done, 1 a job has not finished, 2 bad input.
"""


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
    lengths = {"epochs": preset.epochs, "iterations": preset.iterations}
    for name in lengths:
        if (given := number(getattr(args, name), int, f"--{name}")) is not None:
            if not 1 <= given <= 100_000:
                raise InputError(f"--{name} {given}", "a number from 1 to 100000", "correct it")
            lengths[name] = given
    images = images_of(args.images, dataset)
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
        images,
        preset.training,
        lengths["epochs"],
        lengths["iterations"],
        Wishes(labels=None if args.labels is None else args.labels.resolve()),
    )


def go(way: "Way", how: "How") -> int:
    """Submit what is lacking of each part of the way, and wait for it.

    Returns:
        0, or 1 where a job is not well; says which, and why.

    Raises:
        InputError: a request that cannot be done, of which nothing is submitted.
    """
    from nnunetv2_ext.cli.jobs import watch
    from nnunetv2_ext.jobs.way import submit_plans, submit_trainings

    for variable in FOLDER_VARIABLES:
        nnunet_folder(variable)
    for submit in (submit_plans, submit_trainings):
        submitted = submit(way, how)
        for sentence in submitted.told:
            print(sentence, flush=True)
        if submitted.names and (status := watch([way.dataset], submitted.names)):
            return status
    return 0


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
