"""`nnunetv2_ext run`: the whole way of a data set, from plans to the report, as jobs; the same command goes on."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_ext.cli.options import folds_of, number
from nnunetv2_ext.cli.train import add_places, how_of, images_of
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import FOLDER_VARIABLES, dataset_name, dataset_number, nnunet_folder
from nnunetv2_ext.inference.models import parse_models, read_found
from nnunetv2_ext.locks import ended_in_order
from nnunetv2_ext.text import browser_command, listed

if TYPE_CHECKING:
    from nnunetv2_ext.jobs.graph import How
    from nnunetv2_ext.jobs.whole_run import WholeRun

EXAMPLE = """examples:
  nnunetv2_ext run -d 42                                       a first look: two networks, two folds, short trainings
  nnunetv2_ext run -d 42 --preset full --gpus 0,1 -o submission
  nnunetv2_ext run -d 42 --preset full --on slurm --gres gpu:1 -i new_images -o submission
  nnunetv2_ext run -d 42 -m MNetTrainer:MNetTrialPlans:3d_fullres --epochs 50 -f 0 -device cpu --jobs 2

The same command again goes on where it was. Ctrl-C ends the waiting, not the jobs, which go on without a terminal:
nnunetv2_ext jobs -d 42 shows them, and --cancel ends them. Under SLURM, what follows the plans is submitted by this
command when they are there. Exit status: 0 all is done, 1 a job other than the audit has not finished, 2 bad
input.
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
    parser.add_argument("--no-wait", action="store_true", help="submit the jobs and come back")
    add_places(parser)


def run(args: argparse.Namespace) -> int:
    """Go the way; tells where its results are."""
    way, how = _way(args), how_of(args)
    _check_raw(way)
    told = _overview(way, how)
    try:
        with ended_in_order():
            status = go(way, how, wait=not args.no_wait, told=told, rest=_rest(args, way, how))
    except (KeyboardInterrupt, SystemExit):
        print(f"\n{_left(way)}", flush=True)
        raise
    if status:
        print("This command again tries what has failed, and goes on.")
    elif not args.no_wait:
        tell_results(way)
    return status


def _check_raw(way: "WholeRun") -> None:
    """Look at names and headers of the raw data where there are plans to be made.

    Raises:
        InputError: what planning would stop at, before any job of it is submitted.
    """
    from nnunetv2_ext.data.description import refuse_faults
    from nnunetv2_ext.data.raw import examine

    folder = nnunet_folder("nnUNet_preprocessed") / way.dataset
    if all((folder / f"{model.plans}.json").is_file() for model in way.models):
        return
    refuse_faults(examine(nnunet_folder("nnUNet_raw") / way.dataset).faults, dataset_number(way.dataset))


def _overview(way: "WholeRun", how: "How") -> list[str]:
    """What the run will do, in a few lines."""
    from nnunetv2_ext.jobs.lengths import told_length

    folder = nnunet_folder("nnUNet_preprocessed") / way.dataset
    lacking = [*dict.fromkeys(m.plans for m in way.models if not (folder / f"{m.plans}.json").is_file())]
    resources = how.resources
    where = "under SLURM"
    if how.engine == "local":
        gpus = f"on GPU {listed(resources.gpus or (), separator=', ')}"
        where = gpus if resources.gpus else f"on the {(how.device or 'cpu').upper()}, {resources.jobs} at a time"
    number = len(way.models) * len(way.folds)
    folds = f"fold{'s' * (len(way.folds) != 1)} {listed(way.folds, separator=' ')}"
    told = [f"{way.dataset}, {number} training{'s' * (number != 1)} of {folds} {where}:"]
    for model in way.models:
        plans = f", {model.plans} are to be made" * (model.plans in lacking)
        told.append(f"  {model}: {told_length(way, model)}{plans}")
    predict = "predict, " if way.images is not None else ""
    told.append(f"then find_best, {predict}evaluate, report and audit, into {way.output}")
    if lacking and how.engine == "local":
        told.append(f"{listed(lacking)} first, then a job submits the rest; all goes on without this terminal")
    elif lacking:
        told.append(f"{listed(lacking)} first; the trainings are submitted by this command when they are there")
    return told


