"""Losses: PyTorch only, they know nothing of nnU-Net."""

from nnunetv2_ext.losses.boxes import BoxLoss
from nnunetv2_ext.losses.thin_thick import ThinThickLoss, mark_ignored, slab_features, slab_logits

__all__ = ["BoxLoss", "ThinThickLoss", "mark_ignored", "slab_features", "slab_logits"]
