"""What a whole command costs, from the start of its process to its end: time, first result, processor time, memory."""

import contextlib
import math
import os
import resource
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_ext.testing.trainer import Shell

PROC = Path("/proc")
INTERVAL = 0.05
MEMORY_INTERVAL = 0.25
"""Longer, since the system counts pages for it: 10 to 30 ms for each process."""


@dataclass(frozen=True)
class Cost:
    """Of one run of a command and of all processes that it started."""

    seconds: float
    first: float
    """Seconds from the start to the first file of the output folder; NaN where none came."""
    processor: float
    """Seconds of all cores."""
    memory: int
    """Bytes, at the highest; 0 where it was not measured."""


def run(shell: Shell, command: str, *, output: Path, ending: str, memory: bool = False) -> Cost:
    """Run a command line in a fresh process.

    Args:
        output: the new folder that it writes files to which end with `ending`.
        memory: measure that, which slows the command down.

    Raises:
        AssertionError: it failed; with the end of what it printed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    process = shell.start(command)
    watch = _Watch(process.pid, start, output, ending, memory)
    watch.start()
    try:
        printed, _ = process.communicate()  # however long it takes
        seconds = time.perf_counter() - start
    finally:
        watch.ended.set()
        watch.join()
    assert process.returncode == 0, f"{command}\nended with {process.returncode}:\n{printed[-6000:]}"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return Cost(seconds, watch.first, processor, watch.memory)


class _Watch(threading.Thread):
    """Looks at a session of processes and at its output folder while it runs."""

    def __init__(self, session: int, start: float, output: Path, ending: str, measures_memory: bool):
        super().__init__(daemon=True)
        self.session, self.began, self.output, self.ending = session, start, output, ending
        self.interval = MEMORY_INTERVAL if measures_memory else INTERVAL
        self.measures_memory = measures_memory
        self.first, self.memory = math.nan, 0
        self.ended = threading.Event()

    def run(self) -> None:
        last = False
        while not last:
            last = self.ended.wait(self.interval)  # looks once more after the end
            if self.measures_memory:
                self.memory = max(self.memory, memory_of(self.session))
            if math.isnan(self.first) and any(path.name.endswith(self.ending) for path in _files(self.output)):
                self.first = time.perf_counter() - self.began


def _files(folder: Path) -> list[Path]:
    return [*folder.iterdir()] if folder.is_dir() else []


def memory_of(session: int) -> int:
    """Bytes of anonymous and shared memory of the processes of a session, shared pages once; 0 without Linux's /proc.

    Pages that files back, those of libraries, are left out.
    """
    total = 0
    for folder in _files(PROC):
        # a process may end meanwhile
        with contextlib.suppress(OSError):
            if folder.name.isdecimal() and os.getsid(int(folder.name)) == session:
                for line in (folder / "smaps_rollup").read_text().splitlines():
                    if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                        total += 1024 * int(line.split()[1])
    return total
