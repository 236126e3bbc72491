"""`evaluate` over small volumes made by hand: what it writes and prints, and what it refuses."""

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from nnunetv2_ext.cli import main
from nnunetv2_ext.data.sidecar import Sidecar, write_sidecar
from nnunetv2_ext.evaluation.scores import read_scores
from nnunetv2_ext.evaluation.summary import read_summaries
from nnunetv2_ext.files import file_state
from nnunetv2_ext.geometry.slabs import CaseSlabs, slice_edges

DATASET = "Dataset901_Boxes"
LABELS = {"background": 0, "left": 1, "right": 2}
DESCRIPTION = {"channel_names": {"0": "MRI"}, "labels": LABELS, "numTraining": 4, "file_ending": ".nii.gz"}
SPACING = (4.0, 1.0, 0.5)  # z, y, x
CASES = ("a", "b", "c")
MODEL = "MNetTrainer:MNetPlans:3d_fullres"
OTHER = "nnUNetTrainer:nnUNetPlans:3d_fullres"


def reference() -> np.ndarray:
    labels = np.zeros((6, 12, 12), np.uint8)
    labels[1:5, 2:10, 1:5] = 1
    labels[1:5, 2:10, 7:11] = 2
    return labels


def write(path: Path, labels: np.ndarray, spacing: Any = SPACING, origin: Any = (0.0, 0.0, 0.0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing([float(length) for length in spacing[::-1]])
    image.SetOrigin(origin)
    sitk.WriteImage(image, str(path))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """References, and predictions that are shifted by a slice; case b lacks a label, case c has it nowhere."""
    for case in CASES:
        truth = reference()
        predicted = np.roll(truth, 1, axis=0)
        if case != "a":
            predicted[predicted == 2] = 0
        if case == "c":
            truth[truth == 2] = 0
        write(tmp_path / "raw" / "labelsTs" / f"{case}.nii.gz", truth)
        write(tmp_path / "predictions" / f"{case}.nii.gz", predicted)
    (tmp_path / "raw" / "dataset.json").write_text(json.dumps(DESCRIPTION))
    return tmp_path


def evaluate(
    folder: Path, *more: str, references: str = "raw/labelsTs", predictions: tuple[str, ...] = ("predictions",)
) -> int:
    of_models = [text for name in predictions for text in ("-p", str(folder / name))]
    command = ["evaluate", "-r", str(folder / references), *of_models, "-o", str(folder / "out")]
    return main([*command, "-np", "2", "--disable_progress_bar", *more])


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


# --- bad input ---


def broken(folder: Path, case: str = "b", name: str = "predictions") -> Path:
    return folder / name / f"{case}.nii.gz"


def _missing(folder: Path) -> None:
    broken(folder).unlink()


def _extra(folder: Path) -> None:
    shutil.copy(broken(folder), broken(folder, "d"))


def _shape(folder: Path) -> None:
    write(broken(folder), reference()[:5])


def _spacing(folder: Path) -> None:
    write(broken(folder), reference(), (4.0, 1.0, 0.51))


def _origin(folder: Path) -> None:
    write(broken(folder), reference(), origin=(0.0, 0.0, 0.01))


def _unknown_label(folder: Path, name: str = "predictions") -> None:
    write(broken(folder, name=name), reference() + np.uint8(4))


def _unknown_reference(folder: Path) -> None:
    _unknown_label(folder, "raw/labelsTs")


def _fractions(folder: Path) -> None:
    write(broken(folder), reference().astype(np.float32) / 2)


def _nan(folder: Path) -> None:
    volume = reference().astype(np.float32)
    volume[0, 0, 0] = np.nan
    nibabel.save(nibabel.Nifti1Image(volume.T, np.diag([-0.5, -1.0, 4.0, 1.0])), broken(folder))


def _flat(folder: Path) -> None:
    image = sitk.GetImageFromArray(reference()[0])
    sitk.WriteImage(image, str(broken(folder)))


def _pictures(folder: Path) -> None:
    (folder / "raw" / "dataset.json").write_text(json.dumps({**DESCRIPTION, "file_ending": ".png"}))
    for name in ("raw/labelsTs", "predictions"):
        sitk.WriteImage(sitk.GetImageFromArray(reference()[0]), str(folder / name / "a.png"))


def _flat_tiff(folder: Path) -> None:
    (folder / "raw" / "dataset.json").write_text(json.dumps({**DESCRIPTION, "file_ending": ".tif"}))
    for name in ("raw/labelsTs", "predictions"):
        tifffile.imwrite(folder / name / "a.tif", reference()[0])
        (folder / name / "a.json").write_text(json.dumps({"spacing": SPACING}))


def _empty_folder(folder: Path) -> None:
    for path in (folder / "predictions").iterdir():
        path.unlink()


def _other_ending(folder: Path) -> None:
    (folder / "raw" / "dataset.json").write_text(json.dumps({**DESCRIPTION, "file_ending": ".mha"}))


def _no_folder(folder: Path) -> None:
    shutil.rmtree(folder / "predictions")


def _a_file(folder: Path) -> None:
    _no_folder(folder)
    (folder / "predictions").write_text("")


def _truncated(folder: Path) -> None:
    for case in ("a", "c"):
        content = broken(folder, case).read_bytes()
        broken(folder, case).write_bytes(content[:-20])


def _output_is_a_file(folder: Path) -> None:
    (folder / "out").write_text("")


def _no_description(folder: Path) -> None:
    (folder / "raw" / "dataset.json").unlink()


def _damaged_description(folder: Path) -> None:
    (folder / "raw" / "dataset.json").write_text("{")


def _no_labels(folder: Path) -> None:
    (folder / "raw" / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz"}))


def _other_labels(folder: Path) -> None:
    turned = {"background": 0, "left": 2, "right": 1}
    (folder / "predictions" / "dataset.json").write_text(json.dumps({**DESCRIPTION, "labels": turned}))


def _summary_of_nnunet(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "summary.json").write_text(json.dumps({"mean": {}, "metric_per_case": []}))


def _nothing(folder: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("spoil", "flags", "told"),
    [
        (_missing, [], "got no prediction of 1 case (b) in predictions; expected one prediction for each"),
        (_extra, [], "got predictions of 1 case (d) without a reference"),
        (_shape, [], "size (12, 12, 5) instead of (12, 12, 6)"),
        (_spacing, [], "spacing (0.51, 1, 4) instead of (0.5, 1, 4)"),
        (_origin, [], "origin (0, 0, 0.01) instead of (0, 0, 0)"),
        (_unknown_label, [], "the label value 4, 5, 6 in"),
        (_unknown_reference, [], "labelsTs/b.nii.gz; expected those of"),
        (_fractions, [], "values such as 0.5 in"),
        (_nan, [], "1 voxels of NaN or infinity in"),
        (_flat, [], "2 dimensions and 1 values per voxel"),
        (_pictures, [], "a.png, a picture of two dimensions"),
        (_flat_tiff, [], "a.tif, a picture of two dimensions"),
        (_empty_folder, [], "no file *.nii.gz in"),
        (_other_ending, [], "no file *.mha in"),
        (_no_folder, [], "got no folder"),
        (_a_file, [], "predictions, a file; expected a folder"),
        (_truncated, [], "2 faulty cases (a of predictions: an unreadable file"),
        (_output_is_a_file, [], "out, a file; expected a folder"),
        (_no_description, [], "give it with -djfile"),
        (_damaged_description, [], "damaged file"),
        (_no_labels, [], "no labels in"),
        (_other_labels, [], "'left' = 2 in"),
        (_summary_of_nnunet, ["--overwrite"], "which nnU-Net wrote"),
        (_nothing, ["-np", "0"], "-np 0"),
        (_nothing, ["-np", "two"], "-np two"),
        (_nothing, ["--tolerance", "1", "2"], "one number for all labels"),
        (_nothing, ["--tolerance", "0"], "the tolerance 0.0; expected a number of mm above 0"),
        (_nothing, ["--tolerance", "middle=1"], "--tolerance of middle; expected labels of"),
        (_nothing, ["--tolerance", "left=much"], "--tolerance much"),
        (_nothing, ["--empty", "-1"], "-1.0 as distance to an empty mask"),
        (_nothing, ["--connectivity", "8"], "8 as connectivity"),
        (_nothing, ["--lesion-iou", "2"], "2.0 as intersection over union"),
        (_nothing, ["--names", "A", "B"], "--names A B"),
        (_nothing, ["--names", "a/b"], "--names a/b"),
        (_nothing, ["-d", "901"], "-r, -p beside -d"),
        (_nothing, ["-djfile", "nowhere.json"], "no file nowhere.json"),
    ],
)
def test_bad_input(
    folder: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None], flags: list[str], told: str
) -> None:
    spoil(folder)
    assert evaluate(folder, *flags) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.startswith("nnunetv2_ext evaluate: got ") and err.count("\n") == 1
    assert not (folder / "out" / "metrics.csv").exists()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["-r", "a"], "no -p"),
        (["-p", "a"], "no -r"),
        (["-d", "1"], "no -m"),
        ([], "no -p, -r"),
        (["-r", "raw/labelsTs", "-p", "raw/labelsTs"], "as -r and as -p"),
        (["-r", "raw/labelsTs", "-p", "predictions", "-p", "predictions/"], "twice"),
        (["-r", "raw/labelsTs", "-p", "predictions", "-p", "raw", "--names", "A", "A"], "--names A A"),
    ],
)
def test_flags_that_do_not_go_together(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str], told: str
) -> None:
    monkeypatch.chdir(folder)
    assert main(["evaluate", "-o", "out", *flags]) == 2
    assert told in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_one_case_is_enough(folder: Path) -> None:
    for case in ("b", "c"):
        for name in ("raw/labelsTs", "predictions"):
            broken(folder, case, name).unlink()
    assert evaluate(folder) == 0
    assert read_scores(folder / "out").cases == ("a",)


