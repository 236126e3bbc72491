"""What averaging leaves of labels, by hand and against a flood fill of its own."""

from collections.abc import Iterable

import numpy as np
import pytest

from nnunetv2_ext.data.label_counts import LabelCount, added, count_labels
from nnunetv2_ext.data.thick import majority_slabs


def columns(*slices: str) -> np.ndarray:
    """One row of voxels per slice: (Z, 1, X)."""
    return np.array([[int(value) for value in line] for line in slices], np.uint8)[:, None]


ROWS = {
    # In slabs of two, ties go to the second slice: 1 stays where it lies there.
    "a slice of two": (columns("10", "00", "00", "01"), [2, 1, 2, 1, 1]),
    "two become one": (columns("10", "10", "01", "01"), [4, 2, 1, 1, 0]),
    "corners connect": (columns("010", "100", "000", "000"), [2, 1, 1, 1, 0]),
    "two apart become two": (columns("101", "101"), [4, 2, 2, 2, 0]),
    "one becomes two": (columns("111", "101"), [5, 2, 1, 2, 0]),
    "in the remainder": (columns("000", "000", "111"), [3, 0, 1, 0, 1]),
    "one of two under another": (columns("12", "21"), [2, 1, 1, 1, 0]),
}


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int64])
@pytest.mark.parametrize(("labels", "expected"), ROWS.values(), ids=ROWS)
def test_count(labels, expected, dtype):
    labels = labels.astype(dtype)
    thick = majority_slabs(labels, axis=0, factor=2)
    count = count_labels(labels, thick, case="a", axis=0, factor=2, millilitres=0.5)[1]
    volume, thick_volume = expected[0] * 0.5, expected[1] * 0.5 * 2
    gone = [] if expected[1] else ["a"]
    assert count == LabelCount(1, gone, volume, thick_volume, *expected[2:])


def flood(mask: np.ndarray) -> list[set[tuple[int, ...]]]:
    """The components of a mask, voxels that share a corner being connected."""
    left, found = {tuple(place) for place in np.argwhere(mask).tolist()}, []
    while left:
        component, front = set(), [left.pop()]
        while front:
            place = front.pop()
            component.add(place)
            near = {tuple(np.add(place, step).tolist()) for step in np.argwhere(np.ones((3, 3, 3))) - 1} & left
            left -= near
            front += near
        found.append(component)
    return found


@pytest.mark.parametrize(("axis", "factor"), [(0, 2), (1, 3), (2, 2.5)])
def test_against_a_flood_fill(axis, factor):
    labels = np.random.default_rng(axis).choice([0, 0, 0, 0, 1, 2], (10, 12, 11)).astype(np.uint8)
    thick = majority_slabs(labels, axis=axis, factor=factor)
    counts = count_labels(labels, thick, case="a", axis=axis, factor=factor, millilitres=1)

    def told(component: Iterable[tuple[int, ...]], value: int) -> bool:
        for place in component:
            slab = list(place)
            slab[axis] = int((place[axis] + 0.5) / factor)
            if slab[axis] < thick.shape[axis] and thick[tuple(slab)] == value:
                return True
        return False

    for value in (1, 2):
        before, after = flood(labels == value), flood(thick == value)
        lost = sum(not told(component, value) for component in before)
        found = counts[value]
        assert (found.components, found.thick_components, found.lost) == (len(before), len(after), lost)


def test_counts_of_cases_add_up():
    one, other = LabelCount(1, ["a"], 2.0, 0.0, 3, 0, 3), LabelCount(1, [], 1.0, 1.5, 1, 1, 0)
    assert added([{2: one}, {1: other, 2: other}]) == {1: other, 2: LabelCount(2, ["a"], 3.0, 1.5, 4, 1, 3)}
    assert one.gone == ["a"]
