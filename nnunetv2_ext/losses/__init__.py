"""Losses: PyTorch only, they know nothing of nnU-Net."""

from nnunetv2_ext.losses.thin_thick import ThinThickLoss, mark_ignored, slab_features, slab_logits

__all__ = ["ThinThickLoss", "mark_ignored", "slab_features", "slab_logits"]
