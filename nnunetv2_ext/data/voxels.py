"""The voxels of a raw data set, read once: damaged files, NaN, values that `dataset.json` does not name.

What was seen of each file is kept among the preprocessed data with the file's state, so that the next planning and the
doctor read only what has changed since.
"""

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunetv2_ext.data.cases import Collected, files_of, name_within
from nnunetv2_ext.data.dataset import for_each
from nnunetv2_ext.data.description import IGNORE, Fault
from nnunetv2_ext.data.nifti import is_nifti, missing_values
from nnunetv2_ext.data.raw import Raw
from nnunetv2_ext.data.volumes import check_complete, read_volume
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import FileState, file_state, is_unchanged, read_json, write_json
from nnunetv2_ext.text import counted, listed, one_line

RECORD = "raw_checked.json"
"""In the folder of the preprocessed data set."""
VERSION = 1
"""Of what is looked at; a record of another version is not read."""
VALUES = 100
"""Values of a label file that are kept; a label file has fewer, an image more."""


class Seen(NamedTuple):
    """What the voxels of a file are."""

    state: FileState
    """Of the file, before it was read."""
    nan: int = 0
    infinite: int = 0
    nan_read_as_0: int = 0
    """NaN and infinite voxels that nnU-Net takes as 0, as ITK does in NIfTI files."""
    values: tuple[float, ...] = ()
    """Of a label file, the first in order."""
    damaged: str = ""
    """Why it cannot be read."""


def look_at(path: Path, reader: type[BaseReaderWriter], *, label: bool) -> Seen:
    """Read a file as nnU-Net does, and tell where it is cut off, which nnU-Net's reader fills up with zeros."""
    state, hidden = FileState(0, 0, 0, ""), 0
    try:
        state = file_state(path)
        array, _ = reader().read_seg(str(path)) if label else reader().read_images((str(path),))
        if is_nifti(path):
            check_complete(path, unpack=True)
            hidden = missing_values(path)
        elif path.name.endswith(".gipl"):
            read_volume(path)
    except InputError as error:
        return Seen(state, damaged=error.args[0])
    except Exception as error:  # nnU-Net's readers raise anything
        return Seen(state, damaged=f"an unreadable file {path} ({one_line(error, last=True)})")
    values = pd.unique(array.ravel()) if label else np.zeros(0)
    found = tuple(np.sort(values[np.isfinite(values)])[:VALUES].tolist())
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(np.sum(array, dtype=np.float64))
    if finite:
        return Seen(state, nan_read_as_0=hidden, values=found)
    return Seen(state, int(np.isnan(array).sum()), int(np.isinf(array).sum()), values=found)


def look_at_all(
    raw: Raw, known: Mapping[Path, Seen], *, processes: int, progress: bool, labels_only: bool = False
) -> dict[Path, Seen]:
    """What the voxels of every file are; those that are `known` are not read again."""
    assert raw.reader is not None
    reader = raw.reader
    passed_over = raw.unusable | known.keys()
    wanted = [item for item in files_of(raw.cases) if item[0] not in passed_over and (item[1] or not labels_only)]
    with redirect_stdout(io.StringIO()):  # nnU-Net's readers print
        seen = for_each(
            lambda item: look_at(item[0], reader, label=item[1]),
            wanted,
            processes=processes,
            label="raw data",
            progress=progress and bool(wanted),
        )
    return {**known, **{path: one for (path, _), one in zip(wanted, seen, strict=True)}}


def voxel_faults(raw: Raw, seen: Mapping[Path, Seen]) -> list[Fault]:
    """What is wrong with the voxels that were looked at."""
    collected = Collected("file")
    labels = {case.label for case in raw.cases.values()}
    for path, one in seen.items():
        name = name_within(raw.folder, path)
        if one.damaged:
            expected, remedy = "whole files", "restore the file, or remove its case and correct numTraining"
            collected.add("voxels that cannot be read", one.damaged.replace(str(path), name), expected, remedy)
        if one.nan:
            remedy = "replace them, in an image by the value of its background, in a label file by a label"
            collected.add("voxels that are NaN (no number)", f"{name}: {one.nan}", "numbers", remedy)
        if one.infinite:
            remedy = "replace them by the largest or smallest value that makes sense"
            collected.add("voxels that are infinite", f"{name}: {one.infinite}", "numbers", remedy)
        if one.nan_read_as_0:
            what = "voxels that are NaN or infinite, which nnU-Net reads as 0"
            remedy = "write 0 if that is meant, else a number that makes sense"
            if path in labels:
                what, remedy = f"{what}, the background", "write 0 if that is meant; where nothing is known, `ignore`"
            collected.add(what, f"{name}: {one.nan_read_as_0}", "numbers", remedy, fatal=path in labels)
    readable = {path: one for path, one in seen.items() if path in labels and not one.damaged}
    return [*collected.faults(), *(_value_faults(raw, readable) if raw.labels else [])]


