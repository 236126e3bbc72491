"""A folder of images: each case predicted once, written whole or not at all.

Reading and preprocessing of the next cases, and export of the last ones, run in threads beside the network.
"""

import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from batchgenerators.utilities.file_and_folder_operations import save_pickle

from nnunetv2_ext.data.volumes import write_label_file
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import FileState, file_state, unwritable, write_json
from nnunetv2_ext.inference.export import write_probabilities
from nnunetv2_ext.inference.images import check_channels, find_images
from nnunetv2_ext.inference.predictor import Case, Predictor
from nnunetv2_ext.inference.record import WHOLE, Part, Record
from nnunetv2_ext.inference.roi import check_mask
from nnunetv2_ext.locks import ended_in_order, held
from nnunetv2_ext.resident_memory import highest_from_now
from nnunetv2_ext.text import counted, one_line

FOLDERS_OF_NNUNET = {
    **dict.fromkeys(("imagesTr", "imagesTs", "gt_segmentations"), "a data set"),
    "fold_*": "a trained model",
    "Dataset[0-9]*": "data sets",
}
"""What lies in folders whose own dataset.json and plans.json a prediction would replace."""


class Event(NamedTuple):
    """What became of a case."""

    case: str
    status: str
    """"written", "kept" from an earlier run, or "failed"."""
    done: int
    """Cases of which something became, with this one."""
    of: int
    seconds: float = 0.0
    """Since the case before."""
    left: float = 0.0
    """Seconds, estimated from the cases of this run."""
    message: str = ""
    """Of a failed one, and of one that was not predicted inside its region of interest alone."""


@dataclass
class Outcome:
    """What a run did, by names of cases."""

    written: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """With the sentence of each."""
    fallbacks: dict[str, str] = field(default_factory=dict)
    """Written cases that were not predicted inside their region of interest alone, and why."""


class _Read(NamedTuple):
    case: Case
    inputs: dict[str, FileState]


def predict_folder(
    predictor: Predictor,
    source: Path,
    output: Path,
    *,
    previous: Path | None = None,
    probabilities: bool = False,
    keep: bool = False,
    overwrite: bool = False,
    readers: int = 1,
    writers: int = 1,
    part: Part = WHOLE,
    tell: Callable[[Event], None] = lambda event: None,
) -> Outcome:
    """Predict every case of a folder; those that are there already, of the same models, options and inputs, stay.

    SIGTERM, SIGHUP and Ctrl-C end it in order: what is being written is finished, and nothing half made stays.

    Args:
        source: a folder of images, or one of a case's files, see `images.find_images`.
        output: the folder to write to; made where there is none.
        previous: a folder with the labels of a cascade's first stage, named as the cases.
        probabilities: write CASE.npz and CASE.pkl too, as nnU-Net does.
        keep: label files that are there, and of which no record tells, stay.
        overwrite: predict everything anew, over what is there.
        readers: cases that are read and preprocessed at the same time.
        writers: cases that are exported and written at the same time.
        part: the share of the cases, of several processes that fill one folder.
        tell: called after each case.

    Raises:
        InputError: no images; or the output is the input, in use, full, or holds predictions of other models or such
            of which no record tells.
    """
    if previous is not None and not predictor.needs_previous:
        what = f"-prev_stage_predictions {previous} without a model that reads them"
        raise InputError(what, "the second stage of a cascade", "leave it out")
    images = find_images(source, predictor.file_ending)
    images = {case: images[case] for case in list(images)[part.number :: part.of]}
    if output.resolve() == (source if source.is_dir() else source.parent).resolve():
        raise InputError(f"{output} as input and output", "two folders", "choose another -o")
    if output.exists() and not output.is_dir():
        raise InputError(f"-o {output}, a file", "a folder", "choose another name")
    for pattern, what in FOLDERS_OF_NNUNET.items():
        if any(output.glob(pattern)):
            raise InputError(f"-o {output}, which holds {what}", "a folder of predictions", "choose another")
    try:
        output.mkdir(parents=True, exist_ok=True)
        with held(output, part.record, "a prediction"), ended_in_order():
            record = Record(output, predictor.description(), part, anew=overwrite)
            run = _Run(predictor, output, record, tell, previous, probabilities)
            todo = run.look(images, keep=keep, overwrite=overwrite)
            run.work(todo, output / f".unfinished{part.suffix}", readers, writers)
    except OSError as error:
        raise unwritable(output, error) from None
    return run.outcome


