"""Jobs of tiny commands in a folder, and what becomes of their processes."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nnunetv2_ext.jobs.engine import Seen, standing
from nnunetv2_ext.jobs.local import Local
from nnunetv2_ext.jobs.record import LOG, Job, State, read_jobs, read_state, write_job
from nnunetv2_ext.locks import holder, is_held
from tests.doctor.conftest import Prepared, prepare


def wait_for(told: Callable[[], object], seconds: float = 10, pause: float = 0.02) -> Any:
    """What `told` returns once it is true."""
    end = time.monotonic() + seconds
    while not (value := told()):
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(pause)
    return value


class Jobs:
    """A folder of jobs."""

    def __init__(self, folder: Path, mark: str):
        self.folder = folder
        self.mark = mark
        """An odd number of seconds, to know the sleeping processes of this test by."""

    def sleepers(self) -> list[int]:
        """The processes that sleep for `mark` seconds."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = path.read_bytes().split(b"\0")
                if words[:2] == [b"sleep", self.mark.encode()]:
                    found.append(int(path.parent.name))
        return found

    def job(self, name: str, script: str, **arguments: Any) -> Job:
        """A job of a shell script, in which SLEEP sleeps long."""
        script = script.replace("SLEEP", f"sleep {self.mark}")
        return Job(name, ("sh", "-c", script), **{"retries": 0, **arguments})

    def supervisor(self, job: Job, *more: str) -> "subprocess.Popen[bytes]":
        """Start the supervisor of a job, as the queue does."""
        write_job(self.folder, job)
        command = [sys.executable, "-m", "nnunetv2_ext.jobs.supervisor", str(self.folder), job.name, *more]
        return subprocess.Popen(command, start_new_session=True)

    def submit(self, *jobs: Job) -> None:
        Local().submit(self.folder, jobs)

    def look(self) -> dict[str, str]:
        """The state of each job."""
        return {name: seen.state for name, seen in self.seen().items()}

    def seen(self) -> dict[str, Seen]:
        """How each job stands."""
        return standing(self.folder, read_jobs(self.folder))

    def until(self, **states: str) -> None:
        """Wait until jobs stand so."""
        try:
            wait_for(lambda: states.items() <= self.look().items(), 20)
        except AssertionError:
            raise AssertionError(f"{self.look()}, not {states}") from None

    def state(self, name: str) -> State:
        return read_state(self.folder, name)

    def log(self, name: str) -> str:
        path = self.folder / name / LOG
        return path.read_text() if path.is_file() else ""

    def process(self, name: str) -> int:
        """The supervisor of a job, or the queue."""
        return int(wait_for(lambda: is_held(self.folder, name) and holder(self.folder, name))["process"])


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    """A folder of jobs; fails if a process of it is left."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "jobs"
    folder.mkdir()
    made = Jobs(folder, f"{1000 + os.getpid() % 1000}.{tmp_path.name[-1]}{time.time_ns() % 10**6}")
    try:
        yield made
        wait_for(lambda: not made.sleepers(), 3)
    finally:
        if is_held(folder, "queue"):
            os.kill(made.process("queue"), signal.SIGKILL)
        with contextlib.suppress(ValueError):
            Local().cancel(folder, [*read_jobs(folder).values()])
        for process in made.sleepers():
            os.kill(process, signal.SIGKILL)


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    made = prepare(tmp_path, monkeypatch)
    made.change_plans("nnUNetPlans", data_identifier="nnUNetPlans_3d", patch_size=[32] * 3)
    return made
