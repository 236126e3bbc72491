import json
import math

import pytest

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation.means import few_means
from nnunetv2_ext.evaluation.scores import (
    FILE,
    Score,
    Scores,
    dice_scores,
    nan_mean,
    read_dice,
    read_dice_scores,
    read_scores,
    write_scores,
)

NAN = math.nan
LINES = Scores(
    (
        Score("one", "a", "liver", "Dice", 0.5),
        Score("one", "a", "tumour", "Dice", NAN, note="both empty"),
        Score("one", "b", "liver", "Dice", 0.7),
        Score("one", "b", "tumour", "Dice", 0.0, note="no prediction"),
        Score("two", "a", "liver", "NSD", 0.25, "tolerance 1 mm"),
    )
)


def test_they_are_read_as_they_were_written(tmp_path):
    write_scores(LINES, tmp_path / FILE)
    for path in (tmp_path, tmp_path / FILE):
        assert repr(read_scores(path)) == repr(LINES)
    assert (tmp_path / FILE).read_text().splitlines()[2] == "one,a,tumour,Dice,,,both empty"


def test_means_count_what_counts():
    assert LINES.models == ("one", "two")
    assert LINES.cases == ("a", "b")
    assert LINES.labels == ("liver", "tumour")
    assert LINES.metrics == ("Dice", "NSD")
    assert LINES.mean("one", "liver", "Dice") == pytest.approx(0.6)
    assert LINES.mean("one", "tumour", "Dice") == 0.0
    assert math.isnan(LINES.mean("two", "liver", "Dice"))
    assert LINES.mean_of_labels("one", "Dice") == pytest.approx(0.3)
    assert LINES.case_mean("one", "a", "Dice") == 0.5
    assert LINES.case_mean("one", "b", "Dice") == 0.35
    assert [LINES.decided("one", label, "Dice") for label in LINES.labels] == [0, 1]


def test_few_means_for_a_terminal():
    assert few_means(LINES).splitlines() == [
        "| mean of labels |  Dice |   NSD |",
        "| -------------- | ----: | ----: |",
        "| one            | 0.300 |     - |",
        "| two            |     - | 0.250 |",
    ]


HEADER = "model,case,label,metric,value,how,note\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no file .*metrics.csv"),
        ("", "with the columns nothing"),
        ("case,Dice\na,0.5\n", "with the columns case, Dice"),
        (HEADER, "no scores in"),
        (HEADER + "one,a,liver,Dice,high,,\n", "line 2 of .*: one,a,liver,Dice,high"),
        (HEADER + "one,a,liver,Dice\n", "line 2 of"),
        (HEADER + "one,a,liver,HD,1.0,,\none,b,liver,HD,inf,,\n", "line 3 of .* expected seven .* a finite number"),
        (HEADER + 2 * "one,a,liver,Dice,0.5,,\n", "two lines of one, a, liver, Dice"),
    ],
)
def test_another_table_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / FILE).write_text(text)
    with pytest.raises(InputError, match=message):
        read_scores(tmp_path)


@pytest.mark.parametrize(
    "text", ["\ufeff" + HEADER + "{}", HEADER + "{}\n\n", HEADER + "\n{},,,,,,\n", HEADER + "\r\n{}"]
)
def test_what_an_editor_adds_is_no_fault(tmp_path, text):
    (tmp_path / FILE).write_bytes(text.format("one,a,liver,Dice,0.5,,\n").encode())
    assert read_scores(tmp_path).lines == (Score("one", "a", "liver", "Dice", 0.5),)


@pytest.mark.parametrize(("values", "expected"), [([1.0, 3.0], 2.0), ([1.0, NAN], 1.0), ([NAN, NAN], NAN), ([], NAN)])
def test_nan_mean(values, expected):
    assert nan_mean(values) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("cases", "per_label", "mean"),
    [
        ({"a": {"1": 0.5, "2": 1.0}, "b": {"1": 0.7, "2": 0.0}}, {"1": 0.6, "2": 0.5}, 0.55),
        # absent labels are left out of the mean over cases, then labels weigh the same: not (0.5 + 0.7 + 1) / 3
        ({"a": {"1": 0.5, "2": NAN}, "b": {"1": 0.7, "2": 1.0}}, {"1": 0.6, "2": 1.0}, 0.8),
        ({"a": {"1": 0.5, "(1, 2)": NAN}}, {"1": 0.5, "(1, 2)": NAN}, 0.5),
    ],
)
def test_dice_of_cases(cases, per_label, mean):
    scores = dice_scores({"one": cases})
    means = {label: scores.mean("one", label, "Dice") for label in scores.labels}
    assert means == pytest.approx(per_label, nan_ok=True)
    assert scores.mean_of_labels("one", "Dice") == pytest.approx(mean)


def test_dice_of_a_summary(tmp_path):
    file = tmp_path / "summary.json"
    cases: dict[str, dict[str, float | None]] = {"case.1": {"0": 1.0, "1": 0.5, "2": NAN}, "case_2": {"1": None}}
    entries = [
        {
            "metrics": {label: {"Dice": dice, "IoU": dice, "n_ref": 1} for label, dice in metrics.items()},
            "prediction_file": f"/some/where/validation/{case}.nii.gz",
            "reference_file": f"/some/where/labelsTr/{case}.nii.gz",
        }
        for case, metrics in cases.items()
    ]
    file.write_text(json.dumps({"foreground_mean": {}, "mean": {}, "metric_per_case": entries}))
    # the name of a case ends at the first dot, and the background does not count
    assert str(read_dice(file, "train again")) == "{'case': {'1': 0.5, '2': nan}, 'case_2': {'1': nan}}"


@pytest.mark.parametrize(
    ("metrics", "note"),
    [
        ({"Dice": 0.5, "n_ref": 3, "n_pred": 1}, ""),
        ({"Dice": 0.0, "n_ref": 3, "n_pred": 0}, "no prediction"),
        ({"Dice": 0.0, "n_ref": 0, "n_pred": 2}, "no reference"),
        ({"Dice": 0.0, "n_ref": 3, "n_pred": 1}, ""),
        ({"Dice": NAN, "n_ref": 0, "n_pred": 0}, "both empty"),
        ({"Dice": None}, "both empty"),
        ({"Dice": 0.0}, ""),
    ],
)
def test_dice_of_a_summary_tells_what_was_decided(tmp_path, metrics, note):
    entry = {"prediction_file": "a.nii.gz", "metrics": {"0": metrics, "1": metrics}}
    (tmp_path / "summary.json").write_text(json.dumps({"metric_per_case": [entry]}))
    scores = read_dice_scores("one", tmp_path / "summary.json", "train again", names={"liver": "1", "lung": "2"})
    assert [(line.label, line.note) for line in scores.lines] == [("liver", note)]


@pytest.mark.parametrize(
    ("text", "told"),
    [("{", "a damaged file"), ("{}", "KeyError"), ("[]", "a list in"), ('{"metric_per_case": [{}]}', "KeyError")],
)
def test_damaged_summaries(tmp_path, text, told):
    file = tmp_path / "summary.json"
    file.write_text(text)
    with pytest.raises(InputError, match=f"{told}.*train again"):
        read_dice(file, "train again")
