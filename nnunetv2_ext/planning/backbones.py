"""What planners of named backbones share: nnU-Net's rules for its U-Nets, the size rules of the others."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

from nnunetv2_ext.architectures.backbones import size_rule
from nnunetv2_ext.planning.planner import ExtPlanner
from nnunetv2_ext.registry import find

DEFAULT_BACKBONE = "PlainConvUNet"
# nnU-Net's presets of the residual encoder: GPU memory in GB; they let a batch see the whole data set
_PRESETS = {"ResidualEncoderUNetM": 8.0, "ResidualEncoderUNetL": 24.0, "ResidualEncoderUNetXL": 40.0}
# backbones with a trainer of their own, whose weights of the outputs hold here too
_TRAINERS = {"MNet": "MNetTrainer"}
# nnU-Net's numbers of blocks per stage, from the first on, the last one repeated
_RESIDUAL_BLOCKS, _PLAIN_CONVOLUTIONS = (1, 3, 4, 6), (2,)


class PlannerOfBackbones(ExtPlanner):
    """Plans a network around a backbone of the list (`nnunetv2_ext list`), chosen by `--backbone`."""

    options = (*ExtPlanner.options, "backbone", "backbone_kwargs")
    backbone: ClassVar[str] = DEFAULT_BACKBONE
    backbone_kwargs: ClassVar[Mapping[str, Any]] = {}
    """The user's arguments of the backbone, over the planned ones."""

    def __init__(self, *args: Any, **kwargs: Any):
        find("backbone", self.backbone).load()  # unknown, or MONAI missing
        super().__init__(*args, **kwargs)
        if self.backbone in _PRESETS:
            self.max_dataset_covered = 1

    def default_memory_target(self) -> float:
        return _PRESETS.get(self.backbone, super().default_memory_target())

    def default_plans_name(self) -> str:
        if self.backbone == DEFAULT_BACKBONE:
            return self.plans_name
        return f"{self.plans_name.removesuffix('Plans')}{self.backbone}Plans"

    def published_schedule(self) -> Mapping[str, Any]:
        published = super().published_schedule()
        if self.backbone not in _TRAINERS:
            return published
        own = find("trainer", _TRAINERS[self.backbone]).load().published_schedule
        return {**published, "deep_supervision_weights": own["deep_supervision_weights"]}

    def fitted_patch(self, patch_size: np.ndarray, spacing: np.ndarray) -> np.ndarray:
        larger = np.maximum(patch_size, self.min_patch).astype(int)
        if self.backbone in _PLANNED:
            larger = np.array(self._topology(larger, spacing)[3])
        divisor, minimum = (np.array(rule) for rule in size_rule(self.backbone, self._kwargs(larger, spacing)))
        return np.maximum(np.ceil(larger / divisor) * divisor, minimum).astype(int)

    def _topology(self, patch_size: np.ndarray, spacing: np.ndarray) -> Any:
        """nnU-Net's pooling and kernels for a patch, and the patch rounded up to what they need."""
        return get_pool_and_conv_props(spacing, patch_size, self.UNet_featuremap_min_edge_length, 999999)

    def _kwargs(self, patch_size: np.ndarray, spacing: np.ndarray) -> dict[str, Any]:
        """The backbone's own arguments."""
        planned: dict[str, Any] = {}
        if self.backbone in _PLANNED:
            _, strides, kernel_sizes, _, _ = self._topology(patch_size, spacing)
            features = [
                min(self.UNet_base_num_features * 2**stage, self.UNet_max_features_3d) for stage in range(len(strides))
            ]
            planned = _PLANNED[self.backbone](
                [list(stride) for stride in strides], [list(kernel) for kernel in kernel_sizes], features
            )
        return {**planned, **self.backbone_kwargs}

    def architecture_kwargs(self, patch_size: list[int], spacing: np.ndarray) -> dict[str, Any]:
        return {
            "backbone": self.backbone,
            "spatial_shape": patch_size,
            "backbone_kwargs": self._kwargs(np.array(patch_size), spacing),
        }


def _repeated(numbers: tuple[int, ...], stages: int) -> list[int]:
    return [numbers[min(stage, len(numbers) - 1)] for stage in range(stages)]


def _unet(strides: list[list[int]], kernel_sizes: list[list[int]], features: list[int]) -> dict[str, Any]:
    """The arguments that nnU-Net's two U-Nets share, as its plans hold them."""
    return {
        "n_stages": len(strides),
        "features_per_stage": features,
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": kernel_sizes,
        "strides": strides,
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def _plain(strides: list[list[int]], kernel_sizes: list[list[int]], features: list[int]) -> dict[str, Any]:
    return {
        **_unet(strides, kernel_sizes, features),
        "n_conv_per_stage": _repeated(_PLAIN_CONVOLUTIONS, len(strides)),
        "n_conv_per_stage_decoder": _repeated(_PLAIN_CONVOLUTIONS, len(strides) - 1),
    }


def _residual(strides: list[list[int]], kernel_sizes: list[list[int]], features: list[int]) -> dict[str, Any]:
    return {
        **_unet(strides, kernel_sizes, features),
        "n_blocks_per_stage": _repeated(_RESIDUAL_BLOCKS, len(strides)),
        "n_conv_per_stage_decoder": [1] * (len(strides) - 1),
    }


def _monai_unet(strides: list[list[int]], kernel_sizes: list[list[int]], features: list[int]) -> dict[str, Any]:
    return {"channels": features, "strides": strides[1:]}


# backbones whose depth and strides follow from spacing and patch
_PLANNED = {
    "PlainConvUNet": _plain,
    "ResidualEncoderUNet": _residual,
    "ResidualEncoderUNetM": _residual,
    "ResidualEncoderUNetL": _residual,
    "ResidualEncoderUNetXL": _residual,
    "UNet": _monai_unet,
}
