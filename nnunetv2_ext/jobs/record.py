"""A job as it stands in its folder: the command, the jobs that it needs, and how it went.

`$nnUNet_results/DATASET/jobs/NAME/` holds `job.json`, written by who submits, `state.json`, and `log.txt`, all that the
command printed. Both JSON files are replaced as a whole. While a job runs, its supervisor alone writes the state; else
its engine does, where the job is submitted, cancelled, or ended without a word.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import nnunet_folder, read_json, write_json

JOBS, JOB, STATE, LOG = "jobs", "job.json", "state.json", "log.txt"
WAITING, RUNNING, FINISHED, FAILED = "waiting", "running", "finished", "failed"
CANCELLED, TIMED_OUT, BLOCKED = "cancelled", "timed out", "not to run"
"""The states of a job; one is not to run where a job that it needs has failed or was cancelled."""
ENDED = (FINISHED, FAILED, CANCELLED, TIMED_OUT)
"""What a supervisor leaves in `state.json` when it is done; `RUNNING` before, `WAITING` where it runs again later."""


@dataclass(frozen=True)
class Resources:
    """What each job may take; what is None is left to the engine."""

    gpus: tuple[int, ...] | None = None
    """Of this machine, one for each job at a time; none: the CPU."""
    jobs: int | None = None
    """Jobs at a time on this machine without GPUs."""
    minutes: float | None = None
    """Longest time of one run; SLURM puts the job into the queue again, and it goes on where it was."""
    partition: str | None = None
    account: str | None = None
    gres: str | None = None
    memory_gb: float | None = None
    cpus: int | None = None
    lines: tuple[str, ...] = ()
    """More lines for SLURM, without `#SBATCH`: `--qos=long`."""

    def without_gpu(self) -> "Resources":
        """The same for a job that computes on the CPU: it must not keep a GPU from others."""
        gres = ",".join(part for part in (self.gres or "").split(",") if not part.startswith("gpu")) or None
        lines = tuple(line for line in self.lines if not line.startswith(("--gpus", "--gres")))
        return replace(self, gpus=None, gres=gres, lines=lines)


@dataclass(frozen=True)
class Job:
    """One command, to be run once the jobs that it needs have finished.

    Args:
        name: the name of its folder: `MNetTrainer__MNetPlans__3d_fullres__fold_0`, `predict`.
        command: program and arguments. A training gets `--c` or `--val` where it goes on; it has `--val` from the
            beginning where a whole fold is to be validated again.
        needs: names of other jobs of the same data set.
        fold: folder of the fold, where the command is a training.
        environment: variables set for it, nnU-Net's for instance.
        retries: how often it is run again after a failure.
        engine: who runs it: "local" or "slurm".
        id: what the engine calls it.
        directory: where the command runs, for relative paths in it; None for that of its supervisor.
    """

    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    fold: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    resources: Resources = Resources()
    retries: int = 2
    engine: str = "local"
    id: str | None = None
    directory: Path | None = None


@dataclass(frozen=True)
class Attempt:
    """One run of a job's command; seconds since 1970."""

    began: float
    ended: float | None = None
    exit: int | None = None
    """The exit status, as shells tell it: 128 + signal for one that was killed."""
    reason: str = ""
    """Why it failed, one line."""
    epochs: int | None = None
    """Whole epochs of a training when it ended."""


@dataclass(frozen=True)
class State:
    """How a job goes.

    Args:
        host: the machine of the supervisor, with its process id.
        group: the process group of the command.
        device: the GPU given to it, as CUDA_VISIBLE_DEVICES names it; "" for the CPU, None where the engine chose none.
        note: what went wrong beside the command: a log that could not be written.
    """

    state: str = WAITING
    attempts: tuple[Attempt, ...] = ()
    host: str = ""
    process: int | None = None
    group: int | None = None
    device: str | None = None
    note: str = ""

    @property
    def last(self) -> Attempt:
        """The last run; one at the beginning of time where there is none."""
        return self.attempts[-1] if self.attempts else Attempt(0.0)


def jobs_folder(dataset: str) -> Path:
    """Where the jobs of a data set stand, there or not; `dataset` is its whole name."""
    return nnunet_folder("nnUNet_results") / dataset / JOBS


def write_job(folder: Path, job: Job) -> None:
    """Write `job.json` of a job in the folder of all of the data set."""
    (folder / job.name).mkdir(parents=True, exist_ok=True)
    paths = {
        key: None if path is None else str(path) for key, path in (("fold", job.fold), ("directory", job.directory))
    }
    content = asdict(job) | paths | {"environment": {**job.environment}}
    write_json(folder / job.name / JOB, content)


def read_jobs(folder: Path) -> dict[str, Job]:
    """All jobs of a data set by name, in the order of their names; none where there is no such folder.

    One with a damaged `job.json` has no command: see `damage`.
    """
    jobs = {}
    for path in sorted(folder.glob(f"*/{JOB}")):
        name = path.parent.name
        try:
            jobs[name] = _job(path)
        except InputError:
            if path.is_file():  # and was not removed just now
                jobs[name] = Job(name, ())
    return jobs


def damage(folder: Path, name: str) -> str:
    """What is wrong with `job.json` of a job, and what to do; empty where nothing is."""
    try:
        read_job(folder, name)
    except InputError as error:
        return str(error)
    return ""


def read_job(folder: Path, name: str) -> Job:
    """One of the jobs of a data set.

    Raises:
        InputError: a damaged `job.json`, or none.
    """
    return _job(folder / name / JOB)


def _job(path: Path) -> Job:
    remedy = "remove its folder and submit the job again"
    content = read_json(path, remedy)
    try:
        resources = content["resources"]
        lists = {key: tuple(resources[key]) for key in ("gpus", "lines") if resources[key] is not None}
        return Job(
            **{
                **content,
                "command": tuple(content["command"]),
                "needs": tuple(content["needs"]),
                **{key: None if content[key] is None else Path(content[key]) for key in ("fold", "directory")},
                "resources": Resources(**{**resources, **lists}),
            }
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"a damaged {path} ({error})", "a job as this version writes it", remedy) from None


def write_state(folder: Path, name: str, state: State) -> None:
    """Write `state.json` of a job; while it runs, only its supervisor may."""
    write_json(folder / name / STATE, asdict(state))


def read_state(folder: Path, name: str) -> State:
    """How a job goes, as its supervisor last said; waiting where none has begun.

    Raises:
        InputError: a damaged `state.json`.
    """
    path = folder / name / STATE
    if not path.is_file():
        return State()
    remedy = "remove the file, and the job counts as one that has not run"
    content: dict[str, Any] = read_json(path, remedy)
    try:
        attempts = tuple(Attempt(**attempt) for attempt in content["attempts"])
        return State(**{**content, "attempts": attempts})
    except (KeyError, TypeError) as error:
        raise InputError(f"a damaged {path} ({error})", "a state as this version writes it", remedy) from None


def state_or_none(folder: Path, name: str) -> State:
    """The state of a job, or that of one that has not run where the file is damaged."""
    with suppress(InputError):
        return read_state(folder, name)
    return State()
