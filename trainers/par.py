"""PaRTrainer: trains the post-axial refiner together with the network that it refines.

Paper: Huang et al., "Volumetric Axial Disentanglement Enabling Advancing in Medical Image Segmentation", IJCAI 2025.
"""

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunetv2_ext.architectures.par import PaRNetwork
from nnunetv2_ext.training.backbones import TrainerOfBackbones


class PaRTrainer(TrainerOfBackbones):
    """Trains the refiner on the network of any 3D plans: PaRPlans, BackbonePlans, stock plans or MNetPlans."""

    network_class = PaRNetwork

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        return PaRTrainer._network(
            configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
