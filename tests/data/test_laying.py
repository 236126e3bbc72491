"""Laying annotations on thin grids: where slabs lie, what is refused."""

import itertools

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_ext.data.laying import lay_grids
from nnunetv2_ext.data.thick import majority_slabs, thick_grid
from nnunetv2_ext.data.volumes import Grid, read_grid, read_volume
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.geometry.slabs import average, centre_slices, covered, holding_slabs, slab_matrix, slice_edges

IDENTITY = tuple(np.eye(3).ravel())
OBLIQUE = (0.0, 0.6, 0.8, 1.0, 0.0, 0.0, 0.0, 0.8, -0.6)


def grid(size=(8, 10, 12), spacing=(0.8, 0.9, 1.0), origin=(0.0, 0.0, 0.0), direction=IDENTITY) -> Grid:
    """A thin grid in SimpleITK's order (x, y, z)."""
    return Grid(size, spacing, origin, direction)


@pytest.mark.parametrize(
    ("slabs", "options", "slices", "centres", "holders"),
    [
        pytest.param((3, 4), {}, (12, 1), [2, 6, 10], [0] * 4 + [1] * 4 + [2] * 4, id="even ratio: the later slice"),
        pytest.param((2, 3), {}, (6, 1), [1, 4], [0, 0, 0, 1, 1, 1], id="odd ratio"),
        pytest.param((2, 3.7), {}, (8, 1), [1, 5], [0, 0, 0, 0, 1, 1, 1, -1], id="3.7"),
        pytest.param((2, 2), {}, (5, 0.8), [1, 3], [0, 0, 1, 1, 1], id="slices of 0.8 mm"),
        pytest.param(
            (2, 3), {"origin": 1.5}, (8, 1), [3, 6], [-1, 0, 0, 0, 1, 1, 1, -1], id="centres on edges: the later slab"
        ),
        pytest.param(
            (2, 5), {"thickness": 2}, (10, 1), [2, 7], [-1, 0, 0, -1, -1, -1, 1, 1, -1, -1], id="gaps, edges on centres"
        ),
        pytest.param((2, 4), {"origin": -6}, (4, 1), [0, 0], [1, 1, -1, -1], id="before the image"),
        pytest.param((2, 4), {"origin": 6}, (4, 1), [3, 3], [-1] * 4, id="after the image"),
    ],
)
@pytest.mark.parametrize("noise", [0, 1e-5, -1e-5])
def test_centre_and_holder(slabs, options, slices, centres, holders, noise):
    edges = slice_edges(*slabs, **options) + noise
    assert centre_slices(edges, slice_edges(*slices)).tolist() == centres
    assert holding_slabs(edges, slice_edges(*slices)).tolist() == holders


@pytest.mark.parametrize("ratio", [1.02, 1.5, 2, 3, 3.7, 4, 8.25])
@pytest.mark.parametrize("offset", [0, 0.25, 0.5, -0.5, 1])
def test_slice_at_the_centre_lies_in_the_slab(ratio, offset):
    slices = slice_edges(40, 0.7)
    slabs = slice_edges(int(40 / ratio), 0.7 * ratio, origin=0.7 * offset)
    inside = covered(slab_matrix(slabs, slices))
    assert inside.sum() > len(slabs) / 2
    holders = holding_slabs(slabs, slices)
    assert holders[centre_slices(slabs, slices)][inside].tolist() == np.flatnonzero(inside).tolist()


# The annotation on the grid.


