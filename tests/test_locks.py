"""One process at a time: the other is named, and one that was killed is not waited for."""

import errno
import os
import platform
import signal
import subprocess
import sys
from unittest.mock import Mock

import pytest

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.locks import complete_or_absent, held, hold, holder, let_go

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


def test_who_holds_it_is_never_the_one_before(tmp_path, other, monkeypatch):
    """Also on a full disk, where the new one cannot tell."""
    other.kill()
    other.wait()
    assert (holder(tmp_path, "fold_0") or {})["process"] == other.pid
    monkeypatch.setattr("nnunetv2_ext.locks.write_json", Mock(side_effect=OSError(errno.ENOSPC, "No space left")))
    with held(tmp_path, "fold_0", "a training of fold 0"):
        assert holder(tmp_path, "fold_0") is None


def test_an_inner_block_leaves_the_lock_to_the_outer(tmp_path):
    with held(tmp_path, "fold_0", "the outer"):
        with held(tmp_path, "fold_0", "the inner"):
            pass
        program = HOLD.replace("time.sleep(600)", "")
        ended = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False
        )
        assert f"while process {os.getpid()} on " in ended.stderr and ended.returncode == 1


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def acquire(self, **options):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    with pytest.warns(UserWarning, match=r"fold_0.lock cannot be locked \(No locks available\)"):
        hold(tmp_path, "fold_0", "a training")
    let_go(tmp_path, "fold_0")


def test_a_process_takes_its_own_lock_again_and_lets_it_go(tmp_path):
    for _ in range(2):
        hold(tmp_path, "fold_0", "a training of fold 0")
        hold(tmp_path, "fold_0", "a training of fold 0")
        let_go(tmp_path, "fold_0")
        let_go(tmp_path, "fold_0")
    assert not list(tmp_path.glob("*.running.json"))


def test_complete_folder_takes_its_place(tmp_path):
    target = tmp_path / "Dataset001_A"
    with complete_or_absent(target) as folder:
        (folder / "file").write_text("1")
        assert folder.name == target.name
        assert not target.exists()
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == [
        "Dataset001_A",
        "Dataset001_A/file",
    ]
    # As any other new folder, not only for its owner.
    (tmp_path / "ordinary").mkdir()
    assert target.stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize(
    ("error", "raised", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left"), InputError, "on writing .*Dataset001_A .*No space left"),
        (InputError("a", "b", "c"), InputError, "got a; expected b; c"),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
    ],
)
def test_nothing_is_left_of_an_incomplete_folder(tmp_path, error, raised, sentence):
    with pytest.raises(raised, match=sentence), complete_or_absent(tmp_path / "Dataset001_A") as folder:
        (folder / "file").write_text("1")
        raise error
    assert not [*tmp_path.iterdir()]


def test_folder_made_meanwhile_is_kept(tmp_path):
    target = tmp_path / "Dataset001_A"
    with pytest.raises(InputError, match="on writing"), complete_or_absent(target):
        target.mkdir()
        (target / "other").write_text("1")
    assert [path.name for path in tmp_path.rglob("*")] == ["Dataset001_A", "other"]
