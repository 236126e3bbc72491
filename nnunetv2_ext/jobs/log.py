"""The log of a job, which a full disk does not stop."""

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import IO

TAIL = 1 << 16
"""Bytes of the output in which the reason of a failure is looked for."""


class Log:
    """`log.txt` of a job: what the command prints and lines of the supervisor; does without where it cannot be written.

    Args:
        path: of the file, which is continued.
    """

    def __init__(self, path: Path):
        self.fault = ""
        self._thread: threading.Thread | None = None
        self._tail = b""
        self._path = path
        self._file: IO[bytes] | None = None
        self._append(b"")

    def say(self, line: str) -> None:
        """A line of the supervisor."""
        self._append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} [job] {line}\n".encode())

    def follow(self, stream: IO[bytes] | None) -> None:
        """Write what comes out of a pipe until it is closed."""
        assert stream is not None
        self._tail = b""
        self._thread = threading.Thread(target=self._copy, args=(stream,), daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait until all that was printed is written; a process that left the group may hold the pipe open."""
        if self._thread is not None:
            self._thread.join(timeout=2)
        self._thread = None

    def tail(self) -> str:
        """The end of what was printed since `follow`."""
        return self._tail.decode(errors="replace")

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def _copy(self, stream: IO[bytes]) -> None:
        with stream:
            while block := os.read(stream.fileno(), TAIL):
                self._tail = (self._tail + block)[-TAIL:]
                self._append(block)

    def _append(self, block: bytes) -> None:
        try:
            if self._file is None:
                self._file = self._path.open("ab", buffering=0)
            self._file.write(block)
        except OSError as error:
            self.fault = f"lines are missing in {self._path.name} ({error.strerror})"
