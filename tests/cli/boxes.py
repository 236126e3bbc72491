"""What `evaluate` is tried on: small volumes made by hand, in folders and as the validation of models."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_ext.cli import main

DATASET = "Dataset901_Boxes"
LABELS = {"background": 0, "left": 1, "right": 2}
DESCRIPTION = {"channel_names": {"0": "MRI"}, "labels": LABELS, "numTraining": 4, "file_ending": ".nii.gz"}
SPACING = (4.0, 1.0, 0.5)  # z, y, x
CASES = ("a", "b", "c")
MODEL = "MNetTrainer:MNetPlans:3d_fullres"
OTHER = "nnUNetTrainer:nnUNetPlans:3d_fullres"
FOLDS = {"0": ["a", "b"], "1": ["c"]}


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


def write_folders(tmp_path: Path) -> Path:
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


def write_models(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
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


def broken(folder: Path, case: str = "b", name: str = "predictions") -> Path:
    return folder / name / f"{case}.nii.gz"
