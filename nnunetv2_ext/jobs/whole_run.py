"""The whole way: what a run is asked for, the folder it writes to, and the jobs that plan for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import changed, nnunet_folder, read_json, unwritable, why_not_writable, write_json
from nnunetv2_ext.inference.models import Model
from nnunetv2_ext.jobs.afterwards import AS_USUAL, STEPS, Wishes, afterwards
from nnunetv2_ext.jobs.checks import refuse_no_nnunet, refuse_unknown_trainers
from nnunetv2_ext.jobs.engine import Seen, engines, standing
from nnunetv2_ext.jobs.graph import How, Request, refuse_other_engine, trainings, under_way, write_splits
from nnunetv2_ext.jobs.lengths import SETTINGS, check_lengths, length, of_nnunet
from nnunetv2_ext.jobs.record import FINISHED, Job, jobs_folder, read_jobs, state_or_none
from nnunetv2_ext.registry import planner_of
from nnunetv2_ext.text import listed

OURS, REST = "nnunetv2_ext", "submit_trainings"
"""Our command, and the job that submits what comes after the plans, which only they can tell."""


class Preset(NamedTuple):
    """What is trained unless the user says otherwise, and how long; None: as published."""

    models: tuple[str, ...]
    folds: tuple[str, ...]
    training: tuple[str, ...]
    """Flags of the training block."""
    epochs: int | None
    iterations: int | None


PRESETS = {
    "quick": Preset(
        ("MNetTrainer:MNetQuickPlans:3d_fullres", "BackboneTrainer:BackboneQuickPlans:3d_fullres"),
        ("0", "1"),
        ("--preset", "short"),
        20,
        50,
    ),
    "full": Preset(
        ("MNetTrainer:MNetPlans:3d_fullres", "nnUNetTrainer:nnUNetPlans:3d_fullres"), tuple("01234"), (), None, None
    ),
}
"""quick: a first look on equal terms, in plans of its own names; full: each method as its authors train it."""


@dataclass(frozen=True)
class WholeRun:
    """What is to be done with a data set, and where.

    Args:
        dataset: its whole name.
        output: for predictions, evaluation and the page.
        images: to be predicted; None: there are none.
        training: flags of the training block of plans that are made.
        epochs: in that block, None as published; as `iterations` of an epoch.
    """

    dataset: str
    models: tuple[Model, ...]
    folds: tuple[str, ...]
    output: Path
    images: Path | None
    training: tuple[str, ...] = ()
    epochs: int | None = None
    iterations: int | None = None
    wishes: Wishes = AS_USUAL

    def settings(self) -> dict[str, Any]:
        """All that decides what the run makes, as JSON holds it, by flags."""
        return {
            "-d": self.dataset,
            "-m": [str(model) for model in self.models],
            "-f": list(self.folds),
            "-i": None if self.images is None else str(self.images),
            "-r": None if self.wishes.labels is None else str(self.wishes.labels),
            "--epochs": self.epochs,
            "--iterations": self.iterations,
        }


def open_output(way: WholeRun, *, make: bool = True) -> None:
    """Make the folder of a run, or see that it is that of the same run.

    Args:
        make: False only looks, so that a request that is refused later leaves nothing.

    Raises:
        InputError: a file, another folder, or that of a run with other settings.
    """
    output, remedy = way.output, "choose another -o"
    if output.exists() and not output.is_dir():
        raise InputError(f"-o {output}, a file", "a folder", remedy)
    settings = way.settings()
    path = output / SETTINGS
    if path.is_file():
        before = read_json(path, remedy)
        other = [key for key in settings if before.get(key) != settings[key]]
        if other:
            told = listed(f"{key} {_told(settings[key])}, which was {_told(before.get(key))}" for key in other)
            raise InputError(f"{told}, in {path}", "the settings of the run that goes on", f"repeat them, or {remedy}")
        return
    if output.is_dir() and any(output.iterdir()):
        raise InputError(f"-o {output}, in which no run has begun (it lacks {SETTINGS})", "a new folder", remedy)
    if not make:
        return
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)
    except OSError as error:
        raise unwritable(output, error) from None


def _told(value: Any) -> str:
    return listed(value, separator=" ") if isinstance(value, list) else "none" if value is None else str(value)


def planning(way: WholeRun, seen: Mapping[str, Seen], how: How) -> list[Job]:
    """The jobs that make plans and preprocess for them, one after the other; nnU-Net's first, whose data ours share.

    Plans that are there already are taken as they are, and have none, unless the job that makes them has not finished.

    Args:
        seen: how the jobs stand that were submitted before, by name.

    Raises:
        InputError: plans that are not there and whose planner is not known, or of `check_lengths`.
    """
    folder = nnunet_folder("nnUNet_preprocessed") / way.dataset
    there = [model.plans for model in way.models if (folder / f"{model.plans}.json").is_file()]
    named = list(dict.fromkeys(model.plans for model in way.models))
    unfinished = [name for name in named if (job := seen.get(plan_job(name))) is not None and job.state != FINISHED]
    making = [name for name in named if name not in there or name in unfinished]
    making.sort(key=lambda name: not of_nnunet(name))
    check_lengths(way, there)
    jobs: list[Job] = []
    for name in making:
        planner, flags, by_default = planner_of(name)
        words = [OURS, "plan_and_preprocess", "-d", way.dataset, "-pl", planner, "--no_pbar"]
        configurations = [model.configuration for model in way.models if model.plans == name]
        if "3d_cascade_fullres" not in configurations:  # which reads the data of two others
            words += ["-c", *dict.fromkeys(configurations)]
        words += flags
        words += [] if by_default else ["-overwrite_plans_name", name]
        words += way.training
        for flag, (_, value) in length(way).items():
            words += [flag, str(value)]
        jobs.append(how.job(plan_job(name), words, [job.name for job in jobs[-1:]]))
    return jobs


def plan_job(plans: str) -> str:
    """The name of the job that makes plans."""
    return f"plan_{plans}"


class Submission(NamedTuple):
    """What became of a request."""

    jobs: tuple[Job, ...]
    """Those that were lacking, which are submitted now."""
    names: tuple[str, ...]
    """Of all jobs of the request, to be waited for."""
    told: tuple[str, ...]
    """What is not to be done, one sentence each."""


def submit_plans(way: WholeRun, how: How, rest: Sequence[str] = ()) -> Submission:
    """Submit what makes the plans, where some are lacking.

    Args:
        rest: the command that submits what comes after them, as a job of this machine, which needs no terminal then.

    Raises:
        InputError: as `planning` and `open_output`, an unknown trainer, of which nothing is submitted, or the engine
            refuses.
    """
    known, seen = _known(way, how)
    refuse_unknown_trainers(way.dataset, way.models)
    jobs = planning(way, seen, how)
    open_output(way, make=False)
    if jobs and rest and how.engine == "local":
        jobs.append(how.job(REST, rest, [job.name for job in jobs]))
    return _submit(way, how, known, seen, Request(tuple(jobs)))


def submit_trainings(way: WholeRun, how: How, steps: Sequence[str] = STEPS, *, run: bool = False) -> Submission:
    """Submit what is lacking of the trainings, and of what comes after them.

    Args:
        run: the output is that of a run, with its settings.

    Raises:
        InputError: a request that cannot be done, of which nothing is written or submitted, or the engine refuses.
    """
    known, seen = _known(way, how)
    if run:
        open_output(way, make=False)
    wanted = trainings(way.dataset, way.models, way.folds, seen, how)
    after = afterwards(
        way.dataset,
        way.models,
        way.folds,
        steps,
        way.output,
        how,
        after=wanted.last,
        images=way.images,
        validated=wanted.validated,
        wishes=way.wishes,
    )
    jobs, told, last = (getattr(wanted, name) + getattr(after, name) for name in ("jobs", "told", "last"))
    return _submit(way, how, known, seen, Request(jobs, told, last, wanted.cases, reads=after.reads), run=run)


def _known(way: WholeRun, how: How) -> tuple[dict[str, Job], dict[str, Seen]]:
    """The jobs that were submitted before, and how they stand.

    Raises:
        InputError: resources that the engine has not, or no nnU-Net.
    """
    refuse_no_nnunet()
    engines()[how.engine].check(how.resources)
    folder = jobs_folder(way.dataset)
    known = read_jobs(folder)
    return known, standing(folder, known)


def _submit(
    way: WholeRun, how: How, known: Mapping[str, Job], seen: Mapping[str, Seen], wanted: Request, *, run: bool = False
) -> Submission:
    lacking = to_submit(wanted, known, seen, way.dataset)
    refuse_other_engine(lacking, known, how.engine)
    if lacking:
        if run:
            open_output(way)
        if wanted.reads:  # which write there
            _make(way.output)
        if wanted.cases and set(way.folds) != {"all"}:
            write_splits(way.dataset, wanted.cases)
        engines()[how.engine].submit(jobs_folder(way.dataset), lacking)
    there = [f"{job.name}: {seen[job.name].state} already" for job in wanted.jobs if job not in lacking]
    names = dict.fromkeys((*wanted.last, *(job.name for job in wanted.jobs)))
    return Submission(tuple(lacking), tuple(names), (*wanted.told, *there))


def _make(output: Path) -> None:
    """Make the folder of what comes after the trainings.

    Raises:
        InputError: it cannot be made or written.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(output, error) from None
    if reason := why_not_writable(output):
        raise InputError(f"-o {output} ({reason})", "a folder that can be written", "choose another")


