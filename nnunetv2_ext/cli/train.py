"""`nnunetv2_ext train`: each fold of each model as a job that runs nnUNetv2_train, on this machine or under SLURM."""

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_ext.cli.options import folds_of, number, value_of
from nnunetv2_ext.errors import InputError, is_whole
from nnunetv2_ext.files import dataset_name, dataset_number, nnunet_folder, raw_folder, read_plans
from nnunetv2_ext.inference.models import Model, parse_models
from nnunetv2_ext.jobs.devices import gpus_visible, has_mps
from nnunetv2_ext.jobs.record import LOG, Job, Resources, jobs_folder
from nnunetv2_ext.text import counted, listed

if TYPE_CHECKING:
    from nnunetv2_ext.jobs.graph import How

EXAMPLE = """examples:
  nnunetv2_ext train -d 42 -m MNetTrainer:MNetPlans:3d_fullres --gpus 0,3
  nnunetv2_ext train -d 42 -m MNetTrainer:MNetPlans:3d_fullres nnUNetTrainer:nnUNetPlans:3d_fullres \\
      --gpus 0,1 --then find_best predict evaluate report -o results
  nnunetv2_ext train -d 42 -m MNetTrainer:MNetPlans:3d_fullres --on slurm --partition gpu --gres gpu:1 --time 24:00:00
  nnunetv2_ext train -d 42 -m MNetTrainer:MNetPlans:3d_fullres -f 0 1 -device cpu --jobs 2 --wait

The same command again submits what has not finished and runs no more; trainings go on where they were.
Exit status: 0 submitted, or with --wait all finished, 1 with --wait where a job has not, 2 bad input.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to train, where, and what comes after."""
    parser.epilog = EXAMPLE
    parser.add_argument("-d", dest="dataset", required=True, metavar="ID", help="id or name of the data set")
    parser.add_argument(
        "-m", dest="models", nargs="+", required=True, metavar="TRAINER:PLANS:CONFIG", help="the models to train"
    )
    parser.add_argument(
        "-f", dest="folds", nargs="+", default=["0", "1", "2", "3", "4"], metavar="FOLD", help="folds, or all"
    )
    parser.add_argument("--wait", action="store_true", help="wait for the end of the jobs; Ctrl-C does not end them")
    add_places(parser)
    then = parser.add_argument_group("after the trainings")
    then.add_argument("--then", nargs="+", metavar="STEP", help="some of find_best, predict, evaluate, report, audit")
    then.add_argument(
        "-i", dest="images", type=Path, metavar="IMAGES", help="folder of images to predict (default: imagesTs)"
    )
    then.add_argument(
        "-o",
        dest="output",
        type=Path,
        metavar="OUT",
        help="folder for what they write (default: `outcome` in the data set's results)",
    )


def add_places(parser: argparse.ArgumentParser) -> None:
    """Where jobs run, and what they may take; shared with `run`. See `how_of`."""
    parser.add_argument(
        "-device", choices=["cpu", "cuda", "mps"], help="where to train (default: a GPU where there is one)"
    )
    parser.add_argument(
        "--retries", default="2", metavar="N", help="how often a job runs again after failures without progress"
    )
    parser.add_argument("--time", metavar="MIN", help="longest time of a run, minutes or H:MM:SS (default: no limit)")
    parser.add_argument("--on", choices=["local", "slurm"], default="local", help="this machine, or a cluster")
    local = parser.add_argument_group("on this machine")
    local.add_argument(
        "--gpus",
        metavar="IDS",
        help="GPUs, each for one job at a time, as 0,3 (default: the first that CUDA_VISIBLE_DEVICES leaves)",
    )
    local.add_argument("--jobs", metavar="N", help="jobs at a time on the CPU (default: 1)")
    slurm = parser.add_argument_group("on a cluster")
    slurm.add_argument("--partition", metavar="NAME", help="where jobs are queued (default: SLURM's)")
    slurm.add_argument("--account", metavar="NAME", help="whom they count for (default: SLURM's)")
    slurm.add_argument("--gres", metavar="WHAT", help="of each job, as gpu:1")
    slurm.add_argument("--memory", metavar="GB", help="of each job (default: SLURM's)")
    slurm.add_argument("--cpus", metavar="N", help="of each job (default: SLURM's)")
    slurm.add_argument(
        "--slurm", dest="lines", action="append", metavar="LINE", help="another option of sbatch, as --slurm=--qos=long"
    )


