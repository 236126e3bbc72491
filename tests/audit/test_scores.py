"""The score of one label: hand-made masks, in mm and to the patient's sides, regions, the ignore label, ranks."""

import math
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient

from nnunetv2_ext.audit.result import LabelScore
from nnunetv2_ext.audit.scores import direction_of, ranked, robust_z, score_case, score_label
from nnunetv2_ext.data.volumes import Grid, write_volume
from nnunetv2_ext.evaluation.segmentations import Labels, Masks, Pair

LPS = np.eye(3)[:, ::-1]
"""Axes X, Y, Z to the left, back and head; columns Z, Y, X."""
SPACING = (3.0, 2.0, 0.5)


def box(low: tuple[int, int, int], high: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros((12, 12, 12), bool)
    mask[tuple(map(slice, low, high))] = True
    return mask


WHOLE = box((4, 4, 4), (8, 8, 8))
EVERY_SECOND = WHOLE.copy()
EVERY_SECOND[:, 5::2] = False
BESIDE = box((4, 4, 0), (8, 8, 4)) | box((4, 4, 7), (8, 8, 11))
"""Two of a pair."""
SLOPE = WHOLE & (np.add.outer(np.arange(12), np.arange(12)) < 13)[:, :, None]


@pytest.mark.parametrize(
    ("label", "prediction", "expected"),
    [
        pytest.param(WHOLE, WHOLE, {"disagreement": 0, "size": 0, "distance": 0, "shift": (0, 0, 0)}, id="alike"),
        pytest.param(
            box((5, 4, 4), (9, 8, 8)),
            WHOLE,
            {"disagreement": 0.25, "size": 0, "distance": 3, "shift": (0, 0, 3), "moved": 0},
            id="a slice higher",
        ),
        pytest.param(
            box((4, 4, 0), (8, 8, 4)),
            WHOLE,
            {"disagreement": 1, "distance": 2, "shift": (-2, 0, 0), "moved": 0},
            id="beside it",
        ),
        pytest.param(
            box((4, 4, 4), (8, 6, 8)),
            WHOLE,
            {"disagreement": 1 / 3, "size": math.log(33 / 65), "shift": (0, -2, 0), "moved": 1 / 3, "distance": 4},
            id="its front half",
        ),
        pytest.param(
            EVERY_SECOND,
            WHOLE,
            {"disagreement": 1 / 3, "empty_slices": 1, "components": 2, "voxels": 32, "predicted": 64},
            id="every second slice",
        ),
        pytest.param(
            np.roll(BESIDE, 1, 2), BESIDE, {"empty_slices": 0, "components": 2, "moved": 0}, id="a pair moved"
        ),
        pytest.param(np.flip(SLOPE, 1), SLOPE, {"moved": 3 / 13, "mirrored": (3 / 13, 0, 4 / 13)}, id="back to front"),
        pytest.param(
            WHOLE & False,
            WHOLE,
            {"disagreement": 1, "size": -math.log(65), "distance": math.nan, "shift": (math.nan,) * 3, "components": 0},
            id="no label",
        ),
        pytest.param(
            WHOLE, WHOLE & False, {"disagreement": 1, "size": math.log(65), "components": 1}, id="no prediction"
        ),
        pytest.param(WHOLE & False, WHOLE & False, {"disagreement": math.nan, "size": 0, "voxels": 0}, id="neither"),
    ],
)
def test_scores_of_masks(label, prediction, expected):
    score = score_label("case", "organ", Masks(label, prediction, label.size), SPACING, direction=LPS)
    assert (score.case, score.label, score.voxel_volume) == ("case", "organ", 0.003)
    for field, value in expected.items():
        assert getattr(score, field) == pytest.approx(value, nan_ok=True), field


@pytest.mark.parametrize(
    ("direction", "expected"),
    [
        pytest.param((1, 0, 0, 0, 1, 0, 0, 0, 1), (0.5, 2, 3), id="LPS"),
        pytest.param((-1, 0, 0, 0, -1, 0, 0, 0, 1), (-0.5, -2, 3), id="RAS"),
        pytest.param((0, 0, 1, 1, 0, 0, 0, -1, 0), (3, 0.5, -2), id="sagittal slices"),
    ],
)
@pytest.mark.parametrize("reader", [None, NibabelIOWithReorient])
def test_shifts_are_to_the_patients_sides_whatever_the_files_axes(tmp_path, direction, expected, reader):
    """One voxel further along every axis of the file; nnU-Net's reorienting reader turns the axes."""
    grid = Grid((12, 12, 12), SPACING[::-1], (0.0, 0.0, 0.0), tuple(map(float, direction)))
    pair = Pair("case", tmp_path / "label.nii.gz", tmp_path / "prediction.nii.gz")
    write_volume(box((5, 5, 5), (9, 9, 9)).astype(np.uint8), grid, pair.reference)
    write_volume(WHOLE.astype(np.uint8), grid, pair.prediction)
    labels = Labels({"organ": 1}, known=frozenset({0, 1}), reader=reader)
    (score,) = score_case(pair, labels)
    assert score.shift == pytest.approx(expected)
    assert score.disagreement == pytest.approx(1 - 27 / 64)


def test_a_file_that_leaves_its_place_in_doubt_leaves_the_way_open(tmp_path):
    grid = Grid((12, 12, 12), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0), "no qform")
    path = tmp_path / "label.nii.gz"
    write_volume(WHOLE.astype(np.uint8), grid, path)
    assert direction_of(path, Labels({"organ": 1})) is None
    assert direction_of(Path("label.tif"), Labels({"organ": 1})) is None
    score = score_label("case", "organ", Masks(box((5, 4, 4), (9, 8, 8)), WHOLE, 1728), (1, 1, 1))
    assert np.isnan(score.shift).all()
    assert score.moved == 0


