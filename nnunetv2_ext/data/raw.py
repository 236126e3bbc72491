"""What is wrong with a raw data set: its description, its files and their headers, as nnU-Net's reader takes them.

Reads headers only; `nnunetv2_ext.data.voxels` reads the voxels.
"""

import io
from collections import defaultdict
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES, determine_reader_writer_from_dataset_json
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_ext.data.cases import Case, Collected, files_of, find_cases, name_within
from nnunetv2_ext.data.damage import unreadable
from nnunetv2_ext.data.dataset import for_each
from nnunetv2_ext.data.description import (
    Fault,
    channel_names,
    description_faults,
    ending_faults,
    label_faults,
    label_values,
    listing_faults,
    overwriting_reader,
)
from nnunetv2_ext.data.volumes import Grid, check_complete, read_grid
from nnunetv2_ext.errors import InputError, is_whole
from nnunetv2_ext.files import read_json
from nnunetv2_ext.text import counted, listed

MOST_VOXELS = 1e9
"""Resampling makes no case larger, unless it is so by itself: with a wrong spacing it would fill all memory."""


@dataclass(frozen=True)
class Header:
    """What the header of an image or label file tells: its grid, and how many channels the file holds."""

    grid: Grid
    """Of a 2D image with a third axis of one voxel."""
    dimensions: int
    channels: int = 1


@dataclass
class Raw:
    """A raw data set and all that is wrong with it."""

    folder: Path
    description: dict[str, Any]
    cases: dict[str, Case] = field(default_factory=dict)
    reader: type[BaseReaderWriter] | None = None
    """nnU-Net's, for this data set."""
    headers: dict[Path, Header] = field(default_factory=dict)
    """Of the files that can be read; of none where their format has headers that only its own reader knows."""
    unusable: set[Path] = field(default_factory=set)
    """Files whose headers tell already that they cannot be read, or are cut off."""
    labels: list[int] = field(default_factory=list)
    """The values that the label files may hold; none where `dataset.json` tells them wrongly."""
    faults: list[Fault] = field(default_factory=list)


def examine(folder: Path, *, processes: int = 8) -> Raw:
    """Look at everything of a raw data set that nnU-Net stops at or passes over in silence, but for the voxels.

    Args:
        folder: of the data set, in nnUNet_raw.
        processes: files at the same time.

    Raises:
        InputError: no `dataset.json`, or none that is a JSON object.
    """
    path = folder / "dataset.json"
    raw = Raw(folder, read_json(path, "put the data set into nnUNet_raw, with its dataset.json"))
    raw.faults += description_faults(raw.description, path)
    if not any(label_faults(raw.description, path)):
        raw.labels = label_values(raw.description)
    if [*ending_faults(raw.description, path), *listing_faults(raw.description, path)]:
        return raw
    raw.cases, faults = find_cases(folder, raw.description)
    raw.faults += faults
    number = raw.description.get("numTraining")
    if is_whole(number) and not any(fault.fatal for fault in faults) and number != len(raw.cases):
        remedy = f'write "numTraining": {len(raw.cases)}, or restore the cases that are missing'
        raw.faults.append(Fault(f"numTraining = {number} in {path} and {len(raw.cases)} cases", "their number", remedy))
    if raw.cases:
        raw.reader = _find_reader(raw)
        raw.faults += _read_headers(raw, processes)
        raw.faults += _grid_faults(raw)
    return raw


def _find_reader(raw: Raw) -> type[BaseReaderWriter]:
    """nnU-Net's reader of the data set, which it chooses by reading the first image of the first case."""
    first = raw.cases[min(raw.cases) if "dataset" not in raw.description else next(iter(raw.cases))].images[0]
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            return determine_reader_writer_from_dataset_json(raw.description, str(first), verbose=False)
    except RuntimeError:  # no reader takes that file, which its header or its voxels will tell
        ending = raw.description["file_ending"].lower()
        fitting = [reader for reader in LIST_OF_IO_CLASSES if ending in reader.supported_file_endings]
        return overwriting_reader(raw.description) or fitting[0]


def read_header(path: Path, reader: type[BaseReaderWriter]) -> Header | None:
    """What nnU-Net's reader takes from the header of an image.

    Returns:
        None for a format that tells its size only on reading.

    Raises:
        InputError: a file that this reader cannot read, of one that it reads otherwise than it is meant.
    """
    nifti = issubclass(reader, (NibabelIO, NibabelIOWithReorient))
    try:
        header = _nibabel_header(path) if nifti else _sitk_header(path)
    except InputError:
        raise
    except Exception as error:  # of a damaged header anything
        if not nifti and not issubclass(reader, SimpleITKIO):
            return None
        raise unreadable(path, error) from None
    spacing = header.grid.spacing
    if not all(np.isfinite(spacing)) or min(spacing) <= 0:
        raise InputError(f"a spacing of {listed(spacing)} mm", "numbers above 0", "correct its header")
    return header


