"""A folder that is watched: every image that is whole gets its labels in another folder, for as long as the watch runs.

`predict.json` in the output folder tells what is done, as after `nnunetv2_ext predict`, so that a watch that starts
anew goes on with the rest.
"""

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import SimpleITK as sitk

from nnunetv2_ext.container.case import ENDINGS, ending, predict_case, write_image
from nnunetv2_ext.container.failure import sentence, told
from nnunetv2_ext.container.settings import Settings
from nnunetv2_ext.data.cases import by_channel
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import FileState, file_state, unwritable, why_not_writable, write_beside
from nnunetv2_ext.inference.record import RECORD, Record
from nnunetv2_ext.locks import held, is_held, lock_file
from nnunetv2_ext.text import counted, listed

if TYPE_CHECKING:
    from nnunetv2_ext.inference.predictor import Predictor

UNFINISHED = ".unfinished"
AGAIN = 600.0
"""Seconds until a case that failed is tried again."""
LOOKS = 12
"""After so many, a word is said of what is not taken."""
ANOTHER = "mount another folder as the output"
State = tuple[tuple[str, int, int, int], ...]
"""Of each file of a case: name, size, time of its content, time of its entry."""


class Failure(NamedTuple):
    """A case that failed."""

    state: State
    why: str
    again: float
    """When it is tried again, by `time.monotonic`."""


def error_file(output: Path, case: str) -> Path:
    """Where the sentence of a case that failed stands."""
    return output / f"{case}.error.txt"


def label_file(output: Path, case: str, image: Path) -> Path:
    """Where the labels of a case stand, of the format of its first image where that keeps every digit of its place."""
    its = ending(image).lower()
    return output / (case + (its if its in (".mha", ".nrrd") else ".nii.gz"))


def find_cases(folder: Path, channels: Sequence[str]) -> tuple[dict[str, list[Path]], list[str]]:
    """The files of each case, `CASE_0000.mha` and so on, or `CASE.mha` of one channel; the names that are no image's.

    Raises:
        OSError: the folder cannot be read.
    """
    cases: dict[str, list[Path]] = {}
    others: list[str] = []
    for path in sorted(folder.iterdir()):
        its = ending(path)
        if path.name.startswith("."):
            continue
        if not its or not path.is_file():
            others.append(path.name)
            continue
        case = path.name.removesuffix(its).removesuffix("_0000")
        if len(channels) > 1:  # of one, _0001 is part of the name
            case = next(iter(by_channel([path], its)[0]), case)
        cases.setdefault(case, []).append(path)
    return cases, others


