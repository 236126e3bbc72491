"""What runs jobs: one implementation per file beside this one, `local.py` and `slurm.py`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from nnunetv2_ext.jobs.record import BLOCKED, CANCELLED, FAILED, TIMED_OUT, WAITING, Job, Resources, damage

_WAY = ("plan_", "submit_", "preprocess_", "", "find_best", "predict", "evaluate", "report", "audit")
"""How the names of jobs begin, in the order in which they run."""


class Seen(NamedTuple):
    """A job as it stands now: what its supervisor wrote, mended by what the engine knows."""

    state: str
    """One of the states of `record.py`."""
    exit: int | None = None
    reason: str = ""


class Engine(Protocol):
    """Runs the jobs of data sets; knows nothing that is not in their folders or in the scheduler."""

    name: str

    def check(self, resources: Resources) -> None:
        """Refuse what is not there, before anything is written.

        Raises:
            InputError: no scheduler, no such GPU, no such partition, resources that this engine does not know.
        """

    def submit(self, folder: Path, jobs: Sequence[Job]) -> None:
        """Hand over jobs, each after those that it needs, and come back; they outlive this process.

        Args:
            folder: of all jobs of the data set. `job.json` of each is written here, with the engine's id.

        Raises:
            InputError: the scheduler refuses one, in its words; those before it stay submitted.
        """

    def look(self, folder: Path, jobs: Mapping[str, Job]) -> dict[str, Seen]:
        """How jobs of this engine stand, by name; a job whose supervisor was killed has failed.

        One that waits for a job that will not finish may wait here: `standing` tells.
        """

    def cancel(self, folder: Path, jobs: Sequence[Job]) -> None:
        """End jobs and all their processes, or take them out of the queue; comes back when they are gone."""


def engines() -> dict[str, Engine]:
    """Every engine by its name."""
    from nnunetv2_ext.jobs.local import Local
    from nnunetv2_ext.jobs.slurm import Slurm

    return {engine.name: engine for engine in (Local(), Slurm())}


def standing(folder: Path, jobs: Mapping[str, Job]) -> dict[str, Seen]:
    """How all jobs of a data set stand, by name: each engine looks at its own; one that cannot be read has failed.

    Args:
        folder: of all jobs of the data set.
        jobs: as `read_jobs` gives them.
    """
    seen = unreadable(folder, jobs)
    if jobs:
        for name, engine in engines().items():
            if of_engine := {key: job for key, job in jobs.items() if job.engine == name and key not in seen}:
                seen |= engine.look(folder, of_engine)
    return blocked(jobs, seen)


def unreadable(folder: Path, jobs: Mapping[str, Job]) -> dict[str, Seen]:
    """Those that have failed because their `job.json` is damaged, of what `read_jobs` gives."""
    return {name: Seen(FAILED, None, damage(folder, name)) for name, job in jobs.items() if not job.command}


def blocked(jobs: Mapping[str, Job], seen: Mapping[str, Seen]) -> dict[str, Seen]:
    """How jobs stand, where those that wait for a job that will not finish are not to run."""
    after = dict(seen)
    while never := {
        name: why
        for name, one in after.items()
        if one.state == WAITING and (why := next(_never(jobs[name], after), ""))
    }:
        after |= {name: Seen(BLOCKED, None, why) for name, why in never.items()}
    return after


def _never(job: Job, seen: Mapping[str, Seen]) -> Iterator[str]:
    """Why jobs that a job needs will not finish."""
    for need in job.needs:
        if need not in seen:
            yield f"it needs {need}, which is no job here"
        elif seen[need].state in (FAILED, CANCELLED, TIMED_OUT, BLOCKED):
            yield f"it needs {need}: {seen[need].state}"


def in_order(jobs: Iterable[Job]) -> list[Job]:
    """Jobs in the order of the whole way, then by name, each behind those of them that it needs."""
    by_name = {job.name: job for job in jobs}
    ordered: dict[str, Job] = {}

    def add(name: str, above: tuple[str, ...]) -> None:
        if name in by_name and name not in ordered and name not in above:  # a ring of needs would be a damaged record
            for need in sorted(by_name[name].needs, key=_rank):
                add(need, (*above, name))
            ordered[name] = by_name[name]

    for name in sorted(by_name, key=_rank):
        add(name, ())
    return list(ordered.values())


def _rank(name: str) -> tuple[int, str]:
    """The place of a job by its name; trainings have that of names that begin with none of the others."""
    fitting = (number for number, step in enumerate(_WAY) if step and name.startswith(step))
    return next(fitting, _WAY.index("")), name
