"""Slab averaging over arrays, and the geometry of thick voxels."""

import itertools

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_ext.data.thick import average_slabs, majority_slabs, slab_count, thick_grid, thick_matrix
from nnunetv2_ext.data.volumes import Grid

AXES_AND_FACTORS = list(itertools.product((0, 1, 2), (2, 3, 4, 7)))


def rotation(*, about_x: float, about_z: float) -> np.ndarray:
    """A rotation about two axes, angles in degrees: (3, 3)."""
    (cos_x, sin_x), (cos_z, sin_z) = ((np.cos(a), np.sin(a)) for a in np.radians([about_x, about_z]))
    return np.array([[cos_z, -sin_z, 0], [sin_z, cos_z, 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, cos_x, -sin_x], [0, sin_x, cos_x]]
    )


DIRECTIONS = {
    "identity": np.eye(3),
    "flipped": np.diag([-1.0, -1.0, 1.0]),
    "sagittal": np.array([[0.0, 0, -1], [1, 0, 0], [0, -1, 0]]),
    "oblique": rotation(about_x=25, about_z=-40),
    "left-handed oblique": rotation(about_x=70, about_z=10) @ np.diag([1.0, 1, -1]),
}


@pytest.mark.parametrize(("axis", "factor"), AXES_AND_FACTORS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_average_equals_numpy_slab_by_slab(axis, factor, dtype):
    volume = np.random.default_rng(0).integers(0, 255, (9, 10, 11)).astype(dtype)
    slabs = volume.shape[axis] // factor
    starts = range(0, slabs * factor, factor)
    expected = np.stack([volume.take(range(s, s + factor), axis).mean(axis) for s in starts], axis)
    average = average_slabs(volume, axis=axis, factor=factor)
    assert average.dtype == np.float32
    np.testing.assert_allclose(average, expected, rtol=1e-6)


@pytest.mark.parametrize("value", [0, 7, -1024, 16777217, 0.1])
@pytest.mark.parametrize(("axis", "factor"), AXES_AND_FACTORS)
def test_constant_stays_constant(axis, factor, value):
    average = average_slabs(np.full((8, 9, 10), value), axis=axis, factor=factor)
    assert np.all(average == np.float32(value))


def test_average_does_not_overflow_small_integers():
    assert average_slabs(np.full((4, 1, 1), 255, np.uint8), axis=0, factor=4).item() == 255


@pytest.mark.parametrize(
    ("slices", "factor", "slabs"),
    [(12, 4, 3), (11, 4, 2), (3, 4, 0), (37, 3.7, 10), (36, 3.7, 9), (7, 3.50000006, 2), (10, 1.5, 6)],
)
def test_number_of_slabs(slices, factor, slabs):
    assert slab_count(slices, factor) == slabs


@pytest.mark.parametrize(
    ("slices", "factor", "expected"),
    [
        (5, 2, [[1 / 2, 1 / 2, 0, 0, 0], [0, 0, 1 / 2, 1 / 2, 0]]),
        (4, 1.5, [[2 / 3, 1 / 3, 0, 0], [0, 1 / 3, 2 / 3, 0]]),
        # The spacing 0.7 read from a header in float32, the thickness 2.45.
        (7, 2.45 / float(np.float32(0.7)), [[2 / 7, 2 / 7, 2 / 7, 1 / 7, 0, 0, 0], [0, 0, 0, 1 / 7, *[2 / 7] * 3]]),
    ],
)
def test_slabs_lie_beside_each_other(slices, factor, expected):
    matrix = thick_matrix(slices, factor)
    np.testing.assert_allclose(matrix, expected, atol=1e-7)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-12)


@pytest.mark.parametrize(
    ("column", "expected", "why"),
    [
        ([1, 1, 2], 1, "majority"),
        ([2, 1, 1], 1, "majority"),
        ([0, 3, 0, 0], 0, "majority against the middle"),
        ([5, 0, 5], 5, "majority against the middle"),
        ([1, 2], 2, "tie: middle of two slices is the second"),
        ([2, 1], 1, "tie: middle of two slices is the second"),
        ([1, 1, 2, 2], 2, "tie: middle of four slices is the third"),
        ([2, 2, 1, 1], 1, "tie: middle of four slices is the third"),
        ([3, 2, 1], 2, "tie of all: middle"),
        ([1, 0, 2, 0, 1], 0, "tie of 0 and 1, middle 2 is not among them: smallest"),
        ([2, 1, 3, 1, 2], 1, "tie of 1 and 2, middle 3 is not among them: smallest"),
        ([2, 1, 1, 3, 2, 3, 1, 2], 2, "tie of 1 and 2, middle 2"),
        ([0, 0, 0], 0, "constant"),
        ([255, 255, 0], 255, "ignore label as any other"),
    ],
)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_majority(column, expected, why, axis):
    labels = np.moveaxis(np.tile(np.array(column, np.uint8)[:, None, None], (2, 3, 4)), 0, axis)
    majority = majority_slabs(labels, axis=axis, factor=len(column))
    assert majority.dtype == np.uint8
    assert majority.shape[axis] == 2
    assert np.unique(majority).tolist() == [expected], why


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_majority_equals_a_count_per_column(factor):
    labels = np.random.default_rng(1).integers(0, 4, (11, 6, 7))
    majority = majority_slabs(labels, axis=0, factor=factor)
    for slab, y, x in np.ndindex(majority.shape):
        column = labels[slab * factor : (slab + 1) * factor, y, x].tolist()
        counts = {label: column.count(label) for label in column}
        tied = [label for label, count in counts.items() if count == max(counts.values())]
        middle = column[factor // 2]
        assert majority[slab, y, x] == (middle if middle in tied else min(tied))


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
@pytest.mark.parametrize(("axis", "factor"), [(0, 2), (0, 5), (1, 3), (2, 4), (0, 3.7), (2, 2.5)])
def test_thick_voxel_lies_in_the_middle_of_its_slab(direction, axis, factor):
    thin = sitk.Image([11, 12, 13], sitk.sitkUInt8)
    thin.SetSpacing([0.7, 0.9, 1.3])
    thin.SetOrigin([-50.5, 20.25, 300])
    thin.SetDirection(direction.ravel())
    grid = Grid(thin.GetSize(), thin.GetSpacing(), thin.GetOrigin(), thin.GetDirection())
    made = thick_grid(grid, axis=axis, factor=factor)
    thick = sitk.Image(made.size, sitk.sitkUInt8)
    thick.SetSpacing(made.spacing)
    thick.SetOrigin(made.origin)
    thick.SetDirection(made.direction)
    along = 2 - axis
    assert thick.GetSize()[along] == int(thin.GetSize()[along] / factor)
    for index in itertools.product((0, 1), repeat=3):
        # The slab's edges in the thin grid's continuous index, whose first slice reaches from -0.5 to 0.5.
        ends = []
        for end in (index[along], index[along] + 1):
            ends.append([float(i) for i in index])
            ends[-1][along] = end * factor - 0.5
        centre = np.mean([thin.TransformContinuousIndexToPhysicalPoint(end) for end in ends], axis=0)
        np.testing.assert_allclose(thick.TransformIndexToPhysicalPoint(index), centre, atol=1e-9)
    assert made.spacing[along] == pytest.approx(grid.spacing[along] * factor)
    assert made.direction == grid.direction
