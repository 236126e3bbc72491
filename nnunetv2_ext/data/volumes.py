"""Volumes in files: their voxel grid, reading that notices damaged files, writing that notices a full disk."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunetv2_ext.data.damage import check_length, unreadable
from nnunetv2_ext.data.nifti import (
    STRAIGHT,
    TWO_PLACES,
    UNPACKING,
    angle,
    check_header,
    check_spacing,
    data_place,
    is_nifti,
    missing_values,
    read_header,
)
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import unwritable
from nnunetv2_ext.text import listed, one_line

VOLUME_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl")
TOLERANCE = 0.01
"""Relative: spacings that differ by less count as equal."""
HEADER_LENGTHS = {".gipl": 256, ".mrc": 1024}
"""Bytes before the voxels."""
AT_FAULT = "its header is at fault, not its voxels"


@dataclass(frozen=True)
class Grid:
    """A volume's voxel grid in SimpleITK's order (x, y, z): spacing and origin in mm, direction row by row."""

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]
    doubt: str = ""
    """Why the file leaves in doubt where its voxels lie (origin and direction), in words."""

    def differences(self, other: "Grid") -> list[str]:
        """What differs by more than a thousandth of this grid's spacing (direction: by 1e-3), in words."""
        limit = 1e-3 * np.asarray(self.spacing)
        limits = {"size": 0.0, "spacing": limit, "origin": limit, "direction": 1e-3}
        apart = {name: np.subtract(getattr(self, name), getattr(other, name)) for name in limits}
        # Along the axes that the spacing belongs to.
        apart["origin"] = np.reshape(self.direction, (3, 3)).T @ apart["origin"]
        return [
            "{} {} instead of {}".format(name, *_told_apart(getattr(other, name), getattr(self, name)))
            for name, allowed in limits.items()
            if np.any(np.abs(apart[name]) > allowed)
        ]

    def file_axis(self, axis: int, *, reorient: bool) -> int:
        """The array axis in the file of nnU-Net's array axis: another one only where nnU-Net's reader reorients."""
        if not reorient:
            return axis
        letters = sitk.DICOMOrientImageFilter_GetOrientationFromDirectionCosines(self.direction)
        pair = ("SI", "AP", "LR")[axis]
        return 2 - next(index for index, letter in enumerate(letters) if letter in pair)


