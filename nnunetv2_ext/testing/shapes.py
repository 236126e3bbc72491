"""Pairs of masks whose surface distances are known in closed form: for docs/reference-metrics.md and for tests.

The closed forms are those of the true surfaces, in mm, found by integration over faces; none is measured.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

THICK = (5.0, 0.8, 0.8)
"""Spacing in mm of most pairs."""


class Exact(NamedTuple):
    """What the true surfaces have, in mm; None where no closed form is known."""

    hd: float
    hd95: float | None = None
    assd: float | None = None
    nsd: float | None = None
    """At 1 mm."""


class Shapes(NamedTuple):
    """Two masks."""

    name: str
    reference: np.ndarray
    """(Z, Y, X) of bool."""
    prediction: np.ndarray
    spacing: tuple[float, ...]
    exact: Exact


def shapes() -> list[Shapes]:
    """The pairs of the table."""
    block, slice_, grid = (6, 20, 20), (1, 20, 20), (20, 40, 40)
    at = (4, 8, 8)
    one = box(grid, at, block)
    across, along = shifted_boxes(30, 16, 16, 5), shifted_boxes(16, 30, 16, 2.4)
    thin = shifted_boxes(16, 5, 16, 2.4)
    return [
        Shapes("box 6 x 20 x 20, one slice on", one, box(grid, (5, 8, 8), block), THICK, across),
        Shapes("box 6 x 20 x 20, 2.4 mm on in plane", one, box(grid, (4, 8, 11), block), THICK, along),
        Shapes("box 1 x 20 x 20, 2.4 mm on in plane", *pair(grid, at, slice_, (4, 8, 11), slice_), THICK, thin),
        Shapes(
            "column 8 x 8, 15 slices, against 14",
            *pair(grid, at, (15, 8, 8), at, (14, 8, 8)),
            THICK,
            shortened_column(6.4, 75, 5),
        ),
        Shapes(
            "the whole image 6 x 20 x 20, against 5 slices",
            *pair(block, (0, 0, 0), block, (0, 0, 0), (5, 20, 20)),
            THICK,
            shortened_column(16, 30, 5),
        ),
        Shapes(
            "one voxel, 3.2 mm on in plane",
            *pair(grid, at, (1, 1, 1), (4, 8, 12), (1, 1, 1)),
            THICK,
            Exact(3.2, 3.2, 2.8, 0.0),  # the sides' mean is that of the near and of the far face
        ),
        Shapes(
            "box 6 x 20 x 20 in a box 8 x 32 x 32",
            *pair(grid, (4, 8, 8), (8, 32, 32), (5, 14, 14), block),
            THICK,
            Exact(math.hypot(5, 4.8, 4.8), nsd=0.0),  # from corner to corner
        ),
        Shapes("spheres of 20 and 30 mm", *spheres(20, 30, THICK), THICK, Exact(10, 10, 10, 0)),
        Shapes("spheres of 20 and 30 mm", *spheres(20, 30, (1, 1, 1)), (1, 1, 1), Exact(10, 10, 10, 0)),
    ]


def box(shape: Sequence[int], first: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """A mask of that shape with a box of so many voxels."""
    mask = np.zeros(shape, bool)
    mask[tuple(slice(low, low + length) for low, length in zip(first, size, strict=True))] = True
    return mask


def pair(
    shape: Sequence[int], first: Sequence[int], size: Sequence[int], other: Sequence[int], size_of_other: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Two boxes."""
    return box(shape, first, size), box(shape, other, size_of_other)


def spheres(inner: float, outer: float, spacing: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Two spheres of one centre, by their radii in mm."""
    shape = [2 * math.ceil(outer / one) + 2 for one in spacing]
    places = np.ogrid[tuple(slice(size) for size in shape)]
    squares = np.zeros(shape)
    for place, size, one in zip(places, shape, spacing, strict=True):
        squares += ((place - (size - 1) / 2) * one) ** 2
    return squares <= inner**2, squares <= outer**2


def shifted_boxes(length: float, width: float, height: float, shift: float) -> Exact:
    """Of two equal boxes, one moved along the axis of its length; `shift` at most half of each, in mm.

    The face left behind is at the distance `shift`; sides that stick out, at 0 to `shift`; the face inside the other
    box, at the distance of the nearest of that box's faces but no more than `shift`.
    """
    face, rim = width * height, width + height
    area = 2 * face + 2 * length * rim
    assd = (face * shift + _inside(width, height, shift) + rim * shift**2) / area
    inside = face - (width - 2) * (height - 2)  # no further than 1 mm from a side
    nsd = (inside + 2 * rim * (length - shift + 1)) / area
    return Exact(shift, _percentile(area, face, 2 * rim, shift), assd, nsd)


def shortened_column(width: float, length: float, missing: float) -> Exact:
    """Of a square column and one that lacks `missing` mm at an end."""
    face, sides = width**2, 4 * width
    long, short = (2 * face + sides * whole for whole in (length, length - missing))
    inside = _inside(width, width, min(missing, width / 2))
    assd = (face * missing + sides * missing**2 / 2 + inside) / (long + short)
    beyond = face + sides * (missing - 1) + (width - 2) ** 2
    return Exact(missing, _percentile(long, face, sides, missing), assd, 1 - beyond / (long + short))


def _inside(width: float, height: float, most: float) -> float:
    """The integral over a face of the distance to its edge, but no more than `most`."""
    return width * height * most - (width + height) * most**2 + 4 * most**3 / 3


def _percentile(area: float, face: float, sides: float, far: float) -> float:
    """The 95 % percentile where a face is at the distance `far`, and sides so long around reach from 0 to there."""
    beyond = 0.05 * area - face
    return far if beyond <= 0 else far - beyond / sides
