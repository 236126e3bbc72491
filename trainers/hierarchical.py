"""HierarchicalTrainer: trains the segmentor that leaves out its first stages where its input is small.

Paper: Kim et al., "Multi-Stage Hierarchical Feature Extraction for Efficient 3D Medical Image Segmentation", CMC 2025.
"""

from typing import Any, ClassVar

from nnunetv2_ext.block import method_defaults
from nnunetv2_ext.training.hierarchical import TrainerOfEntries


class HierarchicalTrainer(TrainerOfEntries):
    """Trains the segmentor on HierarchicalPlans, or on any 3D plans with their patch and nnU-Net's strides."""

    # the weight decay is that of Slim UNETR; the clip is ours, the paper tells neither
    published_block: ClassVar[dict[str, Any]] = {
        "optimizer": {"name": "AdamW", "lr": 1e-3, "weight_decay": 0.05},
        "scheduler": {"name": "warmup_poly"},
        "grad_clip": 1.0,
        "hierarchical": method_defaults("hierarchical"),
    }
