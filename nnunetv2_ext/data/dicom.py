"""DICOM: a series of slices in a folder, or a file that holds all slices, as one volume."""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunetv2_ext.data.faults import unreadable
from nnunetv2_ext.data.volumes import Grid, Volume, read_grid
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.text import listed

UNEVEN = 0.1
"""Share of the slice spacing by which a slice may lie beside its place."""
NO_VOLUME = re.compile(rb"\x08\x00\x60\x00(?:CS..|....)(SEG|RTSTRUCT)", re.DOTALL)
"""The tag (0008,0060), Modality, with or without its type, of objects that hold labels in another way."""
HEADER_LENGTH = 1 << 16
"""Bytes, of which the modality is among the first."""


def open_dicom(path: Path) -> Volume:
    """Read the header of a file that holds all slices of a volume.

    Raises:
        InputError: unreadable file, a single slice, more than one value per voxel, an object that holds no image.
    """
    header = _header(path)
    if header.GetSize()[2:] == (1,):
        raise InputError(f"one DICOM slice {path}", "a volume", "put each series into a folder named as its case")
    return Volume(path, read_grid(path), thickness=_thickness(header))


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
        if header.GetNumberOfComponents() != 1:
            raise InputError(
                f"{path} with {header.GetNumberOfComponents()} values per voxel (colours)",
                "slices of one value per voxel",
                "remove it, or convert the series to such a volume",
            )
    first = stack[0][1]
    for path, header in stack:
        if header.GetSize() != first.GetSize() or not np.allclose(
            (*header.GetSpacing()[:2], *header.GetDirection()),
            (*first.GetSpacing()[:2], *first.GetDirection()),
            atol=1e-3 * min(first.GetSpacing()[:2]),
        ):
            raise InputError(
                f"{path.name} with size {header.GetSize()[:2]}, spacing {listed(header.GetSpacing()[:2])} mm and "
                f"direction {listed(header.GetDirection())} beside {stack[0][0].name} with {first.GetSize()[:2]}, "
                f"{listed(first.GetSpacing()[:2])} mm and {listed(first.GetDirection())} in {folder}",
                "slices of one grid",
                "remove those of another volume",
            )
    normal = np.reshape(first.GetDirection(), (3, 3))[:, 2]
    origins = np.array([header.GetOrigin() for _, header in stack])
    order = np.argsort(origins @ normal, kind="stable")
    positions, origins = (origins @ normal)[order], origins[order]
    spacing = (positions[-1] - positions[0]) / (len(stack) - 1)
    beside = positions - np.linspace(positions[0], positions[-1], len(positions))
    if spacing <= 0 or np.abs(beside).max() > UNEVEN * spacing:
        gaps = np.diff(positions)
        widest = int(gaps.argmax())
        raise InputError(
            f"uneven slice spacing in {folder}: from {gaps.min():g} to {gaps[widest]:g} mm (between "
            f"{stack[order[widest]][0].name} and {stack[order[widest + 1]][0].name})",
            "evenly spaced slices",
            "restore missing slices, or remove those of another volume",
        )
    tilt = np.abs(origins - origins[0] - np.outer(positions - positions[0], normal)).max()
    if tilt > min(first.GetSpacing()[:2]) / 2:
        raise InputError(
            f"slices in {folder} that are shifted by up to {tilt:g} mm against each other (gantry tilt)",
            "slices above each other",
            "resample the series to a volume first",
        )
    grid = Grid(
        (*first.GetSize()[:2], len(stack)),
        (*first.GetSpacing()[:2], float(spacing)),
        tuple(origins[0].tolist()),
        first.GetDirection(),
    )
    return Volume(folder, grid, tuple(stack[index][0] for index in order), _thickness(first))


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its ending too.

    Raises:
        InputError: the file cannot be opened.
    """
    # A truncated file is none to GDCM, but must not be left out silently.
    if path.suffix.lower() == ".dcm":
        return True
    try:
        with path.open("rb") as stream:
            if stream.read(132)[128:] == b"DICM":
                return True
    except OSError as error:
        raise unreadable(path, error) from None
    return sitk.ImageFileReader.GetImageIOFromFileName(str(path)) == "GDCMImageIO"


def _header(path: Path) -> sitk.ImageFileReader:
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
        raise unreadable(path, error) from None
    return reader


def _thickness(header: sitk.ImageFileReader) -> float | None:
    try:
        thickness = float(header.GetMetaData("0018|0050"))
    except (RuntimeError, ValueError):
        return None
    return thickness if 0 < thickness < math.inf else None
