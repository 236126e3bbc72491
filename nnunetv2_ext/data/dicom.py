"""DICOM: a series of slices in a folder, or a file that holds all slices, as one volume."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk

from nnunetv2_ext.data.damage import unreadable
from nnunetv2_ext.data.volumes import Grid, Volume, check_grid, check_name
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.text import listed, one_line

UNEVEN = 0.1
"""Share of the slice spacing by which a slice may lie beside its place."""
NO_VOLUME = re.compile(rb"\x08\x00\x60\x00(?:CS..|....)(SEG|RTSTRUCT)", re.DOTALL)
"""The tag (0008,0060), Modality, with or without its type, of objects that hold labels in another way."""
HEADER_LENGTH = 1 << 16
"""Bytes, of which the modality is among the first."""


@dataclass(frozen=True)
class _Slice:
    """What a slice tells of itself: a file of a series, or a frame of a file."""

    name: str
    size: tuple[int, ...]
    """(x, y)."""
    spacing: tuple[float, ...]
    """(x, y) in mm."""
    origin: tuple[float, ...]
    direction: tuple[float, ...]
    """3 x 3, row by row; the last column stands upright on the slice."""
    thickness: float | None


def open_dicom(path: Path) -> Volume:
    """Read the header of a file that holds all slices of a volume, as frames with positions of their own.

    Raises:
        InputError: unreadable file, a single slice, frames that are no stack of evenly spaced slices or tell no
            position, more than one value per voxel, an object that holds no image.
    """
    header = _header(path)
    if header.GetSize()[2:] == (1,):
        raise InputError(f"one DICOM slice {path}", "a volume", "put each series into a folder named as its case")
    _refuse_colours(path, header)
    try:
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        frames = [_frame(dataset, number) for number in range(int(dataset.NumberOfFrames))]
        scales = [_scale(dataset, number) for number in range(len(frames))]
    except Exception as error:  # pydicom meets damaged bytes with anything
        raise InputError(
            f"a DICOM file {path} of several frames that do not tell where they lie ({one_line(error)})",
            "a position, an orientation and a pixel spacing of each frame",
            "export it as a series of slices, or as NIfTI with the right spacing",
        ) from None
    grid, order = _stacked(path, frames)
    return Volume(
        path,
        grid,
        thickness=_one(frame.thickness for frame in frames),
        frames=tuple(order),
        scales=tuple(scales) if len(set(scales)) > 1 else (),
    )


def open_series(folder: Path) -> Volume:
    """Read the headers of the one series that lies in a folder, at any depth; files that are no DICOM are left alone.

    Raises:
        InputError: unreadable file, not exactly one series, no stack of evenly spaced slices, more than one value per
            voxel, an object that holds no image.
    """
    # Links that lead nowhere stay in the list, so that no slice is left out silently.
    files = [path for path in sorted(folder.rglob("*")) if not path.is_dir()]
    files = [path for path in files if path.name != "DICOMDIR" and not path.name.startswith(".")]
    series = defaultdict(list)
    for path in filter(is_dicom, files):
        header = _header(path)
        series[header.GetMetaData("0020|000e") if header.HasMetaDataKey("0020|000e") else ""].append((path, header))
    if len(series) != 1:
        counts = listed([f"{len(found)} files" for found in series.values()])
        raise InputError(
            f"{len(series)} DICOM series in {folder}" + (f" ({counts})" if series else ""),
            "one in the folder of a case",
            "remove the others" if series else "put the series there, or a file beside the folder instead of it",
        )
    (stack,) = series.values()
    if len(stack) == 1:
        return open_dicom(stack[0][0])
    return _stack(folder, stack)


def _stack(folder: Path, stack: Sequence[tuple[Path, sitk.ImageFileReader]]) -> Volume:
    """The volume of a series of single slices, from their own positions."""
    for path, header in stack:
        if not header.HasMetaDataKey("0020|0032") or not header.HasMetaDataKey("0020|0037") or header.GetSize()[2] != 1:
            raise InputError(f"a DICOM file {path} without a slice's position", "slices of a volume", "remove it")
        _refuse_colours(path, header)
    slices = [
        _Slice(
            path.name,
            header.GetSize()[:2],
            header.GetSpacing()[:2],
            header.GetOrigin(),
            header.GetDirection(),
            _length(header.GetMetaData("0018|0050") if header.HasMetaDataKey("0018|0050") else None),
        )
        for path, header in stack
    ]
    grid, order = _stacked(folder, slices)
    return Volume(folder, grid, tuple(stack[index][0] for index in order), _one(one.thickness for one in slices))


def _stacked(where: Path, slices: Sequence[_Slice]) -> tuple[Grid, list[int]]:
    """The grid of slices that lie in a folder or a file, and the order in which they lie in it."""
    first = slices[0]
    for one in slices:
        if one.size != first.size or not np.allclose(
            (*one.spacing, *one.direction), (*first.spacing, *first.direction), atol=1e-3 * min(first.spacing)
        ):
            raise InputError(
                f"{one.name} with size {one.size}, spacing {listed(one.spacing)} mm and direction "
                f"{listed(one.direction)} beside {first.name} with {first.size}, {listed(first.spacing)} mm and "
                f"{listed(first.direction)} in {where}",
                "slices of one grid",
                "remove those of another volume",
            )
    normal = np.reshape(first.direction, (3, 3))[:, 2]
    origins = np.array([one.origin for one in slices])
    order = np.argsort(origins @ normal, kind="stable")
    positions, origins = (origins @ normal)[order], origins[order]
    spacing = (positions[-1] - positions[0]) / (len(slices) - 1)
    beside = positions - np.linspace(positions[0], positions[-1], len(positions))
    if spacing <= 0 or np.abs(beside).max() > UNEVEN * spacing:
        gaps = np.diff(positions)
        widest = int(gaps.argmax())
        raise InputError(
            f"uneven slice spacing in {where}: from {gaps.min():g} to {gaps[widest]:g} mm (between "
            f"{slices[order[widest]].name} and {slices[order[widest + 1]].name})",
            "evenly spaced slices",
            "restore missing slices, or remove those of another volume"
            if where.is_dir()
            else "export the file anew, with all frames of one volume and no others",
        )
    tilt = np.abs(origins - origins[0] - np.outer(positions - positions[0], normal)).max()
    if tilt > min(first.spacing) / 2:
        raise InputError(
            f"slices in {where} that are shifted by up to {tilt:g} mm against each other (gantry tilt)",
            "slices above each other",
            "convert it first with a tool that corrects the tilt, such as dcm2niix",
        )
    grid = Grid(
        (*first.size, len(slices)), (*first.spacing, float(spacing)), tuple(origins[0].tolist()), first.direction
    )
    check_grid(grid, where)
    return grid, order.tolist()


def _frame(dataset: pydicom.Dataset, number: int) -> _Slice:
    """A frame by its functional groups; of a dose, which has none, by its offset."""
    if "PerFrameFunctionalGroupsSequence" in dataset:
        position = _group(dataset, number, "PlanePositionSequence").ImagePositionPatient
        orientation = _group(dataset, number, "PlaneOrientationSequence").ImageOrientationPatient
        measures = _group(dataset, number, "PixelMeasuresSequence")
        offset = 0.0
    else:
        position, orientation, measures = dataset.ImagePositionPatient, dataset.ImageOrientationPatient, dataset
        offset = float(dataset.GridFrameOffsetVector[number]) - float(dataset.GridFrameOffsetVector[0])
    right, down = np.reshape([float(value) for value in orientation], (2, 3))
    normal = np.cross(right, down)
    origin = np.array([float(value) for value in position]) + offset * normal
    row_spacing, column_spacing = (float(value) for value in measures.PixelSpacing)
    return _Slice(
        f"frame {number + 1}",
        (int(dataset.Columns), int(dataset.Rows)),
        (column_spacing, row_spacing),
        tuple(origin.tolist()),
        tuple(np.stack([right, down, normal], axis=1).ravel().tolist()),
        _length(measures.get("SliceThickness")),
    )


def _scale(dataset: pydicom.Dataset, number: int) -> tuple[float, float]:
    """Slope and intercept of a frame's values."""
    try:
        values = _group(dataset, number, "PixelValueTransformationSequence")
    except AttributeError:
        return 1.0, 0.0
    return float(values.RescaleSlope), float(values.RescaleIntercept)


