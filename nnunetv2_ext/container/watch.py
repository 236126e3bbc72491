"""A folder that is watched: every image that is whole gets its labels in another folder, for as long as the watch runs.

`predict.json` in the output folder tells what is done, as after `nnunetv2_ext predict`, so that a watch that starts
anew goes on with the rest.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import SimpleITK as sitk

from nnunetv2_ext.container.case import ending, predict_case, write_image
from nnunetv2_ext.container.failure import sentence, told
from nnunetv2_ext.container.settings import Settings
from nnunetv2_ext.data.cases import by_channel
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import FileState, file_state, unwritable, write_beside
from nnunetv2_ext.inference.record import RECORD, Record
from nnunetv2_ext.locks import held
from nnunetv2_ext.text import counted, listed

if TYPE_CHECKING:
    from nnunetv2_ext.inference.predictor import Predictor

UNFINISHED = ".unfinished"
State = tuple[tuple[str, int, int, int], ...]
"""Of each file of a case: name, size, time of its content, time of its entry."""


def error_file(output: Path, case: str) -> Path:
    """Where the sentence of a case that failed stands."""
    return output / f"{case}.error.txt"


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
    failed: set[str] = field(default_factory=set)

    def run(self, *, every: float, once: bool) -> None:
        """Look again and again, until a signal ends it.

        Args:
            every: seconds between two looks; a file that stays the same meanwhile is whole.
            once: end when what is there is done.

        Raises:
            InputError: no such folders, one for both, or an output in use or with labels of other models.
        """
        if not self.source.is_dir():
            raise InputError(f"no folder {self.source}", "the images there", "mount it")
        if self.output.resolve() == self.source.resolve():
            raise InputError(f"{self.output} as input and output", "two folders", "mount another one")
        try:
            self.output.mkdir(parents=True, exist_ok=True)
            with held(self.output, RECORD, "a watch"):
                shutil.rmtree(self.output / UNFINISHED, ignore_errors=True)  # of one that was killed
                record = Record(self.output, self.predictor.description())
                before = self._look()
                while True:
                    time.sleep(every)
                    now = self._look()
                    waiting = [case for case in now if now[case] != before.get(case)]
                    for case in now:
                        if case not in waiting and self.done.get(case) != now[case]:
                            self._work(record, case, now[case], last=once)
                    if once:
                        if waiting:
                            self.tell(f"{counted(waiting, 'case')} still being written, left for another time")
                        return
                    before = now
        except OSError as error:
            raise unwritable(self.output, error) from None

    def _look(self) -> dict[str, State]:
        """The cases there with the state of their files."""
        cases: dict[str, list[tuple[str, int, int, int]]] = {}
        files: list[Path] = []
        with suppress(OSError):  # a share that is away for a while
            files = sorted(self.source.iterdir())
        for path in files:
            with suppress(OSError):  # taken away meanwhile
                if (its := ending(path)) and not path.name.startswith(".") and path.is_file():
                    numbered, unnumbered = by_channel([path], its)
                    case = unnumbered[0].removesuffix(its) if unnumbered else next(iter(numbered))
                    status = path.stat()
                    times = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                    cases.setdefault(case, []).append((path.name, *times))
        return {case: tuple(states) for case, states in cases.items()}

    def _work(self, record: Record, case: str, state: State, *, last: bool) -> None:
        """Predict a case, unless it is done already or channels of it are yet to come."""
        names = [name for name, *_ in state]
        if len(names) < len(self.settings.channels) and not last:
            return
        start = time.perf_counter()
        try:
            self._check_names(case, names)
            its = ending(Path(names[0])).lower()
            label = case + (its if its in (".mha", ".nrrd") else ".nii.gz")
            inputs = {name: self.source / name for name in names}
            if record.is_of(case, inputs) and (self.output / label).is_file():  # a corrected one stays, too
                self.done[case] = state
                return
            if (self.output / label).exists() and not record.knows(case):
                what = f"{self.output / label}, of which no {RECORD} tells"
                raise InputError(what, "no such file, or one that this container wrote", "move it away")
            before = {name: file_state(path) for name, path in inputs.items()}
            labels = predict_case(self.predictor, list(inputs.values()), self.settings.tif_spacing)
            if self._look().get(case) != state:  # replaced while it was read
                return
            self._publish(record, case, label, before, labels)
        except Exception as error:  # of a damaged file, too little memory, a full disk
            if self._look().get(case) != state:  # it was not whole after all
                return
            self._fail(case, state, sentence(told(error)))
        else:
            self.done[case] = state
            self.failed.discard(case)
            with suppress(OSError):
                error_file(self.output, case).unlink(missing_ok=True)
            self.tell(f"{case}: written, {time.perf_counter() - start:.0f} s")

    def _check_names(self, case: str, names: Sequence[str]) -> None:
        """Refuse files that are not the channels of one case."""
        channels = self.settings.channels
        wanted = [f"{case}_{number:04d}" for number in range(len(channels))]
        stems = [name.removesuffix(ending(Path(name))) for name in names]
        alone = len(channels) == 1 and stems == [case]
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
        """Tell of a case that failed; it is tried again when its files are others, or by another watch."""
        self.done[case] = state
        self.failed.add(case)
        self.tell(f"{case}: failed: {why}")
        with suppress(OSError):  # a full disk
            write_beside(lambda part: part.write_text(why + "\n", encoding="utf-8"), error_file(self.output, case))
