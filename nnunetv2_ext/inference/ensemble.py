"""An ensemble of folders of saved probabilities: checked, averaged piece by piece, each case whole or not at all.

nnU-Net's own command holds the probabilities of two members at once, and all labels. Here one head of a case is
averaged after the other, from pieces of every member's file, so that memory grows neither with members nor with labels.
"""

import json
import os
import shutil
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_ext import __version__
from nnunetv2_ext.data.dataset import for_each
from nnunetv2_ext.data.volumes import write_label_file
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import (
    FileState,
    file_state,
    is_unchanged,
    read_json,
    read_pickle,
    read_plans,
    unwritable,
    write_json,
)
from nnunetv2_ext.inference.members import Member, check_geometry, check_members
from nnunetv2_ext.inference.saved import Saved, averages, damaged, labels_of, opened, writing
from nnunetv2_ext.locks import ended_in_order, held
from nnunetv2_ext.text import counted, listed

RECORD = "ensemble.json"
"""In the output folder: the members with their weights, and of each case its inputs and outputs."""
MUST_AGREE = ("members", "labels", "regions_class_order")
"""What a record must have in common with the ensemble that goes on with it, to the order of entries."""
PREDICT = "predict with --save_probabilities, which writes it"


@dataclass
class Outcome:
    """What a run did, by names of cases."""

    written: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """With the sentence of each."""


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
    if processes < 1:
        raise InputError(f"-np {processes}", "1 or more", "correct it")
    _check_folders(folders, output)
    shares = _shares(folders, weights)
    members = [_member(folder) for folder in folders]
    check_members(members)
    cases = _common_cases(folders)
    run = _Run(folders, members, shares, output, probabilities)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(output, error) from None
    with held(output, RECORD, "an ensemble"), ended_in_order():
        todo = run.look(cases, overwrite=overwrite)
        run.work(todo, processes=processes, progress=progress)
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


def _shares(folders: Sequence[Path], weights: Sequence[float] | None) -> list[float]:
    shares = [1.0] * len(folders) if weights is None else [float(weight) for weight in weights]
    if len(shares) != len(folders):
        raise InputError(f"{len(shares)} weights for {len(folders)} folders", "one per folder", "correct -w")
    if not all(np.isfinite(share) and share > 0 for share in shares):
        raise InputError(
            f"-w {listed(shares, separator=' ')}", "weights above 0", "leave out members that do not count"
        )
    return shares


