"""An ensemble of folders of saved probabilities: checked, averaged piece by piece, each case whole or not at all.

nnU-Net's own command holds the probabilities of two members at once, and all labels. Here one head of a case is
averaged after the other, from pieces of every member's file, so that memory grows neither with members nor with labels.
"""

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_ext.data.dataset import for_each
from nnunetv2_ext.data.volumes import write_label_file
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import FileState, file_state, read_json, read_pickle, read_plans, unwritable, write_json
from nnunetv2_ext.inference.folder import Outcome
from nnunetv2_ext.inference.members import Member, check_geometry, check_members, checked_weights
from nnunetv2_ext.inference.record import RECORD, Record
from nnunetv2_ext.inference.saved import Saved, averages, damaged, opened, winners, writing
from nnunetv2_ext.locks import ended_in_order, held
from nnunetv2_ext.text import counted, listed

PREDICT = "predict with --save_probabilities, which writes it"


def ensemble_folders(
    folders: Sequence[Path],
    output: Path,
    *,
    weights: Sequence[float] | None = None,
    probabilities: bool = False,
    overwrite: bool = False,
    processes: int = 8,
    progress: bool = True,
) -> Outcome:
    """Average the probabilities that several models gave each case, and write the labels that follow.

    Labels are those of nnU-Net's `ensemble_folders`. Cases that are there already, of the same members, weights and
    inputs, stay. A damaged case is left out and told of; the others go on.

    Args:
        folders: predictions with `--save_probabilities`, of nnU-Net or ours, all of the same cases.
        output: the folder to write to; made where there is none.
        weights: one per folder, above 0; by default all the same.
        probabilities: write CASE.npz and CASE.pkl too, as nnU-Net does.
        overwrite: make everything anew, over what is there.
        processes: cases at the same time, in threads.
        progress: show progress bars.

    Raises:
        InputError: members that do not agree or do not hold the same cases, weights that fit none, or an output that is
            one of the folders, in use, full, or holds other predictions.
    """
    _check_folders(folders, output)
    shares = checked_weights(weights, len(folders))
    members = [_member(folder) for folder in folders]
    check_members(members)
    cases = _common_cases(folders)
    writer = _writer(members[0])
    try:
        output.mkdir(parents=True, exist_ok=True)
        with held(output, RECORD, "an ensemble"), ended_in_order():
            record = Record(output, _made_by(members, shares), anew=overwrite)
            run = _Run(members, shares, writer, output, record, probabilities=probabilities)
            run.work(run.look(cases, overwrite=overwrite), processes=processes, progress=progress)
    except OSError as error:
        raise unwritable(output, error) from None
    return run.outcome


def _check_folders(folders: Sequence[Path], output: Path) -> None:
    for number, folder in enumerate(folders):
        if not folder.is_dir():
            raise InputError(f"no folder {folder}", "a folder of predictions", "check the path")
        if folder.resolve() in [other.resolve() for other in folders[:number]]:
            raise InputError(f"the folder {folder} twice", "each once", "leave one out; -w gives a member more weight")
        if folder.resolve() == output.resolve():
            raise InputError(f"{output} as input and output", "a folder of its own", "choose another -o")
    if output.exists() and not output.is_dir():
        raise InputError(f"-o {output}, a file", "a folder", "choose another name")


def _member(folder: Path) -> Member:
    description = read_json(folder / "dataset.json", PREDICT)
    return Member(str(folder), description, read_plans(folder / "plans.json", PREDICT))


def _made_by(members: Sequence[Member], shares: Sequence[float]) -> dict[str, Any]:
    """What decides the labels beside the files of a case, as JSON has it; the order of members and labels counts."""
    description = members[0].dataset_json
    return {
        "models": [[str(Path(member.name).resolve()), share] for member, share in zip(members, shares, strict=True)],
        "labels": [list(entry) for entry in description["labels"].items()],
        "regions_class_order": description.get("regions_class_order"),
    }


def _common_cases(folders: Sequence[Path]) -> list[str]:
    """The names of the cases, which every folder must hold."""
    names = [{path.stem for path in folder.glob("*.npz") if not path.name.startswith(".")} for folder in folders]
    for folder, cases in zip(folders, names, strict=True):
        if not cases:
            raise InputError(f"no probabilities, CASE.npz, in {folder}", "one file per case", PREDICT)
        sides = ((folder, folders[0], names[0] - cases), (folders[0], folder, cases - names[0]))
        for here, other, lacking in sides:
            if lacking:
                raise InputError(
                    f"no probabilities of {counted(sorted(lacking), 'case')} in {here}, but in {other}",
                    "the same cases in all folders",
                    f"predict them with that model too, or move them out of {other}",
                )
    return sorted(names[0])


