"""What runs jobs: one implementation per file beside this one, `local.py` and `slurm.py`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from nnunetv2_ext.jobs.record import Job, Resources


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
        """How jobs of this engine stand, by name; a job whose supervisor was killed has failed."""

    def cancel(self, folder: Path, jobs: Sequence[Job]) -> None:
        """End jobs and all their processes, or take them out of the queue; comes back when they are gone."""


def engines() -> dict[str, Engine]:
    """Every engine by its name."""
    from nnunetv2_ext.jobs.local import Local
    from nnunetv2_ext.jobs.slurm import Slurm

    return {engine.name: engine for engine in (Local(), Slurm())}
