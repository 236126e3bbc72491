"""Tiny folders of predictions with probabilities, written by numpy and nnU-Net as `nnUNetv2_predict` does."""

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

SHAPE = (5, 6, 7)  # z, y, x
CASES = ("a", "b", "c")
DESCRIPTION: dict[str, Any] = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "left": 1, "right": 2},
    "numTraining": 3,
    "file_ending": ".nii.gz",
}
PLANS: dict[str, Any] = {
    "image_reader_writer": "SimpleITKIO",
    "label_manager": "LabelManager",
    "configurations": {"3d_fullres": {"architecture": {}}},
}


class Predictions:
    """A folder of predictions of cases a, b and c, of three heads, all of one image."""

    def __init__(self, folder: Path, seed: int, *, heads: int = 3, cases: Sequence[str] = CASES, **entries: Any):
        folder.mkdir()
        self.folder, self._random = folder, np.random.default_rng(seed)
        self.description = {**DESCRIPTION, **{key: value for key, value in entries.items() if key not in PLANS}}
        self.plans = {**PLANS, **{key: value for key, value in entries.items() if key in PLANS}}
        self.describe()
        shape = (1, *SHAPE[1:]) if self.description["file_ending"] == ".png" else SHAPE
        for case in cases:
            self.write(case, self._random.random((heads, *shape), np.float32))

    def describe(self, **entries: Any) -> None:
        """Write dataset.json, with some entries changed, and plans.json."""
        (self.folder / "dataset.json").write_text(json.dumps({**self.description, **entries}))
        (self.folder / "plans.json").write_text(json.dumps(self.plans))

    def path(self, name: str) -> Path:
        return self.folder / name

    def write(self, case: str, probabilities: np.ndarray, **geometry: Any) -> None:
        """The files of a case: probabilities, and the properties of an image of their size."""
        properties = self.read_image(probabilities.shape[1:], **geometry)
        properties["shape_before_cropping"] = probabilities.shape[1:]
        np.savez_compressed(self.path(f"{case}.npz"), probabilities=probabilities)
        self.path(f"{case}.pkl").write_bytes(pickle.dumps(properties))

    def read_image(self, shape: Sequence[int], **geometry: Any) -> dict[str, Any]:
        """What nnU-Net's reader tells of an image of this size."""
        path = self.folder.parent / f"image{self.description['file_ending']}"
        if path.suffix in (".png", ".tif"):
            return {"spacing": (999, 1, 1) if path.suffix == ".png" else (4.0, 1.0, 1.0)}
        image = sitk.Image([int(size) for size in shape[::-1]], sitk.sitkFloat32)
        image.SetSpacing(geometry.get("spacing", (0.7, 0.8, 4.0)))
        image.SetOrigin(geometry.get("origin", (-20.0, 15.0, 3.5)))
        image.SetDirection((0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, -1.0))
        sitk.WriteImage(image, str(path))
        return recursive_find_reader_writer_by_name(self.plans["image_reader_writer"])().read_images([str(path)])[1]

    def probabilities(self, case: str) -> np.ndarray:
        return np.load(self.path(f"{case}.npz"))["probabilities"]


def label_files(folder: Path, ending: str = ".nii.gz") -> dict[str, np.ndarray]:
    """The voxels of all label files of a folder, by their names; of NIfTI, with the affine behind them."""
    made = {}
    for path in sorted(folder.glob(f"*{ending}")):
        if ending.startswith(".nii"):
            image = nibabel.load(path)
            made[path.name] = np.append(np.asarray(image.dataobj, float), image.affine)
        else:
            made[path.name] = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    return made


def names(folder: Path) -> list[str]:
    """Of everything in a folder, but the files of locks."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith((".lock", ".running.json")))
