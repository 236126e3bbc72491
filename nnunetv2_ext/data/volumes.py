"""Volumes in files: their voxel grid, reading that notices damaged files, writing that notices a full disk."""

import gzip
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import unwritable
from nnunetv2_ext.text import one_line

VOLUME_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl")
TOLERANCE = 0.01
"""Relative: spacings that differ by less count as equal."""
HEADER_LENGTHS = {".gipl": 256, ".mrc": 1024}
"""Bytes before the voxels."""
NIBABEL_ERRORS = (ImageFileError, HeaderDataError)


@dataclass(frozen=True)
class Grid:
    """A volume's voxel grid in SimpleITK's order (x, y, z): spacing and origin in mm, direction row by row."""

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    def differences(self, other: "Grid") -> list[str]:
        """What differs by more than a thousandth of this grid's spacing (direction: by 1e-3), in words."""
        limit = 1e-3 * np.asarray(self.spacing)
        limits = {"size": 0.0, "spacing": limit, "origin": limit, "direction": 1e-3}
        apart = {name: np.subtract(getattr(self, name), getattr(other, name)) for name in limits}
        # Along the axes that the spacing belongs to.
        apart["origin"] = np.reshape(self.direction, (3, 3)).T @ apart["origin"]
        return [
            f"{name} {getattr(other, name)} instead of {getattr(self, name)}"
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


def read_grid(path: Path) -> Grid:
    """The voxel grid from a volume's header.

    Raises:
        InputError: missing or unreadable file, or no volume of one value per voxel.
    """
    if not path.is_file():
        raise InputError(f"no file {path}", "every image and label of the data set", "restore it or remove its case")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise unreadable(path, error) from None
    if reader.GetDimension() != 3 or reader.GetNumberOfComponents() != 1:
        shape = f"{reader.GetDimension()} dimensions and {reader.GetNumberOfComponents()} values per voxel"
        raise InputError(f"{path} with {shape}", "3D volumes of one value per voxel", "choose a data set of volumes")
    return Grid(reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())


def read_volume(path: Path) -> np.ndarray:
    """The voxels (Z, Y, X) of a volume in the file's own type.

    Raises:
        InputError: unreadable or truncated file.
    """
    try:
        image = sitk.ReadImage(str(path))
        _check_complete(path, image)
    except (RuntimeError, OSError, EOFError, zlib.error, *NIBABEL_ERRORS) as error:
        raise unreadable(path, error) from None
    return sitk.GetArrayFromImage(image)


@dataclass(frozen=True)
class Volume:
    """A volume in one file, or in the files of a DICOM series."""

    path: Path
    grid: Grid
    files: tuple[Path, ...] = ()
    """Of a DICOM series, one slice each, in the order of the slices."""
    thickness: float | None = None
    """Slice thickness in mm where the file tells it, as DICOM does."""

    def read(self) -> np.ndarray:
        """The voxels (Z, Y, X).

        Raises:
            InputError: unreadable or truncated file.
        """
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


def write_volume(array: np.ndarray, grid: Grid, path: Path) -> None:
    """Write voxels (Z, Y, X) with their grid, compressed where the format can.

    Raises:
        InputError: the file cannot be written, for instance on a full disk.
    """
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    try:
        sitk.WriteImage(image, str(path), True)
        # On a full disk ITK writes half a file without an error.
        read_volume(path)
    except (RuntimeError, InputError) as error:
        raise unwritable(path, error) from None


def check_complete(path: Path, *, unpack: bool = False) -> None:
    """Look whether a NIfTI file is long enough for the voxels that its header tells; ITK fills it up where it is not.

    Other formats tell on reading that they are cut off, GIPL apart.

    Args:
        unpack: a compressed file, to its end; otherwise only where the length that gzip noted there does not fit.

    Raises:
        InputError: voxels are missing.
    """
    name = path.name.removesuffix(".gz")
    if not name.endswith((".nii", ".hdr", ".img")):
        return
    try:
        loaded: Any = nibabel.load(path)
        voxels = math.prod(loaded.header.get_data_shape()) * loaded.header.get_data_dtype().itemsize
        needed = loaded.header.get_data_offset() + voxels
        file = Path(loaded.file_map["image"].filename)
        if file.suffix == ".gz" and not unpack:
            with file.open("rb") as stream:
                stream.seek(-4, os.SEEK_END)
                if int.from_bytes(stream.read(4), "little") == needed % 2**32:
                    return
        _check_length(file, needed)
    except (OSError, EOFError, zlib.error, *NIBABEL_ERRORS) as error:
        raise unreadable(path, error) from None


def _check_complete(path: Path, image: sitk.Image) -> None:
    """Look at a file's length where ITK does not: there it takes missing voxels as 0, or as what the memory held."""
    name = path.name.removesuffix(".gz")
    voxels = image.GetNumberOfPixels() * image.GetSizeOfPixelComponent()
    if name.endswith((".nii", ".hdr", ".img")):
        # ITK may tell a wider type than the file's, and a pair keeps its voxels in the other file.
        loaded: Any = nibabel.load(path)
        voxels = math.prod(loaded.header.get_data_shape()) * loaded.header.get_data_dtype().itemsize
        _check_length(Path(loaded.file_map["image"].filename), loaded.header.get_data_offset() + voxels)
    elif name.endswith(tuple(HEADER_LENGTHS)):
        _check_length(path, HEADER_LENGTHS[Path(name).suffix] + voxels)
    elif name.endswith(".vtk"):
        with path.open("rb") as stream:
            kind = [stream.readline() for _ in range(3)][2].strip()
        if kind == b"BINARY":
            _check_length(path, voxels)


def _check_length(path: Path, needed: int) -> None:
    length = path.stat().st_size
    if path.suffix == ".gz":
        length = 0
        with gzip.open(path) as stream:
            while block := stream.read(1 << 20):
                length += len(block)
    if length < needed:
        raise EOFError(f"{length} bytes of {needed}")


def unreadable(path: Path, error: Exception) -> InputError:
    """The error of a volume that could not be read."""
    return InputError(
        f"an unreadable file {path} ({one_line(error, last=True)})",
        "a complete volume",
        "restore the file or remove its case",
    )


def refuse_differences(grid: Grid, other: Grid, *, of: str, beside: str) -> None:
    """Refuse `other`, the grid of the file that `of` tells, unless it is that of the file `beside`.

    Raises:
        InputError: with what differs.
    """
    if different := grid.differences(other):
        raise InputError(
            f"{of} with {', '.join(different)}", f"the grid of {beside}", "resample it or correct its header"
        )
