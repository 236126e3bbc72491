"""nnU-Net's measure of GPU memory: elements of feature maps, against a reference that fills 8 GB."""

# ExperimentPlanner (nnunetv2 2.8): a 3D network that counts this many elements per sample fills 8 GB at batch 2
REFERENCE_ELEMENTS, REFERENCE_GB, REFERENCE_BATCH = 560_000_000, 8, 2


def memory_gb(feature_map_size: float, batch_size: int) -> float:
    """The GPU memory (GB) in training that nnU-Net's planner assumes for a network.

    Args:
        feature_map_size: `network.compute_conv_feature_map_size(patch_size)`, elements per sample.
    """
    return feature_map_size / REFERENCE_ELEMENTS * batch_size / REFERENCE_BATCH * REFERENCE_GB
