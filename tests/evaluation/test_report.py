import json
import math

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation.report import Row, dice_by_case, dice_table, rank_cases, write_table

LABELS = {"background": 0, "liver": 1, "lesion": 2}


def write(folder, case, values):
    folder.mkdir(exist_ok=True)
    array = np.zeros((2, 3, 4), np.uint8)
    array.ravel()[: len(values)] = values
    sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / f"{case}.nii.gz"))


def test_dice_by_case(tmp_path):
    truth, prediction = tmp_path / "truth", tmp_path / "prediction"
    write(truth, "b", [1, 1, 1, 2])
    write(prediction, "b", [1, 1, 0, 1])
    write(truth, "a", [1])
    write(prediction, "a", [1])
    dice = dice_by_case(truth, prediction, LABELS)
    assert list(dice) == ["a", "b"]
    # Liver: 2 of 3 found, 1 wrong. Lesion: missed.
    assert dice["b"] == pytest.approx({"liver": 2 * 2 / (3 + 3), "lesion": 0.0})
    assert dice["a"]["liver"] == 1.0
    assert math.isnan(dice["a"]["lesion"])


@pytest.mark.parametrize(
    ("in_truth", "in_prediction", "message"),
    [(["a", "b"], ["a"], "b.nii.gz"), (["a"], ["a", "c"], "c.nii.gz"), ([], [], "no file")],
)
def test_cases_must_agree(tmp_path, in_truth, in_prediction, message):
    for folder, cases in (("truth", in_truth), ("prediction", in_prediction)):
        for case in cases:
            write(tmp_path / folder, case, [1])
    with pytest.raises(InputError, match=message):
        dice_by_case(tmp_path / "truth", tmp_path / "prediction", LABELS)


def test_row_of_cases_leaves_out_nan():
    cases = {"a": {"liver": 0.5, "lesion": float("nan")}, "b": {"liver": 1.0, "lesion": 0.25}}
    row = Row.of_cases("one", cases, 12.0)
    assert row.dice == {"liver": 0.75, "lesion": 0.25}
    assert row.mean == 0.5
    assert row.seconds == 12.0


def test_rank_cases_best_first():
    cases = {"c": {"x": 0.5}, "a": {"x": 0.9}, "b": {"x": 0.5}, "d": {"x": 0.1}}
    assert rank_cases(cases) == [("a", 0.9), ("b", 0.5), ("c", 0.5), ("d", 0.1)]


ROWS = [Row("MNet, fold 0", {"liver": 0.95, "lesion": 0.8}, 61.6), Row("threshold", {"liver": 0.6, "lesion": 0.1})]


def test_dice_table():
    assert dice_table(ROWS) == (
        "| model        | liver | lesion | mean Dice | training (s) |\n"
        "| ------------ | ----: | -----: | --------: | -----------: |\n"
        "| MNet, fold 0 | 0.950 |  0.800 |     0.875 |           62 |\n"
        "| threshold    | 0.600 |  0.100 |     0.350 |            - |"
    )


def test_the_time_is_left_out_where_nobody_knows_it():
    assert dice_table([Row("one", {"liver": 0.5})]) == (
        "| model | liver | mean Dice |\n| ----- | ----: | --------: |\n| one   | 0.500 |     0.500 |"
    )


def test_notes_stand_below_the_table(tmp_path):
    write_table(ROWS, tmp_path, notes=["One.", "Two."])
    assert (tmp_path / "table.md").read_text() == dice_table(ROWS) + "\n\nOne.\n\nTwo.\n"


def test_write_table(tmp_path):
    write_table(ROWS, tmp_path / "report")
    assert (tmp_path / "report" / "table.md").read_text() == dice_table(ROWS) + "\n"
    first, second = json.loads((tmp_path / "report" / "table.json").read_text())
    assert first == {"name": "MNet, fold 0", "dice": {"liver": 0.95, "lesion": 0.8}, "mean": 0.875, "seconds": 61.6}
    assert second["seconds"] is None