def _member(folder: Path) -> Member:
    description = read_json(folder / "dataset.json", PREDICT)
    return Member(str(folder), description, read_plans(folder / "plans.json", PREDICT))


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
        folders: Sequence[Path],
        members: Sequence[Member],
        shares: Sequence[float],
        output: Path,
        probabilities: bool,
    ):
        first = members[0]
        self.folders, self.members, self.shares, self.output = folders, members, shares, output
        self.probabilities = probabilities
        self.outcome = Outcome()
        self.label_manager = LabelManager(first.dataset_json["labels"], first.dataset_json.get("regions_class_order"))
        self.ending = first.dataset_json["file_ending"]
        self.writer = _writer(first)
        self.unfinished = output / ".unfinished"
        self.record: dict[str, Any] = {
            "made_by": f"nnunetv2_ext {__version__}",
            "members": {str(folder.resolve()): share for folder, share in zip(folders, shares, strict=True)},
            "labels": first.dataset_json["labels"],
            "regions_class_order": first.dataset_json.get("regions_class_order"),
            "cases": {},
        }
        self._recording = threading.Lock()

    # What is there already

    def look(self, cases: Sequence[str], *, overwrite: bool) -> list[str]:
        """The cases that are to be made.

        Raises:
            InputError: the folder holds other predictions.
        """
        shutil.rmtree(self.unfinished, ignore_errors=True)
        there = {} if overwrite else self._recorded()
        labels = [path.name for path in self.output.glob(f"*{self.ending}") if not path.name.startswith(".")]
        strangers = sorted(name for name in labels if name.removesuffix(self.ending) not in there)
        if strangers and not overwrite:
            raise InputError(
                f"{counted(strangers, 'file')} in {self.output} of which no {RECORD} tells",
                "a new folder, or one that this command wrote of the same members",
                "choose another -o, or replace what is there with --overwrite",
            )
        self.record["cases"] = there
        self.outcome.kept = [case for case in cases if self._is_whole(case)]
        return [case for case in cases if case not in self.outcome.kept]

    def _recorded(self) -> dict[str, Any]:
        """The cases of an earlier run."""
        path = self.output / RECORD
        if not path.exists():
            return {}
        remedy = "choose another -o, or replace what is there with --overwrite"
        content = read_json(path, remedy)
        cases = content.get("cases")
        if not isinstance(cases, dict):
            raise InputError(f"a damaged {path}", "what this command writes", remedy)
        told = [key for key in MUST_AGREE if json.dumps(content.get(key)) != json.dumps(self.record[key])]
        if told:
            raise InputError(
                f"another ensemble in {self.output} ({listed(told)} differ)",
                "one of the same members, weights and labels",
                remedy,
            )
        return cases

    def _is_whole(self, case: str) -> bool:
        """Whether an earlier run made this case of the same files, and nothing has changed since."""
        try:
            entry = self.record["cases"][case]
            states = {Path(name): FileState(*state) for name, state in entry["inputs"].items()}
            states |= {self.output / name: FileState(*state) for name, state in entry["outputs"].items()}
        except (LookupError, TypeError, AttributeError):
            return False
        if self.probabilities and self.output / f"{case}.npz" not in states:
            return False
        return all(is_unchanged(path, state) for path, state in states.items())

    # The work

    def work(self, cases: Sequence[str], *, processes: int, progress: bool) -> None:
        """Make the cases that are left.

        Raises:
            InputError: the output cannot be written.
        """
        looked = for_each(self._look_at, cases, processes=processes, label="checked", progress=False)
        self.outcome.failed = {case: told for case, told in zip(cases, looked, strict=True) if told}
        sound = [case for case in cases if case not in self.outcome.failed]
        if not sound:
            return
        try:
            self.unfinished.mkdir(exist_ok=True)
            # Told before they are made, so that after a kill no file is taken for a stranger's.
            self.record["cases"].update({case: {} for case in cases})
            write_json(self.output / RECORD, self.record)
            write_json(self.output / "dataset.json", self.members[0].dataset_json)
            write_json(self.output / "plans.json", self.members[0].plans)
            made = for_each(self._make, sound, processes=processes, label="ensembled", progress=progress)
        except OSError as error:
            raise unwritable(self.output, error) from None
        finally:
            shutil.rmtree(self.unfinished, ignore_errors=True)
        self.outcome.failed |= {case: told for case, told in zip(sound, made, strict=True) if told}
        self.outcome.written = [case for case in sound if case not in self.outcome.failed]

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
        before = properties.get("shape_before_cropping", saved.shape[1:])  # in the order of the plans' axes
        if sorted(before) != sorted(saved.shape[1:]):
            told = f"{path} of an image of {listed(before, separator=' x ')} voxels"
            size = listed(saved.shape[1:], separator=" x ")
            raise InputError(told, f"{size} as in {saved.path.name} beside it", "predict the case again")
        return properties

    def _make(self, case: str) -> str:
        """Write a case; returns what is wrong with its files.

        Raises:
            OSError: it cannot be written.
        """
        unfinished = self.unfinished / case
        try:
            unfinished.mkdir()
            files = [folder / f"{case}{ending}" for folder in self.folders for ending in (".npz", ".pkl")]
            states = {str(path.resolve()): file_state(path) for path in files}
            labels = self._labels(case, unfinished / f"{case}.npz")
        except InputError as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            return str(error)
        properties = read_pickle(files[1], "predict the case again")
        if self.probabilities:
            shutil.copyfile(files[1], unfinished / f"{case}.pkl")
        label_file = unfinished / f"{case}{self.ending}"
        try:
            write_label_file(self.writer, labels, label_file, properties)
        except InputError as error:
            return str(error)
        # The label file last: where it is, the others are too.
        outputs = sorted(unfinished.iterdir(), key=lambda path: path == label_file)
        for path in outputs:
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
            path.replace(self.output / path.name)
        entry = {"inputs": states, "outputs": {path.name: file_state(self.output / path.name) for path in outputs}}
        with self._recording:
            self.record["cases"][case] = entry
            write_json(self.output / RECORD, self.record)
        unfinished.rmdir()
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
            return labels_of(averages(saved, self.shares, keep), shape, regions)


def _writer(member: Member) -> BaseReaderWriter:
    """nnU-Net's reader and writer that a member's plans name."""
    name = member.plans.get("image_reader_writer")
    try:
        return recursive_find_reader_writer_by_name(str(name))()
    except RuntimeError:
        raise InputError(
            f"image_reader_writer = {name!r} in the plans.json of {member.name}", "one of nnU-Net's", PREDICT
        ) from None
