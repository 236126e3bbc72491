"""Sines and cosines of positions: Vaswani et al., "Attention is all you need", 2017, section 3.5."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_WAVELENGTH = 10_000


def sequence_code(length: int, like: Tensor) -> Tensor:
    """Sines and cosines of "Attention is all you need" (section 3.5): (length, D), in the dtype of `like`, (D, ...)."""
    return _code(length, len(like), like.device).to(like.dtype)


def axial_code(grid: Sequence[int], like: Tensor) -> Tensor:
    """The same for each axis in its share of the dimensions, whole pairs; what is left over is 0: (N, D)."""
    width = len(like) // (2 * len(grid)) * 2
    code = torch.zeros(*grid, len(like), device=like.device)
    for axis, length in enumerate(grid):
        shape = [1] * len(grid) + [width]
        shape[axis] = length
        code[..., axis * width : (axis + 1) * width] = _code(length, width, like.device).reshape(shape)
    return code.reshape(math.prod(grid), -1).to(like.dtype)


def _code(length: int, width: int, device: torch.device) -> Tensor:
    frequencies = _WAVELENGTH ** (-torch.arange(0, width, 2, device=device) / max(width, 1))
    angles = torch.arange(length, device=device)[:, None] * frequencies  # (length, pairs)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :width]
