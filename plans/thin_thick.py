"""ThinThickPlanner: plans for thin images with thick annotations.

Paper: Gang, "A Novel Convolutional-Free Method for 3D Medical Imaging Segmentation", 2025, section 3.6.
"""

from nnunetv2_ext.architectures.backbones import DEFAULT_BACKBONE
from nnunetv2_ext.planning.options import Option
from nnunetv2_ext.planning.thin_thick import PlannerOfSlabs


class ThinThickPlanner(PlannerOfSlabs):
    """Plans any network for a data set of `convert_thin_thick`: slice axis first, a patch that covers whole slabs."""

    trainer = "ThinThickTrainer"
    plans_name = "ThinThickPlans"

    backbone = Option(
        DEFAULT_BACKBONE, "any network, NAME, PaR:NAME or ConvFreeTransformer:block, with the flags of its planner"
    )