def _value_faults(raw: Raw, labels: Mapping[Path, Seen]) -> list[Fault]:
    """Label values against those that `dataset.json` names."""
    named = raw.labels
    place = raw.folder / "dataset.json"
    faults = []
    fractions = {path: [v for v in one.values if not float(v).is_integer()] for path, one in labels.items()}
    broken = [name_within(raw.folder, path) for path, values in fractions.items() if values]
    if broken:
        example = next(values for values in fractions.values() if values)
        got = f"label values that are no whole numbers ({listed(example, shown=3)}) in {counted(broken, 'label file')}"
        remedy = "round them, or make the label files anew: an image or a spline may have come in"
        faults.append(Fault(got, "whole numbers", remedy))
    odd: dict[int, list[str]] = {}
    for path, one in labels.items():
        for value in one.values:
            if float(value).is_integer() and int(value) not in named:
                odd.setdefault(int(value), []).append(name_within(raw.folder, path))
    if odd:
        files = sorted({name for names in odd.values() for name in names})
        got = f"the label value {listed(sorted(odd), shown=5)} in {counted(files, 'label file')}"
        nameable = [value for value in odd if value == named[-1] + 1 and IGNORE not in raw.description["labels"]]
        remedy = "correct the label files" + f", or name the value {listed(nameable)} under labels" * bool(nameable)
        faults.append(Fault(f"{got}, which {place} does not name", f"the values {listed(named)}", remedy))
    if len(labels) < len({case.label for case in raw.cases.values()}) or odd:
        return faults
    held = {int(value) for one in labels.values() for value in one.values}
    ignored = raw.description["labels"].get(IGNORE)
    lacking = [value for value in named if value not in held and value not in (0, ignored)]
    if not held - {0, ignored}:
        got = f"no label beside the background in any of the {len(labels)} label files"
        faults.append(Fault(got, "voxels of a label", "check that the label files are those of these images"))
    elif lacking:
        got = f"no voxel of the label value {listed(lacking)} in any case"
        remedy = f"check the label files, or take it out of labels in {place}"
        faults.append(Fault(got, "each label in some case", remedy, fatal=False))
    return faults


def known_voxels(raw: Raw, folder: Path) -> dict[Path, Seen]:
    """What is on record of the files that have not changed since.

    Args:
        folder: of the preprocessed data set.
    """
    known: dict[Path, Seen] = {}
    try:
        record = read_json(folder / RECORD, "")
        if record["version"] != VERSION or raw.reader is None or record["reader"] != raw.reader.__name__:
            return {}
        for path, label in files_of(raw.cases):
            entry = record["files"].get(_key(raw, path, label=label))
            seen = Seen(**entry) if entry else None
            if seen is not None and is_unchanged(path, FileState(*seen.state)):
                known[path] = seen._replace(state=FileState(*seen.state), values=tuple(seen.values))
    except (InputError, LookupError, TypeError, AttributeError):  # none yet, or a damaged one
        return {}
    return known


def keep_voxels(raw: Raw, seen: Mapping[Path, Seen], folder: Path) -> None:
    """Write what was seen of whole files for `known_voxels`.

    Raises:
        OSError: as `files.write_json`.
    """
    assert raw.reader is not None
    files: dict[str, Any] = {
        _key(raw, path, label=label): seen[path]._asdict()
        for path, label in files_of(raw.cases)
        if path in seen and not seen[path].damaged
    }
    write_json(folder / RECORD, {"version": VERSION, "reader": raw.reader.__name__, "files": files}, indent=0)


def _key(raw: Raw, path: Path, *, label: bool) -> str:
    return name_within(raw.folder, path) + " as label" * label
