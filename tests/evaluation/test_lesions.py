"""Components of two masks, one to one."""

import time

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, label
from scipy.optimize import linear_sum_assignment

from nnunetv2_ext.evaluation.lesions import Matches, match_components


def row(text: str) -> np.ndarray:
    """A mask of one line of voxels: `x` is of it."""
    return np.array([[[letter == "x" for letter in text]]])


@pytest.mark.parametrize(
    ("reference", "prediction", "iou", "expected"),
    [
        ("xxxx......", "xxxx......", 0.1, (1, 1, 1)),
        ("xxxx......", ".....xxxx.", 0.0, (1, 1, 0)),
        ("xxxx......", "...xxxx...", 0.0, (1, 1, 1)),  # one voxel of seven
        ("xxxx......", "...xxxx...", 0.14, (1, 1, 1)),
        ("xxxx......", "...xxxx...", 0.15, (1, 1, 0)),
        ("x.........", "xxxxxxxxxx", 0.1, (1, 1, 1)),  # exactly a tenth
        ("xxx.xxx...", "xxxxxxx...", 0.1, (2, 1, 1)),  # merged: one of both is found
        ("xxxxxxx...", "xxx.xxx...", 0.1, (1, 2, 1)),  # split: one of both is right
        # the best pair alone (second with first) would leave one without a partner
        ("xxxx.xxxxx", "..xxxxxxx.", 0.1, (2, 1, 1)),
        ("xxxxxx.xx.", "x.xxxxxxx.", 0.1, (2, 2, 2)),
        ("x.x", "x.x", 0.1, (2, 2, 2)),  # of which cc3d cannot count a boolean mask
        ("..........", "xx..xx....", 0.1, (0, 2, 0)),
        ("xx..xx....", "..........", 0.1, (2, 0, 0)),
    ],
)
def test_pairs(reference: str, prediction: str, iou: float, expected: tuple[int, int, int]) -> None:
    assert match_components(row(reference), row(prediction), connectivity=26, iou=iou) == Matches(*expected)


@pytest.mark.parametrize(("connectivity", "components"), [(6, 3), (18, 2), (26, 1)])
def test_connectivity(connectivity: int, components: int) -> None:
    mask = np.zeros((4, 4, 4), bool)
    mask[0, 0, 0] = mask[0, 1, 1] = mask[1, 2, 2] = True  # an edge, then a corner
    assert match_components(mask, mask, connectivity=connectivity, iou=1).reference == components


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("iou", [0.0, 0.1, 0.5])
def test_as_an_assignment_over_masks(seed: int, iou: float) -> None:
    """The most pairs, by a table of every component with every other."""
    random = np.random.default_rng(seed)
    one, other = (gaussian_filter(random.standard_normal((8, 24, 24)), 1) for _ in range(2))
    reference, prediction = one > 0.12, one + 0.7 * other > 0.16
    (ones, first), (others, second) = (label(mask, np.ones((3, 3, 3))) for mask in (reference, prediction))
    table = np.zeros((first, second))
    for i in range(first):
        for j in range(second):
            a, b = ones == i + 1, others == j + 1
            table[i, j] = (a & b).any() and (a & b).sum() / (a | b).sum() >= iou
    pairs = int(table[linear_sum_assignment(table, maximize=True)].sum())
    assert pairs > 1
    found = match_components(reference, prediction, connectivity=26, iou=iou)
    assert found == Matches(first, second, pairs)


def test_thousands_of_components_take_no_time() -> None:
    random = np.random.default_rng(0)
    reference, more = (random.random((40, 200, 200)) < 0.01 for _ in range(2))
    start = time.perf_counter()
    found = match_components(reference, reference | more, connectivity=6, iou=0)
    assert time.perf_counter() - start < 5
    assert found.reference > 10_000
    assert found.pairs > 0.99 * found.reference  # but for those that a voxel more has merged
