"""From planning a coarse model to prediction inside its boxes, by the real functions on tiny volumes."""

import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from nnunetv2_ext.cli import main
from nnunetv2_ext.training.run import train_fold
from tests.warm import light_nnunet

NAME, CASES = "Dataset708_Tiny", 11
NAMES = [f"case_{number:02d}" for number in range(CASES)]
COARSE, FINE = "BackboneTrainer:ROIPlans:3d_roi", "nnUNetTrainer:nnUNetPlans:3d_fullres"
DETECTOR = "DetectorTrainer:DetectorPlans:3d_roi"
BRIEF = {"epochs": 1, "iterations_per_epoch": 1, "val_iterations_per_epoch": 1, "batch_size": 2}
AFFINE = np.diag([1.0, 1.0, 4.0, 1.0])


def write(path: Path, voxels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels.T, AFFINE), path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """nnU-Net's folders with a raw data set: a bright organ in noise, somewhere."""
    folder = tmp_path_factory.mktemp("roi")
    raw = folder / "nnUNet_raw" / NAME
    random = np.random.default_rng(0)
    for name in NAMES:
        labels = np.zeros((10, 40, 40), np.uint8)
        z, y, x = random.integers((2, 4, 4), (5, 24, 24))
        labels[z : z + 4, y : y + 10, x : x + 10] = 1
        image = random.normal(0, 1, labels.shape) + 5 * labels
        write(raw / "imagesTr" / f"{name}_0000.nii.gz", image.astype(np.float32))
        write(raw / "labelsTr" / f"{name}.nii.gz", labels)
    description = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps({**description, "numTraining": CASES}))
    with pytest.MonkeyPatch.context() as patch, light_nnunet():
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            (folder / variable).mkdir(exist_ok=True)
            patch.setenv(variable, str(folder / variable))
        yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def prepared(folder: Path) -> Iterator[Path]:
    """The same with plans, preprocessed data and the trained fine model."""
    prepare(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_n_proc_DA", "0")  # of trainings; nnU-Net's planner wants threads
        train_fold(708, "3d_fullres", 1, trainer="nnUNetTrainer", plans="nnUNetPlans", training=BRIEF)
        yield folder


def prepare(folder: Path) -> None:
    """Plans, data, folds and images to predict, for the fine model and both kinds of ROI model."""
    plan = ["plan_and_preprocess", "-d", "708", "--no_pbar"]
    assert main([*plan, "-pl", "ROIPlanner", "--grid", "20"]) == 0
    assert main([*plan, "-pl", "ROIPlanner", "--grid", "20", "--network", "detector"]) == 0
    assert main([*plan, "-pl", "ExperimentPlanner", "-c", "3d_fullres"]) == 0
    preprocessed = folder / "nnUNet_preprocessed" / NAME
    narrow(preprocessed / "nnUNetPlans.json", "3d_fullres", patch_size=[8, 16, 16])
    narrow(preprocessed / "DetectorPlans.json", "3d_roi")
    splits = [{"train": NAMES[10:], "val": NAMES[:10]}, {"train": NAMES[1:], "val": NAMES[:1]}]
    (preprocessed / "splits_final.json").write_text(json.dumps(splits))
    images = folder / "images"
    images.mkdir()
    for name in NAMES[:2]:
        shutil.copy(folder / "nnUNet_raw" / NAME / "imagesTr" / f"{name}_0000.nii.gz", images)


def narrow(plans: Path, configuration: str, **changes: Any) -> None:
    """Fewer features: what is trained for a step need not be able to learn."""
    content = json.loads(plans.read_text())
    planned = content["configurations"][configuration]
    arguments = planned["architecture"]["arch_kwargs"]
    if "view" in arguments:
        arguments |= {"size": 32, "features": 16, "stages": 1}
    else:
        arguments["features_per_stage"] = [4] * len(arguments["features_per_stage"])
    planned |= changes
    plans.write_text(json.dumps(content))


@pytest.mark.parametrize("coarse", [COARSE, DETECTOR])
def test_train_calibrate_predict(prepared: Path, capsys: pytest.CaptureFixture[str], coarse: str) -> None:
    folder = prepared
    preprocessed, results = (folder / part / NAME for part in ("nnUNet_preprocessed", "nnUNet_results"))
    trainer, plans_name, _ = coarse.split(":")
    fold = train_fold(708, "3d_roi", 0, trainer=trainer, plans=plans_name, training=BRIEF)
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 10

    # as if it had been trained longer: each organ without its first row
    for name in NAMES[:10]:
        labels = np.asarray(nibabel.load(folder / "nnUNet_raw" / NAME / "labelsTr" / f"{name}.nii.gz").dataobj).T
        labels[:, labels.any(axis=(0, 2)).argmax()] = 0
        write(fold / "validation" / f"{name}.nii.gz", labels)
    model = results / coarse.replace(":", "__")
    predict = ["predict", "-i", str(folder / "images"), "-d", "708", "-m", FINE, "-f", "1", "-device", "cpu"]
    predict += ["--roi", coarse]
    assert main([*predict, "-o", str(folder / "none")]) == 2
    assert "calibrate_roi" in capsys.readouterr().err
    assert main(["calibrate_roi", "-d", "708", "-m", coarse, "-f", "0"]) == 0
    planned = json.loads((preprocessed / f"{plans_name}.json").read_text())["configurations"]["3d_roi"]
    expected = {"margin_mm": 1 + max(planned["spacing"]), "cases": 10, "misses": 0, "recall": pytest.approx(0.9)}
    assert json.loads((model / "plans.json").read_text())["configurations"]["3d_roi"]["roi"] == expected

    output = folder / f"output_{trainer}"
    assert main([*predict, "-o", str(output)]) == 0
    told = json.loads((output / "roi.json").read_text())
    for name in NAMES[:2]:
        predicted = np.asarray(nibabel.load(output / f"{name}.nii.gz").dataobj).T
        assert predicted.shape == (10, 40, 40)
        assert (output / "roi" / f"{name}.nii.gz").is_file()
        (entry,) = told[name].values()
        assert entry["margin_mm"] == expected["margin_mm"] and entry["boxes_voxels"]
        held = np.zeros(predicted.shape, bool)
        for low, high in entry["boxes_voxels"]:
            held[tuple(map(slice, low, high))] = True
        assert not predicted[~held].any()
    if coarse == COARSE:
        check_export(folder, model, expected)


def check_export(folder: Path, model: Path, expected: Any) -> None:
    """What was measured goes along with an export, and ends with the training that it was measured on."""
    from nnunetv2.model_sharing.model_export import export_pretrained_model

    archive = folder / "model.zip"
    with pytest.MonkeyPatch.context() as patch:
        for module in ("nnunetv2.utilities.file_path_utilities", "nnunetv2.model_sharing.model_export"):
            patch.setattr(f"{module}.nnUNet_results", str(folder / "nnUNet_results"))
        export_pretrained_model(NAME, str(archive), ("3d_roi",), "BackboneTrainer", "ROIPlans", (0,))
    with zipfile.ZipFile(archive) as content:
        plans = json.loads(content.read(f"{NAME}/{model.name}/plans.json"))
    assert plans["configurations"]["3d_roi"]["roi"] == expected
    train_fold(708, "3d_roi", 1, trainer="BackboneTrainer", plans="ROIPlans", training=BRIEF)
    assert "roi" not in json.loads((model / "plans.json").read_text())["configurations"]["3d_roi"]
