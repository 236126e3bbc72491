"""Volumes small enough for a page: cropped to the labels, grey values in a byte, one NIfTI file each."""

import base64
import gzip
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import nibabel as nib
import numpy as np

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.geometry.boxes import around_all, value_boxes
from nnunetv2_ext.report.figure import Spacing, telling_place, window_of
from nnunetv2_ext.report.pictures import around

IN_PLANE = 256
"""Most voxels along rows and columns."""
BYTES = 2_000_000
"""Most bytes of a case in the page: image, reference and prediction together, as base64."""
MOST_LABELS = 255
"""Labels are bytes in the files, 0 is none."""


class Packed(NamedTuple):
    """A case on one grid as NIfTI files (.nii.gz) in base64; `shape` and `spacing` of these are (Z, Y, X).

    `place` is where its pictures are cut, in mm of the files' own axes (X, Y, Z).
    """

    image: str
    reference: str | None
    prediction: str
    shape: tuple[int, ...]
    spacing: Spacing
    place: tuple[float, float, float]

    def size(self) -> int:
        """Bytes in the page."""
        return len(self.image) + len(self.reference or "") + len(self.prediction)


def pack(
    image: np.ndarray,
    reference: np.ndarray | None,
    prediction: np.ndarray,
    spacing: Spacing,
    labels: Mapping[str, Sequence[int]],
    *,
    window: tuple[float, float] | None = None,
) -> Packed:
    """Crop, window and shrink a case until it takes at most `BYTES`.

    Arrays are (Z, Y, X) on one grid. Voxels are made larger only where they are finest, so that thick slices stay as
    they are: image by the mean of what a new voxel covers, labels by the voxel at its centre.

    Args:
        image: grey values; what is no number is drawn black.
        reference: label values, or None.
        prediction: label values.
        spacing: (Z, Y, X) in mm.
        labels: values of each label or region by name; see `numbered`.
        window: intensities shown as black and white; by default as in the pictures.
    """
    maps = [numbered(values, labels) for values in (prediction, reference) if values is not None]
    box = around(maps, spacing)
    maps = [values[box] for values in maps]
    place = telling_place(None if reference is None else reference[box], prediction[box], labels)
    low, high = window or window_of(image[box])
    grey = np.nan_to_num(image[box].astype(np.float32), nan=low, posinf=high, neginf=low).clip(low, high)
    grey = ((grey - low) / (high - low)).astype(np.float32)
    finest = max(step * size / IN_PLANE for step, size in zip(spacing[1:], grey.shape[1:], strict=True))
    while True:
        shape = tuple(
            max(1, min(size, round(size * step / finest))) for size, step in zip(grey.shape, spacing, strict=True)
        )
        packed = _written(grey, maps, shape, spacing, place)
        if packed.size() <= BYTES or max(shape) == 1:
            return packed
        finest = max(finest, min(packed.spacing)) * max(1.1, (packed.size() / BYTES) ** (1 / 3))


def numbered(values: np.ndarray, labels: Mapping[str, Sequence[int]]) -> np.ndarray:
    """Label values as 1, 2, ... in the order of `labels`, other values as 0.

    Where regions overlap, that of the fewest label values is on top: a core (2, 3) on its whole tumour (1, 2, 3).
    """
    if len(labels) > MOST_LABELS:
        remedy = "leave the interactive view out with --viewer 0"
        raise InputError(f"{len(labels)} labels", f"at most {MOST_LABELS} in the interactive view", remedy)
    result = np.zeros(values.shape, np.uint8)
    boxes, names = value_boxes(values), list(labels)
    for name in sorted(names, key=lambda name: len(labels[name]), reverse=True):
        box = around_all(boxes[value] for value in labels[name] if value in boxes)
        if box is not None:
            result[box.slices][np.isin(values[box.slices], labels[name])] = names.index(name) + 1
    return result


def _written(
    grey: np.ndarray, maps: list[np.ndarray], shape: tuple[int, ...], spacing: Spacing, place: tuple[int, int, int]
) -> Packed:
    steps = [step * size / new for step, size, new in zip(spacing, grey.shape, shape, strict=True)]
    for axis, size in enumerate(shape):
        grey = _means(grey, axis, size)
    centres = [
        ((np.arange(new) + 0.5) * size / new).astype(int) for size, new in zip(maps[0].shape, shape, strict=True)
    ]
    prediction, *reference = (_nifti(values[np.ix_(*centres)], steps) for values in maps)
    image = _nifti(np.rint(grey * 255).astype(np.uint8), steps)
    # from the centre of the first voxel of the file to that of the one in the place
    z, y, x = ((index + 0.5) * old - 0.5 * new for index, old, new in zip(place, spacing, steps, strict=True))
    step_z, step_y, step_x = steps
    return Packed(image, reference[0] if reference else None, prediction, shape, (step_z, step_y, step_x), (-x, -y, z))


def _means(values: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Means over `size` equal stretches along an axis; a voxel on the border of two counts for both by its share."""
    length = values.shape[axis]
    if size == length:
        return values
    values = np.moveaxis(values, axis, 0)
    sums = np.concatenate([np.zeros_like(values[:1], np.float64), np.cumsum(values, axis=0, dtype=np.float64)])
    edges = np.arange(size + 1) * length / size
    whole = np.minimum(edges.astype(int), length - 1)
    share = (edges - whole).reshape(-1, *(1,) * (values.ndim - 1))
    at_edges = sums[whole] + share * values[whole]
    return np.moveaxis(np.diff(at_edges, axis=0) * size / length, 0, axis).astype(np.float32)


def _nifti(values: np.ndarray, steps: list[float]) -> str:
    """Slices count upwards, rows backwards, columns to the left, as the report's pictures show them."""
    step_z, step_y, step_x = steps
    nifti = nib.Nifti1Image(values.transpose(2, 1, 0), np.diag([-step_x, -step_y, step_z, 1.0]))
    nifti.header.set_xyzt_units("mm")
    return base64.b64encode(gzip.compress(nifti.to_bytes(), 6, mtime=0)).decode()
