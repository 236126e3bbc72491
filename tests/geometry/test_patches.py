"""Slabs in patches: the order of crop, flip and projection does not matter, for any geometry (drawn by hypothesis)."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunetv2_ext.data.preprocessed import preprocessed_slabs, refuse_other_axis
from nnunetv2_ext.data.sidecar import Sidecar, refuse_thin_annotations
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.geometry.patches import (
    PreprocessedSlabs,
    longest_reach,
    most_within,
    padding_slabs,
    slabs_per_patch,
    slices_for_a_slab,
    whole_slabs,
)
from nnunetv2_ext.geometry.slabs import CaseSlabs, average, centre_slices, covered, slice_edges

few = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@st.composite
def cases(draw: Any) -> PreprocessedSlabs:
    """Slabs of any ratio, some with gaps, some that stick out, over slices as cropping and resampling leave them."""
    spacing = draw(st.floats(0.3, 3.0))
    count = draw(st.integers(2, 24))
    case = CaseSlabs(
        spacing,
        count,
        slice_edges(
            draw(st.integers(1, 7)),
            draw(st.floats(0.5, 6.0)) * spacing,
            origin=draw(st.floats(-2.0, 4.0)) * spacing,
            thickness=None,
        ),
    )
    lower = draw(st.integers(0, count - 2))
    upper = draw(st.integers(lower + 2, count))
    properties = {
        "spacing": [spacing, 1.0, 1.0],
        "shape_before_cropping": (count, 8, 8),
        "bbox_used_for_cropping": [[lower, upper], [0, 8], [0, 8]],
        "shape_after_cropping_and_before_resampling": (upper - lower, 8, 8),
    }
    return preprocessed_slabs("case", case, 0, properties, draw(st.integers(2, 30)), nearest=draw(st.booleans()))


@st.composite
def windows(draw: Any, case: PreprocessedSlabs) -> np.ndarray:
    """Slice numbers of a patch: a window that may begin before and end after the image, flipped or not."""
    size, count = draw(st.integers(1, 32)), len(case.shown)
    numbers = draw(st.integers(-size + 1, count - 1)) + np.arange(1, size + 1)
    numbers = np.where((numbers < 1) | (numbers > count), 0, numbers)
    return numbers[::-1] if draw(st.booleans()) else numbers


@few
@given(st.data())
def test_order_of_crop_flip_and_projection_does_not_matter(data: Any) -> None:
    case = data.draw(cases())
    slices = data.draw(windows(case))
    image = np.random.default_rng(0).normal(size=(len(case.shown), 3)).astype(np.float32)
    cropped = np.where(slices[:, None] > 0, image[slices - 1], 0)
    patch = case.patch(slices)

    whole = [t for t, row in enumerate(case.matrix) if covered(row[None, slices[slices > 0] - 1])[0]]
    inside = slices[slices > 0]
    flipped = len(inside) > 1 and inside[0] > inside[-1]
    expected = average(image, case.matrix)[whole][:: -1 if flipped else 1]
    np.testing.assert_allclose(patch.matrix @ cropped, expected, rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(patch.matrix.sum(axis=1), 1, atol=1e-5)
    centres = centre_slices(case.slabs[whole], case.slices[case.shown])[:: -1 if flipped else 1]
    assert slices[patch.centres].tolist() == (centres + 1).tolist()


@few
@given(st.data())
def test_the_most_slabs_that_a_patch_covers(data: Any) -> None:
    case = data.draw(cases())
    size = data.draw(st.integers(1, 32))
    counts = []
    for first in range(-size + 1, len(case.shown)):
        numbers = first + np.arange(1, size + 1)
        counts.append(len(case.patch(np.where((numbers < 1) | (numbers > len(case.shown)), 0, numbers)).matrix))
    assert case.most_covered(size) == max(counts)


def test_every_slice_takes_the_average_of_its_slab() -> None:
    case = of(np.array([[1.0, 3.0], [3.0, 5.0], [5.0, 8.0]]), 9)
    image = np.arange(9, dtype=np.float32) ** 2
    slices = np.array([1, 2, 3, 4, 5, 6, 7, 0])  # the third slab sticks out, the last slice is padding
    blurred = case.patch(slices).blurred @ np.append(image[:7], 0)
    np.testing.assert_allclose(blurred, [0, 2.5, 2.5, 12.5, 12.5, 30.5, 30.5, 0])


def test_a_slice_of_two_slabs_takes_of_both() -> None:
    case = of(np.array([[0.0, 1.5], [1.5, 3.0]]), 3)
    patch = case.patch(np.array([3, 2, 1]))
    image = np.array([6.0, 3.0, 0.0])
    np.testing.assert_allclose(patch.matrix @ image, [5, 1], atol=1e-5)
    np.testing.assert_allclose(patch.blurred @ image, [5, 3, 1], atol=1e-5)


@pytest.mark.parametrize(
    ("slices", "most", "expected"),
    [
        ([0, 0, 1, 2], 5, [[0], [1]]),
        ([0, 1, 0, 0, 0], 2, [[0, 2], [3, 4]]),
        ([0, 1, 2], 0, []),
        ([1, 2, 3], 4, []),
        ([0, 0], 1, [[0, 1]]),
    ],
)
def test_slabs_of_padding(slices: list[int], most: int, expected: list[list[int]]) -> None:
    matrix, chosen = padding_slabs(np.array(slices), most)
    assert [np.flatnonzero(row).tolist() for row in matrix] == expected
    assert matrix.shape[1] == len(slices)
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    assert chosen.tolist() == [group[0] for group in expected]


@pytest.mark.parametrize(
    ("thickness", "spacing", "expected"), [(4.0, 1.0, 5), (3.7, 1.0, 5), (4.2, 1.0, 6), (0.5, 1.0, 2), (4.0, 0.8, 6)]
)
def test_slices_that_cover_a_slab_wherever_its_edges_lie(thickness: float, spacing: float, expected: int) -> None:
    slabs = slice_edges(3, thickness)
    assert slices_for_a_slab(CaseSlabs(spacing, 40, slabs), spacing) == expected
    for shift in np.linspace(0, 1, 8):
        assert of(slabs + shift * spacing, 40, spacing).most_covered(expected) >= 1


@few
@given(st.data())
def test_the_planner_knows_how_long_a_patch_must_be_and_how_many_slabs_it_covers(data: Any) -> None:
    """Before there are preprocessed slices, of which it knows about how far apart they will lie."""
    stored, target, count = data.draw(st.floats(0.5, 3.0)), data.draw(st.floats(0.5, 3.0)), 60
    thickness = data.draw(st.floats(2.0, 8.0)) * stored
    slabs = slice_edges(4, thickness, origin=data.draw(st.floats(0.0, 3.0)) * stored)
    case = CaseSlabs(stored, count, slabs)
    lower = data.draw(st.integers(0, 3))
    resampled = round((count - lower) * stored / target)
    properties = {
        "spacing": [stored, 1.0, 1.0],
        "shape_before_cropping": (count, 8, 8),
        "bbox_used_for_cropping": [[lower, count], [0, 8], [0, 8]],
        "shape_after_cropping_and_before_resampling": (count - lower, 8, 8),
    }
    whole = whole_slabs(case)
    for nearest in (False, True):
        preprocessed = preprocessed_slabs("case", case, 0, properties, resampled, nearest=nearest)
        if covered(preprocessed.matrix).all():
            assert preprocessed.most_covered(slices_for_a_slab(case, target)) >= 1
        size = data.draw(st.integers(1, 40))
        assert preprocessed.most_covered(size) <= most_within(whole, longest_reach(case, size, target))


@pytest.mark.parametrize(("length", "expected"), [(3.9, 0), (4.0, 1), (9.0, 2), (9.5, 2), (13.0, 3), (100.0, 3)])
def test_slabs_within_a_stretch(length: float, expected: int) -> None:
    assert most_within(np.array([[1.0, 5.0], [5.0, 9.0], [10.0, 14.0]]), length) == expected


def test_slabs_in_the_image() -> None:
    case = CaseSlabs(1.0, 9, np.array([[-1.0, 3.0], [3.0, 7.0], [7.0, 11.0]]))
    assert whole_slabs(case).tolist() == [[3.0, 7.0]]


def of(slabs: np.ndarray, slices: int, spacing: float = 1.0) -> PreprocessedSlabs:
    return PreprocessedSlabs(slabs, slice_edges(slices, spacing), np.arange(slices))


@pytest.mark.parametrize(
    ("shown", "rows", "centres"),
    [
        # copies share a slice's weight
        ([0, 0, 1, 2, 2, 3], [[0.25, 0.25, 0.5, 0, 0, 0], [0, 0, 0, 0.25, 0.25, 0.5]], [2, 5]),
        # what nobody shows falls to the others of the slab
        ([0, 2, 3], [[1, 0, 0], [0, 0.5, 0.5]], [0, 2]),
        # a slab of which nothing is left
        ([0, 1], [[0.5, 0.5], [0, 0]], [1, 1]),
    ],
)
def test_weights_of_slices_that_show_stored_ones(shown: list[int], rows: Any, centres: list[int]) -> None:
    case = PreprocessedSlabs(slice_edges(2, 2.0), slice_edges(4, 1.0), np.array(shown))
    np.testing.assert_allclose(case.matrix, rows)
    assert case.centres.tolist() == centres
    assert case.dropped == [not any(row) for row in rows].count(True)


def test_a_slab_of_which_only_a_slice_of_another_slab_is_left_is_left_out() -> None:
    # the second slab's own slice [1, 2) is shown by none; half of [2, 3), which the third slab annotates, is in it
    case = PreprocessedSlabs(np.array([[0.0, 1.0], [1.0, 2.4], [2.4, 4.0]]), slice_edges(4, 1.0), np.array([0, 2, 3]))
    np.testing.assert_allclose(case.matrix, np.array([[1, 0, 0], [0, 0, 0], [0, 0.375, 0.625]]))
    assert case.dropped == 1


@pytest.mark.parametrize(
    ("thickness", "slices", "expected"), [([4.0], 8, 2), ([4.0], 9, 2), ([3.7, 5.0], 12, 3), ([2.0, 6.0], 7, 3)]
)
def test_slabs_per_patch(thickness: list[float], slices: int, expected: int) -> None:
    held = {f"{one:g}": of(slice_edges(5, one), 30) for one in thickness}
    assert slabs_per_patch(held, slices) == expected


def test_a_patch_without_a_whole_slab_is_refused() -> None:
    held = {"a": of(slice_edges(4, 4.0), 16), "b": of(slice_edges(2, 8.0), 16)}
    with pytest.raises(InputError, match=r"7 slices, 7 mm, and slabs of 8 mm or more in case b; .*: 8 slices or more"):
        slabs_per_patch(held, 7)


def test_cases_without_a_whole_slab_are_passed_over() -> None:
    held = {"a": of(slice_edges(4, 4.0), 16), "cropped": of(slice_edges(2, 8.0), 7)}
    assert slabs_per_patch(held, 9) == 2
    with pytest.raises(InputError, match=r"no slab that lies wholly in the image, in none of 1 cases"):
        slabs_per_patch({"cropped": held["cropped"]}, 9)


@pytest.mark.parametrize(("slices", "spacing"), [(10, 1.0), (12, 1.25)])
def test_another_image_is_refused(slices: int, spacing: float) -> None:
    properties = {
        "spacing": [0.7, 1.0, 0.7],
        "shape_before_cropping": (12, 8, 8),
        "bbox_used_for_cropping": [[0, 12], [0, 8], [0, 8]],
        "shape_after_cropping_and_before_resampling": (12, 8, 8),
    }
    message = rf"{slices} slices of {spacing:g} mm of case a in slabs.json, and 12 of 1 mm in its preprocessed image"
    with pytest.raises(InputError, match=message):
        preprocessed_slabs("a", CaseSlabs(spacing, slices, slice_edges(2, 5.0)), 1, properties, 12)


@pytest.mark.parametrize(("ratios", "refused"), [([1, 1], True), ([1.005], True), ([1, 2.5], False), ([], True)])
def test_annotations_as_thin_as_the_images_are_refused(ratios: list[float], refused: bool) -> None:
    held = {str(i): CaseSlabs(0.8, 20, slice_edges(4, 0.8 * ratio)) for i, ratio in enumerate(ratios)}
    if refused:
        with pytest.raises(InputError, match=r"as thin as the images .*train it with any other trainer"):
            refuse_thin_annotations(Sidecar("Dataset042_Liver", 0, held))
    else:
        refuse_thin_annotations(Sidecar("Dataset042_Liver", 0, held))


def test_another_slice_axis_is_refused() -> None:
    refuse_other_axis(1, [1, 0, 2])
    with pytest.raises(InputError, match=r"first axis is axis 1 .*slice axis 0; plan with ThinThickPlanner"):
        refuse_other_axis(0, [1, 0, 2])
