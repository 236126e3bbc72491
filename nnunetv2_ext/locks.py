"""One at a time: a folder that one process fills is closed to others until that process ends, however it ends.

New folders are filled beside their place and appear when they are whole.
"""

import glob
import math
import os
import platform
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import read_json, unwritable, write_json
from nnunetv2_ext.text import one_line

FILLED = "filled"
"""What is held of a hidden folder while a new one is filled in it."""
PARENT = "nnUNet_ext_held"
"""Variable with the lock that the process above this one holds for it: a job, for the training that it runs."""
_HELD: dict[Path, BaseFileLock] = {}
"""The locks of this process, which may take each as often as it likes."""


def lock_file(folder: Path, name: str) -> Path:
    """The hidden file beside `name` that is locked."""
    return folder / f".{name}.lock"


def hold(folder: Path, name: str, doing: str, *, patience: float = 0) -> None:
    """Close `name` of a folder to other processes until `let_go`, or until this process ends, be it killed.

    The operating system keeps the lock, so that one of a process that is gone never stands in the way, and on a shared
    file system other machines see it. Where there are no locks, a warning says so. `.NAME.running.json` beside it tells
    who holds it.

    Args:
        name: of what is closed, a file or folder in `folder`, there already or not.
        doing: what holds it, for the message of another process ("a training of fold 0").
        patience: seconds to wait for it; `is_held` of another process takes it for an instant.

    Raises:
        InputError: another process holds it; the sentence names it.
    """
    path = lock_file(folder, name)
    if path in _HELD or os.path.realpath(path) == os.environ.get(PARENT):
        return
    lock = FileLock(path)
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        raise InputError(
            f"{doing} in {folder / name} while {_holder(folder, name)}",
            "one at a time",
            "wait until it has ended, or end it",
        ) from None
    except OSError as error:
        warning = f"{path} cannot be locked ({error.strerror}): see to it that nothing else works there meanwhile"
        warnings.warn(warning, stacklevel=2)
        return
    _HELD[path] = lock
    who = {"host": platform.node(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S"), "doing": doing}
    with suppress(OSError):  # a full disk; the lock does without
        _told(folder, name).unlink(missing_ok=True)  # of one that was killed
        write_json(_told(folder, name), {**who, "command": " ".join(sys.argv)})


def let_go(folder: Path, name: str) -> None:
    """Open what `hold` closed; nothing where this process holds no lock."""
    lock = _HELD.pop(lock_file(folder, name), None)
    if lock is not None:
        _told(folder, name).unlink(missing_ok=True)
        lock.release()


def is_held(folder: Path, name: str) -> bool:
    """Whether a process, this one or another, holds `name` of a folder now; False where there are no locks."""
    path = lock_file(folder, name)
    if path in _HELD:
        return True
    if not path.is_file():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:
        return False
    lock.release()
    return False


def check_locks(folder: Path) -> None:
    """Refuse a folder whose file system knows no locks, where `hold` keeps nothing closed.

    Raises:
        InputError: it knows none.
        OSError: it cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix=".locks_", dir=folder) as trial, warnings.catch_warnings():
        warnings.simplefilter("error")  # of filelock, which would do with a file of its own
        try:
            with FileLock(Path(trial, "lock"), timeout=0):
                return
        except (OSError, UserWarning) as error:
            raise InputError(
                f"{folder}, where files cannot be locked ({one_line(error)})",
                "a file system with locks, as without them two processes may run one job at once",
                "set nnUNet_results to a folder elsewhere, or mount this one with locks",
            ) from None


@contextmanager
def held(folder: Path, name: str, doing: str, *, patience: float = 0) -> Iterator[None]:
    """`hold` for the length of a block, or of the one around it that holds the same."""
    mine = lock_file(folder, name) not in _HELD
    hold(folder, name, doing, patience=patience)
    try:
        yield
    finally:
        if mine:
            let_go(folder, name)


def _told(folder: Path, name: str) -> Path:
    return folder / f".{name}.running.json"


def holder(folder: Path, name: str) -> dict[str, Any] | None:
    """The `host`, `process`, time (`since`) and work (`doing`) of who holds a lock; None where it has not told yet."""
    with suppress(InputError):
        who: dict[str, Any] = read_json(_told(folder, name), "")
        if {"host", "process", "since", "doing"} <= who.keys():
            return who
    return None


def tell_again(folder: Path, name: str) -> None:
    """Say that the holder of a lock, this process, still lives, for machines that do not see the lock: see `silent`."""
    with suppress(OSError):
        os.utime(_told(folder, name))


def silent(folder: Path, name: str) -> float:
    """Seconds for which the holder of a lock has told nothing; endless where none has told."""
    with suppress(OSError):
        return time.time() - _told(folder, name).stat().st_mtime
    return math.inf


def _holder(folder: Path, name: str) -> str:
    """Who holds a lock, in words."""
    who = holder(folder, name)
    if who is None:
        return "another process does"
    return f"process {who['process']} on {who['host']} runs {who['doing']} since {who['since']}"


@contextmanager
def ended_in_order() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a block as Ctrl-C does, so that nothing half made stays: exit status 128 + signal.

    Not for blocks in which processes are forked: in a new one, the signal can be lost before Python is there to take
    it, and nnU-Net's pools, which end their processes so, would wait for ever.
    """
    here, before = os.getpid(), {}

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != here:  # a process forked from here
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise SystemExit(128 + number)

    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores one
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def complete_or_absent(target: Path) -> Iterator[Path]:
    """A new folder to write into, which becomes `target` when the block ends and vanishes when it fails.

    A kill leaves it behind, hidden beside `target`; the next time removes it. See `remove_left_behind` for data sets.

    Raises:
        InputError: an error of the file system within the block or on making or renaming the folder.
    """
    for folder in _left_behind(target, f".{glob.escape(target.name)}_????????"):  # as tempfile names them
        if not is_held(folder, FILLED):
            shutil.rmtree(folder, ignore_errors=True)
    try:
        # On the same file system, so that the renaming is one step.
        with (
            tempfile.TemporaryDirectory(prefix=f".{target.name}_", dir=target.parent) as parent,
            held(Path(parent), FILLED, f"the making of {target.name}"),
        ):
            unfinished = Path(parent, target.name)
            unfinished.mkdir()
            with ended_in_order():
                yield unfinished
            unfinished.rename(target)
    except OSError as error:
        raise unwritable(target, error) from None


def remove_left_behind(target: Path) -> list[Path]:
    """Remove the hidden folders that killed processes left of a data set with the id of `target`.

    Only those of this machine whose process has ended. What another machine left stays.

    Returns:
        The folders that were removed.

    Raises:
        InputError: a process of this machine is making a data set with that id.
    """
    removed = _left_behind(target, f".{glob.escape(target.name.partition('_')[0])}_*")
    for folder in removed:
        with held(folder, FILLED, f"the making of {target.name}"):
            shutil.rmtree(folder, ignore_errors=True)
    return removed


def _left_behind(target: Path, pattern: str) -> list[Path]:
    """The folders beside `target` that a process of this machine fills or filled."""
    folders = []
    for folder in sorted(target.parent.glob(pattern)):
        with suppress(InputError):  # none of ours
            if read_json(_told(folder, FILLED), "").get("host") == platform.node():
                folders.append(folder)
    return folders
