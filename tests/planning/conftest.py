"""A data set that exists as its fingerprint, its description and one tiny image."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

NAME = "Dataset901_Boxes"
SMALL: dict[str, Any] = {"shape": (12, 40, 40), "spacing": (5.0, 1.0, 1.0)}
LARGE: dict[str, Any] = {"shape": (40, 512, 512), "spacing": (5.0, 0.8, 0.8)}


class Described:
    """A data set of `cases` equal volumes (z, y, x) in nnU-Net's folders; nothing but one tiny image is stored."""

    def __init__(self, root: Path):
        self.raw, self.preprocessed = root / "nnUNet_raw" / NAME, root / "nnUNet_preprocessed" / NAME

    def write(
        self,
        *,
        shape: Sequence[int] = SMALL["shape"],
        spacing: Sequence[float] = SMALL["spacing"],
        spacings: Sequence[Sequence[float]] | None = None,
        cases: int = 100,
    ) -> "Described":
        for folder in (self.raw / "imagesTr", self.raw / "labelsTr", self.preprocessed):
            folder.mkdir(parents=True, exist_ok=True)
        image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.diag([10.0, 10, 20, 1]))
        nibabel.save(image, self.raw / "imagesTr" / "case_0000.nii.gz")
        label = np.zeros((4, 4, 4), np.uint8)
        label[1, 1, :2] = 1, 2
        nibabel.save(nibabel.Nifti1Image(label, image.affine), self.raw / "labelsTr" / "case.nii.gz")
        files = {"images": ["imagesTr/case_0000.nii.gz"], "label": "labelsTr/case.nii.gz"}
        description = {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, "organ": 1, "lesion": 2},
            "numTraining": cases,
            "file_ending": ".nii.gz",
            # told here, nnU-Net need not look for them with a pool of twelve processes
            "dataset": {"case": files, **{f"case_{number}": files for number in range(1, cases)}},
        }
        (self.raw / "dataset.json").write_text(json.dumps(description))
        given = [spacing] if spacings is None else spacings
        spacings = [given[number % len(given)] for number in range(cases)]
        statistics = dict.fromkeys(("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std"), 0.5)
        fingerprint = {
            "spacings": [list(one) for one in spacings],
            "shapes_after_crop": [list(shape)] * len(spacings),
            "foreground_intensity_properties_per_channel": {"0": statistics},
            "median_relative_size_after_cropping": 1.0,
        }
        (self.preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
        return self

    def plans(self, identifier: str = "MNetPlans") -> dict[str, Any]:
        return json.loads((self.preprocessed / f"{identifier}.json").read_text())

    def configuration(self, identifier: str = "MNetPlans", name: str = "3d_fullres") -> dict[str, Any]:
        return self.plans(identifier)["configurations"][name]

    def write_stock_plans(self, configurations: dict[str, Any]) -> None:
        (self.preprocessed / "nnUNetPlans.json").write_text(json.dumps({"configurations": configurations}))


def network_of(configuration: dict[str, Any]) -> Any:
    """What nnU-Net builds from the plans for one channel and three classes, without memory for its weights."""
    architecture = configuration["architecture"]
    with torch.device("meta"):
        return get_network_from_plans(
            architecture["network_class_name"],
            architecture["arch_kwargs"],
            architecture["_kw_requires_import"],
            1,
            3,
            allow_init=False,
            deep_supervision=True,
        )


@pytest.fixture
def described(nnunet_folders: Path) -> Callable[..., Described]:
    return Described(nnunet_folders).write