class _Run:
    """One call of `ensemble_folders`."""

    def __init__(
        self,
        members: Sequence[Member],
        shares: Sequence[float],
        writer: BaseReaderWriter,
        output: Path,
        record: Record,
        *,
        probabilities: bool,
    ):
        description = members[0].dataset_json
        self.members, self.shares, self.writer, self.output, self.record = members, shares, writer, output, record
        self.folders = [Path(member.name) for member in members]
        self.label_manager = LabelManager(description["labels"], description.get("regions_class_order"))
        self.ending = description["file_ending"]
        self.probabilities = probabilities
        self.unfinished = output / ".unfinished"
        self.outcome = Outcome()

    def look(self, cases: Sequence[str], *, overwrite: bool) -> list[str]:
        """The cases that are to be made.

        Raises:
            InputError: the folder holds label files of which no record tells.
        """
        shutil.rmtree(self.unfinished, ignore_errors=True)
        labels = [path.name for path in self.output.glob(f"*{self.ending}") if not path.name.startswith(".")]
        strangers = sorted(name for name in labels if name.removesuffix(self.ending) not in self.record.cases)
        if strangers and not overwrite:
            raise InputError(
                f"{counted(strangers, 'file')} in {self.output} of which no {RECORD} tells",
                "a new folder, or one that this command wrote of the same members",
                "choose another -o, or replace what is there with --overwrite",
            )
        made = [".npz", ".pkl"] if self.probabilities else []
        for case in cases:
            outputs = [f"{case}{ending}" for ending in (self.ending, *made)]
            if self.record.is_whole(case, self._inputs(case), outputs):
                self.outcome.kept.append(case)
        todo = [case for case in cases if case not in self.outcome.kept]
        self.record.begin(todo if overwrite else ())
        return todo

    def _inputs(self, case: str) -> dict[str, Path]:
        """The files that decide what a case becomes."""
        paths = [folder / f"{case}{ending}" for folder in self.folders for ending in (".npz", ".pkl")]
        return {str(path): path for path in map(Path.absolute, paths)}

    def work(self, cases: Sequence[str], *, processes: int, progress: bool) -> None:
        """Make the cases that are left.

        Raises:
            OSError: the output cannot be written.
        """
        looked = for_each(self._look_at, cases, processes=processes, label="checked", progress=False)
        failed = {case: told for case, told in zip(cases, looked, strict=True) if told}
        sound = [case for case in cases if case not in failed]
        try:
            if sound:
                self.unfinished.mkdir(exist_ok=True)
                write_json(self.output / "dataset.json", self.members[0].dataset_json)
                write_json(self.output / "plans.json", self.members[0].plans)
            made = for_each(self._make, sound, processes=processes, label="ensembled", progress=progress)
        finally:
            shutil.rmtree(self.unfinished, ignore_errors=True)
        failed |= {case: told for case, told in zip(sound, made, strict=True) if told}
        for case in sorted(failed):
            self.record.fail(case, failed[case])
            self.outcome.failed[case] = failed[case]
        self.outcome.written = [case for case in sound if case not in failed]

    def _look_at(self, case: str) -> str:
        """What is wrong with a case, as far as it is told without reading its probabilities."""
        try:
            shapes, properties = [], []
            for folder in self.folders:
                with opened(folder / f"{case}.npz") as saved:
                    shapes.append(saved.shape)
                properties.append(self._properties(folder, case, saved))
            check_geometry(case, [member.name for member in self.members], properties, [shape[1:] for shape in shapes])
        except InputError as error:
            return str(error)
        return ""

    def _properties(self, folder: Path, case: str, saved: Saved) -> dict[str, Any]:
        """nnU-Net's properties of a case, which must be those of its probabilities."""
        path, heads = folder / f"{case}.pkl", self.label_manager.num_segmentation_heads
        if saved.shape[0] != heads:
            raise damaged(saved.path, f"{saved.shape[0]} outputs instead of {heads}, those of the labels")
        properties = read_pickle(path, "predict the case again")
        if not isinstance(properties, dict):
            raise InputError(f"no properties in {path}", "nnU-Net's properties of a case", "predict the case again")
        size, before = saved.shape[1:], properties.get("shape_before_cropping", saved.shape[1:])
        # In the order of the plans' axes.
        if not isinstance(before, list | tuple) or sorted(map(str, before)) != sorted(map(str, size)):
            shape = listed(before, separator=" x ") if isinstance(before, list | tuple) else before
            told = f"{path} of an image of {shape} voxels"
            beside = f"{listed(size, separator=' x ')} as in {saved.path.name} beside it"
            raise InputError(told, beside, "predict the case again")
        return properties

    def _make(self, case: str) -> str:
        """Write a case; returns what is wrong with its files.

        Raises:
            OSError: it cannot be written.
        """
        unfinished, inputs = self.unfinished / case, self._inputs(case)
        unfinished.mkdir()
        label_file = unfinished / f"{case}{self.ending}"
        try:
            states = {name: _state(path) for name, path in inputs.items()}
            properties = self.folders[0] / f"{case}.pkl"
            labels = self._labels(case, unfinished / f"{case}.npz")
            write_label_file(self.writer, labels, label_file, read_pickle(properties, "predict the case again"))
        except InputError as error:
            return str(error)
        if self.probabilities:
            shutil.copyfile(properties, unfinished / properties.name)
        # The label file last: where it is, the others are too.
        paths = sorted(unfinished.iterdir(), key=lambda path: path == label_file)
        self.record.publish(case, states, {path.name: path for path in paths}, {})
        return ""

    def _labels(self, case: str, target: Path) -> np.ndarray:
        """The labels (Z, Y, X) of a case; its probabilities go into `target` if they are asked for.

        Raises:
            InputError: a file is damaged.
            OSError: the target cannot be written.
        """
        with ExitStack() as stack:
            saved = [stack.enter_context(opened(folder / f"{case}.npz")) for folder in self.folders]
            shape = saved[0].shape
            keep = stack.enter_context(writing(target, shape)).write if self.probabilities else None
            regions = self.label_manager.regions_class_order if self.label_manager.has_regions else None
            return winners(averages(saved, self.shares, keep), shape, regions)


def _state(path: Path) -> FileState:
    try:
        return file_state(path)
    except OSError as error:
        raise InputError(f"an unreadable file {path} ({error.strerror})", "a file of the case", PREDICT) from None


def _writer(member: Member) -> BaseReaderWriter:
    """nnU-Net's reader and writer that a member's plans name."""
    name = member.plans.get("image_reader_writer")
    try:
        return recursive_find_reader_writer_by_name(str(name))()
    except RuntimeError:
        raise InputError(
            f"image_reader_writer = {name!r} in the plans.json of {member.name}", "one of nnU-Net's", PREDICT
        ) from None