def _group(dataset: pydicom.Dataset, number: int, name: str) -> pydicom.Dataset:
    """A functional group of a frame, its own or that of all frames."""
    groups = dataset.PerFrameFunctionalGroupsSequence[number]
    return getattr(groups if name in groups else dataset.SharedFunctionalGroupsSequence[0], name)[0]


def _refuse_colours(path: Path, header: sitk.ImageFileReader) -> None:
    if header.GetNumberOfComponents() != 1:
        raise InputError(
            f"{path} with {header.GetNumberOfComponents()} values per voxel (colours)",
            "slices of one value per voxel",
            "remove it, or convert the series to such a volume",
        )


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its ending too.

    Raises:
        InputError: the file cannot be opened.
    """
    # A truncated file is none to GDCM, but must not be left out silently.
    if path.suffix.lower() == ".dcm":
        return True
    check_name(path)
    try:
        with path.open("rb") as stream:
            if stream.read(132)[128:] == b"DICM":
                return True
    except OSError as error:
        raise unreadable(path, error) from None
    return sitk.ImageFileReader.GetImageIOFromFileName(str(path)) == "GDCMImageIO"


def _header(path: Path) -> sitk.ImageFileReader:
    check_name(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        with path.open("rb") as stream:
            modality = NO_VOLUME.search(stream.read(HEADER_LENGTH))
        # Before GDCM reads it, which does not tell why it cannot.
        if modality:
            raise InputError(
                f"a DICOM object of modality {modality[1].decode()} in {path}",
                "a volume that holds the label of each voxel",
                "convert it to NIfTI or NRRD first",
            )
        reader.ReadImageInformation()
    except (RuntimeError, OSError) as error:
        if kind := _no_image(path):
            raise InputError(f"a DICOM object without an image, {kind}, in {path}", "an image", "remove it") from None
        raise unreadable(path, error) from None
    return reader


def _no_image(path: Path) -> str:
    """The kind of a DICOM object that holds no image by its nature; an empty text of others."""
    try:
        kind = pydicom.dcmread(path, stop_before_pixels=True).SOPClassUID.name
    except Exception:  # damaged bytes raise anything
        return ""
    # An image without pixels has lost them.
    return "" if "Image Storage" in kind else kind


def _one(lengths: Iterable[float | None]) -> float | None:
    """The length that all have; None where they differ."""
    different = set(lengths)
    return different.pop() if len(different) == 1 else None


def _length(text: object) -> float | None:
    try:
        length = float(str(text))
    except ValueError:
        return None
    return length if 0 < length < math.inf else None
