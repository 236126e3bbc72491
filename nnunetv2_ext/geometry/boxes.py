"""Boxes in voxels: of the components of a mask, on the image's grid and on that of the preprocessed image."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import cc3d
import numpy as np
import pandas as pd
from scipy import ndimage

MOST_BOXES = 32
"""More boxes than these become one."""
_GIVEN_UP = 1000
"""So many that lie apart, the largest first, will not become few: a mask of noise is to take seconds, not hours."""
_MOST_VALUES = 65535
"""Up to this one, boxes are looked up by value itself."""


class Box(NamedTuple):
    """A box of voxels, one pair of borders per axis."""

    low: tuple[int, ...]
    """The first voxel."""
    high: tuple[int, ...]
    """The voxel behind the last."""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(high - low for low, high in zip(*self, strict=True))

    @property
    def slices(self) -> tuple[slice, ...]:
        """What cuts the box out of an array."""
        return tuple(slice(low, high) for low, high in zip(*self, strict=True))

    def grown(self, voxels: Sequence[int]) -> "Box":
        """So many voxels larger on both sides of each axis; it may reach out of the image."""
        low, high = np.subtract(self.low, voxels), np.add(self.high, voxels)
        return _box(low, high)

    def seen_from(self, origin: Sequence[int]) -> "Box":
        """The same box where voxels are counted from another one."""
        return _box(np.subtract(self.low, origin), np.subtract(self.high, origin))

    def clipped(self, shape: Sequence[int]) -> "Box | None":
        """What of it lies in an image of that shape, None where nothing does."""
        low, high = np.maximum(self.low, 0), np.minimum(self.high, shape)
        return _box(low, high) if (low < high).all() else None

    def holds(self, other: "Box") -> bool:
        """Whether all of another box lies in it."""
        return bool(np.less_equal(self.low, other.low).all() and np.less_equal(other.high, self.high).all())

    def without(self, inner: "Box") -> "list[Box]":
        """Boxes apart from each other that fill it but for a box that it holds."""
        rest, parts = self, []
        for axis, (low, high) in enumerate(zip(*inner, strict=True)):
            for first, last in ((rest.low[axis], low), (high, rest.high[axis])):
                if first < last:
                    parts.append(rest._along(axis, first, last))
            rest = rest._along(axis, low, high)
        return parts

    def _along(self, axis: int, first: int, last: int) -> "Box":
        """Of the box what lies between two places along an axis."""
        low, high = list(self.low), list(self.high)
        low[axis], high[axis] = first, last
        return Box(tuple(low), tuple(high))

    def millimetres(self, spacing: Sequence[float]) -> tuple[list[float], list[float]]:
        """Its two corners in mm from the outer corner of the image's first voxel."""
        low, high = (np.multiply(corner, spacing).round(6).tolist() for corner in self)
        return low, high


def _box(low: np.ndarray, high: np.ndarray) -> Box:
    return Box(tuple(int(voxel) for voxel in low), tuple(int(voxel) for voxel in high))


def margin_in_voxels(margin: float, spacing: Sequence[float]) -> tuple[int, ...]:
    """A margin in mm, rounded up to voxels of each axis."""
    # 3 mm are three voxels of 1 mm, in spite of float rounding in a header's spacing
    return tuple(int(np.ceil(round(margin / one, 4))) for one in spacing)


def component_boxes(mask: np.ndarray) -> list[Box]:
    """The box of each connected component (26 neighbours).

    Args:
        mask: boolean (Z, Y, X).
    """
    whole = bounding_box(mask)
    if whole is None:
        return []
    numbered, count = components(mask[whole.slices], 26)
    found = cc3d.statistics(numbered)["bounding_boxes"][1 : count + 1]
    return [_box(*np.add([[axis.start for axis in box], [axis.stop for axis in box]], whole.low)) for box in found]


def components(values: np.ndarray, connectivity: int) -> tuple[np.ndarray, int]:
    """The number of its component at each voxel, from 1 (0 outside), and how many there are.

    Args:
        values: (Z, Y, X), a mask or labels as whole numbers; each label has components of its own.
        connectivity: components touch by faces (6), edges too (18) or corners too (26).
    """
    # of booleans with corners, cc3d 4.1.1 cannot count those of some small masks, such as two voxels with one between
    whole = np.ascontiguousarray(values, np.uint8 if values.dtype == bool else None)
    numbers, count = cc3d.connected_components(
        whole,
        connectivity=connectivity,  # type: ignore[call-overload]
        return_N=True,
    )
    return numbers, int(count)


