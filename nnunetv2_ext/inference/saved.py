"""Probabilities of a case in a file, as `--save_probabilities` writes them: read, averaged, written piece by piece."""

import io
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.text import one_line

KEY = "probabilities"
ENTRY = f"{KEY}.npy"
PIECE = 1 << 18
"""Voxels that are averaged at once."""
TOLERANCE = 0.01
"""What a probability may lie below 0 or above 1; files may hold half precision."""
DAMAGED = (OSError, EOFError, zlib.error, zipfile.BadZipFile, ValueError, LookupError, NotImplementedError)
"""What reading a damaged file raises, beside RuntimeError for an encrypted one."""


class Saved:
    """The open file of a member's probabilities of one case; see `opened`."""

    def __init__(self, path: Path, stream: IO[bytes], shape: tuple[int, ...], dtype: np.dtype):
        self.path, self.shape, self._stream, self._dtype = path, shape, stream, dtype

    def read(self, count: int) -> np.ndarray:
        """The next `count` values, in C order, in the file's type.

        Raises:
            InputError: the file is damaged, or holds no probabilities.
        """
        try:
            content = self._stream.read(count * self._dtype.itemsize)
            values = np.frombuffer(content, self._dtype)
        except DAMAGED as error:
            raise damaged(self.path, one_line(error)) from None
        if len(values) != count:
            raise damaged(self.path, f"{len(values)} values where {count} should be")
        if not (values.min() >= -TOLERANCE and values.max() <= 1 + TOLERANCE):  # nor NaN
            raise damaged(self.path, f"values from {values.min():g} to {values.max():g}")
        return values

    def finish(self) -> None:
        """Look at the checksum, once all values are read.

        Raises:
            InputError: another one, or more values.
        """
        try:
            more = self._stream.read(1)
        except DAMAGED as error:
            raise damaged(self.path, one_line(error)) from None
        if more:
            raise damaged(self.path, "more values than its header tells")


def damaged(path: Path, why: str) -> InputError:
    """The error of a file that holds no probabilities."""
    return InputError(f"a damaged file {path} ({why})", f"the {KEY} of a case", "predict the case again")


@contextmanager
def opened(path: Path) -> Iterator[Saved]:
    """Open a file of probabilities, (heads, Z, Y, X), to be read from the first to the last value.

    Raises:
        InputError: no such file, or one that is damaged as far as its headers tell.
    """
    try:
        archive = zipfile.ZipFile(path)
    except FileNotFoundError:
        raise InputError(f"no file {path}", "the probabilities of the case", "predict the case again") from None
    except DAMAGED as error:
        raise damaged(path, one_line(error)) from None
    with archive:
        try:
            stream: IO[bytes] = archive.open(ENTRY)
            shape, turned, dtype = _header(stream)
            length = archive.getinfo(ENTRY).file_size - stream.tell()
            if dtype.kind != "f" or len(shape) != 4 or not length or length != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{length} bytes for {dtype} of shape {shape}")
            if turned:  # as numpy writes those of one head whose axes the plans reverse
                values = np.frombuffer(stream.read(), dtype).reshape(shape, order="F")
                stream = io.BytesIO(values.tobytes())
        except (*DAMAGED, RuntimeError) as error:
            raise damaged(path, one_line(error)) from None
        with stream:
            yield Saved(path, stream, shape, dtype)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and type of an array, of which the stream has then the values left."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream)
    raise ValueError(f"version {version} of numpy's format")


@contextmanager
def writing(path: Path, shape: tuple[int, ...]) -> Iterator[IO[bytes]]:
    """A stream to write the float32 values of a file of probabilities to, as `numpy.savez_compressed` would.

    Raises:
        OSError: the file cannot be written.
    """
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(ENTRY, "w", force_zip64=True) as stream,
    ):
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        yield stream


def averages(
    saved: Sequence[Saved], shares: Sequence[float], keep: Callable[[Any], object] | None = None
) -> Iterator[tuple[int, slice, np.ndarray]]:
    """The average of all members, piece by piece: the number of the head, where among its voxels, and the values.

    Summed in float32 and in the order of the members, as nnU-Net does, so that equal weights give its very numbers.

    Args:
        saved: files of one shape, from which nothing was read yet.
        shares: the weight of each.
        keep: called with each piece, as bytes, to write it.

    Raises:
        InputError: a file is damaged.
    """
    heads, *image = saved[0].shape
    voxels = math.prod(image)
    equal = len(set(shares)) == 1
    total = np.float32(len(saved) if equal else sum(shares))
    for head in range(heads):
        for start in range(0, voxels, PIECE):
            where = slice(start, min(start + PIECE, voxels))
            average = np.zeros(where.stop - start, np.float32)
            for one, share in zip(saved, shares, strict=True):
                values = one.read(len(average))
                average += values if equal else np.multiply(values, share, dtype=np.float32)
            average /= total
            if keep is not None:
                keep(average.data)
            yield head, where, average
    for one in saved:
        one.finish()


def winners(
    pieces: Iterator[tuple[int, slice, np.ndarray]], shape: Sequence[int], regions_class_order: Sequence[int] | None
) -> np.ndarray:
    """The labels (Z, Y, X) that follow from probabilities, as nnU-Net's label manager derives them.

    Args:
        pieces: averages of all heads, one after the other: number of the head, where among its voxels, probabilities.
        shape: (heads, Z, Y, X).
        regions_class_order: the label of each head where heads are regions, painted over the ones before where its
            probability is above 0.5; None where the head of the highest probability is the label, the first of equals.
    """
    heads, *image = shape
    labels = np.zeros(math.prod(image), np.uint16 if regions_class_order or heads > 256 else np.uint8)
    if regions_class_order is not None:
        for head, where, average in pieces:
            labels[where][average > 0.5] = regions_class_order[head]
        return labels.reshape(image)
    highest = np.zeros(len(labels), np.float32)
    for head, where, average in pieces:
        if head == 0:
            highest[where] = average
        else:
            higher = average > highest[where]
            np.copyto(highest[where], average, where=higher)
            np.copyto(labels[where], head, where=higher)
    return labels.reshape(image)
