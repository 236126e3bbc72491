"""MNetPlanner: plans for MNet.

Paper: Dong et al., "MNet: Rethinking 2D/3D Networks for Anisotropic Medical Image Segmentation", IJCAI 2022.
"""

from typing import Any

import numpy as np

from nnunetv2_ext.architectures.mnet import conv_feature_map_size
from nnunetv2_ext.planning.planner import ExtPlanner


class MNetPlanner(ExtPlanner):
    """Plans patch and batch for MNet, whose mesh needs more memory than a U-Net and takes patches of any size."""

    architecture = "MNet"
    trainer = "MNetTrainer"
    plans_name = "MNetPlans"
    patch_divisor = (1, 8, 8)  # three in-plane poolings without a remainder; the fourth may floor

    def architecture_kwargs(self, patch_size: list[int], spacing: np.ndarray) -> dict[str, Any]:
        published = {"features_per_stage": [32, 48, 64, 80, 96], "merge": "difference", "min_pool_slices": 8}
        return {**published, **self.checkpointing()}

    def feature_map_size(
        self, patch_size: list[int], spacing: np.ndarray, input_channels: int, output_channels: int
    ) -> float:
        return conv_feature_map_size(
            patch_size,
            input_channels=input_channels,
            num_classes=output_channels,
            **self.architecture_kwargs(patch_size, spacing),
        )
