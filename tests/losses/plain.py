"""Slabs, random tensors and the averages over slabs, evaluated directly in double precision."""

import torch
import torch.nn.functional as F
from torch import Tensor

SLICES, SIZE = 12, (3, 4)
IGNORE = 9


def slab_rows(thickness: float, *, start: float = 0.0, gap: float = 0.0, slabs: int = 6) -> Tensor:
    """P of slabs of that thickness over 12 slices of 1 mm, (slabs, 12); zeros where a slab is not covered wholly."""
    rows = torch.zeros(slabs, SLICES, dtype=torch.float64)
    for t in range(slabs):
        a = start + t * (thickness + gap)
        b = a + thickness
        if b <= SLICES + 1e-9:
            for s in range(SLICES):
                rows[t, s] = max(0.0, min(b, s + 1) - max(a, s)) / thickness
    return rows


MATRICES = {
    "whole ratios": torch.stack([slab_rows(2), slab_rows(4)]),
    "ratio 3.7 and gaps": torch.stack([slab_rows(3.7, start=0.6), slab_rows(2.5, gap=1.2)]),
    "slices thicker than slabs": torch.stack([slab_rows(0.4, start=1.8), slab_rows(0.7)]),
    "one slab, none": torch.stack([slab_rows(12), slab_rows(20)]),
}


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale


def dense_logits(logits: Tensor, slabs: Tensor, *, beta: float, regions: bool) -> Tensor:
    """What `slab_logits` says, slab by slab."""
    if regions:
        pair = torch.stack([torch.zeros_like(logits), logits], dim=1)  # (B, 2, C, S, Y, X)
        logs = F.log_softmax(pair, dim=1)
    else:
        logs = F.log_softmax(logits, dim=1)[:, None]
    result = torch.zeros(*logs.shape[:3], slabs.shape[1], *logs.shape[4:], dtype=logits.dtype)
    for b, t in (slabs.sum(-1) > 0).nonzero().tolist():
        inside = slabs[b, t] > 0
        weight = slabs[b, t][inside].log()[None, None, :, None, None]
        result[b, :, :, t] = torch.logsumexp(logs[b][:, :, inside] + weight, dim=2)
    return beta * (result[:, 1] - result[:, 0] if regions else result[:, 0])
