"""Networks: PyTorch only, they know nothing of nnU-Net."""

from nnunetv2_ext.architectures.backbones import BackboneNetwork
from nnunetv2_ext.architectures.convfree import ConvFreeTransformer
from nnunetv2_ext.architectures.mnet import MNet
from nnunetv2_ext.architectures.par import PaR, PaRNetwork

__all__ = ["BackboneNetwork", "ConvFreeTransformer", "MNet", "PaR", "PaRNetwork"]
