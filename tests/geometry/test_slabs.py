"""The slab operator: what must hold for every geometry (drawn by hypothesis), and geometries worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape, resample_data_or_seg_to_shape

from nnunetv2_ext.data.thick import average_slabs
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.geometry.slabs import (
    average,
    covered,
    flipped,
    majority,
    preprocessed_slices,
    slab_matrix,
    slice_edges,
)

few = settings(max_examples=40, deadline=None, derandomize=True, database=None)
lengths = st.floats(0.2, 9.0)
seeds = st.integers(0, 2**16)


@st.composite
def geometries(draw) -> tuple[np.ndarray, np.ndarray, float]:
    """Edges of slabs (T, 2) and of slices (S, 2), and the slice spacing; slabs may leave gaps, overlap or stick out."""
    spacing, ratio = draw(lengths), draw(st.floats(0.3, 8.0))
    slices = slice_edges(draw(st.integers(1, 25)), spacing)
    slabs = slice_edges(
        draw(st.integers(1, 8)),
        ratio * spacing,
        origin=draw(st.floats(-4.0, 12.0)) * spacing,
        thickness=draw(st.sampled_from([0.4, 1.0, 1.3])) * ratio * spacing,
    )
    return slabs, slices, spacing


def volume_of(slices: np.ndarray, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 100, (len(slices), 3, 4)).astype(np.float32)


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-4)


@few
@given(geometries())
def test_rows_hold_the_share_that_the_slices_cover(geometry):
    slabs, slices, _ = geometry
    matrix = slab_matrix(slabs, slices)
    assert matrix.min() >= 0
    inside = np.clip(slabs, slices[0, 0], slices[-1, 1])
    np.testing.assert_allclose(matrix.sum(axis=1), np.diff(inside)[:, 0] / np.diff(slabs)[:, 0], atol=1e-7)
    whole = (slabs[:, 0] >= slices[0, 0]) & (slabs[:, 1] <= slices[-1, 1])
    assert covered(matrix)[whole].all()
    np.testing.assert_allclose(matrix[whole].sum(axis=1), 1, atol=1e-7)
    assert not covered(matrix)[matrix.sum(axis=1) < 0.99].any()


@pytest.mark.parametrize(
    ("share", "options", "whole"),
    [(1, {}, True), (0.9995, {}, True), (0.998, {}, False), (0, {}, False), (0.9, {"tolerance": 0.2}, True)],
)
def test_covered(share, options, whole):
    matrix = slab_matrix(np.array([[0, 2.0]]), np.array([[0, 2 * share], [3, 4]]) if share else np.array([[3, 4]]))
    assert covered(matrix, **options).tolist() == [whole]


@few
@given(geometries(), st.floats(-3000, 3000))
def test_constant_volumes_stay_constant(geometry, value):
    slabs, slices, _ = geometry
    matrix = slab_matrix(slabs, slices)
    matrix = matrix[np.isclose(matrix.sum(axis=1), 1)]
    volume = np.full((len(slices), 2, 3), value, np.float32)
    np.testing.assert_allclose(average(volume, matrix), np.full((len(matrix), 2, 3), value), rtol=1e-6, atol=1e-30)
    labels = np.full((len(slices), 2, 3), int(value))
    assert np.all(majority(labels, matrix) == int(value))


@few
@given(geometries(), seeds)
def test_average_is_the_matrix_product(geometry, seed):
    slabs, slices, _ = geometry
    matrix, volume = slab_matrix(slabs, slices), volume_of(slices, seed)
    assert_close(average(volume, matrix), np.einsum("ts,syx->tyx", matrix, volume))


@few
@given(st.integers(1, 5), st.integers(2, 6), lengths, seeds, st.integers(0, 2))
def test_whole_slabs_are_means_of_slices_and_those_of_make_thick(count, factor, spacing, seed, axis):
    slices = slice_edges(count * factor, spacing)
    matrix = slab_matrix(slice_edges(count, factor * spacing), slices)
    volume = volume_of(slices, seed)
    means = volume.reshape(count, factor, 3, 4).mean(axis=1)
    turned = np.moveaxis(volume, 0, axis)
    projected = average(turned, matrix, axis=axis)
    assert_close(projected, np.moveaxis(means, 0, axis))
    assert_close(projected, average_slabs(turned, axis=axis, factor=factor))


@few
@given(st.integers(4, 25), st.integers(11, 40), lengths, seeds)
def test_any_thickness_equals_that_of_make_thick(count, tenths, spacing, seed):
    factor = tenths / 10
    slices = slice_edges(count, spacing)
    volume = volume_of(slices, seed)
    made = average_slabs(volume, axis=0, factor=factor)
    slabs = slice_edges(len(made), factor * spacing)
    assert_close(made, average(volume, slab_matrix(slabs, slices)))


@few
@given(geometries(), seeds)
def test_flips_commute_with_a_flipped_operator(geometry, seed):
    slabs, slices, _ = geometry
    matrix, volume = slab_matrix(slabs, slices), volume_of(slices, seed)
    assert_close(average(volume[::-1], flipped(matrix)), average(volume, matrix)[::-1])
    assert_close(average(volume[::-1], matrix[:, ::-1]), average(volume, matrix))
    # The same as counting both from the volume's other end.
    length = slices[-1, 1]
    mirrored = slab_matrix((length - slabs)[::-1, ::-1], (length - slices)[::-1, ::-1])
    np.testing.assert_allclose(flipped(matrix), mirrored, atol=1e-7)


@few
@given(geometries(), seeds, st.booleans())
def test_order_of_crop_flip_and_projection(geometry, seed, flip_first):
    """Slices that no slab touches may go before or after a flip: the projection stays."""
    slabs, slices, _ = geometry
    matrix, volume = slab_matrix(slabs, slices), volume_of(slices, seed)
    touched = np.flatnonzero(matrix.any(axis=0))
    if not touched.size:
        return
    crop = slice(touched[0], touched[-1] + 1)
    cropped_matrix = slab_matrix(slabs, slices[crop])
    np.testing.assert_array_equal(cropped_matrix, matrix[:, crop])
    if flip_first:
        kept = slice(len(slices) - crop.stop, len(slices) - crop.start)
        patch = volume[::-1][kept]
    else:
        patch = volume[crop][::-1]
    assert_close(average(patch, flipped(cropped_matrix)), average(volume, matrix)[::-1])


@few
@given(geometries(), seeds)
def test_in_plane_operations_commute(geometry, seed):
    slabs, slices, _ = geometry
    matrix, volume = slab_matrix(slabs, slices), volume_of(slices, seed)

    def in_plane(array: np.ndarray) -> np.ndarray:
        """Crop, flip and transpose, then a linear filter."""
        turned = array[:, 1:, ::-1].swapaxes(1, 2)
        return 0.5 * turned + 0.5 * np.roll(turned, 1, axis=1)

    assert_close(average(in_plane(volume), matrix), in_plane(average(volume, matrix)))


@few
@given(st.data(), lengths, st.integers(1, 30), st.integers(1, 40))
def test_preprocessing_keeps_extents(data, spacing, count, resampled):
    lower = data.draw(st.integers(0, count - 1))
    upper = data.draw(st.integers(lower + 1, count))
    edges, shown = preprocessed_slices(
        count, spacing, bounding_box=(lower, upper), stored_count=upper - lower, resampled_count=resampled
    )
    assert edges.shape == (resampled, 2)
    np.testing.assert_array_equal(shown, np.arange(resampled))
    np.testing.assert_allclose([edges[0, 0], edges[-1, 1]], [lower * spacing, upper * spacing], atol=1e-9)
    np.testing.assert_array_equal(edges[1:, 0], edges[:-1, 1])
    np.testing.assert_allclose(np.diff(edges), (upper - lower) * spacing / resampled)
    slabs = slice_edges(3, (upper - lower) * spacing / 3, origin=lower * spacing)
    np.testing.assert_allclose(slab_matrix(slabs, edges).sum(axis=1), 1, atol=1e-7)


@pytest.mark.parametrize("target", [0.7, 1.0, 1.3, 2.1])
def test_edges_after_resampling_by_nnunet(target):
    """A ramp in mm, resampled by nnU-Net and then projected, gives the slabs' centres in mm."""
    spacing, count = 1.0, 40
    millimetres = slice_edges(count, spacing).mean(axis=1)
    volume = np.broadcast_to(millimetres[:, None, None], (count, 4, 4)).astype(np.float32)
    lower, upper = 3, 36
    crop = volume[None, lower:upper]
    old, new = (spacing, 1.0, 1.0), (target, 1.0, 1.0)
    shape = compute_new_shape(crop.shape[1:], old, new)
    resampled = resample_data_or_seg_to_shape(crop, shape, old, new, order=1, force_separate_z=False)[0]
    edges, _ = preprocessed_slices(
        count, spacing, bounding_box=(lower, upper), stored_count=upper - lower, resampled_count=len(resampled)
    )
    slabs = slice_edges(10, 3.7)
    matrix = slab_matrix(slabs, edges)
    # The outer resampled slices continue the ramp flat: leave out slabs that hold them.
    inner = covered(matrix) & (matrix[:, [0, 1, -2, -1]].sum(axis=1) == 0)
    assert inner.sum() >= 4
    centres = average(resampled, matrix)[inner, 0, 0]
    # Within a slice the volume is constant, so that a slab's edge inside one counts as the slice's centre.
    np.testing.assert_allclose(centres, slabs[inner].mean(axis=1), atol=target**2 / 4 / 3.7)
    assert abs(np.mean(centres - slabs[inner].mean(axis=1))) < 0.05


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [[0, 2], [2, 4], [4, 6]]),
        ({"origin": -1.0}, [[-1, 1], [1, 3], [3, 5]]),
        ({"thickness": 1.0}, [[0.5, 1.5], [2.5, 3.5], [4.5, 5.5]]),
        ({"thickness": 3.0, "origin": 10.0}, [[9.5, 12.5], [11.5, 14.5], [13.5, 16.5]]),
    ],
)
def test_slice_edges(arguments, expected):
    np.testing.assert_array_equal(slice_edges(3, 2.0, **arguments), expected)


