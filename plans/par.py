"""PaRPlanner: plans for the post-axial refiner on any backbone of the list.

Paper: Huang et al., "Volumetric Axial Disentanglement Enabling Advancing in Medical Image Segmentation", IJCAI 2025.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from nnunetv2_ext.architectures.par import resolved_sizes
from nnunetv2_ext.planning.backbones import PlannerOfBackbones
from nnunetv2_ext.planning.options import Option


class PaRPlanner(PlannerOfBackbones):
    """Plans patch and batch for the network that `--backbone` names and the refiner on it, from the memory of both."""

    architecture = "PaRNetwork"
    trainer = "PaRTrainer"
    plans_name = "PaRPlans"

    axis = Option(0, "axis to refine, 0, 1 or 2 of z, y, x; 0 is the coarsest", int)
    heads = Option(8, "heads of the attention; the largest divisor of the axis' size not above it is taken", int)
    groups = Option(8, "groups of slices; fewer where they fit better", int)
    kernel_size = Option(3, "kernel of the refiner's features, odd", int)
    variant = Option("published_code", "published_code or paper, where the two differ")
    fusion = Option("add", "add, multiply or concat")

    def architecture_kwargs(self, patch_size: list[int], spacing: np.ndarray) -> dict[str, Any]:
        refiner = {name: getattr(self, name) for name, value in vars(PaRPlanner).items() if isinstance(value, Option)}
        return {**super().architecture_kwargs(patch_size, spacing), **refiner}

    def further_entries(self, arch_kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return {"refiner": resolved_sizes(arch_kwargs["spatial_shape"][self.axis], self.heads, self.groups)}