def check_name(path: Path) -> None:
    """Refuse a path that SimpleITK cannot be given.

    Raises:
        InputError: it is not in UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(f"the file name {str(path)!a}", "a name in UTF-8", "rename it") from None


def read_grid(path: Path) -> Grid:
    """The voxel grid from a volume's header.

    Raises:
        InputError: missing or unreadable file, no volume of one value per voxel, or a header that no grid can follow:
            a spacing that is not above 0 or told twice, axes that are not upright on each other.
    """
    check_name(path)
    if path.is_dir():
        raise InputError(f"a folder {path}", "a file there", "put the volume's file there, or remove its case")
    if not path.is_file():
        raise InputError(f"no file {path}", "every image and label of the data set", "restore it or remove its case")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        header = read_header(path) if is_nifti(path) else None
        # Before ITK, which says less of what is wrong.
        doubt = "" if header is None else check_header(path, header)
        reader.ReadImageInformation()
    except (RuntimeError, *UNPACKING) as error:
        raise unreadable(path, error) from None
    if reader.GetDimension() != 3 or reader.GetNumberOfComponents() != 1:
        remedy = "choose a data set of volumes"
        if reader.GetDimension() == 4:
            remedy = "split it along its last axis into a file per channel (_0000, _0001, ...)"
        shape = f"{reader.GetDimension()} dimensions and {reader.GetNumberOfComponents()} values per voxel"
        raise InputError(f"{path} with {shape}", "3D volumes of one value per voxel", remedy)
    doubt = check_told(path) or doubt
    grid = Grid(reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection(), doubt)
    check_grid(grid, path)
    return grid


def check_told(path: Path) -> str:
    """Refuse a header that tells no spacing, which ITK takes as 1 mm.

    Returns:
        What it leaves in doubt, in words.

    Raises:
        InputError: no spacing.
    """
    if is_nifti(path):
        check_spacing(path)
        return ""
    keys = {".nrrd": (b"space directions", b"spacings"), ".mha": (b"ElementSpacing", b"ElementSize")}
    keys |= {".nhdr": keys[".nrrd"], ".mhd": keys[".mha"]}
    if path.suffix not in keys:
        return ""
    with path.open("rb") as stream:
        lines = stream.read(1 << 14).partition(b"\n\n")[0].splitlines()
    told = [line for line in lines if line.startswith(keys[path.suffix])]
    if not told or any(b"none" in line for line in told):
        raise InputError(
            f"{path} with " + (f"the {told[0].decode(errors='replace')}" if told else "no spacing in its header"),
            "a header that tells the spacing along each axis",
            f"{AT_FAULT}: write the right one into it",
        )
    return "" if told[0].startswith((b"space", b"Element")) else "no space directions"


def check_grid(grid: Grid, path: Path) -> None:
    """Refuse a grid that no volume has.

    Raises:
        InputError: a spacing that is not above 0 or not told, or axes that are not upright on each other.
    """
    if not (np.isfinite([*grid.spacing, *grid.origin]).all() and min(grid.spacing) > 0):
        numbers = f"spacing {listed(grid.spacing)} mm and origin {listed(grid.origin)} mm"
        raise InputError(f"{path} with {numbers}", "a spacing above 0", f"{AT_FAULT}: write the right one into it")
    axes = np.reshape(grid.direction, (3, 3))
    lengths = np.maximum(np.linalg.norm(axes, axis=0), 1e-9)
    if (cosine := np.abs((axes / lengths).T @ (axes / lengths) - np.eye(3)).max()) > STRAIGHT:
        raise InputError(
            f"{path} with slanted axes ({angle(cosine)} degrees instead of 90)",
            "axes upright on each other",
            f"{AT_FAULT}: resample image and labels onto straight axes, with SimpleITK.Resample(image, "
            "image.GetSize(), SimpleITK.Transform(), SimpleITK.sitkLinear, image.GetOrigin(), image.GetSpacing(), "
            "[1, 0, 0, 0, 1, 0, 0, 0, 1]), sitkNearestNeighbor for labels",
        )
    if np.abs(lengths - 1).max() > STRAIGHT:
        raise InputError(
            f"{path} with direction vectors of the lengths {listed(lengths.tolist())}",
            "directions of length 1",
            f"{AT_FAULT}: divide them by their lengths, after checking that the spacing is right",
        )


def read_volume(path: Path) -> np.ndarray:
    """The voxels (Z, Y, X) of a volume in the file's own type.

    Raises:
        InputError: unreadable or truncated file.
    """
    check_name(path)
    try:
        image = sitk.ReadImage(str(path))
        _check_complete(path, image)
    except (RuntimeError, *UNPACKING) as error:
        raise unreadable(path, error) from None
    return sitk.GetArrayFromImage(image)


def read_labels(path: Path) -> np.ndarray:
    """The voxels (Z, Y, X) of a label map in the file's own type, all of them whole numbers.

    Raises:
        InputError: unreadable or truncated file, or values that are no whole numbers. NaN, "not annotated", is among
            them: SimpleITK, and with it nnU-Net, reads it as 0 from NIfTI, which is background.
    """
    labels = read_volume(path)
    check_labels(labels, path)
    return labels


def check_labels(labels: np.ndarray, path: Path) -> None:
    """Refuse labels, as SimpleITK read them from `path`, that are no whole numbers.

    Raises:
        InputError: see `read_labels`.
    """
    if labels.dtype.kind != "f":
        return
    whole_file = is_nifti(path) and path.is_file()
    if missing := missing_values(path) if whole_file else int(np.count_nonzero(~np.isfinite(labels))):
        raise InputError(
            f"{missing} voxels of NaN or infinity in {path}",
            "a whole number in every voxel of a label map (nnU-Net reads NaN in NIfTI as background)",
            "where NaN says not annotated, write the number after the last label there and name it ignore, the last of "
            "the labels; else write 0",
        )
    broken = labels[labels != np.round(labels)]
    if broken.size:
        raise InputError(
            f"values such as {listed(f'{value:.9g}' for value in np.unique(broken)[:3].tolist())} in {path}",
            "a whole number in every voxel of a label map",
            "check that it is no image, and that its header scales nothing (scl_slope); save it as whole numbers",
        )


@dataclass(frozen=True)
class Volume:
    """A volume in one file, or in the files of a DICOM series."""

    path: Path
    grid: Grid
    files: tuple[Path, ...] = ()
    """Of a DICOM series, one slice each, in the order of the slices."""
    thickness: float | None = None
    """Slice thickness in mm where the file tells it, as DICOM does, the same for all slices."""
    frames: tuple[int, ...] = ()
    """Of a DICOM file of several frames, their numbers from 0 on in the order of the slices."""
    scales: tuple[tuple[float, float], ...] = ()
    """Slope and intercept of each frame, by its number, where they differ."""

    def read(self) -> np.ndarray:
        """The voxels (Z, Y, X).

        Raises:
            InputError: unreadable or truncated file.
        """
        if self.frames:
            return self._read_frames()
        if not self.files:
            return read_volume(self.path)
        slices = []
        for path in self.files:
            try:
                slices.append(sitk.GetArrayFromImage(sitk.ReadImage(str(path))))
            except RuntimeError as error:
                raise unreadable(path, error) from None
        # Each file may scale its values by another factor, and then has another type.
        return np.concatenate(slices)

    def _read_frames(self) -> np.ndarray:
        volume = read_volume(self.path)
        if self.scales:
            # SimpleITK applies the first frame's to all.
            slope, intercept = self.scales[0]
            slopes, intercepts = (np.reshape(column, (-1, 1, 1)) for column in zip(*self.scales, strict=True))
            volume = np.round((volume.astype(np.float64) - intercept) / slope) * slopes + intercepts
        return volume[list(self.frames)]


def write_volume(array: np.ndarray, grid: Grid, path: Path) -> None:
    """Write voxels (Z, Y, X) with their grid, compressed where the format can.

    A NIfTI file of a grid without qform and sform has none either: which of its readers' guesses is right stays open.

    Raises:
        InputError: the file cannot be written, for instance on a full disk, or its format cannot hold the grid.
    """
    try:
        if grid.doubt and is_nifti(path):
            bare = nibabel.Nifti1Image(array.T, None, dtype=array.dtype)
            bare.header.set_zooms(grid.spacing)
            nibabel.save(bare, path)
        else:
            image = sitk.GetImageFromArray(array)
            image.SetSpacing(grid.spacing)
            image.SetOrigin(grid.origin)
            image.SetDirection(grid.direction)
            sitk.WriteImage(image, str(path), True)
        # On a full disk ITK writes half a file without an error.
        read_volume(path)
        written = read_grid(path)
    except (RuntimeError, OSError, InputError) as error:
        raise unwritable(path, error) from None
    different = grid.differences(written)
    if grid.doubt:
        different = [told for told in different if told.startswith(("size", "spacing"))]
    if different:
        raise InputError(
            f"a file {path} that holds {', '.join(different)}", "a format that holds the grid", "choose .nii.gz"
        )


def write_label_file(writer: BaseReaderWriter, labels: np.ndarray, path: Path, properties: Mapping[str, Any]) -> None:
    """Write labels (Z, Y, X) with one of nnU-Net's writers, and look whether the file is whole.

    Args:
        properties: of the image, as that writer's reader gave them.

    Raises:
        OSError: the file cannot be written, for instance on a full disk.
        InputError: the properties are not this writer's.
    """
    try:
        writer.write_seg(labels, str(path), dict(properties))
        if path.name.lower().endswith(VOLUME_ENDINGS):
            # On a full disk ITK writes half a file, or an empty one, without an error.
            read_volume(path)
    except (RuntimeError, OSError, InputError) as error:
        raise OSError(f"could not write {path}: {one_line(error, last=True)}") from None
    except (LookupError, TypeError, ValueError, AssertionError) as error:
        got = f"properties for {path.name} that {type(writer).__name__} cannot write ({one_line(error)})"
        raise InputError(got, "those of an image that it read", "predict the case again") from None


def check_complete(path: Path, *, unpack: bool = False) -> None:
    """Look whether a NIfTI file is long enough for the voxels that its header tells; ITK fills it up where it is not.

    Other formats tell on reading that they are cut off, GIPL apart.

    Args:
        unpack: a packed file, to its end; otherwise only where the length that gzip noted there does not fit.

    Raises:
        InputError: voxels are missing.
    """
    try:
        if not is_nifti(path) or (header := read_header(path)) is None:
            return
        data, offset, length = data_place(path, header)
        with data.open("rb") as stream:
            packed = stream.read(2) == b"\x1f\x8b"
            stream.seek(-4, os.SEEK_END)
            noted = int.from_bytes(stream.read(4), "little")
        if unpack or not packed or noted != (offset + length) % 2**32:
            check_length(data, offset + length)
    except UNPACKING as error:
        raise unreadable(path, error) from None


def _check_complete(path: Path, image: sitk.Image) -> None:
    """Look at a file's length where ITK does not: there it takes missing voxels as 0, or as what the memory held."""
    name = path.name.removesuffix(".gz")
    voxels = image.GetNumberOfPixels() * image.GetSizeOfPixelComponent()
    if is_nifti(path):
        check_complete(path, unpack=True)
    elif name.endswith(tuple(HEADER_LENGTHS)):
        check_length(path, HEADER_LENGTHS[Path(name).suffix] + voxels)
    elif name.endswith(".vtk"):
        with path.open("rb") as stream:
            kind = [stream.readline() for _ in range(3)][2].strip()
        if kind == b"BINARY":
            check_length(path, voxels)


