"""The patch: the largest that fits the memory, or the user's own if the network takes it."""

import warnings
from bisect import bisect_left
from typing import Any, ClassVar

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.memory import memory_gb


class PatchSearch(ExperimentPlanner):
    """The part of our planners that finds a patch; what a network needs of it stands in `ExtPlanner`."""

    min_patch: ClassVar[tuple[int, int, int]]

    def fitted_patch(self, patch_size: np.ndarray, spacing: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def suits(self, patch_size: np.ndarray, spacing: np.ndarray) -> bool:
        raise NotImplementedError

    def feature_map_size(
        self, patch_size: list[int], spacing: np.ndarray, input_channels: int, output_channels: int
    ) -> float:
        raise NotImplementedError

    def weights_gb(
        self, patch_size: list[int], spacing: np.ndarray, input_channels: int, output_channels: int
    ) -> float:
        raise NotImplementedError

    def search_patch(self, spacing: np.ndarray, median_shape: np.ndarray, sizes: tuple[int, int]) -> list[int]:
        """The largest patch (voxels) that fits the memory target at the smallest batch.

        It starts, as nnU-Net's, from a cube in millimetres of 256^3 voxels clipped to the median shape, and loses
        slices or in-plane voxels wherever it is largest relative to the median shape.

        Raises:
            InputError: not even the smallest patch fits.
        """
        cube = np.round(256 / spacing * np.prod(spacing) ** (1 / 3))
        patches = [self.fitted_patch(np.minimum(cube, median_shape), spacing)]
        while (smaller := self._shrunk(patches[-1], spacing, median_shape)) is not None:
            patches.append(smaller)
        largest = patches[0].tolist()
        patches = [patch for patch in patches if self.suits(patch, spacing)]
        if not patches:
            raise InputError(
                f"no patch up to {largest} voxels that {type(self).__name__} can use",
                f"images of more than {median_shape.astype(int).tolist()} voxels, the median",
                "choose a --patch-size",
            )

        def needed(patch: np.ndarray) -> float:
            elements = self.feature_map_size(patch.tolist(), spacing, *sizes)
            weights = self.weights_gb(patch.tolist(), spacing, *sizes)
            return memory_gb(elements, self.UNet_min_batch_size) + weights

        # the patches only shrink, so a few of them tell where they begin to fit
        first = bisect_left(patches, True, key=lambda patch: needed(patch) <= self.UNet_vram_target_GB)
        if first == len(patches):
            smallest = patches[-1].tolist()
            weights = self.weights_gb(smallest, spacing, *sizes)
            raise InputError(
                f"a GPU memory target of {self.UNet_vram_target_GB} GB",
                f"at least {np.ceil(1000 * needed(patches[-1])) / 1000:g} GB for the smallest patch {smallest}"
                + (f", of which weights and optimizer take {weights:.3g} GB" if weights else ""),
                "raise -gpu_memory_target",
            )
        return [int(size) for size in patches[first]]

    def _shrunk(self, patch: np.ndarray, spacing: np.ndarray, median_shape: np.ndarray) -> np.ndarray | None:
        """The next smaller patch that the network takes, or None below the smallest."""
        for axis in np.argsort(-patch / median_shape, kind="stable"):
            for size in range(patch[axis] - 1, self.min_patch[axis] - 1, -1):
                smaller = self.fitted_patch(np.array([*patch[:axis], size, *patch[axis + 1 :]]), spacing)
                if smaller[axis] < patch[axis] and (smaller <= patch).all():
                    return smaller
        return None

    def warn_of_padding(self, name: str, configuration: dict[str, Any]) -> None:
        """Say where rounding adds more than half to what the data fill."""
        patch_size = configuration["patch_size"]
        median_shape = np.array(configuration["median_image_size_in_voxels"])
        filled = np.minimum(patch_size, np.maximum(np.ceil(median_shape), self.min_patch))
        added = np.prod(patch_size) / np.prod(filled) - 1
        if added > 0.5:
            warnings.warn(
                f"the patch {patch_size} of {name} is rounded up from at most "
                f"{[int(size) for size in filled]} of the data, which adds {added:.0%}; a network of finer size rules "
                "or a smaller --patch-size would compute less",
                stacklevel=2,
            )

    def checked_patch(self, patch_size: list[int], spacing: np.ndarray) -> list[int]:
        """The user's patch.

        Raises:
            InputError: a patch that the network cannot take.
        """
        given = np.array(patch_size)
        if given.min() < 1:
            raise InputError(f"a patch of {patch_size}", "three positive numbers (z, y, x)", "correct --patch-size")
        fitted = self.fitted_patch(given, spacing)
        if (fitted != given).any():
            below = self._fitted_below(given, spacing)
            raise InputError(
                f"a patch of {patch_size}",
                "a size that the network takes, "
                + ("" if below is None else f"{below.tolist()} or ")
                + f"{fitted.tolist()} for instance",
                "correct --patch-size, or leave it out",
            )
        return [int(size) for size in given]

    def _fitted_below(self, patch_size: np.ndarray, spacing: np.ndarray) -> np.ndarray | None:
        """The nearest patch that the network takes, smaller along each axis that does not fit, or None."""
        below = patch_size
        while (larger := self.fitted_patch(below, spacing) > below).any():
            below = below - larger
            if below.min() < 1:
                return None
        return below