def run(args: argparse.Namespace) -> int:
    """Check all, then submit; tells what was submitted and where the logs are."""
    dataset = dataset_name(args.dataset)
    results = nnunet_folder("nnUNet_results")
    models, folds = _models(args.models), folds_of(args.folds)
    how = how_of(args)
    steps = _steps(args)

    from nnunetv2_ext.jobs.whole_run import WholeRun, submit_trainings

    for model in models:
        _check_name(dataset, model)
    output = args.output or results / dataset / "outcome"
    way = WholeRun(dataset, tuple(models), tuple(folds), output, images_of(args.images, dataset))
    submitted = submit_trainings(way, how, steps)
    for sentence in submitted.told:
        print(sentence)
    if submitted.jobs:
        _tell(dataset, submitted.jobs, args.on, output if steps else None)
    else:
        print("nothing to submit")
    from nnunetv2_ext.cli.jobs import revive, watch

    if not args.wait:
        print("".join(f"{sentence}\n" for sentence in revive([dataset])), end="")
        return 0
    return watch([dataset], submitted.names)


def images_of(given: Path | None, dataset: str) -> Path | None:
    """The images to predict: those of -i, else `imagesTs` of the data set; None where there are none.

    Raises:
        InputError: -i names no folder, or an empty one.
    """
    if given is not None:
        if not (given.is_dir() and any(given.iterdir())):
            raise InputError(f"-i {given}", "a folder of images", "check the path")
        return given.resolve()
    raw = raw_folder(dataset)
    return (raw / "imagesTs").resolve() if raw is not None and any((raw / "imagesTs").glob("*")) else None


def as_jobs(dataset: str, lacking: Sequence[tuple[Model, int | str]], flags: str = "") -> str:
    """The end of a remedy: what trains folds that are not whole in one command; nothing where there are none.

    Args:
        lacking: models with their folds.
        flags: more of the command.

    Raises:
        InputError: jobs that are under way will make some of them.
    """
    from nnunetv2_ext.jobs.engine import standing
    from nnunetv2_ext.jobs.graph import job_name, under_way
    from nnunetv2_ext.jobs.record import read_jobs

    folder = jobs_folder(dataset)
    seen = standing(folder, read_jobs(folder))
    if jobs := [name for model, fold in lacking if under_way(seen.get(name := job_name(model, str(fold))))]:
        what = f"{counted(jobs, 'fold')} whose {'job waits or runs' if len(jobs) == 1 else 'jobs wait or run'}"
        raise InputError(what, "whole folds", f"wait for the end: nnunetv2_ext jobs -d {dataset_number(dataset)}")
    if not lacking:
        return ""
    models, folds = (listed(dict.fromkeys(part), separator=" ") for part in zip(*lacking, strict=True))
    return f"\nor, as jobs, nnunetv2_ext train -d {dataset} -m {models} -f {folds}{flags}"


def _tell(dataset: str, jobs: Sequence[Job], engine: str, output: Path | None) -> None:
    where = "on this machine" if engine == "local" else "to SLURM"
    print(f"{len(jobs)} job{'s' * (len(jobs) != 1)} submitted {where}:")
    for job in jobs:
        print(f"  {job.name}" + f"    after {listed(job.needs, shown=1)}" * bool(job.needs))
    print(f"logs: {jobs_folder(dataset) / 'NAME' / LOG}")
    if output is not None:
        print(f"what comes after the trainings goes to {output}")
    print(f"how they go: nnunetv2_ext jobs -d {dataset_number(dataset)}")


def _models(triples: Sequence[str]) -> list[Model]:
    """The models, each once.

    Raises:
        InputError: no name of a model, or one twice.
    """
    models = parse_models(triples)
    if len(models) < len(triples):
        twice = sorted({triple for triple in triples if triples.count(triple) > 1})
        raise InputError(f"-m {listed(twice)} twice", "each model once", "leave one out")
    return models


def _check_name(dataset: str, model: Model) -> None:
    """Refuse plans whose results go to another folder than their name says, for instance that of another model.

    Raises:
        InputError: they call themselves otherwise.
    """
    file = nnunet_folder("nnUNet_preprocessed") / dataset / f"{model.plans}.json"
    if not file.is_file():
        return  # told with what plans there are, and how to make these
    called = read_plans(file, "plan again").get("plans_name")
    if called != model.plans:
        raise InputError(
            f"{file}, which calls itself {called}: nnU-Net would train {model} in the folder of {called}",
            f"plans_name {model.plans} in it",
            "correct its plans_name",
        )


