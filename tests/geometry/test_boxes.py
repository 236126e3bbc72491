import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from nnunetv2_ext.geometry.boxes import (
    Box,
    Preprocessing,
    around,
    around_all,
    bounding_box,
    component_boxes,
    components,
    margin_in_voxels,
    merged,
    value_boxes,
)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float32])
@pytest.mark.parametrize("values", [(1, 2), (7, 200), (3, -4), (2, 70_000), (1, 2**40)])
def test_boxes_of_values(values: tuple[int, int], dtype: type) -> None:
    if np.issubdtype(dtype, np.integer) and not all(np.iinfo(dtype).min <= v <= np.iinfo(dtype).max for v in values):
        pytest.skip("no value of this type")
    labels: np.ndarray = np.zeros((4, 5, 6), dtype)
    labels[1, 2, 3] = labels[3, 2, 1] = values[0]
    labels[0, 4, 2:6] = values[1]
    one, other = Box((1, 2, 1), (4, 3, 4)), Box((0, 4, 2), (1, 5, 6))
    assert value_boxes(labels) == {0: Box((0, 0, 0), (4, 5, 6)), values[0]: one, values[1]: other}
    assert around_all((one, other)) == Box((0, 2, 1), (4, 5, 6))
    assert value_boxes(np.zeros((2, 2, 2), dtype)) == {0: Box((0, 0, 0), (2, 2, 2))}
    assert around_all(()) is None


@pytest.mark.parametrize("connectivity", [6, 18, 26])
@pytest.mark.parametrize("shape", [(1, 1, 5), (1, 3, 3), (2, 2, 2), (3, 1, 3), (2, 1, 4)])
def test_components_of_every_small_mask(shape: tuple[int, ...], connectivity: int) -> None:
    near = ndimage.generate_binary_structure(3, {6: 1, 18: 2, 26: 3}[connectivity])
    voxels = int(np.prod(shape))
    for number in range(2**voxels):
        mask = (number >> np.arange(voxels) & 1).astype(bool).reshape(shape)
        for values in (mask, mask.astype(np.int32)):
            numbers, count = components(values, connectivity)
            assert count == ndimage.label(mask, near)[1]
            assert np.unique(numbers[mask]).tolist() == list(range(1, count + 1))


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([], []),
        ([(0, 0, 0)], [Box((0, 0, 0), (1, 1, 1))]),
        # a corner joins, a gap of one voxel does not
        ([(0, 0, 0), (1, 1, 1)], [Box((0, 0, 0), (2, 2, 2))]),
        ([(4, 5, 6), (2, 5, 6)], [Box((2, 5, 6), (3, 6, 7)), Box((4, 5, 6), (5, 6, 7))]),
        ([(4, 0, 6)], [Box((4, 0, 6), (5, 1, 7))]),
    ],
)
def test_boxes_of_components(places, expected):
    mask = np.zeros((5, 6, 7), bool)
    for place in places:
        mask[place] = True
    assert sorted(component_boxes(mask)) == sorted(expected)
    assert sorted(component_boxes(np.asfortranarray(mask))) == sorted(expected)


def test_components_as_scipy_finds_them():
    mask = np.random.default_rng(0).random((9, 14, 11)) < 0.12
    numbered, count = ndimage.label(mask, np.ones((3, 3, 3)))
    assert count > 5
    expected = [
        Box(tuple(axis.start for axis in found), tuple(axis.stop for axis in found))
        for found in ndimage.find_objects(numbered)
    ]
    assert sorted(component_boxes(mask)) == sorted(expected)


@pytest.mark.parametrize(
    ("margin", "spacing", "expected"),
    [
        (0, (5, 1, 1), (0, 0, 0)),
        (3, (5, 1, 1.5), (1, 3, 2)),
        (3, (1.0000001, 0.9999999, 3), (3, 3, 1)),
        (0.1, (5, 1, 1), (1, 1, 1)),
    ],
)
def test_margin_in_voxels(margin, spacing, expected):
    assert margin_in_voxels(margin, spacing) == expected


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([], []),
        ([Box((0,), (2,)), Box((2,), (4,))], [Box((0,), (2,)), Box((2,), (4,))]),
        ([Box((0,), (3,)), Box((2,), (4,))], [Box((0,), (4,))]),
        # the box around the first two meets the third, which met neither
        (
            [Box((0, 0), (2, 6)), Box((1, 5), (6, 7)), Box((4, 1), (6, 3))],
            [Box((0, 0), (6, 7))],
        ),
        ([Box((3 * n, 0), (3 * n + 1, 1)) for n in range(32)], [Box((3 * n, 0), (3 * n + 1, 1)) for n in range(32)]),
        ([Box((3 * n, 0), (3 * n + 1, 1)) for n in range(33)], [Box((0, 0), (97, 1))]),
    ],
)
def test_merged(boxes, expected):
    assert merged(boxes) == expected


