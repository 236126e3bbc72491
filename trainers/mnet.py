"""MNetTrainer: trains MNet.

Paper: Dong et al., "MNet: Rethinking 2D/3D Networks for Anisotropic Medical Image Segmentation", IJCAI 2022.
"""

from typing import Any, ClassVar

from nnunetv2_ext.architectures.mnet import MNet
from nnunetv2_ext.training.trainer import ExtTrainer


class MNetTrainer(ExtTrainer):
    """Trains MNet on MNetPlans, or on any 3D plans with MNet's default features."""

    network_class = MNet
    published_block: ClassVar[dict[str, Any]] = {
        "epochs": 500,
        "deep_supervision_weights": [1, 1 / 2, 1 / 2, 1 / 4, 1 / 4, 1 / 8, 1 / 8],
    }
