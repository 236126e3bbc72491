"""A data worker ends when the training that started it was killed."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nnunetv2_ext.training.workers import EndWithTraining

# the parent forks a worker as nnU-Net's augmenters do; the worker applies the transform, then waits for ever
PARENT = """
import os, sys, time
from nnunetv2_ext.training.workers import EndWithTraining
transform = EndWithTraining()
if os.fork() == 0:
    transform(image=1)
    transform(image=1)
    open(sys.argv[1] + ".tmp", "w").write(str(os.getpid()))
    os.rename(sys.argv[1] + ".tmp", sys.argv[1])
time.sleep(120)
"""


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_until(condition: object, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc to see whether a process lives")
def test_a_worker_ends_after_its_parent_was_killed(tmp_path: Path) -> None:
    file = tmp_path / "worker"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(file)])
    worker = 0
    try:
        assert wait_until(file.exists, 60)
        worker = int(file.read_text())
        time.sleep(1.2)
        assert alive(worker), "the worker must not end while its parent lives"
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert wait_until(lambda: not alive(worker), 5)
    finally:
        parent.kill()
        parent.wait()
        if worker and alive(worker):
            os.kill(worker, signal.SIGKILL)


def test_nothing_starts_in_the_training_process() -> None:
    transform = EndWithTraining()
    before = threading.active_count()
    sample = {"image": object()}
    assert transform(**sample) == sample
    assert transform.watching is None
    assert threading.active_count() == before


def test_a_spawned_worker_gets_the_training_process() -> None:
    transform = pickle.loads(pickle.dumps(EndWithTraining()))
    assert transform.training_process == os.getpid()
