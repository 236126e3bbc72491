"""`predict.json` of an output folder: which models made its label files, of which images, in which time and memory.

By it, a later run knows what is done, and refuses to mix the predictions of other models in.
"""

import re
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2_ext import __version__
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import FileState, file_state, is_unchanged, read_json, write_json

RECORD, RECORDS = "predict.json", re.compile(r"predict(_\d+_of_\d+)?\.json")
TOLD = {"version", "cases", "failed"}
"""What a record holds beside what decides the labels."""


class Part(NamedTuple):
    """The share of one of several processes that fill a folder: every `of`-th case from `number` on."""

    number: int = 0
    of: int = 1

    @property
    def suffix(self) -> str:
        """Of names that each of the processes has for itself."""
        return "" if self.of == 1 else f"_{self.number}_of_{self.of}"

    @property
    def record(self) -> str:
        """The name of its record."""
        return RECORD.replace(".json", f"{self.suffix}.json")


WHOLE = Part()


class Record:
    """What is known of the cases in an output folder; each change is written at once.

    Args:
        folder: the output.
        made_by: models and options that decide what is predicted, as JSON has them.
        part: whose record this is; those of the others are read.
        anew: pass over what is there.

    Raises:
        InputError: predictions of other models or options are there, or a record is damaged.
    """

    def __init__(self, folder: Path, made_by: Mapping[str, Any], part: Part = WHOLE, *, anew: bool = False):
        self.folder, self.path = folder, folder / part.record
        self.cases: dict[str, dict[str, Any]] = {}
        """Those of this part."""
        self.others: dict[str, dict[str, Any]] = {}
        """Those of the other parts."""
        self.failed: dict[str, str] = {}
        self._made_by = dict(made_by)
        self._lock = threading.Lock()
        for path in [] if anew else sorted(folder.glob("*.json")):
            if RECORDS.fullmatch(path.name):
                self._take_over(path)

    def _take_over(self, path: Path) -> None:
        remedy = "replace all predictions there with --overwrite, or choose another -o"
        there = read_json(path, remedy)
        cases = there.get("cases")
        if not isinstance(cases, dict) or not all(isinstance(entry, dict) for entry in cases.values()):
            raise InputError(f"a damaged {path}", "what nnunetv2_ext predict writes", remedy)
        keys = [key for key in {**there, **self._made_by} if key not in TOLD]
        differing = [key for key in keys if there.get(key) != self._made_by.get(key)]
        if cases and differing:
            told = f"predictions of another model in {self.folder}"
            if "models" not in differing:
                told = f"predictions with other {' and '.join(differing)} in {self.folder}"
            raise InputError(told, "those of the same models, folds and options", remedy)
        (self.cases if path == self.path else self.others).update(cases)

    def is_whole(self, case: str, inputs: Mapping[str, Path], outputs: Iterable[str]) -> bool:
        """Whether a case was predicted from these files as they are now, and its outputs are as they were written."""
        entry = self.cases.get(case) or self.others.get(case) or {}
        try:
            read = {name: FileState(*state) for name, state in entry["inputs"].items()}
            written = {name: FileState(*state) for name, state in entry["outputs"].items()}
        except (LookupError, TypeError, AttributeError):
            return False
        return (
            read.keys() == inputs.keys()
            and written.keys() >= set(outputs)
            and all(is_unchanged(inputs[name], state) for name, state in read.items())
            and all(is_unchanged(self.folder / name, state) for name, state in written.items())
        )

    def add(
        self, case: str, inputs: Mapping[str, FileState], outputs: Mapping[str, Path], measured: Mapping[str, Any]
    ) -> None:
        """Tell of a case before its outputs, which are whole, are renamed into the folder.

        Raises:
            OSError: as `files.write_json`.
        """
        written = {name: file_state(path) for name, path in outputs.items()}
        with self._lock:
            self.cases[case] = {"inputs": dict(inputs), "outputs": written, **measured}
            self.failed.pop(case, None)
            self.write()

    def fail(self, case: str, sentence: str) -> None:
        """Tell of a case that could not be predicted; what an earlier run knew of it stays.

        Raises:
            OSError: as `files.write_json`.
        """
        with self._lock:
            self.failed[case] = sentence
            self.write()

    def write(self) -> None:
        """Write all of it.

        Raises:
            OSError: as `files.write_json`.
        """
        content = {"version": __version__, **self._made_by, "cases": self.cases, "failed": self.failed}
        write_json(self.path, content, indent=1)
        regions = {case: entry["roi"] for case, entry in self.cases.items() if entry.get("roi")}
        if regions:
            write_json(self.folder / self.path.name.replace("predict", "roi"), regions, indent=1)