def _rest(args: argparse.Namespace, way: "WholeRun", how: "How") -> list[str]:
    """This command as a job of this machine that submits what follows the plans."""
    words = ["nnunetv2_ext", "run", "-d", way.dataset, "--preset", args.preset, "--no-wait", "-o", str(way.output)]
    words += ["-m", *map(str, way.models), "-f", *way.folds, "--retries", str(how.retries), *how.device_flags]
    gpus = ",".join(map(str, how.resources.gpus or ()))
    flags = {
        "-i": way.images,
        "-r": way.wishes.labels,
        "--epochs": way.epochs,
        "--iterations": way.iterations,
        "--gpus": gpus or None,
        "--jobs": how.resources.jobs if how.device == "cpu" else None,
        "--time": how.resources.minutes,
    }
    return words + [word for flag, value in flags.items() if value is not None for word in (flag, str(value))]


def _left(way: "WholeRun") -> str:
    """What is under way when the waiting ends."""
    from nnunetv2_ext.jobs.engine import standing
    from nnunetv2_ext.jobs.graph import under_way
    from nnunetv2_ext.jobs.record import jobs_folder, read_jobs

    jobs = jobs_folder(way.dataset)
    running = [name for name, seen in standing(jobs, read_jobs(jobs)).items() if under_way(seen)]
    if not running:
        return "No job is under way; this command again goes on."
    there = f"nnunetv2_ext jobs -d {dataset_number(way.dataset)}"
    told = f"The jobs go on: {there} shows them, {there} --cancel ends them; "
    if all(name.startswith("plan_") for name in running):
        return told + "the trainings are not submitted yet: run this command again."
    return told + "this command again waits for them."


def _way(args: argparse.Namespace) -> "WholeRun":
    """What the flags ask for.

    Raises:
        InputError: an unknown preset, models or folds that are none, numbers or paths that make no sense.
    """
    from nnunetv2_ext.jobs.afterwards import Wishes
    from nnunetv2_ext.jobs.whole_run import PRESETS, WholeRun

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
    return WholeRun(
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


def go(way: "WholeRun", how: "How", *, wait: bool = True, told: Sequence[str] = (), rest: Sequence[str] = ()) -> int:
    """Submit what is lacking of each part of the way, and wait for it.

    Args:
        wait: False submits what can be submitted now.
        told: what is said before the first job is waited for.
        rest: the command that submits what follows the plans, for a job; none: only this process does.

    Returns:
        0, or 1 where a job is not well, the audit aside; says which, and why.

    Raises:
        InputError: a request that cannot be done, of which nothing is submitted.
    """
    from nnunetv2_ext.cli.jobs import watch
    from nnunetv2_ext.jobs.whole_run import submit_plans, submit_trainings

    for variable in FOLDER_VARIABLES:
        nnunet_folder(variable)
    plans = submit_plans(way, how, rest)
    for sentence in (*told, *plans.told):
        print(sentence, flush=True)
    if plans.names:
        if not wait:
            return 0
        if status := watch([way.dataset], plans.names):
            return status
    trainings = submit_trainings(way, how, run=True)
    for sentence in trainings.told:
        if not (plans.names and sentence.endswith("already")):  # by the job that went before
            print(sentence, flush=True)
    if not (wait and trainings.names and watch([way.dataset], trainings.names)):
        return 0
    if _unfinished(way.dataset, trainings.names) != ["audit"]:
        return 1
    jobs = f"nnunetv2_ext jobs -d {dataset_number(way.dataset)}"
    print(f"The audit of the labels has not finished, on which nothing else depends: {jobs} tells why.")
    return 0


def _unfinished(dataset: str, names: Sequence[str]) -> list[str]:
    """Those of some jobs that have not finished."""
    from nnunetv2_ext.jobs.engine import standing
    from nnunetv2_ext.jobs.record import FINISHED, jobs_folder, read_jobs

    folder = jobs_folder(dataset)
    seen = standing(folder, read_jobs(folder))
    return [name for name in names if name not in seen or seen[name].state != FINISHED]


def tell_results(way: "WholeRun") -> None:
    """Print the means of the evaluation, what is best, what the audit found, and where the pages are, with the rest."""
    from nnunetv2_ext.audit.told import told_of
    from nnunetv2_ext.evaluation.means import few_means
    from nnunetv2_ext.evaluation.scores import read_scores
    from nnunetv2_ext.jobs.afterwards import AUDIT, BEST, EVALUATION, PAGE

    print("", few_means(read_scores(way.output / EVALUATION)), "", sep="\n")
    if (best := way.output / BEST).is_file():
        print(f"Best by the validations: {listed(read_found(best).models, separator=' + ')}")
        print(f"  nnunetv2_ext predict -m {shlex.quote(str(best))} -i IMAGES -o LABELS")
    if told := told_of(way.output / AUDIT):
        print(told)
    print(f"Open the report: {browser_command(way.output / PAGE)}")