# --- another evaluation in the output, predictions that are older than their model ---


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--tolerance", "2"], "with other settings"),
        (["--names", "MNet"], "with other models"),
    ],
)
@pytest.mark.parametrize("stopped", [False, True])
def test_another_evaluation_is_kept(
    folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str], told: str, stopped: bool
) -> None:
    if stopped:
        _truncated(folder)
    assert evaluate(folder) == (2 if stopped else 0)
    before = {path: path.read_bytes() for path in (folder / "out").glob("*.*")}
    capsys.readouterr()
    assert evaluate(folder, *flags) == 2
    assert told in (err := capsys.readouterr().err) and "--overwrite" in err
    assert before == {path: path.read_bytes() for path in (folder / "out").glob("*.*")}
    if not stopped:
        assert evaluate(folder) == 0  # the same, made again
        assert before == {path: path.read_bytes() for path in (folder / "out").glob("*.*")}
        assert evaluate(folder, *flags, "--overwrite") == 0


def test_a_model_that_changed_after_its_predictions(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = folder / "results" / DATASET / MODEL.replace(":", "__")
    checkpoint = model / "fold_0" / "checkpoint_final.pth"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("weights")
    monkeypatch.setenv("nnUNet_results", str(folder / "results"))
    made_of = {"fold_0/checkpoint_final.pth": file_state(checkpoint).digest}
    made_by = [{"model": MODEL, "files": made_of}]
    (folder / "predictions" / "predict.json").write_text(json.dumps({"models": made_by}))
    (folder / "predictions" / "plans.json").write_text(json.dumps({"dataset_name": DATASET}))
    os.utime(checkpoint)  # newer than the predictions, but what made them
    assert evaluate(folder) == 0
    assert read_summaries(folder / "out")["predictions"].model_folders == (model,)
    checkpoint.write_text("trained anew")
    assert evaluate(folder) == 2
    assert f"older than {checkpoint}" in capsys.readouterr().err


# --- models ---

FOLDS = {"0": ["a", "b"], "1": ["c"]}


@pytest.fixture
def models(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two models in nnU-Net's folders, validated in two folds."""
    for variable in ("raw", "preprocessed", "results"):
        (folder / variable / DATASET).mkdir(parents=True)
        monkeypatch.setenv(f"nnUNet_{variable}", str(folder / variable))
    shutil.copytree(folder / "raw" / "labelsTs", folder / "preprocessed" / DATASET / "gt_segmentations")
    (folder / "raw" / DATASET / "imagesTr").mkdir()
    for name in (MODEL, OTHER):
        model = folder / "results" / DATASET / name.replace(":", "__")
        for fold, cases in FOLDS.items():
            validation = model / f"fold_{fold}" / "validation"
            validation.mkdir(parents=True)
            (model / f"fold_{fold}" / "checkpoint_final.pth").write_text("")
            for case in cases:
                shutil.copy(folder / "predictions" / f"{case}.nii.gz", validation)
            metrics = [{"metrics": {"1": {"n_ref": 1}, "2": {"n_ref": 1}}}] * len(cases)
            (validation / "summary.json").write_text(json.dumps({"metric_per_case": metrics}))
        (model / "dataset.json").write_text(json.dumps(DESCRIPTION))
        (model / "plans.json").write_text(json.dumps({"configurations": {"3d_fullres": {}}}))
    return folder


def of_models(folder: Path, *more: str) -> int:
    command = ["evaluate", "-d", "901", "-m", MODEL, OTHER, "-o", str(folder / "out"), "--disable_progress_bar"]
    return main([*command, "-np", "1", *more])


def test_the_cross_validation_of_models(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert of_models(models) == 0
    scores = read_scores(models / "out")
    assert (scores.models, scores.cases) == ((MODEL, OTHER), CASES)
    assert scores.values(MODEL, "left", "Dice") == dict.fromkeys(CASES, 0.75)
    summaries = read_summaries(models / "out")
    assert summaries[MODEL].folds == ("0", "1")
    assert summaries[OTHER].model_folders == (models / "results" / DATASET / OTHER.replace(":", "__"),)
    assert summaries[MODEL].images == models / "raw" / DATASET / "imagesTr"
    assert of_models(models, "-f", "1", "--overwrite") == 0
    assert read_scores(models / "out").cases == ("c",)


def of(folder: Path, name: str = MODEL, fold: str = "0") -> Path:
    return folder / "results" / DATASET / name.replace(":", "__") / f"fold_{fold}"


def _no_validation(folder: Path) -> None:
    shutil.rmtree(of(folder) / "validation")


def _unfinished_validation(folder: Path) -> None:
    (of(folder) / "validation" / "summary.json").unlink()


def _untrained(folder: Path) -> None:
    for fold in FOLDS:
        shutil.rmtree(of(folder, fold=fold))


def _twice(folder: Path) -> None:
    shutil.copy(of(folder) / "validation" / "a.nii.gz", of(folder, fold="1") / "validation")


def _others(folder: Path) -> None:
    (of(folder, OTHER) / "validation" / "a.nii.gz").unlink()


def _older(folder: Path) -> None:
    os.utime(of(folder) / "checkpoint_final.pth", (4e9, 4e9))


def _no_references(folder: Path) -> None:
    shutil.rmtree(folder / "preprocessed" / DATASET / "gt_segmentations")


def _lost_reference(folder: Path) -> None:
    (folder / "preprocessed" / DATASET / "gt_segmentations" / "a.nii.gz").unlink()


def _means_something_else(folder: Path) -> None:
    turned = {"background": 0, "left": 2, "right": 1}
    (of(folder, OTHER).parent / "dataset.json").write_text(json.dumps({**DESCRIPTION, "labels": turned}))


VALIDATE = f"nnUNetv2_train {DATASET} 3d_fullres 0 -tr MNetTrainer -p MNetPlans --val"


@pytest.mark.parametrize(
    ("spoil", "flags", "told"),
    [
        (_no_validation, [], VALIDATE),
        (_unfinished_validation, [], VALIDATE),
        (_untrained, [], "no checkpoint_final.pth in any fold"),
        (_nothing, ["-f", "0", "3"], f"nnUNetv2_train {DATASET} 3d_fullres 3 -tr MNetTrainer -p MNetPlans"),
        (_nothing, ["-m", "PaRTrainer:PaRPlans:3d_fullres"], "no trained model PaRTrainer:PaRPlans:3d_fullres"),
        (_nothing, ["-m", "PaRTrainer"], "the model 'PaRTrainer'"),
        (_nothing, ["-d", "902"], "no data set 902"),
        (_twice, [], "1 case (a) in the validation of several folds"),
        (_others, [], "1 case (a) that only one of"),
        (_older, [], VALIDATE),
        (_no_references, [], "gt_segmentations; expected the references"),
        (_lost_reference, [], "no file"),
        (_means_something_else, [], "'left' = 1 in"),
    ],
)
def test_bad_models(
    models: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None], flags: list[str], told: str
) -> None:
    spoil(models)
    assert of_models(models, *flags) == 2
    assert told in (err := capsys.readouterr().err), err
    assert not (models / "out").exists()