@pytest.mark.parametrize("direction", [IDENTITY, OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize(("axis", "ratio"), [*itertools.product((0, 1, 2), (2, 3.7)), (0, 4)])
@pytest.mark.parametrize("start", [-3.0, 0.0, 1.3])
def test_slabs_are_where_the_voxels_lie_in_space(direction, axis, ratio, start):
    """An annotation that begins `start` slices after the image, by SimpleITK's own geometry."""
    thin = grid(origin=(-50.5, 20.25, 300.0), direction=direction)
    index = 2 - axis
    image = sitk.Image(thin.size, sitk.sitkUInt8)
    image.SetSpacing(thin.spacing)
    image.SetOrigin(thin.origin)
    image.SetDirection(direction)
    size, spacing, centre = list(thin.size), list(thin.spacing), [0.0, 0.0, 0.0]
    size[index], spacing[index], centre[index] = 4, spacing[index] * ratio, start - 0.5 + ratio / 2
    thick = Grid(tuple(size), tuple(spacing), image.TransformContinuousIndexToPhysicalPoint(centre), direction)
    laying = lay_grids("case", thin, thick)
    assert laying.axis == axis
    begin, step = start * thin.spacing[index], ratio * thin.spacing[index]
    np.testing.assert_allclose(laying.slabs, [[begin + k * step, begin + (k + 1) * step] for k in range(4)], atol=1e-4)
    annotation = np.random.default_rng(0).integers(0, 3, size[::-1]).astype(np.uint8)
    laid = laying.lay(annotation, ignore=7, dtype=np.dtype(np.uint8))
    assert laid.shape == thin.size[::-1]
    for s in range(thin.size[index]):
        slab = int(np.floor((s + 0.5 - start) / ratio + 1e-6))
        expected = annotation.take(slab, axis) if 0 <= slab < 4 else np.full_like(annotation.take(0, axis), 7)
        np.testing.assert_array_equal(laid.take(s, axis), expected)


@pytest.mark.parametrize(
    ("thickness", "slabs", "ignored"),
    [
        (None, [[0, 4], [4, 8], [8, 12]], []),
        (4.03, [[0, 4], [4, 8], [8, 12]], []),
        (3.97, [[0, 4], [4, 8], [8, 12]], []),
        (2.0, [[1, 3], [5, 7], [9, 11]], [0, 3, 4, 7, 8, 11]),
        (1.5, [[1.25, 2.75], [5.25, 6.75], [9.25, 10.75]], [0, 3, 4, 7, 8, 11]),
    ],
)
def test_slice_thickness(thickness, slabs, ignored):
    laying = lay_grids("case", grid(), grid((8, 10, 3), (0.8, 0.9, 4.0), (0.0, 0.0, 1.5)), thickness=thickness)
    np.testing.assert_allclose(laying.slabs, slabs)
    assert np.flatnonzero(laying.indices[0] < 0).tolist() == ignored


@pytest.mark.parametrize(
    ("size", "spacing", "origin", "y", "x"),
    [
        pytest.param((8, 10), (0.8, 0.9), (0.39, -0.44), range(10), range(8), id="shifted by less than half a voxel"),
        pytest.param(
            (4, 5), (1.6, 1.8), (0.4, 0.45), np.repeat(range(5), 2), np.repeat(range(4), 2), id="twice as coarse"
        ),
        pytest.param((16, 10), (0.4, 0.9), (-0.2, 0.0), range(10), range(1, 16, 2), id="finer in x"),
        pytest.param((5, 10), (1.28, 0.9), (0.24, 0.0), range(10), [0, 0, 1, 2, 2, 3, 4, 4], id="1.6 times as coarse"),
    ],
)
def test_another_grid_within_the_slices(size, spacing, origin, y, x):
    laying = lay_grids("case", grid(), grid((*size, 3), (*spacing, 4.0), (*origin, 1.5)), axis=0)
    assert [index.tolist() for index in laying.indices[1:]] == [[*y], [*x]]


def thick(**changes) -> Grid:
    return grid(**{"size": (8, 10, 3), "spacing": (0.8, 0.9, 4.0), "origin": (0.0, 0.0, 1.5)} | changes)


FLIPPED = (1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, -1.0)
TILTED = (1.0, 0.0, 0.0, 0.0, 0.8, -0.6, 0.0, 0.6, 0.8)
REFUSED = {
    "flipped": (thick(direction=FLIPPED), {}, "orientation LAI for an image of orientation LPS.*case.*DICOMOrient"),
    "turned": (thick(direction=TILTED), {}, "annotation of orientation .*direction 1, 0, 0, 0, 0.8, -0.6"),
    "behind": (thick(origin=(0.0, 0.0, 20.0)), {}, r"\[18.5, 30.5\) x .*\[0, 12\) x .*case.*overlap in space"),
    "beside": (thick(origin=(10.0, 0.0, 1.5)), {}, r"\[10, 16.4\) mm.*overlap in space"),
    "other field of view": (
        thick(size=(8, 12, 3)),
        {},
        r"\[0, 10.8\) x \[0, 6.4\) mm .* of the annotation, .*\[0, 9\).*image in case case; expected one field of view",
    ),
    "half a voxel": (thick(origin=(0.4, 0.0, 1.5)), {}, "expected one field of view"),
    "no slab inside": (thick(size=(8, 10, 1), origin=(0.0, 0.0, 0.0)), {}, r"1 annotated slices over \[-1.5, 2.5\) mm"),
    "finer": (thick(spacing=(0.8, 0.9, 0.5)), {}, "0.5, 0.9, 0.8 mm .* 1, 0.9, 0.8 mm.*case case.*finer"),
    "equal": (thick(size=(8, 10, 12), spacing=(0.8, 0.9, 1.005)), {}, "case case: .*as thin as.*plain training"),
    "equal along axis": (thick(), {"axis": 2}, "along the array axis 2, in case case: .*as thin as"),
    "finer along axis": (thick(spacing=(0.5, 0.9, 4.0)), {"axis": 2}, "axis 2, in case case: .*finer"),
    "two axes": (
        thick(size=(4, 10, 3), spacing=(1.6, 0.9, 4.0)),
        {},
        r"4, 0.9, 1.6 mm \(z, y, x\) .* along the array axes 0, 2.*--slice-axis",
    ),
    "thinner slices": (thick(), {"thickness": 0.5}, "0.5 mm thick every 4 mm .*every 1 mm in case case: .*finer"),
    "thin slices": (thick(), {"thickness": 1.0}, "1 mm thick every 4 mm .*every 1 mm in case case: .*as thin as"),
    "overlap": (thick(), {"thickness": 5.0}, "5 mm thick every 4 mm in case case, which overlap.*--slice-thickness"),
}


@pytest.mark.parametrize(("annotation", "options", "sentence"), REFUSED.values(), ids=REFUSED)
def test_grids_that_do_not_fit(annotation, options, sentence):
    with pytest.raises(InputError, match=sentence):
        lay_grids("case", grid(), annotation, **options)


@pytest.mark.parametrize("factor", [3, 3.7, 4])
def test_hippocampus(hippocampus, factor):
    """Labels averaged over slabs and laid agree with the thin truth where they should."""
    for path in sorted((hippocampus / "labelsTr").glob("*.nii.gz"))[:3]:
        thin, truth = read_grid(path), read_volume(path)
        annotation = majority_slabs(truth, axis=0, factor=factor)
        laying = lay_grids(path.name, thin, thick_grid(thin, axis=0, factor=factor))
        laid = laying.lay(annotation, ignore=9, dtype=np.dtype(np.uint8))
        slices = slice_edges(thin.size[2], thin.spacing[2])
        assert covered(slab_matrix(laying.slabs, slices)).all()
        np.testing.assert_array_equal(laid[centre_slices(laying.slabs, slices)], annotation)

        # The laid labels are those of the truth wherever that does not change over a slab.
        weights = slab_matrix(laying.slabs, slices)
        shares = np.stack([average(truth == label, weights) for label in range(3)])
        in_a_slab = laying.indices[0] >= 0
        constant = (shares.max(axis=0) > 1 - 1e-6)[laying.indices[0][in_a_slab]]
        assert 0.8 < constant.mean() < 1
        np.testing.assert_array_equal(laid[in_a_slab][constant], truth[in_a_slab][constant])
        # Of the labels averaged over the slabs, each voxel's annotation has the largest share.
        np.testing.assert_allclose(np.take_along_axis(shares, annotation[None].astype(int), 0)[0], shares.max(axis=0))
        assert (laid[~in_a_slab] == 9).all()
        assert np.count_nonzero(~in_a_slab) <= factor
