"""Transformer blocks over a grid of tokens, with attention within windows: Liu et al., "Swin Transformer", ICCV 2021.

Cheap steps (norms, GELU, the order of tokens) are computed again in the backward pass instead of being kept.
"""

from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from nnunetv2_ext.architectures.contract import Shape
from nnunetv2_ext.architectures.layers.drop_path import drop_path
from nnunetv2_ext.architectures.layers.recompute import recomputed
from nnunetv2_ext.architectures.layers.windows import ShiftedWindows, attend_in_windows, relative_positions

_MLP_RATIO = 4


class WindowBlock(nn.Module):
    """Attention within windows, then an MLP, each on the normed tokens and added to them."""

    packed = "qkv"
    regions: Tensor | None

    def __init__(self, width: int, heads: int, windows: ShiftedWindows, *, masked: bool, drop_path: float):
        super().__init__()
        self.windows, self.drop_path = windows, drop_path
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, windows.window, self.packed)
        self.register_buffer("regions", windows.regions() if masked else None, persistent=False)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = _MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, z, y, x, D) -> the same."""
        query, key, value = self._projected(x)
        return self._added(x, query, key, value)

    def _projected(self, x: Tensor) -> Any:
        """Queries, keys and values, or the last two: (B * windows, heads, T, E)."""
        return self.attn.by_heads(recomputed(lambda x: self.attn.projected(self._split(x)), x))

    def _split(self, x: Tensor) -> Tensor:
        """The normed tokens, window by window: (B * windows, T, D)."""
        return self.windows.split(self.norm1(x))

    def _added(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """What the attention tells added to the tokens, then what the MLP makes of them."""
        attended = self.windows.join(self.attn(query, key, value, self.regions))
        x = x + drop_path(attended, self.drop_path, training=self.training)
        return x + drop_path(self.mlp(x, self.norm2), self.drop_path, training=self.training)


class CrossWindowBlock(WindowBlock):
    """A block whose queries are what comes from below, not projected; keys and values come from the skip."""

    packed = "kv"

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:  # type: ignore[override]
        """(B, z, y, x, D), twice -> the same."""
        key, value = self._projected(skip)
        query = rearrange(self._split(x), "s t (h e) -> s h t e", h=self.attn.heads)
        return self._added(x + skip, query.to(key.dtype), key, value)


class _MLP(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, _MLP_RATIO * width)
        self.fc2 = nn.Linear(_MLP_RATIO * width, width)

    def forward(self, x: Tensor, norm: nn.Module) -> Tensor:
        """(..., D) -> (..., D), of the normed tokens."""
        hidden = recomputed(lambda x: self.fc1(norm(x)), x)
        return recomputed(lambda hidden: self.fc2(F.gelu(hidden)), hidden)


class WindowAttention(nn.Module):
    """Attention with relative positions within windows.

    Windows smaller than `window` use the first rows and columns of its index, as MONAI's do.

    Args:
        packed: the name of the projection, with a letter for each of its tensors: "qkv", or "kv".
    """

    relative_position_index: Tensor

    def __init__(self, width: int, heads: int, window: Shape, packed: str):
        super().__init__()
        self.heads, self.packed = heads, packed
        offsets = prod(2 * size - 1 for size in window)
        self.relative_position_bias_table = nn.Parameter(torch.empty(offsets, heads).normal_(std=0.02))
        self.register_buffer("relative_position_index", relative_positions(window))
        self.add_module(packed, nn.Linear(width, len(packed) * width))
        self.proj = nn.Linear(width, width)

    def projected(self, tokens: Tensor) -> Tensor:
        """(S, T, D) -> (S, T, 3 D), or 2 D of keys and values alone."""
        projection: Any = self.get_submodule(self.packed)
        projected: Tensor = projection(tokens)
        return projected

    def by_heads(self, projected: Tensor) -> Tensor:
        """Queries, keys and values, or the last two: (S, heads, T, E) each."""
        return rearrange(projected, "s t (n h e) -> n s h t e", n=len(self.packed), h=self.heads)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, regions: Tensor | None = None) -> Tensor:
        """(S, heads, T, E) -> (S, T, D); the regions are those of `attend_in_windows`."""
        tokens = query.shape[-2]
        table, rows = self.relative_position_bias_table, self.relative_position_index[:tokens, :tokens]
        attended = attend_in_windows(query, key, value, table, rows, regions)
        projected: Tensor = self.proj(rearrange(attended, "s h t e -> s t (h e)"))
        return projected
