"""The loss of HyperSORT for one case: cross-entropy, soft Dice of every class, and the length of its latent.

After Joutard et al., "HyperSORT: Self-Organising Robust Training with hyper-networks", MICCAI 2025. Regions,
by sigmoid, and voxels that are ignored are ours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-8


def case_loss(logits: Tensor, target: Tensor, *, regions: bool = False, valid: Tensor | None = None) -> Tensor:
    """Mean cross-entropy + mean over the classes, background too, of 1 - soft Dice.

    Args:
        logits: (C, Z, Y, X).
        target: (Z, Y, X), int64; of regions (C, Z, Y, X), bool.
        regions: C regions, each with its sigmoid, in place of C exclusive labels.
        valid: (Z, Y, X), bool, the voxels that count; all by default.

    Returns:
        A scalar; 0 where no voxel counts.
    """
    if regions:
        truth = target.to(logits)
        entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(0)  # (Z, Y, X)
        probabilities = torch.sigmoid(logits)
    else:
        entropy = F.cross_entropy(logits[None], target[None], reduction="none")[0]
        probabilities = torch.softmax(logits, 0)
        truth = F.one_hot(target, len(logits)).movedim(-1, 0).to(logits)  # (Z, Y, X, C) -> (C, Z, Y, X)
    if valid is not None:
        counted = valid.to(logits)
        entropy, probabilities, truth = entropy * counted, probabilities * counted, truth * counted
        voxels = counted.sum().clamp_min(1)
    else:
        voxels = torch.full_like(entropy.sum(), entropy.numel())
    both, either = (probabilities * truth).flatten(1).sum(1), (probabilities + truth).flatten(1).sum(1)
    dice = 2 * both / (either + EPSILON)
    overlap = (1 - dice).mean()
    if valid is not None:
        overlap = overlap * valid.any()
    return entropy.sum() / voxels + overlap


def latent_penalty(latent: Tensor) -> Tensor:
    """The sum of a latent vector's absolute values."""
    return latent.abs().sum()