@pytest.mark.parametrize(
    ("slabs", "slices", "expected"),
    [
        ([[0, 2]], [[0, 1], [1, 2], [2, 3]], [[0.5, 0.5, 0]]),
        ([[0.5, 2.5]], [[0, 1], [1, 2], [2, 3]], [[0.25, 0.5, 0.25]]),
        ([[1, 2]], [[0, 4], [4, 8]], [[1, 0]]),
        ([[0, 3]], [[0, 1], [2, 3]], [[1 / 3, 1 / 3]]),
        ([[-1, 1], [2, 4]], [[0, 1], [1, 2]], [[0.5, 0], [0, 0]]),
        ([[0, 2]], [[1, 2], [0, 1]], [[0.5, 0.5]]),
        ([[0, 2], [1, 3]], [[0, 1], [1, 2], [2, 3]], [[0.5, 0.5, 0], [0, 0.5, 0.5]]),
        ([[0, 1], [1, 5]], [[0, 2], [2, 4], [4, 6]], [[1, 0, 0], [0.25, 0.5, 0.25]]),
        # Rounding makes no slab touch the slice beside it.
        ([[0.1 + 0.2, 0.6]], [[0, 0.3], [0.3, 0.6], [0.6 - 1e-16, 0.9]], [[0, 1, 0]]),
    ],
)
def test_slab_matrix(slabs, slices, expected):
    matrix = slab_matrix(np.array(slabs), np.array(slices))
    np.testing.assert_allclose(matrix, expected, atol=1e-12)
    assert np.count_nonzero(matrix) == np.count_nonzero(expected)