class _Run:
    """One call of `predict_folder`."""

    def __init__(
        self,
        predictor: Predictor,
        output: Path,
        record: Record,
        tell: Callable[[Event], None],
        previous: Path | None,
        probabilities: bool,
    ):
        self.predictor, self.output, self.record, self.tell = predictor, output, record, tell
        self.previous, self.probabilities = previous, probabilities
        self.outcome = Outcome()
        self.cases = 0
        self.begun = self.last = time.perf_counter()

    def look(self, images: Mapping[str, list[Path]], *, keep: bool, overwrite: bool) -> dict[str, list[Path]]:
        """The cases that are to be predicted.

        Raises:
            InputError: label files of which no record tells.
        """
        self.cases = len(images)
        todo, strangers = {}, []
        for case, files in images.items():
            label = f"{case}{self.predictor.file_ending}"
            outputs = [label, *([f"{case}.npz", f"{case}.pkl"] if self.probabilities else [])]
            known = case in self.record.cases or case in self.record.others
            if self.record.is_whole(case, self._inputs(case, files), outputs):
                self._tell(case, "kept")
            elif known or overwrite or not (self.output / label).exists():
                todo[case] = files
            elif not keep:
                strangers.append(label)
            elif all((self.output / name).exists() for name in outputs) and self._is_whole(self.output / label):
                self._tell(case, "kept")
            else:
                todo[case] = files
        if strangers:
            raise InputError(
                f"{counted(strangers, 'file')} in {self.output} of which no {self.record.path.name} tells",
                "a new folder, or one that this command wrote with the same models",
                "choose another -o, keep them with --continue_prediction, or replace them with --overwrite",
            )
        region = self.predictor.region
        if region is not None and region.folder is not None:
            for case, files in todo.items():
                check_mask(case, region.folder / f"{case}{self.predictor.file_ending}", files[0])
        return todo

    def _inputs(self, case: str, files: Sequence[Path]) -> dict[str, Path]:
        """The files that decide what a case becomes."""
        name, region = f"{case}{self.predictor.file_ending}", self.predictor.region
        inputs = {path.name: path for path in files}
        if self.previous is not None:
            inputs[f"previous/{name}"] = self.previous / name
        if region is not None and region.folder is not None:
            inputs[f"roi/{name}"] = region.folder / name
        return inputs

    def _is_whole(self, label: Path) -> bool:
        try:
            return bool(self.predictor.reader.read_seg(str(label))[0].size)
        except Exception:  # of a damaged file anything
            return False

    def work(self, todo: Mapping[str, list[Path]], unfinished: Path, readers: int, writers: int) -> None:
        """Predict the cases, each through threads that read, the network here, and threads that write.

        Raises:
            InputError, OSError: an output cannot be written.
        """
        shutil.rmtree(unfinished, ignore_errors=True)  # of a killed run
        if not todo:
            return
        unfinished.mkdir()
        self._write_descriptions(unfinished)
        self.begun = self.last = time.perf_counter()
        coming: deque[tuple[str, Future[_Read]]] = deque()
        going: deque[tuple[str, Future[None]]] = deque()
        waiting = iter(todo.items())
        try:
            with _pool(readers, "read") as reading, _pool(writers, "write") as writing:
                while True:
                    while len(coming) <= readers and (item := next(waiting, None)) is not None:
                        coming.append((item[0], reading.submit(self._read, *item)))
                    if not coming:
                        break
                    case, future = coming.popleft()
                    highest = highest_from_now()
                    if (read := self._attempt(case, future)) is not None:
                        going.append((case, writing.submit(self._write, case, read, unfinished, highest)))
                    while going and (going[0][1].done() or len(going) > writers + 1):
                        self._take(*going.popleft())
                while going:
                    self._take(*going.popleft())
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _attempt(self, case: str, future: "Future[_Read]") -> _Read | None:
        """A case with its logits, or None where it fails, which the others need not."""
        try:
            read = future.result()
            self.predictor.logits(read.case)
        except Exception as error:  # of nnU-Net and PyTorch anything, such as too little memory
            self._fail(case, error)
            return None
        return read

    def _fail(self, case: str, error: Exception) -> None:
        sentence = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {one_line(error)}"
        self.outcome.failed[case] = sentence
        self.record.fail(case, sentence)
        self._tell(case, "failed", sentence)

    def _take(self, case: str, future: Future[None]) -> None:
        try:
            future.result()
        except OSError:
            raise
        except Exception as error:
            self._fail(case, error)
        else:
            self._tell(case, "written", self.outcome.fallbacks.get(case, ""))

    def _tell(self, case: str, status: str, message: str = "") -> None:
        if status != "failed":
            (self.outcome.kept if status == "kept" else self.outcome.written).append(case)
        now, kept = time.perf_counter(), len(self.outcome.kept)
        done = kept + len(self.outcome.written) + len(self.outcome.failed)
        each = (now - self.begun) / max(done - kept, 1)
        left = 0.0 if status == "kept" else each * (self.cases - done)
        self.tell(Event(case, status, done, self.cases, 0.0 if status == "kept" else now - self.last, left, message))
        self.last = now

    def _read(self, name: str, files: Sequence[Path]) -> _Read:
        check_channels(files, self.predictor.file_ending)
        start = time.perf_counter()
        paths = self._inputs(name, files)
        inputs = {key: file_state(path) for key, path in paths.items() if path.is_file()}
        image = self.predictor.read(files)
        previous, mask = (
            self.predictor.read_labels(path, name, image) if path else None
            for path in (paths.get(f"{part}/{name}{self.predictor.file_ending}") for part in ("previous", "roi"))
        )
        seconds = time.perf_counter() - start
        case = self.predictor.prepare(image, previous, mask)
        case.seconds["read"] = seconds
        return _Read(case, inputs)

    def _write(self, name: str, read: _Read, unfinished: Path, highest: Callable[[], int]) -> None:
        """Export a case, write its files beside their place, tell of it, and rename them.

        Raises:
            OSError: a file cannot be written.
        """
        case, predictor, label = read.case, self.predictor, f"{name}{self.predictor.file_ending}"
        labels = predictor.labels(case)
        with case.timed("write"):
            outputs = []
            if case.region is not None and case.mask is not None:
                outputs.append(f"roi/{label}")
                (unfinished / "roi").mkdir(exist_ok=True)
                write_label_file(predictor.reader, case.mask, unfinished / outputs[0], case.image.properties)
            if self.probabilities:
                outputs += [f"{name}.npz", f"{name}.pkl"]
                linear_z = predictor.options.linear_z
                votes = predictor.votes(case)
                write_probabilities(votes, predictor.label_manager, unfinished / outputs[-2], linear_z=linear_z)
                save_pickle(votes[0].properties, str(unfinished / outputs[-1]))
            outputs.append(label)
            write_label_file(predictor.reader, labels, unfinished / label, case.image.properties)
            paths = {output: unfinished / output for output in outputs}
            for path in paths.values():
                _to_disk(path)
        of_region = predictor.region_report(case)
        if why := [entry["fallback"] for entry in of_region.values() if entry["fallback"]]:
            self.outcome.fallbacks[name] = why[0]
        measured: dict[str, Any] = {
            "seconds": {stage: round(seconds, 3) for stage, seconds in case.seconds.items()},
            "peak_memory_mib": round(highest() / 2**20),
            "roi": of_region,
        }
        self.record.add(name, read.inputs, paths, measured)
        for output, path in paths.items():
            (self.output / output).parent.mkdir(exist_ok=True)
            path.replace(self.output / output)

    def _write_descriptions(self, unfinished: Path) -> None:
        """What nnU-Net's commands look for beside predictions."""
        trained = self.predictor.models[0].model.trained
        for name, content in (("dataset.json", trained.dataset_json), ("plans.json", trained.plans)):
            write_json(unfinished / name, content)  # other processes may write the same
            (unfinished / name).replace(self.output / name)


@contextmanager
def _pool(threads: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Threads that have ended when the block has; what none of them has begun is dropped."""
    pool = ThreadPoolExecutor(threads, name)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
