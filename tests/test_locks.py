"""One process at a time: the other is named, and one that was killed is not waited for."""

import os
import platform
import signal
import subprocess
import sys

import pytest

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.locks import held, hold, let_go

HOLD = """
import sys, time
from pathlib import Path
from nnunetv2_ext.locks import hold
hold(Path(sys.argv[1]), "fold_0", "a training of fold 0")
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """A process that holds fold_0."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_names_the_first(tmp_path, other):
    sentence = rf"while process {other.pid} on {platform.node()} runs a training of fold 0 since 20\d\d-.*wait"
    with pytest.raises(InputError, match=sentence):
        hold(tmp_path, "fold_0", "a training of fold 0")
    with held(tmp_path, "fold_1", "a training of fold 1"):
        pass


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_killed_process_is_free(tmp_path, other, how):
    os.kill(other.pid, how)
    other.wait()
    with held(tmp_path, "fold_0", "a training of fold 0"):
        pass


def test_a_process_takes_its_own_lock_again_and_lets_it_go(tmp_path):
    for _ in range(2):
        hold(tmp_path, "fold_0", "a training of fold 0")
        hold(tmp_path, "fold_0", "a training of fold 0")
        let_go(tmp_path, "fold_0")
        let_go(tmp_path, "fold_0")
    assert not list(tmp_path.glob("*.running.json"))
