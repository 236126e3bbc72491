import itertools

import numpy as np
import pytest

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation.threshold import threshold_dice


def arrays(*cases):
    return [np.array(case, dtype=float) for case in cases]


@pytest.mark.parametrize(
    ("images", "labels", "expected"),
    [
        # Separable; both ends of the interval belong to it.
        (arrays([1, 2, 3, 9]), arrays([0, 1, 1, 0]), {1: 1.0}),
        # One voxel of the label looks like two of background: with them 2*2/(2+4), without them 2*1/(2+1).
        (arrays([5, 7, 7, 7]), arrays([1, 1, 0, 0]), {1: 2 / 3}),
        # Two labels, the second one split by the first: 2*2/(2+3).
        (arrays([1, 2, 3, 10]), arrays([2, 1, 2, 0]), {1: 1.0, 2: 0.8}),
        # One interval for both cases. [1, 1] gives (1 + 0) / 2; [1, 3] gives (2*1/(1+2) + 2*1/(1+2)) / 2.
        (arrays([1, 3], [1, 3]), arrays([1, 0], [0, 1]), {1: 2 / 3}),
        # A case without the label does not count.
        (arrays([1, 3], [1, 3]), arrays([1, 0], [0, 0]), {1: 1.0}),
        (arrays([1, 3]), arrays([0, 0]), {}),
    ],
)
def test_known_values(images, labels, expected):
    assert threshold_dice(images, labels) == pytest.approx(expected)


def test_agrees_with_trying_every_interval():
    random = np.random.default_rng(0)
    images = [random.integers(0, 12, (3, 5)).astype(float) for _ in range(3)]
    labels = [random.integers(0, 3, (3, 5)) for _ in range(3)]
    for label, dice in threshold_dice(images, labels).items():
        best = 0.0
        for low, high in itertools.combinations_with_replacement(range(12), 2):
            taken = [(image >= low) & (image <= high) for image in images]
            truth = [one == label for one in labels]
            scores = [2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in zip(taken, truth, strict=True)]
            best = max(best, float(np.mean(scores)))
        assert dice == pytest.approx(best)


@pytest.mark.parametrize("labels", [arrays([1]), arrays([1, 0], [1, 0])])
def test_refuses_what_does_not_pair_up(labels):
    with pytest.raises(InputError, match="one array of labels for each image"):
        threshold_dice(arrays([1, 2]), labels)
