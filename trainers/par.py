"""PaRTrainer: trains the post-axial refiner together with the network that it refines.

Paper: Huang et al., "Volumetric Axial Disentanglement Enabling Advancing in Medical Image Segmentation", IJCAI 2025.
"""

from nnunetv2_ext.architectures.par import PaRNetwork
from nnunetv2_ext.training.backbones import TrainerOfBackbones


class PaRTrainer(TrainerOfBackbones):
    """Trains the refiner on the network of any 3D plans: PaRPlans, BackbonePlans, stock plans or MNetPlans."""

    network_class = PaRNetwork
