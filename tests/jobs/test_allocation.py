"""Signals of SLURM inside an allocation, without SLURM: what they leave, and who puts the job into the queue again."""

import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from nnunetv2_ext.jobs.record import CANCELLED, FINISHED, WAITING, write_job
from nnunetv2_ext.jobs.retries import TIME_LIMIT
from tests.jobs.conftest import Jobs, wait_for

pytest.importorskip("submitit")
PROCESS = """
import signal, sys
from nnunetv2_ext.jobs.allocation import Task

task = Task(*sys.argv[1:])
def as_submitit(number, frame):
    print("again" if task.checkpoint() is not None else "never", flush=True)
    sys.exit(9)
signal.signal(signal.SIGUSR2, as_submitit)
task()
"""
SQUEUE = "#!/bin/sh\necho '7|COMPLETING|None|15|2026-11-29T15:03:40|folder|name'\n"
"""What SLURM says of a job that scancel ends."""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "squeue"
    program.parent.mkdir()
    program.write_text(SQUEUE)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", "7")


@pytest.mark.parametrize(
    ("number", "status", "state", "why", "printed"),
    [
        (signal.SIGUSR2, 9, WAITING, TIME_LIMIT, "again\n"),
        (signal.SIGTERM, 143, CANCELLED, "cancelled", ""),
    ],
)
def test_a_signal_at_any_moment(
    jobs: Jobs, slurm: None, number: int, status: int, state: str, why: str, printed: str
) -> None:
    rng = random.Random(0)
    for name, script in (("begins", "SLEEP"), ("runs", "SLEEP & SLEEP"), ("ends", "sleep 0.3")):
        write_job(jobs.folder, jobs.job(name, script, engine="slurm", id="7", retries=2))
        command = [sys.executable, "-c", PROCESS, str(jobs.folder), name]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        wait_for(partial(jobs.log, name), pause=0.001)
        time.sleep({"begins": 0, "runs": 0.2, "ends": 0.3}[name] + rng.uniform(0, 0.03))
        for _ in range(2):
            process.send_signal(number)
        output, _ = process.communicate(timeout=20)
        now = jobs.state(name)
        if name == "ends" and now.state == FINISHED:
            assert (process.returncode, output, now.attempts[-1].exit) == (0, "", 0)
            continue
        assert (process.returncode, output, now.state) == (status, printed, state)
        assert [(attempt.exit, attempt.reason) for attempt in now.attempts] in ([], [(143, why)])
    assert not jobs.sleepers()