def _sitk_header(path: Path) -> Header:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    dimensions, values = reader.GetDimension(), reader.GetNumberOfComponents()
    natural = path.name.lower().endswith((".png", ".bmp", ".tif", ".tiff"))
    if values != 1 and not natural:
        remedy = "write each channel into a file of its own, _0000, _0001, ..."
        raise InputError(f"{values} values per voxel, a colour image", "one value per voxel", remedy)
    if dimensions not in (2, 3, 4):
        raise InputError(f"{dimensions} dimensions", "volumes", "write each channel into a file of its own")
    axes = min(dimensions, 3)
    size, spacing, origin = (
        (*values[:axes], *[fill] * (3 - axes))
        for values, fill in ((reader.GetSize(), 1), (reader.GetSpacing(), 1.0), (reader.GetOrigin(), 0.0))
    )
    direction = np.eye(3)
    direction[:axes, :axes] = np.reshape(reader.GetDirection(), (dimensions, dimensions))[:axes, :axes]
    channels = reader.GetSize()[3] if dimensions == 4 else values
    return Header(Grid(size, spacing, origin, tuple(direction.ravel().tolist())), axes, channels)


def _nibabel_header(path: Path) -> Header:
    loaded: Any = nibabel.load(path)
    if len(loaded.shape) != 3:
        raise InputError(f"{len(loaded.shape)} dimensions", "3, for nnU-Net's NibabelIO", "write one volume per file")
    spacing = tuple(float(zoom) for zoom in loaded.header.get_zooms())
    turned = loaded.affine[:3, :3] / np.linalg.norm(loaded.affine[:3, :3], axis=0)
    origin = tuple(float(number) for number in loaded.affine[:3, 3])
    return Header(Grid(loaded.shape, spacing, origin, tuple(turned.ravel().tolist())), 3)


def _read_headers(raw: Raw, processes: int) -> list[Fault]:
    """Fill in `headers`, and tell the files that cannot be read, are cut off, or tell two things."""
    assert raw.reader is not None
    collected, reader = Collected("file"), raw.reader

    def look(path: Path) -> tuple[Header | None, InputError | None, InputError | None]:
        try:
            header = read_header(path, reader)
        except InputError as error:
            return None, error, None
        if header is None or header.dimensions != 3 or header.channels != 1:
            return header, None, None
        try:
            check_complete(path)
        except InputError as error:
            return None, error, None
        try:
            read_grid(path)
        except InputError as error:  # a header that our own commands refuse, but nnU-Net takes
            return header, None, error
        return header, None, None

    paths = [path for path, _ in files_of(raw.cases)]
    found = for_each(look, paths, processes=processes, label="headers", progress=False)
    for path, (header, unusable, odd) in zip(paths, found, strict=True):
        name = name_within(raw.folder, path)
        if header is not None:
            raw.headers[path] = header
        if unusable is not None:
            raw.unusable.add(path)
            got, expected, remedy = unusable.args
            what = "a header or voxels that cannot be used"
            collected.add(
                what, got.replace(str(path), name) if str(path) in got else f"{name}: {got}", expected, remedy
            )
        if odd is not None:
            got, expected, remedy = odd.args
            what = "a header that nnU-Net reads, but others read otherwise"
            collected.add(what, got.replace(str(path), name), expected, remedy, fatal=False, doubtful=True)
    return collected.faults()


def _grid_faults(raw: Raw) -> Iterator[Fault]:
    """Images of a case and its label on one grid, as many channels as are named, 2D or 3D throughout."""
    wanted = channel_names(raw.description)
    collected = Collected("case")
    dimensions: dict[int, list[str]] = defaultdict(list)
    for name, case in raw.cases.items():
        images = [raw.headers[path] for path in case.images if path in raw.headers]
        label = raw.headers.get(case.label)
        if len(images) < len(case.images):
            continue
        dimensions[images[0].dimensions].append(name)
        channels = sum(image.channels for image in images)
        if isinstance(wanted, dict) and channels != len(wanted):
            collected.add(
                f"another number of channels than the {len(wanted)} of dataset.json",
                f"{name}: {channels}",
                f"files {', '.join(f'_{number:04d}' for number in range(len(wanted)))} of each case",
                "restore what is missing, or correct channel_names",
            )
        for image in images[1:]:
            _compare(collected, name, images[0], image, "channels")
        if label is not None:
            if label.channels != 1:
                what = "several values per voxel in the label file"
                collected.add(what, name, "one label per voxel", "write one label map")
            _compare(collected, name, images[0], label, "a label file")
    if len(dimensions) > 1:
        few = min(dimensions.items(), key=lambda item: len(item[1]))
        yield Fault(f"{few[0]}D images in {counted(few[1], 'case')} among others", "2D or 3D in all", "remove them")
    yield from collected.faults()


def _compare(collected: Collected, case: str, image: Header, other: Header, what: str) -> None:
    """Sizes and spacings must agree, nnU-Net stops otherwise; with origins and directions it goes on."""
    differences = image.grid.differences(other.grid)
    decisive = [text for text in differences if text.startswith(("size", "spacing"))]
    if decisive:
        expected = "the size and spacing of the case's first image"
        remedy = "resample it to the image or correct its header"
        collected.add(f"{what} on another grid", f"{case}: {listed(decisive)}", expected, remedy)
    elif differences:
        expected = "one place in space, which nnU-Net does not look at"
        remedy = "look whether they lie over each other, then correct the header"
        collected.add(f"{what} in another place", f"{case}: {listed(differences)}", expected, remedy, fatal=False)


def extents(raw: Raw) -> list[tuple[np.ndarray, np.ndarray]]:
    """Size in voxels and spacing in mm (z, y, x) of each case, where its header tells them."""
    headers = (raw.headers.get(case.images[0]) for case in raw.cases.values())
    return [(np.array(h.grid.size[::-1]), np.array(h.grid.spacing[::-1])) for h in headers if h is not None]
