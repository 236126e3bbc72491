"""ThinThickTrainer: trains any network to segment thin slices from annotations of thick ones.

Paper: Gang, "A Novel Convolutional-Free Method for 3D Medical Imaging Segmentation", 2025, section 3.6.
"""

from typing import Any, ClassVar

from nnunetv2_ext.block import method_defaults
from nnunetv2_ext.training.thin_thick import TrainerOfSlabs


class ThinThickTrainer(TrainerOfSlabs):
    """Trains the network of ThinThickPlans, or of any 3D plans with the slice axis first."""

    published_block: ClassVar[dict[str, Any]] = {"thin_thick": method_defaults("thin_thick")}
