"""MNetPlanner: plans for MNet.

Paper: Dong et al., "MNet: Rethinking 2D/3D Networks for Anisotropic Medical Image Segmentation", IJCAI 2022.
"""

from typing import Any

from nnunetv2_ext.architectures.mnet import conv_feature_map_size
from nnunetv2_ext.planning.planner import ExtPlanner


class MNetPlanner(ExtPlanner):
    """Plans patch and batch for MNet, whose mesh needs more memory than a U-Net and takes patches of any size."""

    architecture = "MNet"
    trainer = "MNetTrainer"
    patch_divisor = (1, 8, 8)  # three in-plane poolings without a remainder; the fourth may floor

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 8,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str = "MNetPlans",
        overwrite_target_spacing: list[float] | None = None,
        suppress_transpose: bool = False,
    ):
        super().__init__(
            dataset_name_or_id,
            gpu_memory_target_in_gb,
            preprocessor_name,
            plans_name,
            overwrite_target_spacing,
            suppress_transpose,
        )

    def architecture_kwargs(self, patch_size: list[int]) -> dict[str, Any]:
        return {"features_per_stage": [32, 48, 64, 80, 96], "merge": "difference", "min_pool_slices": 8}

    def feature_map_size(self, patch_size: list[int], input_channels: int, output_channels: int) -> float:
        return conv_feature_map_size(
            patch_size,
            input_channels=input_channels,
            num_classes=output_channels,
            **self.architecture_kwargs(patch_size),
        )
