"""What a whole command costs, from the start of its process to its end: time, first result, processor time, memory."""

import contextlib
import os
import resource
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_ext.testing.trainer import Shell, finish

PROC = Path("/proc")
INTERVAL = 0.05


@dataclass(frozen=True)
class Cost:
    """Of one run of a command and of all processes that it started."""

    seconds: float
    first: float
    """Seconds from the start to the first file of the output folder; NaN where none came."""
    processor: float
    """Seconds of all cores."""
    memory: int
    """Bytes, at the highest, that no file backs: anonymous and shared memory, summed over the processes; 0 where the
    system does not tell. Libraries in memory, which processes share, are left out."""


def run(shell: Shell, command: str, *, output: Path, ending: str) -> Cost:
    """Run a command line in a fresh process.

    Args:
        output: the new folder that it writes files to which end with `ending`.

    Raises:
        AssertionError: it failed; with the end of what it printed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    process = shell.start(command)
    watch = _Watch(process.pid, start, output, ending)
    watch.start()
    try:
        finish(process, command, 0)
        seconds = time.perf_counter() - start
    finally:
        watch.ended.set()
        watch.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return Cost(seconds, watch.first, processor, watch.memory)


class _Watch(threading.Thread):
    """Looks at a session of processes and at its output folder while it runs."""

    def __init__(self, session: int, start: float, output: Path, ending: str):
        super().__init__(daemon=True)
        self.session, self.began, self.output, self.ending = session, start, output, ending
        self.first, self.memory = float("nan"), 0
        self.ended = threading.Event()

    def run(self) -> None:
        last = False
        while not last:
            last = self.ended.wait(INTERVAL)  # looks once more after the end
            self.memory = max(self.memory, memory_of(self.session))
            if self.first != self.first and any(
                path.name.endswith(self.ending) and not path.name.startswith(".") for path in _files(self.output)
            ):
                self.first = time.perf_counter() - self.began


def _files(folder: Path) -> list[Path]:
    return [*folder.iterdir()] if folder.is_dir() else []


def memory_of(session: int) -> int:
    """Bytes of anonymous and shared memory of all processes of a session; 0 without Linux's /proc."""
    total = 0
    for folder in _files(PROC):
        # a process may end meanwhile
        with contextlib.suppress(OSError):
            if folder.name.isdecimal() and os.getsid(int(folder.name)) == session:
                lines: dict[str, Any] = dict(
                    line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line
                )
                total += 1024 * sum(int(lines.get(key, "0").split()[0]) for key in ("RssAnon", "RssShmem"))
    return total
