"""ROIPlanner: plans for a coarse look at the whole image, whose boxes a finer model is predicted in.

After Kim et al., "Multi-Stage Hierarchical Feature Extraction for Efficient 3D Medical Image Segmentation", CMC 2025,
whose network finds boxes on three central slices. By default a small U-Net sees all of the image at once, so it keeps
two organs apart and meets those that lie beside the centre; `--network detector` plans a network after theirs.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.memory import memory_gb
from nnunetv2_ext.planning.backbones import PlannerOfBackbones
from nnunetv2_ext.planning.options import Option, flag_of

CONFIGURATION = "3d_roi"
SEGMENTATION, DETECTOR = "segmentation", "detector"
EXTENT = 95
"""The percentile of the training images' extents that a patch holds; larger images get several windows."""
COARSEST, FINEST = 16, 512


class ROIPlanner(PlannerOfBackbones):
    """Plans one configuration, `3d_roi`: so coarse that a patch of about `--grid` voxels holds the whole image."""

    architecture = "BackboneNetwork"
    trainer = "BackboneTrainer"
    plans_name = "ROIPlans"
    configurations = (CONFIGURATION,)
    min_patch = (1, 8, 8)

    grid = Option(96, "voxels along the longest extent of the images, 16 to 512", int)
    network = Option(SEGMENTATION, f"{SEGMENTATION}, of the --backbone, or {DETECTOR}, a box for each class")
    view = Option("slabs", f"what the {DETECTOR} sees along each axis: slabs of the image, or the central slice")
    head = Option("extent", f"of the {DETECTOR}: extent, where its maps begin and end, or pooled, as the paper's")

    def __init__(self, *args: Any, **kwargs: Any):
        detects = self.network == DETECTOR
        if self.network not in (SEGMENTATION, DETECTOR):
            raise InputError(f"--network {self.network}", f"{SEGMENTATION} or {DETECTOR}", "correct it")
        of_others = ("backbone", "backbone_kwargs", "activation_checkpointing") if detects else ("view", "head")
        if refused := [flag_of(name) for name in of_others if name in self.given]:
            other = SEGMENTATION if detects else DETECTOR
            raise InputError(
                f"{', '.join(refused)} for --network {self.network}", f"--network {other}", "drop one of them"
            )
        if detects:
            self.architecture, self.trainer = "ROIDetector", self.trained_by(self.given)  # type: ignore[misc]
        super().__init__(*args, **kwargs)
        if not COARSEST <= self.grid <= FINEST:
            raise InputError(f"--grid {self.grid}", f"{COARSEST} to {FINEST} voxels", "correct it")
        # a small U-Net: 5.6 million parameters, 50 billion multiply-adds at 96^3
        self.UNet_base_num_features, self.UNet_max_features_3d = 16, 256

    @classmethod
    def trained_by(cls, options: Mapping[str, Any]) -> str:
        return "DetectorTrainer" if options.get("network") == DETECTOR else cls.trainer

    def default_plans_name(self) -> str:
        return "DetectorPlans" if self.network == DETECTOR else super().default_plans_name()

    def architecture_kwargs(self, patch_size: list[int], spacing: np.ndarray) -> dict[str, Any]:
        if self.network != DETECTOR:
            return super().architecture_kwargs(patch_size, spacing)
        labels = self.dataset_json["labels"].values()
        regions = any(isinstance(label, list | tuple) and len(label) > 1 for label in labels)  # as nnU-Net decides
        return {"view": self.view, "head": self.head, "regions": regions}

    def published_block(self) -> Mapping[str, Any]:
        return {**super().published_block(), "epochs": 250}

    def _extents(self) -> np.ndarray:
        """mm of each training image along its axes, as nnU-Net's reader gives them: (cases, 3)."""
        fingerprint = self.dataset_fingerprint
        return np.array(fingerprint["shapes_after_crop"]) * np.array(fingerprint["spacings"])

    def determine_fullres_target_spacing(self) -> np.ndarray:
        """nnU-Net's spacing, or that of the grid along the axes where it is coarser; of `3d_roi`, in spite of the name.

        Where an image is thinner than that, its thickness, so that a slice is left.
        """
        full = np.asarray(super().determine_fullres_target_spacing(), float)
        if self.overwrite_target_spacing is not None:
            return full
        extents = self._extents()
        # how thick a single slice is says nothing, 999 mm of a picture for instance
        seen = np.where(np.array(self.dataset_fingerprint["shapes_after_crop"]) > 1, extents, 0)
        coarse = np.percentile(seen, EXTENT, axis=0).max() / self.grid
        return np.maximum(full, np.minimum(coarse, extents.min(axis=0)))

    def determine_transpose(self) -> tuple[list[int], list[int]]:
        """Slices first, as at full resolution; at the coarse spacing another axis may be the coarsest."""
        if self.suppress_transpose:
            return [0, 1, 2], [0, 1, 2]
        slices = int(np.argmax(super().determine_fullres_target_spacing()))
        forward = [slices, *(axis for axis in range(3) if axis != slices)]
        return forward, [forward.index(axis) for axis in range(3)]

    def search_patch(self, spacing: np.ndarray, median_shape: np.ndarray, sizes: tuple[int, int]) -> list[int]:
        """The patch that holds an image.

        Raises:
            InputError: a batch of two does not fit the memory target.
        """
        extent = np.percentile(self._extents(), EXTENT, axis=0)[self.determine_transpose()[0]]
        patch = [int(size) for size in self.fitted_patch(np.ceil(extent / spacing - 1e-6), spacing)]
        needed = memory_gb(self.feature_map_size(patch, spacing, *sizes), self.UNet_min_batch_size)
        if needed > self.UNet_vram_target_GB:
            raise InputError(
                f"a patch of {patch} voxels, which takes {needed:.3g} GB of GPU memory",
                f"at most {self.UNet_vram_target_GB:g} GB",
                "choose a smaller --grid, or raise -gpu_memory_target",
            )
        return patch

    def kept(self, configurations: dict[str, Any]) -> dict[str, Any]:
        planned = {key: value for key, value in configurations["3d_fullres"].items() if key != "next_stage"}
        return {CONFIGURATION: {**planned, "batch_dice": False}}

    def warn_of_padding(self, name: str, configuration: dict[str, Any]) -> None:
        """Nothing: that a patch is larger than the median image is what was asked for."""
