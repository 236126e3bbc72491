"""BackboneTrainer: trains a backbone of the list without a refiner.

The backbones' papers stand in the list (`nnunetv2_ext list`).
"""

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunetv2_ext.architectures.backbones import BackboneNetwork
from nnunetv2_ext.training.backbones import TrainerOfBackbones


class BackboneTrainer(TrainerOfBackbones):
    """Trains the network of any 3D plans: BackbonePlans, stock plans, MNetPlans, or the backbone of PaRPlans."""

    network_class = BackboneNetwork

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        return BackboneTrainer._network(
            configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
