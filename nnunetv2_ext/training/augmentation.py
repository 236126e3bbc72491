"""nnU-Net's augmentation for patches of any number of slices, and the same on every machine.

Two of nnU-Net's transforms raise on a short axis, at random: the blur pads by reflection, which takes an axis longer
than the kernel's radius, and the simulated low resolution rounds one slice to none. Ours leave such an axis as it is.
They draw the same random numbers and do the same on longer axes.
"""

import math
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform

SAFE_SLICES = 4
"""From this length of an axis on, nnU-Net's own augmentation takes it."""
UNBLURRED = 1e-3
"""A sigma whose kernel is a single 1."""


def blur_radius(sigma: float) -> int:
    """How many voxels nnU-Net's Gaussian kernel reaches to each side, of 6 sigma + 0.5 voxels rounded to an odd number.

    Padding by reflection takes an axis that is longer.
    """
    return math.floor(3 * sigma + 0.25)


class BlurOfLongAxes(GaussianBlurTransform):
    """nnU-Net's blur, along each axis that is long enough for its kernel.

    It always convolves directly. nnU-Net's measures whether the Fourier transform is faster, which for its small
    kernels it is not, but which would make the last bits depend on the load of the machine.
    """

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        parameters: dict[str, Any] = super().get_parameters(**data_dict)
        sizes = data_dict["image"].shape[1:]
        for sigmas in [parameters["sigmas"]] if self.synchronize_channels else parameters["sigmas"]:
            for axis, size in enumerate(sizes):
                if blur_radius(sigmas[axis]) >= size:
                    sigmas[axis] = UNBLURRED
        return parameters


class LowResolutionOfLongAxes(SimulateLowResolutionTransform):
    """nnU-Net's simulated low resolution, which leaves at least one voxel of each axis."""

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        parameters: dict[str, Any] = super().get_parameters(**data_dict)
        if len(parameters["scales"]):
            sizes = torch.tensor(data_dict["image"].shape[1:])
            parameters["scales"] = torch.maximum(parameters["scales"], 0.51 / sizes)  # 0.5 is rounded to 0
        return parameters


def for_few_slices(transform: BasicTransform) -> BasicTransform:
    """The transforms with ours in the place of those two of nnU-Net's; changed in place, but for the two."""
    if isinstance(transform, ComposeTransforms):
        transform.transforms = [for_few_slices(part) for part in transform.transforms]
    elif isinstance(transform, RandomTransform):
        transform.transform = for_few_slices(transform.transform)
    elif type(transform) is GaussianBlurTransform:
        return BlurOfLongAxes(
            transform.blur_sigma, transform.synchronize_channels, transform.synchronize_axes, transform.p_per_channel
        )
    elif type(transform) is SimulateLowResolutionTransform:
        return LowResolutionOfLongAxes(
            transform.scale,
            transform.synchronize_channels,
            transform.synchronize_axes,
            transform.ignore_axes,
            transform.allowed_channels,
            transform.p_per_channel,
        )
    return transform
