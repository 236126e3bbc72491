"""Where the voxels of an image lie among those of its logits, as nnU-Net 2.8's resampling has it.

Both cover the same length along every axis, and values between two centres are interpolated linearly.

Across thick slices (spacing along one axis above three times that of another, in the plans or in the image) nnU-Net's
preprocessing takes the nearest slice of the image for every slice of the plans' grid, and its export the nearest slice
of logits for every slice of the image. Where the image's slices are closer than the plans', some are never shown to the
network, and get the labels of a neighbour. `linear_z` interpolates their logits between those of the nearest slices on
either side that were shown, which keep the labels that nnU-Net gives them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from nnunetv2.configuration import ANISO_THRESHOLD
from nnunetv2.preprocessing.resampling.default_resampling import determine_do_sep_z_and_axis
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunetv2_ext.geometry.slabs import nearest_slices

DEFAULT = "resample_data_or_seg_to_shape"
"""nnU-Net's resampling, for images as for logits, and its options."""
DEFAULTS: Mapping[str, Any] = {
    "is_seg": False,
    "order": 3,
    "order_z": 0,
    "force_separate_z": False,
    "separate_z_anisotropy_threshold": ANISO_THRESHOLD,
}

Places = Callable[[int, int], np.ndarray]
"""From the number of the logits' voxels along an axis and that of the image's to the place of each of the image's."""


def resampling(
    logits: torch.Tensor,
    shape: Sequence[int],
    configuration: ConfigurationManager,
    spacing: Sequence[float],
    *,
    linear_z: bool = False,
) -> tuple[torch.Tensor, Sequence[Places]]:
    """How logits get to an image's grid: the logits, and for each axis what gives the places of the image's voxels.

    What nnU-Net's default function does is left to the places. Logits that another one resamples come resampled.

    Args:
        logits: (heads, *grid of the preprocessed image).
        shape: of the image, cropped, in the axes' order of the logits.
        configuration: of the plans.
        spacing: of the image in mm, in the axes' order of the logits.
        linear_z: interpolate slices that the network was not shown.
    """
    current = list(configuration.spacing)
    if len(current) < len(shape):  # a 2D configuration keeps the slices
        current = [spacing[0], *current]
    options = {**DEFAULTS, **configuration.configuration["resampling_fn_probabilities_kwargs"]}
    if (
        configuration.configuration["resampling_fn_probabilities"] != DEFAULT
        or options.keys() != DEFAULTS.keys()
        or (options["is_seg"], options["order"]) != (False, 1)
        or options["order_z"] not in (0, 1)
    ):
        resampled = configuration.resampling_fn_probabilities(logits.cpu(), shape, current, spacing)
        return torch.as_tensor(resampled), [_linear] * 3
    places: list[Places] = [_linear] * 3
    nearest = _nearest_axis(options, current, spacing)
    if nearest is not None and not linear_z:
        places[nearest] = nearest_slices
    elif nearest is not None and configuration.configuration["resampling_fn_data"] == DEFAULT:
        options = {**DEFAULTS, **configuration.configuration["resampling_fn_data_kwargs"]}
        if nearest == _nearest_axis(options, spacing, current):
            places[nearest] = _between_shown
    return logits, places


def _nearest_axis(options: Mapping[str, Any], spacing: Sequence[float], new_spacing: Sequence[float]) -> int | None:
    """The axis across whose slices nnU-Net's default resampling takes the nearest one."""
    separate, axis = determine_do_sep_z_and_axis(
        options["force_separate_z"], spacing, new_spacing, options["separate_z_anisotropy_threshold"]
    )
    return int(axis) if separate and axis is not None and options["order_z"] == 0 else None


def _linear(count: int, resampled: int) -> np.ndarray:
    """Where the centres of `resampled` voxels lie among those of `count` that cover the same length, but not beyond."""
    return np.clip(count / resampled * (np.arange(resampled) + 0.5) - 0.5, 0, count - 1)


def _between_shown(count: int, stored: int) -> np.ndarray:
    """Where `stored` slices lie among `count` of which each shows the nearest of them: float64.

    Those that are shown lie where nnU-Net takes them from, the others in between.
    """
    shown = np.unique(nearest_slices(stored, count))
    return np.interp(np.arange(stored), shown, nearest_slices(count, stored)[shown])


def along(values: np.ndarray, axis: int, positions: np.ndarray) -> np.ndarray:
    """Interpolate linearly along one axis."""
    lower = np.floor(positions).astype(np.intp)
    weight = positions - lower
    if not weight.any():
        same = np.array_equal(lower, np.arange(values.shape[axis]))
        return values if same else values.take(lower, axis)
    result = values.take(lower, axis)
    step = values.take(np.minimum(lower + 1, values.shape[axis] - 1), axis)
    step -= result
    step *= weight.reshape([-1] + [1] * (values.ndim - 1 - axis))
    result += step
    return result
