"""BackboneTrainer: trains a backbone of the list without a refiner.

The backbones' papers stand in the list (`nnunetv2_ext list`).
"""

from nnunetv2_ext.architectures.backbones.network import BackboneNetwork
from nnunetv2_ext.training.backbones import TrainerOfBackbones


class BackboneTrainer(TrainerOfBackbones):
    """Trains the network of any 3D plans: BackbonePlans, stock plans, MNetPlans, or the backbone of PaRPlans."""

    network_class = BackboneNetwork