def _steps(args: argparse.Namespace) -> list[str]:
    """What comes after the trainings.

    Raises:
        InputError: an unknown step, or flags of none.
    """
    from nnunetv2_ext.jobs.afterwards import STEPS

    steps = list(dict.fromkeys(args.then or ()))
    if unknown := [step for step in steps if step not in STEPS]:
        raise InputError(f"--then {listed(unknown, separator=' ')}", f"some of {listed(STEPS)}", "correct it")
    if args.images is not None and "predict" not in steps:
        raise InputError(f"-i {args.images} without --then predict", "both", "add it, or leave -i out")
    if args.output is not None and not steps:
        raise InputError(f"-o {args.output} without --then", "both", "add it, or leave -o out")
    if args.output is not None and args.output.exists() and not args.output.is_dir():
        raise InputError(f"-o {args.output}, a file", "a folder", "choose another name")
    return steps


def how_of(args: argparse.Namespace) -> "How":
    """What the flags of `add_places` say.

    Raises:
        InputError: values that are none, or flags that do not go together.
    """
    resources, device = resources_of(args)
    retries = value_of(args.retries, int, "--retries")
    if not is_whole(retries, least=0):
        raise InputError(f"--retries {retries}", "0 or more", "correct it")
    if args.on == "slurm" and device != "cpu" and resources == resources.without_gpu():
        print("no --gres, as gpu:1: trainings fail where SLURM gives no GPU by itself, unless with -device cpu")
    from nnunetv2_ext.jobs.graph import How

    return How(args.on, resources, retries, device)


def resources_of(args: argparse.Namespace) -> tuple[Resources, str | None]:
    """What the flags say of where jobs run, and the device.

    Raises:
        InputError: values that are none, or flags that do not go together.
    """
    gpus = None if args.gpus is None else _gpus(args.gpus)
    jobs = number(args.jobs, int, "--jobs")
    device = args.device
    if gpus is not None and device in ("cpu", "mps"):
        raise InputError(f"--gpus {args.gpus} with -device {device}", "one of them", "leave one out")
    if jobs is not None and device in ("cuda", "mps"):
        raise InputError(f"--jobs {jobs} with -device {device}", "jobs on the CPU, each GPU runs one", "leave one out")
    if jobs is not None:
        device = "cpu"
    if args.on == "local" and gpus is None and device != "cpu":
        device, gpus = found(device)
    elif device == "mps":
        raise InputError("-device mps with --on slurm", "cpu or cuda", "correct it")
    if args.on == "local" and gpus is None and jobs is None:
        jobs = 1
    resources = Resources(
        gpus=gpus,
        jobs=jobs,
        minutes=None if args.time is None else minutes_of(args.time),
        partition=args.partition,
        account=args.account,
        gres=args.gres,
        memory_gb=number(args.memory, float, "--memory"),
        cpus=number(args.cpus, int, "--cpus"),
        lines=tuple(line if line.startswith("-") else f"--{line}" for line in args.lines or ()),
    )
    return resources, device


def found(device: str | None) -> tuple[str, tuple[int, ...] | None]:
    """The device and the GPU of this machine that are taken where none is named.

    Raises:
        InputError: not the device that is asked for.
    """
    if device != "mps" and (visible := gpus_visible()):
        return "cuda", (visible[0],)
    if device == "cuda":
        shell = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = "" if shell is None else f" that CUDA_VISIBLE_DEVICES={shell} shows"
        raise InputError(f"-device cuda on a machine without a GPU{why}", "one", "say -device cpu, or --on slurm")
    if has_mps():
        return "mps", None
    if device == "mps":
        raise InputError("-device mps", "a device that PyTorch finds here", "say -device cpu")
    return "cpu", None


def _gpus(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise InputError(f"--gpus {text}", "numbers of GPUs, as 0,3", "correct it")
    return tuple(map(int, parts))


def minutes_of(text: str) -> float:
    """Minutes, written so or as H:MM:SS.

    Raises:
        InputError: something else, or no time at all.
    """
    if found := re.fullmatch(r"(\d+):([0-5]?\d):([0-5]?\d)", text):
        hours, minutes, seconds = map(int, found.groups())
        value = hours * 60 + minutes + seconds / 60
    else:
        try:
            value = float(text)
        except ValueError:
            value = 0
    if not 0 < value < float("inf"):
        raise InputError(f"--time {text}", "minutes above 0, or H:MM:SS", "correct it")
    return value