@dataclass
class Watch:
    """One watch over a folder.

    Args:
        predictor: of the labels.
        settings: of the container.
        source: the folder that is watched; the folders in it are not.
        output: the folder that the labels are written to.
        tell: called with a line of words for every case.
    """

    predictor: "Predictor"
    settings: Settings
    source: Path
    output: Path
    tell: Callable[[str], None]
    done: dict[str, State] = field(default_factory=dict)
    """Cases of this watch that are not to be looked at again while their files stay the same."""
    failed: dict[str, Failure] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    """What lies in the source and is no image."""
    seen: Counter[str] = field(default_factory=Counter)
    """Looks at which something was not taken."""
    away: bool = False
    """Whether the source could not be read at the last look."""

    def run(self, *, every: float, once: bool) -> None:
        """Look again and again, until a signal ends it.

        Args:
            every: seconds between two looks; a file that stays the same meanwhile is whole.
            once: end when what is there is done.

        Raises:
            InputError: no such folders, one for both, or an output in use or with labels of other models.
            OSError: the source cannot be read.
        """
        if not self.source.is_dir():
            raise InputError(f"no folder {self.source}", "the images there", "mount it")
        find_cases(self.source, self.settings.channels)
        if self.output.resolve() == self.source.resolve():
            raise InputError(f"{self.output} as input and output", "two folders", "mount another one")
        try:
            self.output.mkdir(parents=True, exist_ok=True)
            if why := why_not_writable(self.output):
                raise unwritable(self.output, OSError(why))
            with held(self.output, RECORD, "a watch"):
                self._check_lock()
                shutil.rmtree(self.output / UNFINISHED, ignore_errors=True)  # of one that was killed
                spacing = self.settings.tif_spacing
                made_by = self.predictor.description() | ({"tif_spacing": spacing} if spacing else {})
                record = Record(self.output, made_by, remedy=ANOTHER)
                before = self._look()
                while True:
                    time.sleep(every)
                    now = self._look()
                    waiting = [case for case in now if now[case] != before.get(case)]
                    for case in now:
                        if case not in waiting and self._is_due(case, now[case]):
                            self._work(record, case, now[case], last=once)
                    for name in self.others:
                        self._note(name, f"not taken, no file {listed(f'*{one}' for one in ENDINGS)}", last=once)
                    if once:
                        if waiting:
                            self.tell(f"{counted(waiting, 'case')} still being written, left for another time")
                            self.failed |= {case: Failure(now[case], "still being written", 0) for case in waiting}
                        return
                    before = now
        except OSError as error:
            raise unwritable(self.output, error) from None

    def _check_lock(self) -> None:
        """Refuse a lock that belongs to another user, and tell of a file system that has none."""
        if is_held(self.output, RECORD):
            return
        lock = lock_file(self.output, RECORD)
        if lock.exists() and not os.access(lock, os.R_OK | os.W_OK):
            expected = "one to see by whether another watch fills the folder"
            raise InputError(f"{lock}, which this user may not open", expected, "run as the user who wrote there")
        self.tell(f"{lock} cannot be locked: see to it that no other watch fills {self.output}")

    def _look(self) -> dict[str, State]:
        """The cases there with the state of their files."""
        try:
            cases, self.others = find_cases(self.source, self.settings.channels)
            self.away = False
        except OSError as error:  # a share that is away for a while
            if not self.away:
                self.tell(f"{self.source} cannot be read ({error.strerror}): waiting for it")
            cases, self.others, self.away = {}, [], True
        states: dict[str, State] = {}
        for case, files in cases.items():
            with suppress(OSError):  # taken away meanwhile
                entries = [(path.name, path.stat()) for path in files]
                states[case] = tuple((name, its.st_size, its.st_mtime_ns, its.st_ctime_ns) for name, its in entries)
        return states

    def _is_due(self, case: str, state: State) -> bool:
        failure = self.failed.get(case)
        waits = failure is not None and failure.state == state and time.monotonic() < failure.again
        return self.done.get(case) != state and not waits

    def _note(self, name: str, why: str, *, last: bool) -> None:
        """Say once what is not taken, if it lasts."""
        self.seen[name] += 1
        if last or self.seen[name] == LOOKS:
            self.tell(f"{name}: {why}")

    def _work(self, record: Record, case: str, state: State, *, last: bool) -> None:
        """Predict a case, unless it is done already or channels of it are yet to come."""
        names = [name for name, *_ in state]
        if len(names) < len(self.settings.channels) and not last:
            self._note(case, f"waits for the channels {listed(self._wanted(case))}", last=False)
            return
        start = time.perf_counter()
        try:
            self._check_names(case, names)
            inputs = {name: self.source / name for name in names}
            label = label_file(self.output, case, inputs[names[0]])
            if record.is_of(case, inputs) and label.is_file():  # a corrected one stays, too
                self.done[case] = state
                return
            replaced = (label, self.output / f"{case}.npz", self.output / f"{case}.pkl")
            if not record.knows(case) and (path := next(filter(Path.exists, replaced), None)):
                what = f"{path}, of which no {RECORD} tells"
                raise InputError(what, "no such file, or one that this container wrote", "move it away")
            before = {name: file_state(path) for name, path in inputs.items()}
            labels = predict_case(self.predictor, list(inputs.values()), self.settings.tif_spacing)
            if self._look().get(case) != state:  # replaced while it was read
                return
            self._publish(record, case, label.name, before, labels)
        except Exception as error:  # of a damaged file, too little memory, a full disk
            if self._look().get(case) != state:  # it was not whole after all
                return
            self._fail(case, state, sentence(told(error)))
        else:
            self.done[case] = state
            self.failed.pop(case, None)
            with suppress(OSError):
                error_file(self.output, case).unlink(missing_ok=True)
            self.tell(f"{case}: written, {time.perf_counter() - start:.0f} s")

    def _wanted(self, case: str) -> list[str]:
        return [f"{case}_{number:04d}" for number in range(len(self.settings.channels))]

    def _check_names(self, case: str, names: Sequence[str]) -> None:
        """Refuse files that are not the channels of one case."""
        channels, wanted = self.settings.channels, self._wanted(case)
        stems = [name.removesuffix(ending(Path(name))) for name in names]
        alone = len(channels) == 1 and len(names) == 1
        if not alone and (stems != wanted or len({ending(Path(name)) for name in names}) > 1):
            expected = f"the channels {listed(channels)} as {listed(wanted)}, of one format"
            raise InputError(f"the {counted(names, 'file')} of {case}", expected, "rename or remove them")

    def _publish(self, record: Record, case: str, label: str, inputs: dict[str, FileState], labels: sitk.Image) -> None:
        (unfinished := self.output / UNFINISHED).mkdir(exist_ok=True)
        try:
            write_image(labels, unfinished / label)
            record.publish(case, inputs, {label: unfinished / label}, {})
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _fail(self, case: str, state: State, why: str) -> None:
        """Tell of a case that failed; it is tried again after a while, or when its files are others."""
        before = self.failed.get(case)
        self.failed[case] = Failure(state, why, time.monotonic() + AGAIN)
        if before is None or before[:2] != (state, why):
            self.tell(f"{case}: failed: {why}")
        with suppress(OSError):  # a full disk
            write_beside(lambda part: part.write_text(why + "\n", encoding="utf-8"), error_file(self.output, case))
