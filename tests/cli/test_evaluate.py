"""`evaluate` over small volumes made by hand: what it writes and prints."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from nnunetv2_ext.cli import main
from nnunetv2_ext.data.sidecar import Sidecar, write_sidecar
from nnunetv2_ext.evaluation.scores import read_scores
from nnunetv2_ext.evaluation.summary import read_summaries
from nnunetv2_ext.geometry.slabs import CaseSlabs, slice_edges
from tests.cli.boxes import (
    CASES,
    DATASET,
    DESCRIPTION,
    MODEL,
    OTHER,
    SPACING,
    broken,
    evaluate,
    of_models,
    reference,
    write,
    write_folders,
    write_models,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folders(tmp_path)


@pytest.fixture
def models(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_models(folder, monkeypatch)


def test_scores_table_and_summary(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(folder, "--tolerance", "5", "left=3.9") == 0
    with (folder / "out" / "metrics.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    found = {(line["case"], line["label"], line["metric"]): line for line in lines}
    assert {line["model"] for line in lines} == {"predictions"}
    # boxes of 4 slices, 3 of them common: Dice 6/8; the ends are one slice of 4 mm apart, the sides lie on each other
    for case, label in (("a", "left"), ("a", "right"), ("b", "left"), ("c", "left")):
        assert float(found[case, label, "Dice"]["value"]) == 0.75
        assert float(found[case, label, "HD"]["value"]) == 4.0
    assert found["a", "left", "NSD"]["how"] == "tolerance 3.9 mm"
    assert float(found["a", "left", "NSD"]["value"]) < 1
    assert found["a", "right", "NSD"]["how"] == "tolerance 5 mm"
    assert float(found["a", "right", "NSD"]["value"]) == 1
    voxels = 4 * 8 * 4
    assert float(found["b", "right", "volume error"]["value"]) == pytest.approx(-voxels * 2 / 1000)
    assert (found["b", "right", "Dice"]["value"], found["b", "right", "Dice"]["note"]) == ("0.0", "no prediction")
    assert float(found["b", "right", "HD95"]["value"]) == pytest.approx(np.hypot(np.hypot(24, 12), 6))
    assert (found["c", "right", "Dice"]["value"], found["c", "right", "Dice"]["note"]) == ("", "both empty")

    printed = capsys.readouterr().out
    right = next(line for line in printed.splitlines() if "right" in line)
    assert "0.375 (1 decided, 1 not counted)" in right  # (0.75 + 0) / 2
    assert "3 cases measured" in printed

    summary = json.loads((folder / "out" / "summary.json").read_text())
    assert summary["mean"]["2"]["Dice"] == 0.375
    assert summary["mean"]["1"]["n_ref"] == voxels
    assert summary["foreground_mean"]["Dice"] == (0.75 + 0.375) / 2
    kept = read_summaries(folder / "out")["predictions"]
    assert kept.labels == {"left": (1,), "right": (2,)}
    assert kept.files["a"] == (folder / "raw" / "labelsTs" / "a.nii.gz", folder / "predictions" / "a.nii.gz")
    assert sorted(path.name for path in (folder / "out").iterdir() if path.name[0] != ".") == [
        "metrics.csv",
        "summary.json",
    ]


def test_several_models(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model in ("one", "two"):
        shutil.copytree(folder / "predictions", folder / model / "out")
    (folder / "raw" / "imagesTs").mkdir()
    assert evaluate(folder, predictions=("one/out", "two/out", "predictions")) == 0
    names = ["one_out", "predictions", "two_out"]
    assert sorted(read_scores(folder / "out").models) == names
    summaries = read_summaries(folder / "out")
    assert sorted(summaries) == names
    assert {one.images for one in summaries.values()} == {folder / "raw" / "imagesTs"}
    capsys.readouterr()
    # with fewer models in the same folder, nothing of the others stays
    assert evaluate(folder, "--overwrite", "--names", "MNet") == 0
    assert sorted(read_summaries(folder / "out")) == ["MNet"]
    assert not list((folder / "out").glob("*/summary.json"))


def test_regions_and_ignore_label(folder: Path) -> None:
    labels = {"background": 0, "whole": [1, 2], "right": [2], "ignore": 3}
    description = {**DESCRIPTION, "labels": labels, "regions_class_order": [1, 2]}
    (folder / "predictions" / "dataset.json").write_text(json.dumps(description))
    (folder / "raw" / "dataset.json").unlink()
    truth = reference()
    truth[:2] = 3
    write(folder / "raw" / "labelsTs" / "a.nii.gz", truth)
    assert evaluate(folder) == 0
    scores = read_scores(folder / "out")
    # slices 2 to 4 of the reference against slices 2 to 5 of the prediction
    assert scores.values("predictions", "whole", "Dice")["a"] == 6 / 7
    assert scores.values("predictions", "right", "Dice")["a"] == 6 / 7
    summary = json.loads((folder / "out" / "summary.json").read_text())
    assert summary["mean"].keys() == {"(1, 2)", "(2,)"}
    counts = summary["metric_per_case"][0]["metrics"]["(2,)"]
    assert [counts[key] for key in ("TP", "FP", "FN", "TN")] == [96, 32, 0, 4 * 144 - 128]
    assert read_summaries(folder / "out")["predictions"].ignore_label == 3


def test_slabs_where_a_side_car_tells_of_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slabs = slice_edges(3, 8.0)  # two slices each
    cases = {case: CaseSlabs(4.0, 6, slabs) for case in CASES}
    (folder / "raw").rename(folder / DATASET)
    (folder / DATASET / "labelsTs").rename(folder / DATASET / "labelsTr")
    (folder / DATASET / "imagesTr").mkdir()
    write_sidecar(folder / DATASET, Sidecar(DATASET, 0, cases))
    command = ["-p", str(folder / "predictions"), "--disable_progress_bar", "-np", "1", "-o"]
    for name, expected in (("labelsTr", True), ("labelsTr_thin", False)):
        if not expected:
            shutil.copytree(folder / DATASET / "labelsTr", folder / DATASET / name)
        assert main(["evaluate", "-r", str(folder / DATASET / name), *command, str(folder / name)]) == 0
        assert ("Dice of slabs" in capsys.readouterr().out) == expected
        assert read_summaries(folder / name)["predictions"].images == folder / DATASET / "imagesTr"
    # at the slabs' centres, the later slice, 1 1 0 against 0 1 1
    assert read_scores(folder / "labelsTr").values("predictions", "left", "Dice of slabs")["a"] == 0.5


@pytest.mark.parametrize("reader", ["NibabelIO", "NibabelIOWithReorient"])
def test_the_reader_that_dataset_json_asks_for(folder: Path, reader: str) -> None:
    description = {**DESCRIPTION, "overwrite_image_reader_writer": reader}
    (folder / "labels.json").write_text(json.dumps(description))
    assert evaluate(folder, "-djfile", str(folder / "labels.json")) == 0
    scores = read_scores(folder / "out")
    assert scores.values("predictions", "left", "HD") == dict.fromkeys(CASES, 4.0)
    assert scores.values("predictions", "left", "volume")["a"] == pytest.approx(4 * 8 * 4 * 2 / 1000)


def test_volumes_in_tiff(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "raw" / "dataset.json").write_text(json.dumps({**DESCRIPTION, "file_ending": ".tif"}))
    for name in ("raw/labelsTs", "predictions"):
        for case in CASES:
            volume = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / name / f"{case}.nii.gz")))
            tifffile.imwrite(folder / name / f"{case}.tif", volume)
            (folder / name / f"{case}.json").write_text(json.dumps({"spacing": SPACING}))
    assert evaluate(folder) == 0
    assert read_scores(folder / "out").values("predictions", "left", "HD") == dict.fromkeys(CASES, 4.0)
    (folder / "predictions" / "b.json").unlink()
    assert evaluate(folder) == 2
    assert "no spacing of" in capsys.readouterr().err


def test_one_case_is_enough(folder: Path) -> None:
    for case in ("b", "c"):
        for name in ("raw/labelsTs", "predictions"):
            broken(folder, case, name).unlink()
    assert evaluate(folder) == 0
    assert read_scores(folder / "out").cases == ("a",)


def test_the_cross_validation_of_models(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert of_models(models) == 0
    scores = read_scores(models / "out")
    assert (scores.models, scores.cases) == ((MODEL, OTHER), CASES)
    assert scores.values(MODEL, "left", "Dice") == dict.fromkeys(CASES, 0.75)
    summaries = read_summaries(models / "out")
    assert summaries[MODEL].folds == ("0", "1")
    assert summaries[OTHER].model_folders == (models / "results" / DATASET / OTHER.replace(":", "__"),)
    assert summaries[MODEL].images == models / "raw" / DATASET / "imagesTr"
    assert of_models(models, "-f", "1", "1", "01", "--overwrite") == 0
    assert read_summaries(models / "out")[MODEL].folds == ("1",)
    assert read_scores(models / "out").cases == ("c",)
