"""A long command as numbered steps: the console tells which and how long, everything else goes into a log file."""

import contextlib
import io
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

QUIET_SECONDS = 30.0
"""Where the console is no terminal (a CI log, for instance), a step reports no more often than this."""
EPOCH = re.compile(r"\bEpoch (\d+)\s*$")
TAIL = 25


class Steps:
    """Runs the steps of a command one after another.

    Within a step, standard output and error of this process and of those it starts end up in `log`. Where a step
    fails, the end of the log is shown and the error goes on.

    Args:
        total: number of steps to come.
        log: file to write to; added to where it exists.
    """

    def __init__(self, total: int, log: Path):
        self.total = total
        self.log = log
        self.number = 0
        self.start = time.monotonic()
        self._console: TextIO = sys.stdout
        self._title = ""
        self._begun = self._reported = self.start

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Announce a step, run what stands under `with`, print the seconds it took."""
        self.number += 1
        self._title = f"[{self.number}/{self.total}] {title}"
        self._begun = self._reported = time.monotonic()
        with _saved_descriptors() as console_copy:
            self._console = console_copy or sys.stdout
            self._say("" if self._console.isatty() else " ...")
            try:
                with self.log.open("a", buffering=1) as log:
                    log.write(f"\n===== {self._title}\n")
                    if console_copy is not None:
                        for descriptor in (1, 2):
                            os.dup2(log.fileno(), descriptor)
                    watcher = _Watcher(log, self)
                    with contextlib.redirect_stdout(watcher), contextlib.redirect_stderr(watcher):
                        yield
            except BaseException:
                self._console.write("\n")
                lines = self.log.read_text(errors="replace").splitlines()[-TAIL:]
                self._console.write("\n".join([f"The end of {self.log}:", *lines, ""]))
                self._console.flush()
                raise
            self._say(f": done in {self._seconds()}", end="\n")

    def advance(self, done: str) -> None:
        """Say within a step how far it is, as in "epoch 3" or "5 of 12"."""
        now = time.monotonic()
        if self._console.isatty():
            self._say(f": {done}, {self._seconds()}")
        elif now - self._reported > QUIET_SECONDS:
            self._reported = now
            self._say(f": {done}, {self._seconds()}")

    def elapsed(self) -> float:
        """Seconds since the first step could begin."""
        return time.monotonic() - self.start

    def _seconds(self) -> str:
        return f"{time.monotonic() - self._begun:.0f} s"

    def _say(self, state: str, end: str = "") -> None:
        if self._console.isatty():
            self._console.write(f"\r\033[K{self._title}{state}{end}")
        else:
            self._console.write(f"{self._title}{state}\n")
        self._console.flush()


@contextlib.contextmanager
def _saved_descriptors() -> Iterator[TextIO | None]:
    """Keep the descriptors 1 and 2 for afterwards; gives the console as a file of its own.

    None where sys.stdout is not descriptor 1, as in a notebook: then there is nothing to redirect at that level.
    """
    try:
        is_console = sys.stdout.fileno() == 1
    except (AttributeError, OSError, io.UnsupportedOperation):
        is_console = False
    if not is_console:
        yield None
        return
    sys.stdout.flush()
    sys.stderr.flush()
    saved = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
    try:
        with os.fdopen(os.dup(1), "w") as console:
            yield console
    finally:
        for descriptor, copy in saved.items():
            os.dup2(copy, descriptor)
            os.close(copy)


class _Watcher(io.TextIOBase):
    """Passes text on to the log and picks out nnU-Net's epochs."""

    def __init__(self, log: TextIO, steps: Steps):
        self.log = log
        self.steps = steps
        self.line = ""

    def write(self, text: str) -> int:
        # print() hands over a line piece by piece.
        *lines, self.line = (self.line + text).split("\n")
        for line in lines:
            if found := EPOCH.search(line):
                self.steps.advance(f"epoch {int(found.group(1)) + 1}")
        return self.log.write(text)

    def flush(self) -> None:
        self.log.flush()

    def fileno(self) -> int:
        return self.log.fileno()
