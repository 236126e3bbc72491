"""What planners of named backbones share: nnU-Net's rules for its U-Nets, the size rules of the others."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nnunetv2_ext.architectures.backbones import DEFAULT_BACKBONE
from nnunetv2_ext.architectures.backbones.network import record_of
from nnunetv2_ext.architectures.backbones.record import Backbone, size_rule
from nnunetv2_ext.data.description import channel_names
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.memory import memory_gb
from nnunetv2_ext.planning.options import Option, json_object
from nnunetv2_ext.planning.planner import ExtPlanner
from nnunetv2_ext.registry import find
from nnunetv2_ext.training.topology import LEAST_EDGE, topology


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
            larger = np.array(topology(spacing.tolist(), larger.tolist(), self.UNet_featuremap_min_edge_length)[2])
        divisor, minimum = (np.array(rule) for rule in size_rule(self.record, self._kwargs(larger, spacing)))
        return np.maximum(np.ceil(larger / divisor) * divisor, minimum).astype(int)

    def _kwargs(self, patch_size: np.ndarray, spacing: np.ndarray) -> dict[str, Any]:
        """The backbone's own arguments."""
        features = self.UNet_base_num_features, self.UNet_max_features_3d
        planned = planned_kwargs(self.record, patch_size, spacing, self.UNet_featuremap_min_edge_length, features)
        return {**planned, **self.backbone_kwargs}

    def checked_patch(self, patch_size: list[int], spacing: np.ndarray) -> list[int]:
        """The user's patch.

        Raises:
            InputError: a patch that the network cannot take, or, where it has mixtures of experts, beyond the memory.
        """
        z, y, x = checked = super().checked_patch(patch_size, spacing)
        if self.record.mixture is None:
            return checked
        sizes = len(channel_names(self.dataset_json)), len(self.dataset_json["labels"])
        batch, target = self.UNet_min_batch_size, self.UNet_vram_target_GB
        needed = memory_gb(self.feature_map_size(checked, spacing, *sizes), batch)
        needed += self.weights_gb(checked, spacing, *sizes)
        kwargs = {**self.record.defaults, **self._kwargs(np.array(checked), spacing)}
        tokens, products = self.record.mixture(kwargs, (z, y, x))
        if tokens and needed > target:
            raise InputError(
                f"a patch of {checked}, of which {self.backbone} mixes {tokens} tokens among its experts; it takes "
                f"{needed:.3g} GB at a batch of {batch}, and products of tokens and slots, whose number grows with "
                f"the square of the tokens, cost {1e-9 * products:.3g} G multiply-adds a sample",
                f"at most {target:g} GB, the memory target",
                f"choose a smaller --patch-size, or raise -gpu_memory_target to {np.ceil(100 * needed) / 100:g}",
            )
        return checked

    def architecture_kwargs(self, patch_size: list[int], spacing: np.ndarray) -> dict[str, Any]:
        return {
            "backbone": self.backbone,
            "spatial_shape": patch_size,
            "backbone_kwargs": self._kwargs(np.array(patch_size), spacing),
            **self.checkpointing(),
        }


def planned_kwargs(
    record: Backbone,
    patch_size: Sequence[int] | np.ndarray,
    spacing: Sequence[float] | np.ndarray,
    least_edge: int = LEAST_EDGE,
    features: tuple[int, int] = (32, 320),
) -> dict[str, Any]:
    """A backbone's own arguments as they follow from patch and spacing.

    Args:
        patch_size: (z, y, x) in voxels.
        spacing: (z, y, x) in mm.
        least_edge: nnU-Net's `UNet_featuremap_min_edge_length`.
        features: of its U-Nets, of the first stage and at most; both as nnU-Net's planner has them.
    """
    if record.planned is not None:
        strides, kernel_sizes, _ = topology([*spacing], [*patch_size], least_edge)
        first, most = features
        widths = [min(first * 2**stage, most) for stage in range(len(strides))]
        return record.planned(strides, kernel_sizes, widths)
    if record.planned_by_spacing is not None:
        return record.planned_by_spacing([float(mm) for mm in spacing])
    return {}