def test_regions_and_the_ignore_label(tmp_path):
    """Region `whole` of 1 and 2; where the label is 3, nothing counts: neither voxels nor what seems a slice of it."""
    grid = Grid((12, 12, 12), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    label, prediction = (WHOLE.astype(np.uint8) for _ in range(2))
    label[6:8, 4:8, 4:8], prediction[6:8, 4:8, 4:8] = 2, 1
    label[5, 4:8, 4:8] = 3
    pair = Pair("case", tmp_path / "label.nii.gz", tmp_path / "prediction.nii.gz")
    write_volume(label, grid, pair.reference)
    write_volume(prediction, grid, pair.prediction)
    labels = Labels({"whole": (1, 2), "part": 2, "none": 4}, ignore=3, known=frozenset(range(5)))
    scores = {score.label: score for score in score_case(pair, labels)}
    whole, part, none = scores["whole"], scores["part"], scores["none"]
    assert (whole.voxels, whole.predicted, whole.disagreement, whole.empty_slices) == (48, 48, 0, 0)
    assert (part.voxels, part.predicted, part.disagreement) == (32, 0, 1)
    assert (none.voxels, none.predicted) == (0, 0)
    assert math.isnan(none.disagreement)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2, 3, 4, 5], np.array([-2, -1, 0, 1, 2]) / 1.4826),
        ([0, 0, 0, 0, 5], [0, 0, 0, 0, 5 / 1.2533]),
        ([7, 7, 7], [0, 0, 0]),
        ([1, math.nan, 3, 2], np.array([-1, math.nan, 1, 0]) / 1.4826),
        ([math.nan], [math.nan]),
        ([], []),
    ],
)
def test_robust_z(values, expected):
    assert robust_z(values) == pytest.approx(np.asarray(expected, float), nan_ok=True)


def test_ranks_are_of_each_label_alone():
    values = {"a": [0.1, 0.3, 0.2, math.nan], "b": [0.9, 0.9, 0.5, 0.7]}
    scores = [LabelScore("case", label, 1, 1, 1.0, value, 0.0) for label in values for value in values[label]]
    ranks = [score.rank for score in ranked(scores)]
    assert ranks == pytest.approx([0, 2 / 3, 1 / 3, math.nan, 0.5, 0.5, 0, 0.25], nan_ok=True)
