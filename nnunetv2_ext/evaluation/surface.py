"""Distances between the surfaces of two masks, element by element, in mm.

A mask's surface consists of elements as in Nikolov et al., "Clinically Applicable Segmentation of Head and Neck Anatomy
for Radiotherapy" (J Med Internet Res 2021;23:e26151): one at each corner that voxels inside and outside share, with the
area in mm2 that marching cubes give the surface there. Around the image is outside.

Areas come from the tables of the authors' package, surface-distance (Apache-2.0). Its own distances are not used: they
end in an error where one mask is empty (numpy 2), need `scipy.ndimage.filters` (gone in SciPy 2), take a map of the
whole box, and sort in Python. Here each element looks for its nearest one in a tree of the other surface, the same
distances with memory that grows with the surface alone; only where many elements are far, which takes a tree long, in a
map of the box.
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
MANY = 1000
"""Elements beyond that are many where they are more than the box's voxels by this number: then a map is faster."""


class Surface(NamedTuple):
    """The elements of a mask's surface."""

    corners: np.ndarray
    """(elements, 3), counted along each axis from the outer corner of the mask's first voxel."""
    areas: np.ndarray
    """(elements,) in mm2."""


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
    corners = tuple(size + 1 for size in reference.shape)
    return SurfaceDistances(
        *(_directed(nearest(start, end, spacing, corners), start.areas) for start, end in ((one, other), (other, one)))
    )


def surface(mask: np.ndarray, spacing: Sequence[float]) -> Surface:
    """The surface elements of a mask.

    Args:
        mask: (Z, Y, X) of bool.
        spacing: in mm, in the order of the axes.
    """
    codes = corner_codes(mask)
    places = np.flatnonzero((codes != 0) & (codes != INSIDE))
    corners = np.stack(np.unravel_index(places, codes.shape), axis=1)
    return Surface(corners, _areas(tuple(map(float, spacing)))[codes.ravel()[places]])


def corner_codes(mask: np.ndarray) -> np.ndarray:
    """Which of the eight voxels around each corner are of the mask, as a number of eight bits.

    Args:
        mask: (Z, Y, X) of bool.

    Returns:
        (Z + 1, Y + 1, X + 1) of uint8.
    """
    codes = np.zeros(np.add(mask.shape, 1), np.uint8)
    for side, bit in np.ndenumerate(
        lookup_tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL
    ):  # side: 0 before the corner, 1 behind
        seen = tuple(slice(1 - behind, 1 - behind + size) for behind, size in zip(side, mask.shape, strict=True))
        codes[seen] |= mask * np.uint8(bit)
    return codes


@lru_cache(maxsize=64)
def _areas(spacing: tuple[float, ...]) -> np.ndarray:
    """The area of an element in mm2 by its code."""
    return np.asarray(lookup_tables.create_table_neighbour_code_to_surface_area(spacing))


def nearest(one: Surface, other: Surface, spacing: Sequence[float], shape: tuple[int, ...]) -> np.ndarray:
    """The distance from each element of one surface to the nearest one of another, in mm.

    Args:
        shape: number of corners along each axis of the box in which both lie.
    """
    scale = np.asarray(spacing, float)
    points = one.corners * scale
    # a plain tree is made and searched faster on a grid, where many distances are alike
    tree = KDTree(other.corners * scale, balanced_tree=False, compact_nodes=False)
    distances, number = tree.query(points, distance_upper_bound=NEAR * float(np.cbrt(scale.prod())))
    far = np.flatnonzero(np.isinf(distances))
    if few := far.size * MANY <= math.prod(shape):
        number[far] = tree.query(points[far])[1]
    ends = other.corners.take(number, axis=0, mode="clip")  # without one near, the number is that behind the last
    if not few:
        ends[far] = _in_map(one.corners[far], other.corners, scale, shape)
    # from whole numbers: 2.4 mm are the same everywhere in the image
    return np.linalg.norm((ends - one.corners) * scale, axis=1)


def _in_map(one: np.ndarray, other: np.ndarray, scale: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """For each of some corners the nearest of others: from a map of that for every corner of the box."""
    apart = np.ones(shape, bool)
    apart[tuple(other.T)] = False
    places = distance_transform_edt(apart, sampling=scale, return_distances=False, return_indices=True)
    z, y, x = one.T
    return np.asarray(places[:, z, y, x].T)


def _directed(distances: np.ndarray, areas: np.ndarray) -> Directed:
    order = np.argsort(distances)
    return Directed(distances[order], areas[order])
