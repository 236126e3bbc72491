"""One at a time: a folder that one process fills is closed to others until that process ends, however it ends."""

import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import read_json, write_json

_HELD: dict[Path, BaseFileLock] = {}
"""The locks of this process, which may take each as often as it likes."""


def hold(folder: Path, name: str, doing: str) -> None:
    """Close `name` of a folder to other processes until `let_go`, or until this process ends, be it killed.

    The operating system keeps the lock, so that one of a process that is gone never stands in the way, and on a shared
    file system other machines see it. `.NAME.running.json` beside it tells who holds it.

    Args:
        name: of what is closed, a file or folder in `folder`, there already or not.
        doing: what holds it, for the message of another process ("a training of fold 0").

    Raises:
        InputError: another process holds it; the sentence names it.
    """
    path, told = folder / f".{name}.lock", folder / f".{name}.running.json"
    if path in _HELD:
        return
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"{doing} in {folder / name} while {_holder(told)}",
            "one at a time",
            "wait until it has ended, or end it",
        ) from None
    _HELD[path] = lock
    write_json(
        told,
        {
            "host": platform.node(),
            "process": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "doing": doing,
            "command": " ".join(sys.argv),
        },
    )


def let_go(folder: Path, name: str) -> None:
    """Open what `hold` closed; nothing where this process holds no lock."""
    lock = _HELD.pop(folder / f".{name}.lock", None)
    if lock is not None:
        (folder / f".{name}.running.json").unlink(missing_ok=True)
        lock.release()


@contextmanager
def held(folder: Path, name: str, doing: str) -> Iterator[None]:
    """`hold` for the length of a block."""
    hold(folder, name, doing)
    try:
        yield
    finally:
        let_go(folder, name)


def _holder(told: Path) -> str:
    """Who holds a lock, in words."""
    with suppress(InputError):  # taken a moment ago, and not told yet
        who = read_json(told, "")
        if {"host", "process", "since", "doing"} <= who.keys():
            return f"process {who['process']} on {who['host']} runs {who['doing']} since {who['since']}"
    return "another process does"
