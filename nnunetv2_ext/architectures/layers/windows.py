"""Attention within windows of a grid of tokens, shifted round its border: Liu et al., "Swin Transformer", ICCV 2021.

The matrix of weights is never kept: the backward pass computes it again, some windows at a time.
"""

from collections.abc import Iterator
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from nnunetv2_ext.architectures.contract import Shape
from nnunetv2_ext.architectures.layers.attention import attend
from nnunetv2_ext.architectures.layers.neighbourhoods import Windows

# added between tokens of different regions, which are neighbours only because the grid was shifted round its border
APART = -100.0
# what some windows at a time may take for their matrices: 16 MB in float32
_CHUNK_ELEMENTS = 2**22
_AXES = (1, 2, 3)


class ShiftedWindows:
    """The windows of a grid of tokens (B, z, y, x, D), which zeros behind each axis fill up to whole windows.

    Args:
        grid: tokens along (z, y, x).
        window: those of a window.
        shift: by how many the grid is shifted, round its border.
    """

    def __init__(self, grid: Shape, window: Shape, shift: Shape = (0, 0, 0)):
        self.grid, self.window, self.shift = grid, window, shift
        self.padded: Any = tuple(-(-size // step) * step for size, step in zip(grid, window, strict=True))
        self._fill = [added for pair in zip(grid, self.padded, strict=True) for added in (pair[1] - pair[0], 0)][::-1]
        self._windows = Windows(self.padded, window, spread=False)

    def split(self, x: Tensor) -> Tensor:
        """(B, z, y, x, D) -> (B * windows, tokens of a window, D)"""
        if self.padded != self.grid:
            x = F.pad(x, [0, 0, *self._fill])
        if any(self.shift):
            x = x.roll([-step for step in self.shift], _AXES)
        return self._windows.split(x.flatten(1, 3))

    def join(self, x: Tensor) -> Tensor:
        """(B * windows, tokens of a window, D) -> (B, z, y, x, D)"""
        x = self._windows.join(x).unflatten(1, self.padded)
        if any(self.shift):
            x = x.roll(self.shift, _AXES)
        depth, height, width = self.grid
        return x[:, :depth, :height, :width]

    def regions(self, device: torch.device | None = None) -> Tensor | None:
        """(windows, tokens of a window): the number of the region in which each token lies; None without a shift."""
        if not any(self.shift):
            return None
        labels = torch.zeros(1, *self.padded, 1, dtype=torch.int64, device=device)
        for axis, (size, window, step) in enumerate(zip(self.padded, self.window, self.shift, strict=True)):
            place = torch.arange(size, device=device)
            of_axis = (place >= size - window).long() + (place >= size - step).long()
            labels = 3 * labels + of_axis.reshape([-1 if axis == other else 1 for other in range(-1, 4)])
        return self._windows.split(labels.flatten(1, 3))[..., 0]


def relative_positions(window: Shape) -> Tensor:
    """(tokens, tokens): the row of a table of all offsets (z, y, x) within a window: queries' less keys'.

    Row dz (2 w_y - 1) (2 w_x - 1) + dy (2 w_x - 1) + dx, with the offsets dz, dy, dx from 0.
    """
    places = torch.cartesian_prod(*(torch.arange(size) for size in window)).reshape(prod(window), 3)
    rows = torch.zeros(prod(window), prod(window), dtype=torch.int64)
    for place, size in zip(places.T, window, strict=True):
        rows = rows * (2 * size - 1) + place[:, None] - place[None] + size - 1
    return rows


def attend_in_windows(
    query: Tensor, key: Tensor, value: Tensor, table: Tensor, rows: Tensor, regions: Tensor | None = None
) -> Tensor:
    """Attention with a bias for each offset, (B * windows, heads, T, E) -> the same.

    softmax(Q K^T E^-0.5 + table[rows] + `APART` between regions) V

    Args:
        table: (offsets, heads).
        rows: (T, T), of the table.
        regions: (windows, T), of `ShiftedWindows.regions`; None: all tokens of a window attend to each other.
    """
    attended: Tensor = _window_attention(query, key, value, table, rows, regions)
    return attended


# an operator of PyTorch, so that the compiler neither lays out the loop over the windows nor keeps their matrices
@torch.library.custom_op("nnunetv2_ext::window_attention", mutates_args=())
def _window_attention(
    query: Tensor, key: Tensor, value: Tensor, table: Tensor, rows: Tensor, regions: Tensor | None
) -> Tensor:
    attended, bias = _empty(query), _bias(table, rows, query.dtype)
    for part in _parts(query):
        attended[part] = attend(query[part], key[part], value[part], bias=_apart(bias, regions, part, len(query)))
    return attended


@torch.library.custom_op("nnunetv2_ext::window_attention_backward", mutates_args=())
def _window_attention_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, table: Tensor, rows: Tensor, regions: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of queries, keys, values and table."""
    with torch.autocast(query.device.type, enabled=False):  # it would make weights and products of two precisions
        scale = query.shape[-1] ** -0.5
        of_query, of_key, of_value = _empty(query), _empty(key), _empty(value)
        bias, of_bias = _bias(table, rows, query.dtype), table.new_zeros(query.shape[1], *rows.shape)
        for part in _parts(query):
            q, k, v, g = query[part], key[part], value[part], gradient[part]
            weights = (q * scale @ k.mT).add_(_apart(bias, regions, part, len(query))).softmax(-1)
            of_value[part] = weights.mT @ g
            of_products = torch._softmax_backward_data(g @ v.mT, weights, -1, weights.dtype)
            of_query[part] = (of_products @ k).mul_(scale)
            of_key[part] = (of_products.mT @ q).mul_(scale)
            of_bias += of_products.sum(0)
        by_offset = rearrange(of_bias, "h q k -> (q k) h")
        of_table = torch.zeros_like(table).index_add_(0, rows.flatten(), by_offset)
        return of_query, of_key, of_value, of_table


@_window_attention.register_fake
def _(query: Tensor, *_: Any) -> Tensor:
    return _empty(query)


@_window_attention_backward.register_fake
def _(_: Tensor, query: Tensor, key: Tensor, value: Tensor, table: Tensor, *__: Any) -> tuple[Tensor, ...]:
    return _empty(query), _empty(key), _empty(value), torch.zeros_like(table)


def _keep(ctx: Any, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return *_window_attention_backward(gradient, *ctx.saved_tensors), None, None


_window_attention.register_autograd(_backward, setup_context=_keep)


@register_flop_formula(torch.ops.nnunetv2_ext.window_attention)
def _flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Of the two products, from the shapes."""
    return 4 * prod(query) * key[-2]


def _bias(table: Tensor, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """(1, heads, T, T): what the offsets add to the products of all windows."""
    return rearrange(F.embedding(rows, table), "q k h -> 1 h q k").to(dtype)


def _apart(bias: Tensor, regions: Tensor | None, part: slice, sequences: int) -> Tensor:
    """(1 or those of the B * windows, heads, T, T): the bias, and `APART` between regions."""
    if regions is None:
        return bias
    own = regions[torch.arange(sequences, device=regions.device)[part] % len(regions)]
    return bias + ((own[:, None, :, None] != own[:, None, None, :]) * APART).to(bias.dtype)


def _parts(query: Tensor) -> Iterator[slice]:
    """Slices of the sequences (S, heads, T, E), so many at a time that their matrices take little memory."""
    sequences, heads, tokens, _ = query.shape
    size = max(1, _CHUNK_ELEMENTS // (heads * tokens**2))
    return (slice(start, start + size) for start in range(0, sequences, size))


def _empty(like: Tensor) -> Tensor:
    """(S, heads, T, E) without values, so that heads and features can be one axis without a copy."""
    return like.transpose(1, 2).new_empty(like.transpose(1, 2).shape).transpose(1, 2)
