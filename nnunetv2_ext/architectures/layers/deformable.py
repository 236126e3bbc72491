"""Deformable attention over the maps of a pyramid.

Paper: Zhu et al., "Deformable DETR: Deformable Transformers for End-to-End Object Detection", ICLR 2021 (section 4.1,
multi-scale). Written from the formula, over PyTorch's `grid_sample`; no kernel to compile.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class DeformableAttention(nn.Module):
    """Each query looks at a few points around its own place, on every level of a pyramid, and weighs what is there.

    With q a query at the place p, V_l = W_V F_l the values of level l and s_l its size in pixels, each head gives

        sum_l sum_k A_lk V_l(p + D_lk / s_l),     D = W_D q + b_D,     A = softmax over all l, k of (W_A q + b_A)

    and W_O joins the heads. Between pixels V_l is bilinear, outside the map 0. At first A is uniform, and the points of
    head h lie 1, 2, ... pixels away in direction h of as many as there are heads.

    Args:
        width: features of queries and maps; the heads divide it.
        levels: of the pyramid.
        points: per level and head.
    """

    def __init__(self, width: int, *, levels: int, heads: int, points: int):
        super().__init__()
        self.levels, self.heads = levels, heads
        self.values = nn.Conv2d(width, width, 1)
        self.offsets = nn.Linear(width, heads * levels * points * 2)
        self.weights = nn.Linear(width, heads * levels * points)
        self.projection = nn.Linear(width, width)
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)
        with torch.no_grad():
            self.offsets.bias.copy_(_compass(heads, levels, points))

    def forward(self, query: Tensor, places: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """(B, N, D) -> (B, N, D).

        Args:
            places: of the queries, (N, 2): x and y in shares of the maps' width and height.
            maps: one per level, (B, D, h, w) of any sizes.
        """
        weights = self.weights(query).unflatten(-1, (self.heads, -1)).softmax(-1)
        weights = rearrange(weights, "b n h (l p) -> l (b h) 1 n p", l=self.levels)
        offsets = self.offsets(query).unflatten(-1, (self.heads, self.levels, -1, 2))
        offsets = rearrange(offsets, "b n h l p xy -> l (b h) n p xy")
        found = []
        for level, of_level in enumerate(maps):
            values = self.values(of_level).unflatten(1, (self.heads, -1)).flatten(0, 1)  # (B * heads, d, h, w)
            height, width = of_level.shape[2:]
            x, y = offsets[level].unbind(-1)
            # in the precision of the places, under autocast, too; [0, 1] -> [-1, 1], as grid_sample has them
            looked_at = torch.stack([places[:, :1] + x / width, places[:, 1:] + y / height], -1) * 2 - 1
            sampled = F.grid_sample(values.to(looked_at.dtype), looked_at, align_corners=False)
            found.append((sampled * weights[level]).sum(-1))  # (B * heads, d, N, points) -> (B * heads, d, N)
        out: Tensor = self.projection(torch.stack(found).sum(0).reshape(query.mT.shape).mT)
        return out


def pixel_places(height: int, width: int, like: Tensor) -> Tensor:
    """The centres of a map's pixels, row by row: x and y in shares of width and height, (height * width, 2)."""
    y, x = ((torch.arange(size, device=like.device, dtype=like.dtype) + 0.5) / size for size in (height, width))
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], -1)


def _compass(heads: int, levels: int, points: int) -> Tensor:
    """Offsets in pixels: a direction per head, on the edge of a square as its 8 neighbours lie around a pixel."""
    angles = torch.arange(heads) * (2 * math.pi / heads)
    directions = torch.stack([angles.cos(), angles.sin()], -1)
    directions = directions / directions.abs().amax(-1, keepdim=True)  # (heads, 2)
    steps = torch.arange(1, points + 1)
    # (heads, levels, points, 2)
    return (directions[:, None, None] * steps[:, None]).expand(-1, levels, -1, -1).flatten()
