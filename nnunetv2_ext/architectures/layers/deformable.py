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
        # (B, N, heads * levels * points * 2) -> (levels, B * heads, N, points, 2)
        offsets = rearrange(self.offsets(query), "b n (h l p xy) -> l (b h) n p xy", h=self.heads, l=self.levels, xy=2)
        # (B, N, heads * levels * points) -> (levels, B * heads, 1, N, points)
        weights = rearrange(self.weights(query), "b n (h s) -> (b h) 1 n s", h=self.heads).softmax(-1)
        weights = rearrange(weights, "b 1 n (l p) -> l b 1 n p", l=self.levels)
        looked_up = []
        for level, of_level in enumerate(maps):
            height, width = of_level.shape[2:]
            values = rearrange(self.values(of_level), "b (h d) y x -> (b h) d y x", h=self.heads)
            x, y = offsets[level].unbind(-1)
            # places in full precision under autocast, too: x and y in [0, 1] -> [-1, 1], as grid_sample has them
            points = torch.stack([places[:, :1] + x / width, places[:, 1:] + y / height], -1) * 2 - 1
            sampled = F.grid_sample(values.to(points.dtype), points, align_corners=False)  # (B * heads, d, N, points)
            looked_up.append((sampled * weights[level]).sum(-1))
        joined = rearrange(torch.stack(looked_up).sum(0), "(b h) d n -> b n (h d)", h=self.heads)
        out: Tensor = self.projection(joined)
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
