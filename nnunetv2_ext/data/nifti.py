"""What a NIfTI or Analyze header tells of a volume's place in space: twice, not at all, or in a way no grid has.

NIfTI tells the spacing in `pixdim` and in the sform, and the place in the qform and in the sform, each with a code that
is 0 where it does not count. SimpleITK, and with it nnU-Net, takes the spacing from pixdim, nibabel takes all from the
sform.
"""

import gzip
import math
import zlib
from io import BufferedReader
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.text import listed

ENDINGS = (".nii", ".hdr", ".img")
SAME_LENGTH = 0.01
"""Relative: lengths in pixdim and sform that differ by less count as equal."""
STRAIGHT = 1e-3
"""Cosine of the angle between two axes from which on they do not stand upright on each other."""

TWO_PLACES = "a qform and an sform that place it"
UNPACKING = (OSError, EOFError, zlib.error)
"""What reading and unpacking a file raises."""


def is_nifti(path: Path) -> bool:
    """Whether a file is NIfTI or Analyze, by its name."""
    return path.name.lower().removesuffix(".gz").endswith(ENDINGS)


def unpacked(path: Path) -> gzip.GzipFile | BufferedReader:
    """A file's bytes, unpacked where they are gzip's, whatever its name tells; as SimpleITK opens them."""
    with path.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    return gzip.open(path) if packed else path.open("rb")


def read_header(path: Path) -> Any | None:
    """nibabel's header of a NIfTI-1 or Analyze file, unchecked; None where it holds none.

    Raises:
        OSError, EOFError, zlib.error: it cannot be read or unpacked.
    """
    if path.name.lower().removesuffix(".gz").endswith(".img"):
        pair = path.with_name(".hdr".join(path.name.rsplit(".img", 1)))
        path = pair if pair.exists() else path
    with unpacked(path) as stream:
        block = stream.read(348)
    if len(block) < 348 or 348 not in (int.from_bytes(block[:4], order) for order in ("little", "big")):
        return None
    return nibabel.Nifti1Header(block, check=False)


def check_spacing(path: Path) -> None:
    """Refuse a header whose pixdim is 0 along an axis of several voxels, which SimpleITK and nibabel take as 1 mm.

    Raises:
        InputError: no spacing.
    """
    header = read_header(path)
    if header is None:
        return
    axes = range(1, 1 + int(np.clip(header["dim"][0], 0, 3)))
    if any(header["pixdim"][axis] == 0 and header["dim"][axis] > 1 for axis in axes):
        raise InputError(
            f"{path} with no spacing in its header (pixdim {listed(map(float, header['pixdim'][1:4]))})",
            "a header that tells the spacing along each axis",
            "its header is at fault: write the right one into it",
        )


def data_place(path: Path, header: Any) -> tuple[Path, int, int]:
    """Where the voxels of the file `path` lie: in which file, from which byte on, how many bytes."""
    sizes = (max(int(size), 1) for size in header["dim"][1 : 1 + max(int(header["dim"][0]), 0)])
    offset = int(np.clip(np.nan_to_num(header["vox_offset"]), 0, 2**53))
    in_pair = bytes(header["magic"].item()) != b"n+1"
    data = path.with_name(".img".join(path.name.rsplit(".hdr", 1))) if in_pair else path
    return data, offset, math.prod(sizes) * max(int(header["bitpix"]), 0) // 8


def missing_values(path: Path) -> int:
    """How many voxels of a whole file are NaN or infinite, which SimpleITK reads as 0."""
    header = read_header(path)
    if header is None or (dtype := header.get_data_dtype()).kind != "f":
        return 0
    data, offset, length = data_place(path, header)
    with unpacked(data) as stream:
        stream.seek(offset)
        values = np.frombuffer(stream.read(length), dtype)
    return values.size - int(np.count_nonzero(np.isfinite(values)))


def check_header(path: Path, header: Any, *, straight: float = STRAIGHT) -> str:
    """Refuse a header that no grid can follow.

    Args:
        straight: cosine of the angle between two axes above which they are refused.

    Returns:
        Why the volume's place in space is in doubt, in words; an empty text where it is not.

    Raises:
        InputError: sizes below 1, a spacing that pixdim and sform tell differently, or axes that are not upright on
            each other.
    """
    sizes = [int(size) for size in header["dim"][1 : 1 + max(int(header["dim"][0]), 0)]]
    if len(sizes) < 1 or min(sizes) < 1 or len(sizes) > 7:
        raise InputError(
            f"{path} whose header tells the sizes {listed(sizes) or 'none'}",
            "sizes of 1 or more",
            "its header is at fault: write the file anew from its source",
        )
    pixdim = np.abs(header["pixdim"][1:4].astype(float))
    qform, sform = int(header["qform_code"]) > 0, int(header["sform_code"]) > 0
    if bytes(header["magic"].item()) not in (b"n+1", b"ni1") or not (qform or sform):
        return "neither a qform nor an sform (both codes 0)"
    if not sform:
        return ""
    affine = np.asarray(header.get_sform(), float)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not (np.abs(lengths - pixdim) <= SAME_LENGTH * pixdim).all():
        remedy = "find out which is right and write it into both"
        if min(*pixdim, *lengths) > 0:
            remedy += (
                ": with image = nibabel.load(file), save nibabel.Nifti1Image(image.dataobj, image.affine) where it is "
                "the sform, nibabel.Nifti1Image(image.dataobj, image.affine @ "
                f"numpy.diag([{_digits(pixdim / lengths)}, 1])) where it is pixdim"
            )
        raise InputError(
            f"{path} whose header tells two spacings: pixdim {_digits(pixdim)} mm, sform {_digits(lengths)} mm",
            "one spacing (SimpleITK and nnU-Net take pixdim, nibabel the sform)",
            remedy,
        )
    axes = affine[:3, :3] / lengths
    if (cosine := np.abs(axes.T @ axes - np.eye(3)).max()) > straight:
        raise InputError(
            f"{path} whose sform has slanted axes ({angle(cosine)} degrees instead of 90)",
            "axes upright on each other, as SimpleITK wants them",
            "the file is whole, its header is at fault: resample image and labels onto straight axes with "
            "nibabel.processing.resample_to_output(image, image.header.get_zooms(), order=1), order=0 for labels",
        )
    try:
        other = np.asarray(header.get_qform(), float) if qform else affine
    except (HeaderDataError, ValueError):  # no rotation
        return f"{TWO_PLACES} differently"
    apart = _apart(affine, other, sizes[:3])
    return "" if apart <= pixdim.min() / 2 else f"{TWO_PLACES} {apart:.4g} mm apart"


def angle(cosine: float) -> str:
    """Degrees between two axes, with as many digits as tell it from 90."""
    return f"{math.degrees(math.acos(min(cosine, 1.0))):.6g}"


def _digits(numbers: np.ndarray) -> str:
    return ", ".join(f"{number:.6g}" for number in numbers.tolist())


def _apart(one: np.ndarray, other: np.ndarray, size: list[int]) -> float:
    """The largest distance in mm between the places that two affines give to a corner voxel."""
    corners = np.array(np.meshgrid(*([0, count - 1] for count in (*size, 1, 1)[:3]))).reshape(3, -1)
    return float(np.linalg.norm((one - other)[:3] @ np.vstack([corners, np.ones(corners.shape[1])]), axis=0).max())
