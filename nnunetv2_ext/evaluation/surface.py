"""Distances between the surfaces of two masks, element by element, in mm.

A mask's surface consists of elements as in Nikolov et al., "Clinically Applicable Segmentation of Head and Neck Anatomy
for Radiotherapy" (J Med Internet Res 2021;23:e26151): one at each corner that voxels inside and outside share, with the
area in mm2 that marching cubes give the surface there. Around the image is outside.

Areas come from the tables of the authors' package, surface-distance (Apache-2.0). Its own distances are not used: they
end in an error where one mask is empty (numpy 2), need `scipy.ndimage.filters` (gone in SciPy 2), take a map of the
whole box, and sort in Python. Here each element looks for its nearest one in a tree of the other surface, the same
distances with memory that grows with the surface alone; where that takes longer, since many elements are far or nearly
all of the box is surface, in a map of the box.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.spatial import KDTree
from surface_distance import lookup_tables

INSIDE = 255
"""The code of a corner whose eight voxels are all of the mask."""
TOLERANCE_MARGIN = 1e-6
"""In mm: three voxels of 0.8 mm are 2.4000000000000004 mm."""
SHARE_MARGIN = 1e-9
"""Of the area: 19 of 20 equal elements are 95 %, in spite of rounding in their sum."""
NEAR = 10
"""Voxels within which a tree finds elements in microseconds."""
FAR_SHARE, DENSE_SHARE = 1 / 1000, 1 / 3
"""A map is faster where elements beyond that, or those of both surfaces, are more than these shares of all corners."""


class Surface(NamedTuple):
    """The elements of a mask's surface."""

    places: np.ndarray
    """(elements,) which of the box's corners each is, as a flat index."""
    areas: np.ndarray
    """(elements,) in mm2."""
    grid: tuple[int, ...]
    """Number of corners along each axis of the box, one more than of its voxels."""

    def points(self, spacing: Sequence[float]) -> np.ndarray:
        """(elements, 3) in mm from the first corner."""
        return np.stack(np.unravel_index(self.places, self.grid), axis=1) * np.asarray(spacing, float)


class Directed(NamedTuple):
    """From every element of one surface to the nearest one of another, the nearest first."""

    distances: np.ndarray
    """(elements,) in mm."""
    areas: np.ndarray
    """(elements,) in mm2, of the elements that look for the other surface."""

    def percentile(self, percent: float) -> float:
        """The smallest distance within which so much of the area lies, in mm."""
        covered = np.cumsum(self.areas)
        enough = int(np.searchsorted(covered, (percent / 100 - SHARE_MARGIN) * covered[-1]))
        return float(self.distances[enough])


class SurfaceDistances(NamedTuple):
    """Both directions."""

    of_reference: Directed
    of_prediction: Directed

    def hausdorff(self) -> float:
        """The largest distance of both directions, in mm."""
        return float(max(one.distances[-1] for one in self))

    def hausdorff_percentile(self, percent: float) -> float:
        """The larger of the percentiles of both directions, by area, in mm."""
        return max(one.percentile(percent) for one in self)

    def average(self) -> float:
        """The mean distance over the area of both surfaces together, in mm."""
        return float(sum(one.distances @ one.areas for one in self) / sum(one.areas.sum() for one in self))

    def within(self, tolerance: float) -> float:
        """The share of the area of both surfaces together that is no further than so many mm from the other surface."""
        near = sum(one.areas[one.distances <= tolerance + TOLERANCE_MARGIN].sum() for one in self)
        return float(near / sum(one.areas.sum() for one in self))


def surface_distances(reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]) -> SurfaceDistances:
    """Measure from every surface element of two masks to the other surface.

    Args:
        reference: (Z, Y, X) of bool, not empty; best cut to what both masks occupy.
        prediction: likewise.
        spacing: in mm, in the order of the axes.
    """
    one, other = (surface(mask, spacing) for mask in (reference, prediction))
    return SurfaceDistances(_directed(one, other, spacing), _directed(other, one, spacing))


def surface(mask: np.ndarray, spacing: Sequence[float]) -> Surface:
    """The surface elements of a mask.

    Args:
        mask: (Z, Y, X) of bool.
        spacing: in mm, in the order of the axes.
    """
    codes = corner_codes(mask)
    places = np.flatnonzero((codes != 0) & (codes != INSIDE))
    return Surface(places, _areas(tuple(map(float, spacing)))[codes.ravel()[places]], codes.shape)


def corner_codes(mask: np.ndarray) -> np.ndarray:
    """Which of the eight voxels around each corner are of the mask, as a number of eight bits.

    Args:
        mask: (Z, Y, X) of bool.

    Returns:
        (Z + 1, Y + 1, X + 1) of uint8.
    """
    codes = np.zeros(np.add(mask.shape, 1), np.uint8)
    # side: 0 before the corner, 1 behind it
    for side, bit in np.ndenumerate(lookup_tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL):
        seen = tuple(slice(1 - behind, 1 - behind + size) for behind, size in zip(side, mask.shape, strict=True))
        codes[seen] |= mask * np.uint8(bit)
    return codes


@lru_cache(maxsize=64)
def _areas(spacing: tuple[float, ...]) -> np.ndarray:
    """The area of an element in mm2 by its code."""
    return np.asarray(lookup_tables.create_table_neighbour_code_to_surface_area(spacing))


def distances_to(one: Surface, other: Surface, spacing: Sequence[float]) -> np.ndarray:
    """The distance from each element of one surface to the nearest one of another in the same box, in mm."""
    corners = math.prod(one.grid)
    if one.places.size + other.places.size > DENSE_SHARE * corners:
        ends = _in_map(one.places, other, spacing)
    else:
        # a plain tree is made and searched faster on a grid, where many distances are alike
        tree = KDTree(other.points(spacing), balanced_tree=False, compact_nodes=False)
        points = one.points(spacing)
        distances, number = tree.query(points, distance_upper_bound=NEAR * math.prod(spacing) ** (1 / 3))
        ends = other.places.take(number, mode="clip")  # without one near, the number is that behind the last
        far = np.flatnonzero(np.isinf(distances))
        if far.size > FAR_SHARE * corners:
            ends[far] = _in_map(one.places[far], other, spacing)
        else:
            ends[far] = other.places[tree.query(points[far])[1]]
    squares = np.zeros(one.places.size)
    axes = zip(np.unravel_index(one.places, one.grid), np.unravel_index(ends, one.grid), spacing, strict=True)
    for start, end, size in axes:  # from whole numbers: 2.4 mm are the same everywhere in the image
        squares += ((end - start) * size) ** 2
    return np.sqrt(squares)


def _in_map(places: np.ndarray, other: Surface, spacing: Sequence[float]) -> np.ndarray:
    """The place of the element nearest to each of some corners, from a map of that for every corner of the box."""
    apart = np.ones(other.grid, bool)
    apart.ravel()[other.places] = False
    ends = distance_transform_edt(apart, sampling=spacing, return_distances=False, return_indices=True)
    return np.ravel_multi_index(tuple(axis.ravel()[places] for axis in ends), other.grid)


def _directed(one: Surface, other: Surface, spacing: Sequence[float]) -> Directed:
    distances = distances_to(one, other, spacing)
    order = np.argsort(distances)
    return Directed(distances[order], one.areas[order])