@pytest.mark.parametrize(
    ("column", "weights", "expected", "why"),
    [
        ([1, 2], [0.6, 0.4], 1, "the larger share"),
        ([1, 2, 2], [0.5, 0.3, 0.2], 2, "tie: slice that holds the centre"),
        ([1, 2, 3, 1], [0.1, 0.4, 0.4, 0.1], 3, "tie of 2 and 3, the centre between them: the later one's"),
        ([2, 3, 1], [0.4, 0.2, 0.4], 1, "tie of 1 and 2, the centre's not among them: smallest"),
        ([7, 5, 5, 7], [0.25, 0.25 + 1e-12, 0.25, 0.25 - 1e-12], 5, "tie but for rounding: centre"),
        ([4, 9, 9], [1e-8, 0, 0], 4, "hardly touched at all"),
        ([-1, 3, 3], [0.5, 0.25, 0], -1, "a slab that is not covered, negative labels"),
    ],
)
def test_majority_by_share(column, weights, expected, why):
    labels = np.array(column, np.int8)[:, None]
    # A second column of one label, which must stay beside the first.
    labels = np.concatenate([labels, np.full_like(labels, 6)], axis=1)
    assert majority(labels, np.array([weights])).tolist() == [[expected, 6]], why


@few
@given(geometries(), seeds)
def test_majority_equals_a_count_per_column(geometry, seed):
    slabs, slices, _ = geometry
    matrix = slab_matrix(slabs, slices)
    matrix = matrix[matrix.any(axis=1)]
    labels = np.random.default_rng(seed).integers(0, 3, (len(slices), 2, 2)).astype(np.uint8)
    voted = majority(labels, matrix)
    assert voted.dtype == np.uint8
    shares = np.stack([np.einsum("ts,syx->tyx", matrix, labels == label) for label in range(3)])
    won = np.take_along_axis(shares, voted[None].astype(int), axis=0)[0]
    assert np.all(won >= shares.max(axis=0) - 1e-5 * matrix.sum(axis=1)[:, None, None])


