"""nnU-Net's measure of GPU memory: elements of feature maps, against a reference that fills 8 GB."""

from collections.abc import Mapping
from typing import Any

from nnunetv2_ext.schema import THICK_GRID

# ExperimentPlanner (nnunetv2 2.8): by number of axes, the elements per sample and the batch that fill 8 GB
REFERENCE_GB = 8
REFERENCES = {2: (85_000_000, 12), 3: (560_000_000, 2)}

# float32 values per parameter in training: weight, gradient, and the optimizer's moments
COPIES = {"SGD": 3, "AdamW": 4}


def weights_gb(parameters: int, optimizer: str) -> float:
    """The GPU memory (GB) of trained parameters with their gradients and the optimizer's moments, in float32."""
    return 4e-9 * COPIES[optimizer] * parameters


def memory_gb(feature_map_size: float, batch_size: int, *, axes: int = 3) -> float:
    """The GPU memory (GB) in training that nnU-Net's planner assumes for a network.

    Args:
        feature_map_size: `network.compute_conv_feature_map_size(patch_size)`, elements per sample.
        axes: 2 or 3, of the patch.
    """
    elements, batch = REFERENCES[axes]
    return feature_map_size / elements * batch_size / batch * REFERENCE_GB


def passes(block: Mapping[str, Any], slices: int) -> float:
    """Passes of a training step over a patch of so many slices, each counting by its share of them.

    1, but with `thin_thick` also the thick image's, on the thin grid where the block does not say.
    """
    group = block.get("thin_thick")
    if group is None or not (group["thick_weight"] or group["features_weight"]):
        return 1.0
    return 1.0 + (group["slabs"] / slices if group["thick_image"] == THICK_GRID and group["slabs"] else 1.0)
