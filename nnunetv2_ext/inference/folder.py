"""A folder of images: each case predicted once, written whole or not at all.

Reading and preprocessing of the next cases, and export of the last ones, run in threads beside the network.
"""

import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from batchgenerators.utilities.file_and_folder_operations import save_pickle
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from nnunetv2_ext.data.volumes import VOLUME_ENDINGS, read_grid, read_volume, write_label_file
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import REFERENCES, FileState, file_state, unwritable, write_json
from nnunetv2_ext.inference.export import write_probabilities
from nnunetv2_ext.inference.images import check_channels, find_images
from nnunetv2_ext.inference.predictor import Case, Predictor
from nnunetv2_ext.inference.record import RECORD, WHOLE, Part, Record
from nnunetv2_ext.inference.roi import check_mask
from nnunetv2_ext.locks import ended_in_order, held
from nnunetv2_ext.resident_memory import highest_from_now
from nnunetv2_ext.text import counted, one_line

FOLDERS_OF_NNUNET = {
    **dict.fromkeys(("imagesTr", "imagesTs", REFERENCES), "a data set"),
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
    """Of a failed one, or a note."""


@dataclass
class Outcome:
    """What a run did, by names of cases."""

    written: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """With the sentence of each."""
    notes: dict[str, str] = field(default_factory=dict)
    """What there is to tell of others: why one was not predicted inside its region of interest alone, or was edited."""


class _Read(NamedTuple):
    case: Case
    inputs: dict[str, FileState]
    memory: dict[str, int]
    """Highest of the process in bytes, since the network began on the case."""


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
    watch: Callable[[str, int, int], None] | None = None,
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
        watch: called with the case at work, and the number of its windows computed and of all, anew for each model.

    Raises:
        InputError: no images; or the output is the input, in use, full, or holds predictions of other models or such
            of which no record tells.
    """
    if previous is not None and not predictor.needs_previous:
        what = f"-prev_stage_predictions {previous} without a model that reads them"
        raise InputError(what, "the second stage of a cascade", "leave it out")
    if previous is not None and not previous.is_dir():
        raise InputError(f"-prev_stage_predictions {previous}", "a folder of labels", "check the path")
    images = find_images(source, predictor.file_ending)
    images = {case: images[case] for case in list(images)[part.number :: part.of]}
    masks = predictor.region.folder if predictor.region is not None else None
    for folder in (source if source.is_dir() else source.parent, previous, masks):
        if folder is not None and output.resolve() == folder.resolve():
            raise InputError(f"{output} as input and output", "two folders", "choose another -o")
    if output.exists() and not output.is_dir():
        raise InputError(f"-o {output}, a file", "a folder", "choose another name")
    for pattern, what in FOLDERS_OF_NNUNET.items():
        if any(output.glob(pattern)):
            raise InputError(f"-o {output}, which holds {what}", "a folder of predictions", "choose another")
    made_by = predictor.description()
    try:
        output.mkdir(parents=True, exist_ok=True)
        with held(output, part.record, "a prediction"), ended_in_order():
            record = Record(output, made_by, part, anew=overwrite)
            run = _Run(predictor, output, record, tell, watch, previous, probabilities)
            todo = run.look(images, keep=keep, overwrite=overwrite)
            run.work(todo, output / f".unfinished{part.suffix}", readers, writers)
    except BrokenPipeError:  # whoever is told went away
        raise
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
        watch: Callable[[str, int, int], None] | None,
        previous: Path | None,
        probabilities: bool,
    ):
        self.predictor, self.output, self.record = predictor, output, record
        self.tell, self.watch = tell, watch
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
            known, inputs = self.record.knows(case), self._inputs(case, files)
            there = not overwrite and all((self.output / name).exists() for name in outputs)
            if self.record.is_whole(case, inputs, outputs):
                self._tell(case, "kept")
            elif there and self.record.is_of(case, inputs) and self._is_whole(self.output / label):
                self.outcome.notes[case] = f"{label} was edited since it was written, and is kept"
                self._tell(case, "kept", self.outcome.notes[case])
            elif known or overwrite or not (self.output / label).exists():
                todo[case] = files
            elif not keep:
                strangers.append(label)
            elif there and self._is_whole(self.output / label):
                self._tell(case, "kept")
            else:
                todo[case] = files
        if strangers:
            raise InputError(
                f"{counted(strangers, 'file')} in {self.output} of which no {self.record.path.name} tells",
                "a new folder, or one that this command wrote with the same models",
                "choose another -o, keep them with --continue_prediction, or replace them with --overwrite",
            )
        self._check_masks(todo)
        self.record.begin(todo if overwrite else ())
        return todo

    def _check_masks(self, cases: Mapping[str, list[Path]]) -> None:
        """Refuse masks that do not fit, before anything is predicted.

        Raises:
            InputError: a mask is missing, unreadable, or on another grid than its image.
        """
        region = self.predictor.region
        if region is None or region.folder is None:
            return
        for case, files in cases.items():
            try:
                read_grid(files[0])
            except InputError:  # told when the case is read, as is a mask beside a picture
                continue
            check_mask(case, region.folder / f"{case}{self.predictor.file_ending}", files[0])

    def _inputs(self, case: str, files: Sequence[Path]) -> dict[str, Path]:
        """The files that decide what a case becomes."""
        name, region = f"{case}{self.predictor.file_ending}", self.predictor.region
        inputs = {path.name: path for path in files}
        if isinstance(self.predictor.reader, Tiff3DIO):  # a file beside TIFF tells the spacing
            inputs |= {path.name: path for path in (files[0].with_name(f"{case}.json"),) if path.is_file()}
        if self.previous is not None:
            inputs[f"previous/{name}"] = self.previous / name
        if region is not None and region.folder is not None:
            inputs[f"roi/{name}"] = region.folder / name
        return inputs

    def _is_whole(self, label: Path) -> bool:
        try:
            if label.name.lower().endswith(VOLUME_ENDINGS):
                read_volume(label)
            return bool(self.predictor.reader.read_seg(str(label))[0].size)
        except Exception:  # of a damaged file anything
            return False

    def work(self, todo: Mapping[str, list[Path]], unfinished: Path, readers: int, writers: int) -> None:
        """Predict the cases, each through threads that read, the network here, and threads that write.

        Raises:
            InputError, OSError: an output cannot be written.
        """
        _remove_left_behind(self.output, unfinished)
        if not todo:
            return
        self.begun = self.last = time.perf_counter()
        coming: deque[tuple[str, Future[_Read]]] = deque()
        going: deque[tuple[str, Future[None]]] = deque()
        waiting = iter(todo.items())
        try:
            unfinished.mkdir()
            self._write_descriptions(unfinished)
            with _pool(readers, "read") as reading, _pool(writers, "write") as writing:
                while True:
                    while len(coming) <= readers and (item := next(waiting, None)) is not None:
                        coming.append((item[0], reading.submit(self._read, *item)))
                    if not coming:
                        break
                    case, future = coming.popleft()
                    if (read := self._attempt(case, future)) is not None:
                        going.append((case, writing.submit(self._write, case, read, unfinished)))
                    del read, future  # the logits go when they are written
                    while going and (going[0][1].done() or len(going) > writers + 1):
                        self._take(*going.popleft())
                while going:
                    self._take(*going.popleft())
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _attempt(self, case: str, future: "Future[_Read]") -> _Read | None:
        """A case with its logits, or None where it fails, which the others need not."""
        highest = highest_from_now()
        if self.predictor.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.predictor.device)
        try:
            read = future.result()
            progress = None if self.watch is None else partial(self.watch, case)
            self.predictor.logits(read.case, progress)
            read.memory["network"] = highest()
            if self.predictor.device.type == "cuda":
                read.memory["gpu"] = torch.cuda.max_memory_allocated(self.predictor.device)
        except Exception as error:  # of nnU-Net and PyTorch anything, such as too little memory
            self._fail(case, error)
            return None
        return read

    def _fail(self, case: str, error: Exception) -> None:
        if isinstance(error, OSError) and error.filename:
            what = f"{error.filename}, which cannot be read ({error.strerror})"
            error = InputError(what, "a readable file", "see to its permissions, or to the disk")
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
            self._tell(case, "written", self.outcome.notes.get(case, ""))

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
        return _Read(case, inputs, {})

    def _write(self, name: str, read: _Read, unfinished: Path) -> None:
        """Export a case, write its files beside their place, tell of it, and rename them.

        Raises:
            OSError: a file cannot be written.
        """
        case, predictor, label = read.case, self.predictor, f"{name}{self.predictor.file_ending}"
        labels = predictor.labels(case)
        place = unfinished / name
        with case.timed("write"):
            (place / "roi").mkdir(parents=True)
            if case.region is not None and case.mask is not None:
                write_label_file(predictor.reader, case.mask, place / "roi" / label, case.image.properties)
            if self.probabilities:
                votes, linear_z = predictor.votes(case), predictor.options.linear_z
                write_probabilities(votes, predictor.label_manager, place / f"{name}.npz", linear_z=linear_z)
                save_pickle(votes[0].properties, str(place / f"{name}.pkl"))
            write_label_file(predictor.reader, labels, place / label, case.image.properties)
            # with what a writer puts beside them; the label file last: where it is, the others are too
            written = sorted(path for path in place.rglob("*") if path.is_file() and path != place / label)
            outputs = {str(path.relative_to(place)): path for path in (*written, place / label)}
        read.memory["write"] = highest_from_now(anew=False)()
        of_region = predictor.region_report(case)
        if why := [entry["fallback"] for entry in of_region.values() if entry["fallback"]]:
            self.outcome.notes[name] = why[0]
        measured: dict[str, Any] = {
            "seconds": {stage: round(seconds, 3) for stage, seconds in case.seconds.items()},
            "peak_memory_mib": {stage: round(peak / 2**20) for stage, peak in read.memory.items()},
            "roi": of_region,
        }
        self.record.publish(name, read.inputs, outputs, measured)
        shutil.rmtree(place, ignore_errors=True)

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


def _remove_left_behind(output: Path, mine: Path) -> None:
    """Remove what killed processes left, of this part and of others that are not at work."""
    for path in output.glob(".unfinished*"):
        try:
            if path != mine:
                with held(output, RECORD.replace(".json", f"{path.name.removeprefix('.unfinished')}.json"), "tidying"):
                    shutil.rmtree(path, ignore_errors=True)
            else:
                shutil.rmtree(path, ignore_errors=True)
        except InputError:  # another process fills it
            continue
