"""Strides and kernels of a U-Net's stages, as nnU-Net plans them from spacing and patch."""

from collections.abc import Sequence

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.text import listed

LEAST_EDGE = 4
"""nnU-Net's `UNet_featuremap_min_edge_length`."""
LEAST_HALVED = 4
"""By how much an axis of a patch of other plans shrinks, at least, where nnU-Net's rule shrinks it as much."""
Triples = list[list[int]]


def topology(
    spacing: Sequence[float], patch_size: Sequence[int], least_edge: int = LEAST_EDGE
) -> tuple[Triples, Triples, list[int]]:
    """nnU-Net's rule.

    Args:
        spacing: mm along z, y, x.
        patch_size: voxels along z, y, x.
        least_edge: voxels of the coarsest feature map along an axis that is halved, at least.

    Returns:
        strides and kernel sizes of every stage, and the patch rounded up to what all strides divide.
    """
    patch = [int(size) for size in patch_size]
    _, strides, kernels, padded, _ = get_pool_and_conv_props(np.asarray(spacing, float), patch, least_edge, 999999)
    return list(map(list, strides)), list(map(list, kernels)), [int(size) for size in padded]


def topology_of_patch(spacing: Sequence[float], patch_size: Sequence[int]) -> tuple[Triples, Triples]:
    """Strides and kernel sizes of nnU-Net's rule as far as they divide a patch that was planned by other rules.

    An axis is halved for as long as it is even; stages at which no axis is left to halve are left out.

    Raises:
        InputError: an axis that the rule halves twice or more would be halved once or not at all.
    """
    strides, kernels, padded = topology(spacing, patch_size)
    left = [int(size) for size in patch_size]
    kept = []
    for number, (stride, kernel) in enumerate(zip(strides, kernels, strict=True)):
        fitting = [step if size % step == 0 else 1 for size, step in zip(left, stride, strict=True)]
        if number == 0 or max(fitting) > 1:
            kept.append((fitting, kernel))
            left = [size // step for size, step in zip(left, fitting, strict=True)]
    asked, done = (np.prod(of_stages, axis=0) for of_stages in (strides, [stride for stride, _ in kept]))
    if (done < np.minimum(asked, LEAST_HALVED)).any():
        raise InputError(
            f"a patch of {list(patch_size)} at a spacing of {listed(map(float, spacing))} mm",
            f"multiples of {LEAST_HALVED} along the axes that nnU-Net's rule halves, {padded} for instance",
            "plan with HierarchicalPlanner, or correct patch_size",
        )
    return [stride for stride, _ in kept], [kernel for _, kernel in kept]
