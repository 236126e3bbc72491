"""Networks: PyTorch only, they know nothing of nnU-Net."""

from nnunetv2_ext.architectures.mnet import MNet

__all__ = ["MNet"]