def bounding_box(mask: np.ndarray) -> Box | None:
    """The box around all voxels of a boolean mask, None where it has none."""
    low, high = [], []
    for axis in range(mask.ndim):
        there = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if not len(there):
            return None
        low.append(there[0])
        high.append(there[-1] + 1)
    return _box(np.array(low), np.array(high))


def value_boxes(values: np.ndarray) -> dict[int, Box]:
    """The box around the voxels of each value, by value; of 0 the box around everything.

    Args:
        values: whole numbers; those of label files, so that few values occur.
    """
    found = {0: Box((0,) * values.ndim, values.shape)}
    distinct = None
    if values.dtype.kind not in "iu" or (values.size and (values.min() < 0 or values.max() > _MOST_VALUES)):
        numbers, distinct = pd.factorize(values.ravel())
        values = (numbers + 1).reshape(values.shape)
    for number, box in enumerate(ndimage.find_objects(values), start=1):
        value = number if distinct is None else int(distinct[number - 1])
        if box is not None and value:
            found[value] = Box(tuple(axis.start for axis in box), tuple(axis.stop for axis in box))
    return found


def around_all(boxes: Iterable[Box]) -> Box | None:
    """The box around all of some boxes, None where there is none."""
    given = list(boxes)
    if not given:
        return None
    return _box(np.min([box.low for box in given], axis=0), np.max([box.high for box in given], axis=0))


def merged(boxes: Iterable[Box], most: int = MOST_BOXES) -> list[Box]:
    """The fewest larger boxes: those that overlap become one, until none do; more than `most` become one.

    Boxes that only touch stay apart. The order of the boxes does not matter; the result is sorted.
    """
    given = sorted(boxes, key=lambda box: (-int(np.prod(box.shape)), box))
    if not given:
        return []
    low = np.zeros((0, len(given[0].low)), int)
    high = low
    for box in given:
        first, last = np.array(box.low), np.array(box.high)
        while (meets := ((low < last) & (first < high)).all(axis=1)).any():
            first, last = np.minimum(first, low[meets].min(axis=0)), np.maximum(last, high[meets].max(axis=0))
            low, high = low[~meets], high[~meets]
        low, high = np.vstack([low, first]), np.vstack([high, last])
        if len(low) > _GIVEN_UP:
            break
    if len(low) > most and (whole := around_all(given)) is not None:
        return [whole]
    return sorted(map(_box, low, high))


def around(box: Box, patch: Sequence[int], shape: Sequence[int]) -> Box:
    """What is predicted for a box: a quarter of the patch around it, at least a patch, all in the image.

    Where the image is smaller than the patch, all of it. A patch of one voxel sees no others.

    Args:
        box: in the image.
        patch: voxels of the patch along each axis.
        shape: of the image.
    """
    limits = np.array(shape)
    quarter = np.where(np.array(patch) > 1, -(-np.array(patch) // 4), 0)
    low = np.maximum(np.array(box.low) - quarter, 0)
    high = np.minimum(np.array(box.high) + quarter, limits)
    lacking = np.maximum(np.minimum(patch, limits) - (high - low), 0)
    low = low - lacking // 2
    high = high + lacking - lacking // 2
    shift = np.maximum(-low, 0) - np.maximum(high - limits, 0)  # never both, since it fits
    return _box(low + shift, high + shift)


class Preprocessing(NamedTuple):
    """How an image becomes the preprocessed one: its axes transposed, cropped, resampled."""

    transpose: tuple[int, ...]
    """Which axis of the image each axis of the preprocessed one is."""
    crop: Box
    """What is kept, in voxels of the transposed image."""
    shape: tuple[int, ...]
    """Of the preprocessed image."""

    def forward(self, box: Box) -> Box | None:
        """A box of the image in voxels of the preprocessed one, rounded outwards; None where nothing of it is kept."""
        low, high = (tuple(corner[axis] for axis in self.transpose) for corner in box)
        moved = Box(low, high).seen_from(self.crop.low).clipped(self.crop.shape)
        return None if moved is None else _scaled(moved, self.crop.shape, self.shape)

    def backward(self, box: Box) -> Box:
        """A box of the preprocessed image in voxels of the image, rounded outwards."""
        scaled = _scaled(box, self.shape, self.crop.shape)
        low, high = np.add(scaled.low, self.crop.low), np.add(scaled.high, self.crop.low)
        back = np.argsort(self.transpose)
        return _box(low[back], high[back])


def _scaled(box: Box, old: Sequence[int], new: Sequence[int]) -> Box:
    """The box where an image of the shape `old` is resampled to `new`, rounded outwards, exactly."""
    low = [first * after // before for first, before, after in zip(box.low, old, new, strict=True)]
    high = [-(-last * after // before) for last, before, after in zip(box.high, old, new, strict=True)]
    return Box(tuple(low), tuple(high))
