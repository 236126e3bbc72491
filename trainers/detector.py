"""DetectorTrainer: trains a network that finds a box around each organ, for prediction inside it.

Paper: Kim et al., "Multi-Stage Hierarchical Feature Extraction for Efficient 3D Medical Image Segmentation", CMC 2025.
"""

from typing import Any, ClassVar

from nnunetv2_ext.block import method_defaults
from nnunetv2_ext.training.detector import TrainerOfBoxes


class DetectorTrainer(TrainerOfBoxes):
    """Trains the detector of DetectorPlans, or one with its default arguments on any 3D plans."""

    # ours: the paper names neither its optimizer nor its rate
    published_block: ClassVar[dict[str, Any]] = {
        "optimizer": {"name": "AdamW", "lr": 1e-3},
        "scheduler": {"name": "warmup_poly"},
        "grad_clip": 1.0,
        "detector": method_defaults("detector"),
    }
