"""Small data sets as nnU-Net preprocesses them: a bright body in noise, of two labels."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_ext.evaluation.segmentations import Labels, labels_of
from tests.tiny_models import SPACING, plans

LABELS: dict[str, Any] = {"labels": {"background": 0, "front": 1, "back": 2}}
IGNORED: dict[str, Any] = {"labels": {**LABELS["labels"], "ignore": 3}}
REGIONS: dict[str, Any] = {"labels": {"background": 0, "whole": [1, 2], "back": 2}, "regions_class_order": [1, 2]}
SHAPE = (12, 30, 34)

Change = Callable[[int, np.ndarray, np.ndarray], None]
"""Of a case by its number: its image and label, in place."""


class Preprocessed(NamedTuple):
    """A preprocessed data set of one configuration."""

    data: Path
    references: Path
    plans: dict[str, Any]
    description: dict[str, Any]
    labels: Labels


def body(number: int, shape: Sequence[int] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """An image and its label (Z, Y, X)."""
    random = np.random.default_rng(number)
    centre = np.array(shape) / 2 + random.uniform(-1, 1, 3)
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    inside = (np.square((places - centre) / (3.2, 8, 9)).sum(-1)) < 1
    label = (inside * (1 + (places[..., 1] > centre[1]))).astype(np.uint8)
    image = random.normal(0, 0.3, shape) + np.array([0, 3, 5])[label]
    return image.astype(np.float32), label


def write_preprocessed(
    folder: Path,
    cases: int = 10,
    *,
    task: dict[str, Any] = LABELS,
    transpose: Sequence[int] = (0, 1, 2),
    change: Change = lambda number, image, label: None,
) -> Preprocessed:
    """Images and labels of spacing 3.5, 1.2, 0.9 mm, preprocessed to 3, 1, 1 mm."""
    content = plans(transpose=transpose)
    description = {"channel_names": {"0": "MR"}, "numTraining": cases, "file_ending": ".nii.gz", **task}
    manager = PlansManager(content)
    data, references, images = folder / "nnUNetPlans_any", folder / "gt_segmentations", folder / "images"
    for one in (data, references, images):
        one.mkdir(parents=True)
    for number in range(cases):
        name, arrays = f"case_{number:02d}", body(number)
        change(number, *arrays)
        for path, voxels in zip((images / f"{name}.nii.gz", references / f"{name}.nii.gz"), arrays, strict=True):
            volume = sitk.GetImageFromArray(voxels)
            volume.SetSpacing(SPACING[::-1])
            sitk.WriteImage(volume, str(path))
        image, label, properties = DefaultPreprocessor(verbose=False).run_case(
            [str(images / f"{name}.nii.gz")],
            str(references / f"{name}.nii.gz"),
            manager,
            manager.get_configuration("3d_fullres"),
            description,
        )
        chunks = {"chunks": image.shape, "blocks": image.shape}
        nnUNetDatasetBlosc2.save_case(image, label, properties, str(data / name), **chunks)
    return Preprocessed(data, references, content, description, labels_of(description, folder / "dataset.json"))
