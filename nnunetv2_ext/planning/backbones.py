"""What planners of named backbones share: nnU-Net's rules for its U-Nets, the size rules of the others."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

from nnunetv2_ext.architectures.backbones import DEFAULT_BACKBONE
from nnunetv2_ext.architectures.backbones.network import record_of
from nnunetv2_ext.architectures.backbones.record import size_rule
from nnunetv2_ext.planning.options import Option, json_object
from nnunetv2_ext.planning.planner import ExtPlanner
from nnunetv2_ext.registry import find


class PlannerOfBackbones(ExtPlanner):
    """Plans a network around a backbone of the list (`nnunetv2_ext list`), chosen by `--backbone`."""

    backbone = Option(DEFAULT_BACKBONE, "a name that nnunetv2_ext list tells")
    backbone_kwargs = Option[Mapping[str, Any]](
        {}, "the backbone's own arguments, a JSON object, over the planned ones", json_object, metavar="JSON"
    )

    def __init__(self, *args: Any, **kwargs: Any):
        self.record = record_of(self.backbone)
        self.record.load()  # MONAI missing
        super().__init__(*args, **kwargs)
        if self.record.preset_gb is not None:
            self.max_dataset_covered = 1

    def default_memory_target(self) -> float:
        return self.record.preset_gb or super().default_memory_target()

    def default_plans_name(self) -> str:
        if self.backbone == DEFAULT_BACKBONE:
            return self.plans_name
        return f"{self.plans_name.removesuffix('Plans')}{self.backbone.rpartition('.')[2]}Plans"

    def published_block(self) -> Mapping[str, Any]:
        published = super().published_block()
        if self.record.trainer is None:
            return published
        own = find("trainer", self.record.trainer).load().published_block
        return {**published, "deep_supervision_weights": own["deep_supervision_weights"]}

    def fitted_patch(self, patch_size: np.ndarray, spacing: np.ndarray) -> np.ndarray:
        larger = np.maximum(patch_size, self.min_patch).astype(int)
        if self.record.planned is not None:
            larger = np.array(self._topology(larger, spacing)[3])
        divisor, minimum = (np.array(rule) for rule in size_rule(self.record, self._kwargs(larger, spacing)))
        return np.maximum(np.ceil(larger / divisor) * divisor, minimum).astype(int)

    def _topology(self, patch_size: np.ndarray, spacing: np.ndarray) -> Any:
        """nnU-Net's pooling and kernels for a patch, and the patch rounded up to what they need."""
        return get_pool_and_conv_props(spacing, patch_size, self.UNet_featuremap_min_edge_length, 999999)

    def _kwargs(self, patch_size: np.ndarray, spacing: np.ndarray) -> dict[str, Any]:
        """The backbone's own arguments."""
        planned: dict[str, Any] = {}
        if self.record.planned is not None:
            _, strides, kernel_sizes, _, _ = self._topology(patch_size, spacing)
            features = [
                min(self.UNet_base_num_features * 2**stage, self.UNet_max_features_3d) for stage in range(len(strides))
            ]
            planned = self.record.planned(
                [list(stride) for stride in strides], [list(kernel) for kernel in kernel_sizes], features
            )
        elif self.record.planned_by_spacing is not None:
            planned = self.record.planned_by_spacing([float(mm) for mm in spacing])
        return {**planned, **self.backbone_kwargs}

    def architecture_kwargs(self, patch_size: list[int], spacing: np.ndarray) -> dict[str, Any]:
        return {
            "backbone": self.backbone,
            "spatial_shape": patch_size,
            "backbone_kwargs": self._kwargs(np.array(patch_size), spacing),
            **self.checkpointing(),
        }
