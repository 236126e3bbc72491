"""A data set of small organs, validated in folds by predictions that are nearly right, with errors to plant in it."""

import json
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from nnunetv2_ext.data.volumes import Grid, read_grid, read_labels, write_volume
from nnunetv2_ext.files import REFERENCES

DATASET = "Dataset902_Organs"
MODEL = "MNetTrainer:MNetPlans:3d_fullres"
LABELS = {"background": 0, "liver": 1, "spleen": 2}
DESCRIPTION: dict[str, Any] = {"channel_names": {"0": "MRI"}, "labels": LABELS, "file_ending": ".nii.gz"}
SHAPE, SPACING = (16, 28, 28), (3.0, 1.0, 2.0)
"""(Z, Y, X), of mm; X to the patient's left, Y to the back, Z to the head."""
CASES = tuple(f"organ_{number:02}" for number in range(30))
FOLDS = 5
GRID = Grid(SHAPE[::-1], SPACING[::-1], (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
Change = Callable[[np.ndarray], np.ndarray]


def label_of(case: str) -> np.ndarray:
    """A liver without its lower right rear, so that no mirroring leaves it alike, and a spleen behind it."""
    random = np.random.default_rng(CASES.index(case))
    z, y, x = np.indices(SHAPE) - random.integers(-1, 2, 3)[:, None, None, None]
    wide = 3 + random.integers(2)
    labels = np.zeros(SHAPE, np.uint8)
    liver = (abs(z - 8) < 4) & (abs(y - 11) < wide + 2) & (abs(x - 14) < 8)
    labels[liver & (2 * (z - 8) + (x - 14) - (y - 11) > -7)] = 1
    labels[(abs(z - 8) < 4) & (abs(y - 21) < 3) & (abs(x - 14) < wide)] = 2
    return labels


def prediction_of(case: str) -> np.ndarray:
    """Nearly the label: voxels of its surface are missed, more of them in some cases."""
    random = np.random.default_rng(100 + CASES.index(case))
    label = label_of(case)
    surface = (label > 0) & ~ndimage.binary_erosion(label > 0)
    return np.where(surface & (random.random(SHAPE) < random.uniform(0.15, 0.3)), 0, label).astype(np.uint8)


def _half(label: np.ndarray) -> np.ndarray:
    kept = label.copy()
    kept[:, :, 15:] = 0
    return kept


def _every_second(label: np.ndarray) -> np.ndarray:
    kept = label.copy()
    kept[::2] = 0
    return kept


def _eroded(label: np.ndarray) -> np.ndarray:
    return np.where(ndimage.binary_erosion(label > 0), label, 0).astype(np.uint8)


def dilated(label: np.ndarray) -> np.ndarray:
    """One voxel thicker."""
    return ndimage.grey_dilation(label, footprint=ndimage.generate_binary_structure(3, 1)).astype(np.uint8)


def crossed() -> np.ndarray:
    """Labels of another shape at the same place: long where these are wide."""
    z, y, x = np.indices(SHAPE)
    other = np.zeros(SHAPE, np.uint8)
    other[(abs(z - 8) < 7) & (abs(y - 13) < 9) & (abs(x - 14) < 3)] = 1
    other[(abs(z - 8) < 7) & (abs(y - 24) < 2) & (abs(x - 14) < 3)] = 2
    return other


PLANTED: dict[str, Change] = {
    "shift": lambda label: ndimage.shift(label, (0, 0, 4), order=0),
    "half": _half,
    "another": lambda label: crossed(),
    "flip": lambda label: np.flip(label, 2).copy(),
    "every second slice": _every_second,
    "eroded": _eroded,
}
"""The six kinds of errors."""


@cache
def _files_of(case: str) -> tuple[bytes, bytes, bytes]:
    """Image, label and prediction, which are compressed once."""
    image = label_of(case) * 100.0 + np.random.default_rng(CASES.index(case)).normal(300, 20, SHAPE)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "volume.nii.gz")
        found = []
        for voxels in (image.astype(np.float32), label_of(case), prediction_of(case)):
            write_volume(voxels, GRID, path)
            found.append(path.read_bytes())
    return found[0], found[1], found[2]


def write_validated(
    folder: Path, monkeypatch: pytest.MonkeyPatch, changed: Mapping[str, Change] | None = None, model: str = MODEL
) -> Path:
    """The data set in nnU-Net's folders, preprocessed in name alone, with a model that is validated in five folds.

    Args:
        folder: new; nnU-Net's variables name its folders.
        changed: what becomes of the labels of some cases.
    """
    changed = changed or {}
    for variable in ("raw", "preprocessed", "results"):
        (folder / variable / DATASET).mkdir(parents=True, exist_ok=True)
        monkeypatch.setenv(f"nnUNet_{variable}", str(folder / variable))
    raw, preprocessed = folder / "raw" / DATASET, folder / "preprocessed" / DATASET
    trained = folder / "results" / DATASET / model.replace(":", "__")
    for path in (raw / "imagesTr", raw / "labelsTr", preprocessed / REFERENCES):
        path.mkdir(exist_ok=True)
    for case in CASES:
        image, label, prediction = _files_of(case)
        validation = trained / f"fold_{CASES.index(case) % FOLDS}" / "validation"
        if not validation.is_dir():
            validation.mkdir(parents=True)
            (validation.parent / "checkpoint_final.pth").touch()  # before its predictions
        (raw / "imagesTr" / f"{case}_0000.nii.gz").write_bytes(image)
        for path in (raw / "labelsTr" / f"{case}.nii.gz", preprocessed / REFERENCES / f"{case}.nii.gz"):
            path.write_bytes(label)
            if case in changed:
                changed_label(path, changed[case])
        (validation / f"{case}.nii.gz").write_bytes(prediction)  # made of the label
    for path in trained.glob("fold_*/validation"):
        metrics = [{"metrics": {"1": {"n_ref": 1}, "2": {"n_ref": 1}}}]
        (path / "summary.json").write_text(json.dumps({"metric_per_case": metrics}))
    description = json.dumps({**DESCRIPTION, "numTraining": len(CASES)})
    for path in (raw, preprocessed, trained):
        (path / "dataset.json").write_text(description)
    plans = json.dumps({"configurations": {"3d_fullres": {"data_identifier": "MNetPlans_3d_fullres"}}})
    (trained / "plans.json").write_text(plans)
    (preprocessed / f"{model.split(':')[1]}.json").write_text(plans)
    return folder


def changed_label(path: Path, change: Change) -> None:
    """Change the label file of a case on its grid."""
    write_volume(change(read_labels(path)), read_grid(path), path)