def test_touched_slices_alone_are_read():
    """A value that is no number stays in its slab."""
    volume = np.array([1.0, 3.0, np.nan, 5.0])[:, None, None]
    matrix = slab_matrix(slice_edges(2, 2.0), slice_edges(4, 1.0))
    assert average(volume, matrix)[0] == 2
    assert np.isnan(average(volume, matrix)[1])
    assert average(volume, np.zeros((1, 4))) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: slice_edges(0, 1.0), "0 slices every 1 mm"),
        (lambda: slice_edges(3, 0.0), "every 0 mm"),
        (lambda: slice_edges(3, 1.0, thickness=-1.0), "-1 mm thick"),
        (lambda: slice_edges(3, np.nan), "every nan mm"),
        (lambda: slab_matrix(np.zeros(3), slice_edges(3, 1.0)), r"edges of slabs of shape \(3,\)"),
        (lambda: slab_matrix(np.array([[0, 1], [2, 2]]), slice_edges(3, 1.0)), r"\[2, 2\) mm as number 1 of the slabs"),
        (lambda: slab_matrix(slice_edges(3, 1.0), np.array([[0, np.inf]])), "number 0 of the slices"),
        (lambda: slab_matrix(slice_edges(3, 1.0), slice_edges(3, 1.0, thickness=1.5)), "slices that overlap"),
        (lambda: average(np.zeros((4, 3, 3)), np.eye(3)), "4 slices along axis 0; expected 3"),
        (lambda: majority(np.zeros((3, 3, 2)), np.eye(3), axis=2), "2 slices along axis 2; expected 3"),
        (lambda: majority(np.zeros((3, 1, 1)), np.diag([1, 0, 1])), "slab 1 outside all slices"),
        (
            lambda: preprocessed_slices(9, 1.0, bounding_box=(2, 10), stored_count=8, resampled_count=8),
            r"9 slices to \[2, 10\)",
        ),
        (
            lambda: preprocessed_slices(9, 1.0, bounding_box=(2, 8), stored_count=7, resampled_count=8),
            "that left 7",
        ),
        (lambda: preprocessed_slices(9, 1.0, bounding_box=(2, 8), stored_count=6, resampled_count=0), "0 of these"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
