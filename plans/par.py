"""PaRPlanner: plans for the post-axial refiner on any backbone of the list.

Paper: Huang et al., "Volumetric Axial Disentanglement Enabling Advancing in Medical Image Segmentation", IJCAI 2025.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from nnunetv2_ext.architectures.par import resolved_sizes
from nnunetv2_ext.planning.backbones import PlannerOfBackbones

REFINER_ARGUMENTS = ("axis", "heads", "groups", "kernel_size", "variant", "fusion")


class PaRPlanner(PlannerOfBackbones):
    """Plans patch and batch for the network that `--backbone` names and the refiner on it, from the memory of both."""

    architecture = "PaRNetwork"
    trainer = "PaRTrainer"
    plans_name = "PaRPlans"
    options = (*PlannerOfBackbones.options, *REFINER_ARGUMENTS)
    axis: ClassVar[int] = 0
    heads: ClassVar[int] = 8
    groups: ClassVar[int] = 8
    kernel_size: ClassVar[int] = 3
    variant: ClassVar[str] = "paper"
    fusion: ClassVar[str] = "add"

    def architecture_kwargs(self, patch_size: list[int], spacing: np.ndarray) -> dict[str, Any]:
        refiner = {name: getattr(self, name) for name in REFINER_ARGUMENTS}
        return {**super().architecture_kwargs(patch_size, spacing), **refiner}

    def further_entries(self, arch_kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return {"refiner": resolved_sizes(arch_kwargs["spatial_shape"][self.axis], self.heads, self.groups)}
