"""`summary.json`: what is written reads back, nnU-Net reads it too, and its means are nnU-Net's."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.evaluation.evaluate_predictions import load_summary_json

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation.metrics import Settings
from nnunetv2_ext.evaluation.summary import Summary, read_summaries, write_summary

LABELS = {"liver": (1,), "whole": (1, 2), "core": (2,)}
KEYS = {"liver": "1", "whole": "(1, 2)", "core": "(2,)"}


def summary(model: str, folder: Path) -> Summary:
    return Summary(
        model,
        {case: (folder / "labels" / f"{case}.nii.gz", folder / model / f"{case}.nii.gz") for case in ("a", "b")},
        LABELS,
        ignore_label=3,
        settings=Settings(tolerance=2.0, tolerances={"core": 0.5}, empty=50.0, connectivity=6, lesion_iou=0.2),
        model_folders=(folder / model,),
        folds=("0", "all"),
        images=folder / "images",
    )


METRICS = {
    "a": {name: {"Dice": 0.5 + place / 10, "HD": 1.0} for place, name in enumerate(LABELS)},
    "b": {"liver": {"Dice": math.nan, "HD": 3.0}, "whole": {"Dice": 1.0, "HD": 5.0}, "core": {"Dice": 0.1, "HD": 0.0}},
}


def test_a_summary_reads_back_and_nnunet_reads_it(tmp_path: Path) -> None:
    for model in ("one", "other"):
        (tmp_path / "out" / model).mkdir(parents=True)
        mean = write_summary(tmp_path / "out" / model / "summary.json", summary(model, tmp_path), METRICS, keys=KEYS)
    assert read_summaries(tmp_path / "out") == {model: summary(model, tmp_path) for model in ("one", "other")}
    assert read_summaries(tmp_path / "out" / "one") == {"one": summary("one", tmp_path)}
    nnunet = load_summary_json(str(tmp_path / "out" / "one" / "summary.json"))
    assert nnunet["mean"].keys() == {1, (1, 2), (2,)}
    assert nnunet["mean"][1] == {"Dice": 0.5, "HD": 2.0}  # NaN of one case does not count
    assert nnunet["foreground_mean"]["Dice"] == mean == pytest.approx(np.mean([0.5, 0.8, 0.4]))
    assert nnunet["metric_per_case"][1]["metrics"][(2,)] == {"Dice": 0.1, "HD": 0.0}
    assert math.isnan(nnunet["metric_per_case"][1]["metrics"][1]["Dice"])


def test_a_label_that_no_case_holds_has_no_mean_as_in_nnunet(tmp_path: Path) -> None:
    nothing = {"Dice": math.nan, "HD": math.nan}
    metrics = {case: {**of_case, "core": nothing} for case, of_case in METRICS.items()}
    assert math.isnan(write_summary(tmp_path / "summary.json", summary("one", tmp_path), metrics, keys=KEYS))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "no summary.json"),
        ("{", "damaged"),
        ({"metric_per_case": [], "mean": {}}, "nnU-Net wrote"),
        ({"metric_per_case": [], "nnunetv2_ext": {"model": "one"}}, "damaged"),
        ({"metric_per_case": [], "nnunetv2_ext": []}, "damaged"),
    ],
)
def test_another_summary_is_refused(tmp_path: Path, content: object, told: str) -> None:
    if content is not None:
        (tmp_path / "summary.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=told):
        read_summaries(tmp_path)


def test_those_of_nnunet_beside_are_passed_over_and_damaged_ones_told(tmp_path: Path) -> None:
    for model in ("one", "other"):
        (tmp_path / model).mkdir()
        write_summary(tmp_path / model / "summary.json", summary(model, tmp_path), METRICS, keys=KEYS)
    for folder in (tmp_path, tmp_path / "predictions"):
        folder.mkdir(exist_ok=True)
        (folder / "summary.json").write_text('{"metric_per_case": [], "mean": {}}')
    assert read_summaries(tmp_path).keys() == {"one", "other"}
    (tmp_path / "other" / "summary.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        read_summaries(tmp_path)
