"""What an evaluation has measured so far, line by line, so that one that was stopped goes on where it was."""

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2_ext.files import FileState, file_state, is_unchanged, write_beside

FILE = "evaluate.unfinished.jsonl"


class Journal:
    """A file of lines: the first tells what is evaluated, each other one the result of a case.

    A kill can cut the last line off, which then does not count.

    Args:
        folder: the output.
        about: what is evaluated, as JSON has it.
    """

    def __init__(self, folder: Path, about: Any):
        self.path = folder / FILE
        self.about = json.loads(json.dumps(about))
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], Any] = {}

    def told(self) -> Any:
        """What the file is about; None where there is none, or nothing that can be read."""
        lines = self._lines()
        return lines[0] if lines else None

    def _lines(self) -> list[Any]:
        lines: list[Any] = []
        try:
            for line in self.path.read_text(encoding="utf-8").splitlines():
                lines.append(json.loads(line))
        except (OSError, ValueError):
            pass
        return lines

    def open(self) -> None:
        """Take over what is known of the same evaluation, and begin the file anew with that.

        Raises:
            OSError: the file cannot be written.
        """
        first, *rest = self._lines() or [None]
        if first == self.about:
            self._known = {
                (entry["model"], entry["case"]): entry for entry in rest if {"model", "case", "files"} <= set(entry)
            }
        lines = "".join(json.dumps(line) + "\n" for line in (self.about, *self._known.values()))
        write_beside(lambda part: part.write_text(lines, encoding="utf-8"), self.path)

    def result(self, model: str, case: str, files: tuple[Path, ...]) -> Any:
        """The result of a case, if it was measured of these files as they are now; None otherwise."""
        entry = self._known.get((model, case))
        if entry is None or entry["files"].keys() != {str(path) for path in files}:
            return None
        unchanged = all(is_unchanged(path, FileState(*entry["files"][str(path)])) for path in files)
        return entry["result"] if unchanged else None

    def add(self, model: str, case: str, files: Mapping[str, FileState], result: Any) -> None:
        """Write the result of a case.

        Raises:
            OSError: the file cannot be written.
        """
        line = json.dumps({"model": model, "case": case, "files": files, "result": result})
        with self._lock, self.path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")


def states(files: tuple[Path, ...]) -> dict[str, FileState]:
    """Those of some files, by path.

    Raises:
        OSError: one cannot be read.
    """
    return {str(path): file_state(path) for path in files}
