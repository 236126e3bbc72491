"""`predict.json` of an output folder: which models made its label files, of which images, in which time and memory.

By it, a later run knows what is done, and refuses to mix the predictions of other models in.
"""

import json
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
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
ANEW = "replace all predictions there with --overwrite, or choose another -o"


class Record:
    """What is known of the cases in an output folder; each change is written at once.

    Args:
        folder: the output.
        made_by: models and options that decide what is predicted, as JSON has them.
        part: whose record this is; those of the others are read.
        anew: what other models or options made is removed, with its record; what these made is made again.
        remedy: what to do about a folder with predictions of others.

    Raises:
        InputError: predictions of other models or options are there, or a record is damaged.
    """

    def __init__(
        self, folder: Path, made_by: Mapping[str, Any], part: Part = WHOLE, *, anew: bool = False, remedy: str = ANEW
    ):
        self.folder, self.path, self._remedy = folder, folder / part.record, remedy
        self.cases: dict[str, dict[str, Any]] = {}
        """Those of this part."""
        self.others: dict[str, dict[str, Any]] = {}
        """Those of the other parts."""
        self.failed: dict[str, str] = {}
        self._made_by = json.loads(json.dumps(made_by))
        self._lock = threading.Lock()
        for path in sorted(folder.glob("*.json")):
            if RECORDS.fullmatch(path.name):
                if anew:
                    self._replace(path)
                else:
                    self._take_over(path)

    def _take_over(self, path: Path) -> None:
        there = read_json(path, self._remedy)
        cases = there.get("cases")
        if not isinstance(cases, dict) or not all(isinstance(entry, dict) for entry in cases.values()):
            raise InputError(f"a damaged {path}", "what nnunetv2_ext predict writes", self._remedy)
        if cases and (differing := self._differing(there)):
            told = f"predictions of another model in {self.folder}"
            if "models" not in differing:
                told = f"predictions with other {' and '.join(differing)} in {self.folder}"
            raise InputError(told, "those of the same models, folds and options", self._remedy)
        (self.cases if path == self.path else self.others).update(cases)

    def _replace(self, path: Path) -> None:
        """Remove a record of other models or options with the files that it tells of."""
        try:
            there = read_json(path, ANEW)
            if not self._differing(there):
                return
            names = [name for entry in there["cases"].values() for name in _names(entry.get("outputs", {}))]
        except (InputError, LookupError, TypeError, AttributeError):  # a damaged one
            names = []
        names.append(path.name.replace("predict", "roi"))
        for name in names:
            (self.folder / name).unlink(missing_ok=True)
        path.unlink(missing_ok=True)

    def _differing(self, there: Mapping[str, Any]) -> list[str]:
        """In what a record is not of these models and options."""
        keys = [key for key in {**there, **self._made_by} if key not in TOLD]
        return [key for key in keys if there.get(key) != self._made_by.get(key)]

    def knows(self, case: str) -> bool:
        """Whether this command has written a case, or was about to."""
        return case in self.cases or case in self.others

    def begin(self, anew: Iterable[str]) -> None:
        """Write the record before the work, with cases whose files are to be replaced.

        Raises:
            OSError: as `files.write_json`.
        """
        with self._lock:
            self.cases.update({case: {} for case in anew})
            if self.cases or self.path.exists():
                self.write()

    def _states(self, case: str, kind: str) -> dict[str, FileState]:
        """Those of the inputs or outputs of a case, by name; none where nothing is known."""
        entry = self.cases.get(case) or self.others.get(case) or {}
        try:
            return {name: FileState(*state) for name, state in entry[kind].items()}
        except (LookupError, TypeError, AttributeError):
            return {}

    def is_of(self, case: str, inputs: Mapping[str, Path]) -> bool:
        """Whether a case was predicted from these files as they are now."""
        read = self._states(case, "inputs")
        return read.keys() == inputs.keys() and all(is_unchanged(inputs[name], state) for name, state in read.items())

    def is_whole(self, case: str, inputs: Mapping[str, Path], outputs: Iterable[str]) -> bool:
        """Whether a case was predicted from these files as they are now, and these outputs are as they were written."""
        written = self._states(case, "outputs")
        return self.is_of(case, inputs) and all(
            name in written and is_unchanged(self.folder / name, written[name]) for name in outputs
        )

    def publish(
        self, case: str, inputs: Mapping[str, FileState], outputs: Mapping[str, Path], measured: Mapping[str, Any]
    ) -> None:
        """Bring whole files to the disk, tell of them, and rename them into the folder, in this order.

        So no file there is ever a stranger's. What was made of other inputs goes before: were it still there after a
        kill, it would pass for labels of these ones that somebody edited.

        Args:
            outputs: where they are, by their names in the folder.

        Raises:
            OSError: a file or the record cannot be written.
        """
        for path in outputs.values():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        written = {name: file_state(path) for name, path in outputs.items()}
        with self._lock:
            if self._states(case, "inputs") != inputs:
                for name in {*outputs, *_names(self._states(case, "outputs"))}:
                    (self.folder / name).unlink(missing_ok=True)
            before = self.cases.get(case)
            self.cases[case] = {"inputs": dict(inputs), "outputs": written, **measured}
            self.failed.pop(case, None)
            try:
                self.write()
            except OSError:  # or another case would write it later
                del self.cases[case]
                self.cases.update({} if before is None else {case: before})
                raise
        for name, path in outputs.items():
            (self.folder / name).parent.mkdir(exist_ok=True)
            path.replace(self.folder / name)
        for name in (f"{case}.npz", f"{case}.pkl"):  # of an earlier prediction
            if name not in outputs:
                (self.folder / name).unlink(missing_ok=True)

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


def _names(outputs: Iterable[str]) -> list[str]:
    """Of files of a record that lie where this package writes."""
    return [name for name in outputs if Path(name).parent in (Path(), Path("roi"))]


class Source(NamedTuple):
    """A trained model that predictions were made by."""

    folder: Path
    """In nnUNet_results, where it is looked for; records name no folder."""
    folds: tuple[str, ...]
    files: Mapping[str, str]
    """The digest of each of its files then, by the name in its folder."""
    predictions: Path
    """The folder with the record that tells."""


def prediction_records(folder: Path) -> Iterator[dict[str, Any]]:
    """What `predict` or `ensemble` wrote beside predictions; a damaged record is passed over."""
    for path in sorted(folder.glob("predict*.json")) if folder.is_dir() else ():
        if RECORDS.fullmatch(path.name):
            try:
                yield read_json(path, ANEW)
            except InputError:
                continue


def sources(folder: Path, *, members: bool = True) -> list[Source]:
    """The models of all records in a folder, and of those in the folders that `ensemble` averaged.

    Args:
        members: whether those are looked into.
    """
    found: list[Source] = []
    results = Path(os.environ.get("nnUNet_results", "nnUNet_results"))
    for record in prediction_records(folder):
        try:
            for model in record["models"]:
                if isinstance(model, dict):
                    dataset = str(read_json(folder / "plans.json", ANEW)["dataset_name"])
                    place = results / dataset / str(model["model"]).replace(":", "__")
                    found.append(Source(place, tuple(map(str, model["folds"])), dict(model.get("files", {})), folder))
                elif members:
                    found += sources(Path(model[0]), members=False)
        except (InputError, LookupError, TypeError, ValueError):  # none of ours
            continue
    return found