@pytest.mark.parametrize("size", [0, 90])
def test_a_mask_of_noise_takes_no_longer_than_a_moment(size):
    """20,000 specks become one box, or lie in a large one, which alone is left."""
    places = np.random.default_rng(0).integers(0, 80, (20_000, 3))
    specks = [Box((z, y, x), (z + 1, y + 1, x + 1)) for z, y, x in places.tolist()]
    organ = [Box((0, 0, 0), (size, size, size))] if size else []
    start = time.process_time()
    joined = merged([*specks, *organ])
    assert time.process_time() - start < 10
    low, high = (0, 90) if size else (0, 80)
    assert joined == [Box((low,) * 3, (high,) * 3)]


def _boxes(axes: int = 3, size: int = 24) -> st.SearchStrategy[Box]:
    border = st.tuples(st.integers(0, size - 1), st.integers(1, size)).map(lambda pair: (pair[0], pair[0] + pair[1]))
    return st.lists(border, min_size=axes, max_size=axes).map(
        lambda borders: Box(tuple(low for low, _ in borders), tuple(high for _, high in borders))
    )


@given(st.lists(_boxes(), max_size=12), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_merged_boxes_hold_all_and_never_overlap_in_any_order(boxes, random):
    joined = merged(boxes)
    for box in boxes:
        holding = [one for one in joined if all(np.less_equal(one.low, box.low) & np.less_equal(box.high, one.high))]
        assert len(holding) == 1
    for first in joined:
        for second in joined:
            meets = all(np.less(first.low, second.high) & np.less(second.low, first.high))
            assert meets == (first is second)
    shuffled = list(boxes)
    random.shuffle(shuffled)
    assert merged(shuffled) == joined


@pytest.mark.parametrize(
    ("box", "patch", "shape", "expected"),
    [
        # a quarter on each side
        (((10, 10), (30, 30)), (16, 16), (64, 64), ((6, 6), (34, 34))),
        # grown to a patch
        (((10, 10), (12, 13)), (16, 16), (64, 64), ((3, 4), (19, 20))),
        # shifted into the image at either end
        (((0, 62), (2, 64)), (16, 16), (64, 64), ((0, 48), (16, 64))),
        # clipped where it is large enough
        (((0, 40), (20, 64)), (16, 16), (64, 64), ((0, 36), (24, 64))),
        # fewer slices than the patch
        (((1, 10), (2, 30)), (16, 16), (3, 64), ((0, 6), (3, 34))),
        # a quarter of an odd patch is rounded up
        (((10, 20), (30, 40)), (5, 7), (64, 64), ((8, 18), (32, 42))),
        # a window of a single slice sees no other
        (((10, 20), (12, 40)), (1, 8), (64, 64), ((10, 18), (12, 42))),
    ],
)
def test_around(box, patch, shape, expected):
    assert around(Box(*box), patch, shape) == Box(*expected)


@given(_boxes(size=20), st.tuples(*[st.integers(1, 30)] * 3), st.tuples(*[st.integers(1, 48)] * 3))
@settings(max_examples=100, deadline=None)
def test_around_lies_in_the_image_and_holds_the_box(box, patch, shape):
    inside = box.clipped(shape)
    if inside is None:
        return
    window = around(inside, patch, shape)
    assert np.less_equal(0, window.low).all() and np.less_equal(window.high, shape).all()
    assert np.less_equal(window.low, inside.low).all() and np.less_equal(inside.high, window.high).all()
    assert np.greater_equal(window.shape, np.minimum(patch, shape)).all()
    # each voxel of the box is a quarter of the patch from the window's border, unless that is the image's
    quarter = np.ceil(np.array(patch) / 4) * (np.array(patch) > 1)
    assert ((np.subtract(inside.low, window.low) >= quarter) | (np.array(window.low) == 0)).all()
    assert ((np.subtract(window.high, inside.high) >= quarter) | (np.array(window.high) == shape)).all()


@pytest.mark.parametrize(
    ("transpose", "crop", "shape", "box", "expected"),
    [
        # halved along the first axis, doubled along the last
        ((0, 1, 2), ((0, 0, 0), (8, 10, 6)), (4, 10, 12), ((1, 2, 3), (4, 5, 6)), ((0, 2, 6), (2, 5, 12))),
        # transposed and cropped
        ((2, 0, 1), ((1, 2, 3), (7, 8, 9)), (6, 6, 6), ((3, 4, 2), (6, 9, 5)), ((1, 1, 1), (4, 4, 6))),
        # 7 voxels to 10: 2 .. 4 lie in 2.86 .. 5.71
        ((0, 1, 2), ((0, 0, 0), (7, 7, 7)), (10, 10, 10), ((2, 2, 2), (4, 4, 4)), ((2, 2, 2), (6, 6, 6))),
        # cropped away
        ((0, 1, 2), ((4, 0, 0), (8, 10, 6)), (4, 10, 6), ((0, 0, 0), (4, 5, 6)), None),
    ],
)
def test_forward(transpose, crop, shape, box, expected):
    moved = Preprocessing(transpose, Box(*crop), shape).forward(Box(*box))
    assert moved == (None if expected is None else Box(*expected))


@given(
    st.permutations([0, 1, 2]),
    _boxes(size=20),
    st.tuples(*[st.integers(1, 40)] * 3),
    st.tuples(*[st.integers(0, 39)] * 3),
    _boxes(size=40),
)
@settings(max_examples=150, deadline=None)
def test_to_and_fro(transpose, crop, shape, place, box):
    """Any voxel of the box lies in the moved one where its centre is resampled to, and back again."""
    way = Preprocessing(tuple(transpose), crop, shape)
    moved = way.forward(box)
    kept = [
        (max(box.low[axis], first), min(box.high[axis], last))
        for axis, first, last in zip(transpose, *crop, strict=True)
    ]
    if moved is None:
        assert any(low >= high for low, high in kept)
        return
    assert np.less_equal(0, moved.low).all() and np.less_equal(moved.high, shape).all()
    back = way.backward(moved)
    for number, (axis, (low, high)) in enumerate(zip(transpose, kept, strict=True)):
        assert crop.low[number] <= back.low[axis] <= low < high <= back.high[axis] <= crop.high[number]
        voxel = min(low + place[number], high - 1)
        scale = shape[number] / (crop.high[number] - crop.low[number])
        resampled = (voxel - crop.low[number] + 0.5) * scale
        assert moved.low[number] <= resampled <= moved.high[number]


@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_without_resampling_nothing_is_rounded(transpose):
    crop = Box((2, 1, 3), (9, 11, 12))
    way = Preprocessing(transpose, crop, crop.shape)
    box = way.backward(Box((1, 2, 3), (4, 6, 8)))
    assert way.forward(box) == Box((1, 2, 3), (4, 6, 8))
    mask = np.zeros((14, 14, 14), bool)
    mask[box.slices] = True
    assert bounding_box(mask.transpose(transpose)[crop.slices]) == Box((1, 2, 3), (4, 6, 8))


@given(_boxes(size=9), st.lists(st.integers(0, 3), min_size=6, max_size=6))
@settings(max_examples=50, deadline=None)
def test_a_box_without_one_in_it(inner, more):
    inner = Box(tuple(low + 3 for low in inner.low), tuple(high + 3 for high in inner.high))
    outer = Box(tuple(np.subtract(inner.low, more[:3]).tolist()), tuple(np.add(inner.high, more[3:]).tolist()))
    assert outer.holds(inner) and inner.holds(outer) == (inner == outer)
    painted = np.zeros((24, 24, 24), int)
    for part in (inner, *outer.without(inner)):
        painted[part.slices] += 1
    expected = np.zeros_like(painted)
    expected[outer.slices] = 1
    assert (painted == expected).all()


def test_corners_in_millimetres():
    assert Box((1, 2, 3), (4, 6, 8)).millimetres((5, 0.5, 2)) == ([5, 1, 6], [20, 3, 16])


@pytest.mark.parametrize(
    ("box", "expected"),
    [(((-2, 1), (3, 9)), ((0, 1), (3, 6))), (((-2, 1), (0, 3)), None), (((4, 6), (5, 9)), None)],
)
def test_clipped(box, expected):
    assert Box(*box).clipped((5, 6)) == (None if expected is None else Box(*expected))
