"""What is wrong with a file that SimpleITK could not read: damaged, or of a kind that it does not read."""

import gzip
import re
from pathlib import Path

from nnunetv2_ext.data.nifti import UNPACKING, check_header, data_place, is_nifti, read_header, unpacked
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.text import one_line

PACKED = {b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"7z\xbc\xaf": "7-Zip"}
"""First bytes of files that SimpleITK does not unpack."""
SECOND_FILE = re.compile(rb"^(?:ElementDataFile *=|data ?file:) *(\S+) *$", re.MULTILINE | re.IGNORECASE)
ITK_STRAIGHT = 1e-4
"""Cosine up to which ITK takes the axes of an sform as upright on each other."""


def check_length(path: Path, needed: int) -> None:
    """Refuse a file that is shorter than `needed` bytes, unpacked.

    Raises:
        OSError, EOFError, zlib.error: it is, or cannot be read or unpacked.
    """
    length = 0
    with unpacked(path) as stream:
        try:
            while block := stream.read1(1 << 20):
                length += len(block)
        except gzip.BadGzipFile as error:
            # ITK leaves alone what follows the packed bytes.
            if "Not a gzipped file" not in str(error):
                raise
    if length < needed:
        raise EOFError(f"{length} bytes of {needed}")


def unreadable(path: Path, error: Exception) -> InputError:
    """The error of a volume that SimpleITK could not read: damaged, or of a kind that it does not read."""
    try:
        with path.open("rb") as stream:
            if not (raw := stream.read(1 << 14)):
                return _damaged(path, EOFError("empty, 0 bytes"))
        with unpacked(path) as stream:
            start = stream.read(540)
        check_length(path, 1)
    except UNPACKING as fault:
        return _damaged(path, fault)
    if isinstance(error, UNPACKING):
        return _damaged(path, error)
    return _other_kind(path, raw, start, error) or _damaged(path, error)


def _damaged(path: Path, error: Exception) -> InputError:
    # ITK tells where in its own memory it was.
    what = re.sub(r"\(0x[0-9a-f]+\)", "", one_line(error, last=True))
    return InputError(f"an unreadable file {path} ({what})", "a complete volume", "restore the file or remove its case")


def _other_kind(path: Path, raw: bytes, start: bytes, error: Exception) -> InputError | None:
    """The error of a file that is whole, but none that SimpleITK reads; None where it may be damaged."""
    file = f"an unreadable file {path}"
    got = _damaged(path, error).args[0]
    if raw.startswith(b"version https://git-lfs"):
        return InputError(f"{file} (a pointer of Git LFS)", "the volume itself", "run git lfs pull")
    if raw.lstrip()[:9].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return InputError(f"{file} (a web page)", "a volume", "download it again, logged in where that is needed")
    if packer := next((name for magic, name in PACKED.items() if start.startswith(magic)), None):
        return InputError(f"{file} (packed by {packer})", "a volume, plain or packed by gzip", "unpack it")
    if start.startswith(b"\x1f\x8b"):
        return InputError(f"{file} (packed by gzip twice)", "a volume packed once", "run gunzip on it once")
    if is_nifti(path) and raw.startswith(b"\x1f\x8b") and not path.name.endswith(".gz"):
        return InputError(f"{file} (packed by gzip)", "a name that tells so", f"rename it to {path.name}.gz")
    second = SECOND_FILE.search(raw.partition(b"\n\n")[0])
    if second and second[1].upper() not in (b"LOCAL", b"LIST"):
        data = path.parent / second[1].decode(errors="replace")
        if not data.exists():
            return InputError(f"no file {data}, which {path} names for its voxels", "both", "restore it")
    if not is_nifti(path):
        remedy = "restore the file where it is damaged, else convert it to .nii.gz, or remove its case"
        return InputError(got, "a complete volume of a kind that SimpleITK reads", remedy)
    if 540 in (int.from_bytes(start[:4], order) for order in ("little", "big")):
        return InputError(
            f"{file} (version 2 of NIfTI)",
            "version 1, which SimpleITK and nnU-Net's first reader read",
            "the file is whole: save it with nibabel as nibabel.Nifti1Image.from_image(nibabel.load(file))",
        )
    header = read_header(path)
    if header is None:
        what = InputError(
            f"{file} (no NIfTI: it begins with {raw[:16]!r})",
            "what its name tells",
            "restore the file, name it as its format wants, or remove its case",
        )
        return what if len(start) >= 348 or not raw.startswith(b"\x1f\x8b") else None
    try:
        check_header(path, header, straight=ITK_STRAIGHT)
        data, offset, length = data_place(path, header)
        if not data.exists():
            return InputError(f"no file {data}, which holds the voxels of {path}", "both", "restore it")
        check_length(data, offset + length)
    except InputError as fault:
        return fault
    except UNPACKING as fault:
        return _damaged(path, fault)
    return InputError(
        f"{got}, whose data type is {int(header['datatype'])}",
        "a header that SimpleITK reads",
        "its header is at fault: save it with nibabel as whole numbers of 16 bits or as float32",
    )
