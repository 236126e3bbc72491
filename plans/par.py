"""PaRPlanner: plans for the post-axial refiner on any backbone of the list.

Paper: Huang et al., "Volumetric Axial Disentanglement Enabling Advancing in Medical Image Segmentation", IJCAI 2025.
"""

from typing import Any, ClassVar

import numpy as np

from nnunetv2_ext.architectures.par import resolved_sizes
from nnunetv2_ext.planning.backbones import PlannerOfBackbones


class PaRPlanner(PlannerOfBackbones):
    """Plans patch and batch for the network that `--backbone` names and the refiner on it, from the memory of both."""

    architecture = "PaRNetwork"
    trainer = "PaRTrainer"
    plans_name = "PaRPlans"
    options = (*PlannerOfBackbones.options, "axis", "heads", "groups", "kernel_size", "variant", "fusion")
    axis: ClassVar[int] = 0
    heads: ClassVar[int] = 8
    groups: ClassVar[int] = 8
    kernel_size: ClassVar[int] = 3
    variant: ClassVar[str] = "paper"
    fusion: ClassVar[str] = "add"

    def architecture_kwargs(self, patch_size: list[int], spacing: np.ndarray) -> dict[str, Any]:
        return {**super().architecture_kwargs(patch_size, spacing), **self._refiner_kwargs()}

    def _refiner_kwargs(self) -> dict[str, Any]:
        return {
            "axis": self.axis,
            "heads": self.heads,
            "groups": self.groups,
            "kernel_size": self.kernel_size,
            "variant": self.variant,
            "fusion": self.fusion,
        }

    def further_entries(self, patch_size: list[int]) -> dict[str, Any]:
        return {"refiner": resolved_sizes(patch_size[self.axis], self.heads, self.groups)}
