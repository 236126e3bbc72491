"""What is odd about a label, in words: each cause by its numbers."""

import math

import pytest

from nnunetv2_ext.audit.result import LabelScore
from nnunetv2_ext.audit.sentences import explain, explain_size, lacking_and_beyond

SCORE = LabelScore(
    "case",
    "liver",
    voxels=1000,
    predicted=1000,
    voxel_volume=0.002,
    disagreement=0.5,
    size=0.0,
    distance=6.0,
    shift=(0.1, -0.2, 0.0),
    moved=0.5,
    mirrored=(0.5, 0.5, 0.5),
)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"voxels": 0, "disagreement": 1.0}, "liver is missing, where the prediction has 2 ml"),
        ({"predicted": 0, "disagreement": 1.0}, "liver has 2 ml, where the prediction has none"),
        ({"empty_slices": 8}, "liver lacks 8 slices between slices that have it"),
        (
            {"mirrored": (0.4, 0.1, 0.3)},
            "liver would have Dice 0.90 if it were mirrored from back to front and laid upon the prediction",
        ),
        (
            {"moved": 0.1, "shift": (-4.0, 0.5, 1.0)},
            "liver lies 4.2 mm further to the patient's right than the prediction",
        ),
        (
            {"moved": 0.1, "shift": (1.9, -3.0, -2.0)},
            "liver lies 4.1 mm further to the patient's front and feet and left than the prediction",
        ),
        (
            {"moved": 0.1, "shift": (math.nan,) * 3},
            "liver lies beside the prediction, 95 % of the surfaces within 6.0 mm",
        ),
        (
            {"voxels": 480, "disagreement": 0.36, "moved": 0.34, "shift": (0.0, 0.0, 5.0)},
            "liver lacks 53 % of the prediction, towards the patient's feet",
        ),
        (
            {"voxels": 480, "disagreement": 0.36, "moved": 0.34},
            "liver lacks 53 % of the prediction, all around, 95 % of the surfaces within 6.0 mm",
        ),
        (
            {"predicted": 480, "disagreement": 0.36, "moved": 0.34, "shift": (0.0, 5.0, 1.0)},
            "liver lies beyond the prediction with 53 % of it, towards the patient's back",
        ),
        (
            {"voxels": 900},
            "liver lacks 52 % of the prediction and lies beyond it with 47 %, 95 % of the surfaces within 6.0 mm, "
            "perhaps another case's label",
        ),
        ({"voxels": 900, "mirrored": (math.nan,) * 3, "moved": math.nan, "shift": (math.nan,) * 3}, "perhaps another"),
    ],
)
def test_each_cause_has_its_sentence(changes, sentence):
    assert sentence in explain(SCORE._replace(**changes), 0.1)


def test_a_mean_disagreement_beside_other_masks_gives_shares_from_0_to_1():
    """Of the map, disagreement is a mean over readings, and the masks are those of one."""
    assert lacking_and_beyond(SCORE._replace(voxels=10, disagreement=0.1)) == (pytest.approx(0.5455, abs=1e-4), 0.0)


@pytest.mark.parametrize(
    ("size", "usual", "told"),
    [
        (math.log(1.4), math.log(0.9), "liver is 40 % larger than the prediction (the others' median: 10 % smaller)"),
        (math.log(0.5), 0.0, "liver is 50 % smaller than the prediction (the others' median: 0 % larger)"),
    ],
)
def test_another_size(size, usual, told):
    assert explain_size(SCORE._replace(size=size), usual) == told
