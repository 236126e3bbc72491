"""What planner and trainer of a network with entries share: weights of the losses, memory of all passes."""

from collections.abc import Sequence
from typing import Any

ENTRIES = 3


def halving(entries: int) -> list[float]:
    """Weights of so many entries, each half of that above it."""
    return [0.5**entry for entry in range(entries)]


def elements_of_entries(network: Any, weights: Sequence[float]) -> float:
    """Elements of feature maps per sample in a step that passes each entry whose loss has a weight, the first anyway.

    In the measure of `nnunetv2_ext.memory`; the crops are smaller than the patch and leave stages out.
    """
    pairs = zip(network.entry_shapes, [1.0, *weights[1:]], strict=True)
    return sum(float(network.compute_conv_feature_map_size(shape)) for shape, weight in pairs if weight)