def _told_apart(one: tuple[float, ...], other: tuple[float, ...]) -> tuple[str, str]:
    """Both in words, with as many digits as tell them apart."""
    for digits in (5, 9, 17):
        texts = [f"({', '.join(f'{number:.{digits}g}' for number in numbers)})" for numbers in (one, other)]
        if texts[0] != texts[1]:
            break
    return texts[0], texts[1]


def refuse_doubt(grid: Grid, path: Path) -> None:
    """Refuse a volume whose file leaves in doubt where its voxels lie.

    Raises:
        InputError: it does.
    """
    if not grid.doubt:
        return
    remedy = "write its place into it, for instance with nibabel: image.set_sform(affine, 1)"
    if grid.doubt.startswith(TWO_PLACES):
        remedy = (
            "save the right one alone: with image = nibabel.load(file), image.set_qform(None, 0) leaves the sform, "
            "image.set_sform(None, 0) the qform"
        )
    raise InputError(f"{path} with {grid.doubt}", "a header that tells once where its voxels lie", remedy)


def refuse_differences(
    grid: Grid, other: Grid, *, of: str, beside: str, remedy: str = "resample it or correct its header"
) -> None:
    """Refuse `other`, the grid of the file that `of` tells, unless it is that of the file `beside`.

    Raises:
        InputError: with what differs.
    """
    if different := grid.differences(other):
        raise InputError(f"{of} with {', '.join(different)}", f"the grid of {beside}", remedy)