def to_submit(wanted: Request, known: Mapping[str, Job], seen: Mapping[str, Seen], dataset: str) -> list[Job]:
    """Those of the wanted jobs that are neither finished nor under way, and those that need one of these.

    A command of ours has finished where it ran with the same flags after all that it needs had ended, what it read has
    not changed since it began, and what it wrote is there. Trainings are wanted only where folds lack something.

    Args:
        known: the jobs that were submitted before, by name; `seen` tells how they stand.

    Raises:
        InputError: a job of the same name is under way with another command.
    """
    folder = jobs_folder(dataset)
    lacking: dict[str, Job] = {}
    for job in wanted.jobs:
        before = known.get(job.name)
        same = before is not None and _essence(before.command) == _essence(job.command)
        if under_way(seen.get(job.name)):
            if not same:
                raise InputError(
                    f"a job {job.name} that is {seen[job.name].state} for another request",
                    "one at a time",
                    f"wait until it has ended, or run nnunetv2_ext jobs -d {dataset} --cancel {job.name}",
                )
            continue
        done = same and seen[job.name].state == FINISHED and job.command[0] == OURS and _product(job).exists()
        if done and not any(need in lacking or under_way(seen.get(need)) for need in job.needs):
            last, *needed = (state_or_none(folder, name).last for name in (job.name, *job.needs))
            before_it = all((need.ended or 0.0) <= (last.ended or 0.0) for need in needed)
            if before_it and all(changed(path) <= last.began for path in wanted.reads.get(job.name, ())):
                continue
        lacking[job.name] = job
    return list(lacking.values())


def _essence(command: Sequence[str]) -> tuple[str, ...]:
    """A command without what depends on what is there already."""
    return tuple(word for word in command if word != "--overwrite")


def _product(job: Job) -> Path:
    """What tells that a command was here."""
    words = job.command
    if "-o" in words:
        return Path(words[words.index("-o") + 1])
    return (
        nnunet_folder("nnUNet_preprocessed") / words[words.index("-d") + 1] / f"{job.name.removeprefix('plan_')}.json"
    )
