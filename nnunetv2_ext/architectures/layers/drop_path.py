"""Stochastic depth: Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016."""

import torch
from torch import Tensor


def drop_path(branch: Tensor, probability: float, *, training: bool) -> Tensor:
    """A residual branch, left out for some samples in training; those that stay are scaled up to the same mean.

    Args:
        branch: (B, ...).
        probability: with which a sample loses the branch, in [0, 1).
    """
    if not training or probability == 0:
        return branch
    kept = torch.rand(len(branch), *[1] * (branch.ndim - 1), device=branch.device) >= probability
    return branch * (kept / (1 - probability)).to(branch.dtype)
