"""HierarchicalPlanner: plans for the segmentor that leaves out its first stages where its input is small.

Paper: Kim et al., "Multi-Stage Hierarchical Feature Extraction for Efficient 3D Medical Image Segmentation", CMC 2025,
which resizes each region of interest to a cube; here strides and kernels follow nnU-Net's rule, at any spacing.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.planning.options import Option
from nnunetv2_ext.planning.planner import ExtPlanner
from nnunetv2_ext.training.entries import ENTRIES, elements_of_entries, halving
from nnunetv2_ext.training.topology import topology

LEAST_ENTRY = 8
"""Voxels of the last entry in plane, at least: a window for an organ of half as many."""


class HierarchicalPlanner(ExtPlanner):
    """Plans a patch that nnU-Net's strides divide, and entries for smaller inputs of which the last is still useful."""

    architecture = "HierarchicalSegmentor"
    trainer = "HierarchicalTrainer"
    plans_name = "HierarchicalPlans"

    entries = Option(ENTRIES, "sizes of input that the network takes, the patch and ever smaller ones", int)

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.entries < 1:
            raise InputError(f"--entries {self.entries}", "1 or more", "correct it")
        weights = self.training.get("hierarchical", {}).get("entry_weights")
        if weights is not None and len(weights) != self.entries:
            raise InputError(
                f"{len(weights)} numbers in hierarchical.entry_weights",
                f"{self.entries}, one per entry",
                "correct them",
            )

    def fitted_patch(self, patch_size: np.ndarray, spacing: np.ndarray) -> np.ndarray:
        larger = np.maximum(patch_size, self.min_patch).astype(int).tolist()
        return np.array(topology(spacing.tolist(), larger)[2])

    def suits(self, patch_size: np.ndarray, spacing: np.ndarray) -> bool:
        return self._useful_entries(patch_size, spacing) >= self.entries

    def _useful_entries(self, patch_size: np.ndarray, spacing: np.ndarray) -> int:
        """Of a patch, so many entries are not too small."""
        shrunk = np.cumprod(topology(spacing.tolist(), patch_size.tolist())[0], axis=0)
        return int((patch_size // shrunk >= LEAST_ENTRY)[:, 1:].all(axis=1).sum())

    def search_patch(self, spacing: np.ndarray, median_shape: np.ndarray, sizes: tuple[int, int]) -> list[int]:
        """As of `PatchSearch`.

        Raises:
            InputError: more entries than the median image has, or as `PatchSearch`.
        """
        largest = self.fitted_patch(median_shape, spacing)
        if (useful := self._useful_entries(largest, spacing)) < self.entries:
            raise InputError(
                f"--entries {self.entries} for images of {median_shape.astype(int).tolist()} voxels, the median",
                f"at most {useful}, the last of {LEAST_ENTRY} voxels or more in plane",
                "correct it, or choose a larger --patch-size",
            )
        return super().search_patch(spacing, median_shape, sizes)

    def architecture_kwargs(self, patch_size: list[int], spacing: np.ndarray) -> dict[str, Any]:
        strides, kernel_sizes, _ = topology(spacing.tolist(), patch_size)
        if self.entries > len(strides):
            raise InputError(
                f"--entries {self.entries} with a network of {len(strides)} stages at a patch of {patch_size}",
                f"1 to {len(strides)}, one per stage at most",
                "choose fewer, or a larger --patch-size",
            )
        return {
            "spatial_shape": patch_size,
            "strides": strides,
            "kernel_sizes": kernel_sizes,
            "entries": self.entries,
            "features": 16,
            "max_features": 320,
            "tokens": 512,
            **self.checkpointing(),
        }

    def elements(self, network: Any, patch_size: list[int]) -> float:
        weights = self.training.get("hierarchical", {}).get("entry_weights")
        return elements_of_entries(network, weights or halving(self.entries))

    def training_block(self, block: Mapping[str, Any], configuration: Mapping[str, Any]) -> dict[str, Any]:
        resolved = super().training_block(block, configuration)
        group = resolved["hierarchical"]
        group["entry_weights"] = group["entry_weights"] or halving(self.entries)
        return resolved
