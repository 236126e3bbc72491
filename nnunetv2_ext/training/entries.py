"""What planner and trainer of a network with entries share: strides, weights of the losses, memory of all passes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.text import listed

ENTRIES = 3
LEAST_EDGE = 4
"""Voxels of the coarsest feature map along an axis that is halved, at least: nnU-Net's number."""
LEAST_HALVED = 4
"""By how much an axis of a patch of other plans shrinks, at least, where nnU-Net's rule shrinks it as much."""
Triples = list[list[int]]


def halving(entries: int) -> list[float]:
    """Weights of so many entries, each half of that above it."""
    return [0.5**entry for entry in range(entries)]


def topology(spacing: Sequence[float], patch_size: Sequence[int]) -> tuple[Triples, Triples, list[int]]:
    """nnU-Net's rule.

    Args:
        spacing: mm along z, y, x.
        patch_size: voxels along z, y, x.

    Returns:
        strides and kernel sizes of every stage, and the patch rounded up to what all strides divide.
    """
    patch = [int(size) for size in patch_size]
    _, strides, kernels, padded, _ = get_pool_and_conv_props(np.asarray(spacing, float), patch, LEAST_EDGE, 999999)
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


def elements_of_entries(network: Any, weights: Sequence[float]) -> float:
    """Elements of feature maps per sample in a step that passes each entry whose loss has a weight, the first anyway.

    In the measure of `nnunetv2_ext.memory`; the crops are smaller than the patch and leave stages out.
    """
    pairs = zip(network.entry_shapes, [1.0, *weights[1:]], strict=True)
    return sum(float(network.compute_conv_feature_map_size(shape)) for shape, weight in pairs if weight)
