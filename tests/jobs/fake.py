"""An engine that runs nothing: jobs are written as an engine writes them, and stand as the test says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from nnunetv2_ext.cli import jobs
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.jobs import engine as of_jobs
from nnunetv2_ext.jobs import whole_run
from nnunetv2_ext.jobs.engine import Seen
from nnunetv2_ext.jobs.record import CANCELLED, WAITING, Job, Resources, write_job


@dataclass
class FakeEngine:
    """Remembers what it was asked for."""

    name: str = "local"
    gpus: int = 4
    submitted: list[Job] = field(default_factory=list)
    states: dict[str, Seen] = field(default_factory=dict)

    def check(self, resources: Resources) -> None:
        lacking = [gpu for gpu in resources.gpus or () if gpu >= self.gpus]
        if lacking:
            raise InputError(f"--gpus {lacking[0]}", f"GPUs of this machine, 0 to {self.gpus - 1}", "correct it")

    def submit(self, folder: Path, jobs: Sequence[Job]) -> None:
        for job in jobs:
            write_job(folder, replace(job, id=f"{self.name}-{len(self.submitted)}"))
            self.submitted.append(job)
            self.states[job.name] = Seen(WAITING)

    def look(self, folder: Path, jobs: Mapping[str, Job]) -> dict[str, Seen]:
        return {name: self.states.get(name, Seen(WAITING)) for name in jobs}

    def cancel(self, folder: Path, jobs: Sequence[Job]) -> None:
        self.states |= {job.name: Seen(CANCELLED) for job in jobs}


def use(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """In place of both engines; returns that of this machine."""
    local, slurm = FakeEngine(), FakeEngine("slurm")
    for module in (of_jobs, jobs, whole_run):
        monkeypatch.setattr(module, "engines", lambda: {"local": local, "slurm": slurm})
    monkeypatch.setattr(jobs, "revive", lambda datasets: [])
    return local
