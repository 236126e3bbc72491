"""One case for a predictor: the images of its channels, of any format, and the labels on their grid."""

import errno
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk
import tifffile

from nnunetv2_ext.data.damage import unreadable
from nnunetv2_ext.data.nifti import is_nifti
from nnunetv2_ext.data.volumes import check_complete, check_name, read_grid, read_volume
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.text import listed, one_line

if TYPE_CHECKING:
    from nnunetv2_ext.inference.predictor import Predictor

TIFF = (".tif", ".tiff")
ENDINGS = (".mha", ".nii.gz", ".nii", ".nrrd", *TIFF)
"""Of files that hold an image alone; `.mhd` has its voxels in a second one."""


def ending(path: Path, endings: Sequence[str] = ENDINGS) -> str:
    """The ending of an image file as it is written there, or nothing."""
    found = next((one for one in endings if path.name.lower().endswith(one)), "")
    return path.name[len(path.name) - len(found) :]


def predict_case(predictor: "Predictor", files: Sequence[Path], tif_spacing: Sequence[float] | None) -> sitk.Image:
    """The labels of a case, on the very grid of its first file.

    Args:
        files: one per channel, in their order.
        tif_spacing: mm along z, y, x, of TIFF files.

    Returns:
        uint8, or uint16 where a label is above 255.

    Raises:
        InputError: a file is missing or unreadable, is no 3D image of one value per voxel, tells no spacing or lies on
            another grid than the first; or what the models refuse.
        OSError: no room for temporary files.
    """
    with tempfile.TemporaryDirectory() as folder:
        parts, grids = [], []
        for number, path in enumerate(files):
            part, grid = _readable(path, predictor.file_ending, Path(folder, str(number)), tif_spacing)
            parts.append(part)
            grids.append(grid)
        labels = predictor.predict(parts)
    first = grids[0]
    if labels.GetSize() != first.GetSize():
        raise RuntimeError(f"labels of {labels.GetSize()} voxels for an image of {first.GetSize()}")
    voxels = sitk.GetArrayViewFromImage(labels)
    placed = sitk.GetImageFromArray(voxels.astype(np.uint8 if voxels.max(initial=0) < 256 else np.uint16))
    placed.SetSpacing(first.GetSpacing())
    placed.SetOrigin(first.GetOrigin())
    placed.SetDirection(first.GetDirection())
    return placed


def _readable(
    path: Path, wanted: str, folder: Path, tif_spacing: Sequence[float] | None
) -> "tuple[Path | sitk.Image, sitk.Image | sitk.ImageFileReader]":
    """An image as the model's reader takes it, and what tells its grid.

    Files of the kind that the model was trained on stay as they are. Others become that kind, and NIfTI's rounding of
    the spacing is part of it, so that a case has the same labels in every format.
    """
    its = ending(path, (*ENDINGS, ".mhd"))
    if its.lower() in TIFF:
        image = _read_tiff(path, tif_spacing)
        return _converted(image, path, wanted, folder), image
    if its != its.lower():  # which ITK does not know
        raise InputError(f"{path}", f"the ending {its.lower()} in small letters", "rename it")
    check_name(path)
    read_grid(path)
    header = sitk.ImageFileReader()
    header.SetFileName(str(path))
    header.ReadImageInformation()
    if path.name.endswith(wanted):
        return path, header
    if is_nifti(path):  # of which ITK fills up what is cut off
        check_complete(path, unpack=True)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise unreadable(path, error) from None
    return _converted(image, path, wanted, folder), header


def _converted(image: sitk.Image, path: Path, wanted: str, folder: Path) -> "Path | sitk.Image":
    """NIfTI without packing it, which takes long; of other formats the predictor writes a file itself."""
    if wanted not in (".nii.gz", ".nii"):
        return image
    folder.mkdir()
    target = folder / f"{path.name.removesuffix(ending(path))}.nii"
    try:
        sitk.WriteImage(image, str(target), False)
        check_complete(target)
    except (RuntimeError, InputError) as error:  # a full disk, of which ITK does not always tell
        raise OSError(errno.EIO, one_line(error, last=True), str(target)) from None
    return target


def _read_tiff(path: Path, spacing: Sequence[float] | None) -> sitk.Image:
    check_name(path)
    if spacing is None:
        what = f"{path}, a TIFF file, which does not tell the distance between its slices"
        raise InputError(what, "a .mha or .nii.gz file", "convert it, or build the container with --tif-spacing")
    if not path.is_file():
        raise InputError(f"no file {path}", "an image there", "restore it")
    try:
        with tifffile.TiffFile(path) as file:
            _check_pages(file, path.stat().st_size)
            axes, parts = file.series[0].axes, [series.asarray() for series in file.series]
        voxels = parts[0] if len(parts) == 1 else np.stack(parts)  # of slices that were written one by one
    except Exception as error:  # of a damaged file anything
        raise unreadable(path, error) from None
    if voxels.ndim != 3 or "S" in axes or voxels.dtype.kind not in "biuf":
        got = f"{path} of {listed(voxels.shape, separator=' x ')} values of the type {voxels.dtype}"
        raise InputError(got, "a stack of slices of one number per voxel", "convert it")
    odd = {"b1": np.uint8, "f2": np.float32}  # of which SimpleITK has none
    kind = odd.get(voxels.dtype.str[1:], voxels.dtype.newbyteorder("="))
    image = sitk.GetImageFromArray(voxels.astype(kind))
    image.SetSpacing([float(length) for length in spacing[::-1]])
    return image


def _check_pages(file: tifffile.TiffFile, size: int) -> None:
    """Refuse a file whose pages lead or reach beyond its end: tifffile gives those that are left.

    Raises:
        ValueError: some are cut off.
    """
    pages = list(file.pages)
    file.filehandle.seek(file.pages.next_page_offset or 0)
    following = file.filehandle.read(file.tiff.offsetsize)
    ends = [sum(place) for page in pages for place in zip(page.dataoffsets, page.databytecounts, strict=True)]
    if len(following) < file.tiff.offsetsize or any(following) or max(ends) > size:
        raise ValueError("slices are missing, the file was cut off")


def write_image(image: sitk.Image, path: Path) -> None:
    """Write an image packed and to the disk, and look whether the file is whole.

    Raises:
        OSError: it could not be written, for instance on a full disk.
    """
    try:
        sitk.WriteImage(image, str(path), True)
        read_volume(path)  # on a full disk ITK writes half a file without an error
    except (RuntimeError, InputError) as error:
        raise OSError(str(error)) from None
    with path.open("rb") as file:
        os.fsync(file.fileno())
