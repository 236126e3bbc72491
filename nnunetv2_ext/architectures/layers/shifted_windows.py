"""Attention within windows, every second time shifted by half a window: Liu et al., "Swin Transformer", ICCV 2021.

Neither the matrices of attention nor the masks of shifted windows are kept: the windows go through in groups, each
computed again in the backward pass.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnunetv2_ext.architectures.layers.attention import attend

GROUP = 2**22  # elements of attention's matrix that are there at once
MASK = -100.0
_SPLIT = "b (i p) (j q) (k r) c -> (b i j k) (p q r) c"
_JOIN = "(b i j k) (p q r) c -> b (i p) (j q) (k r) c"


class ShiftedWindows(nn.Module):
    """Multi-head attention within windows, with a bias for each offset of two tokens; names as in MONAI's SwinUNETR.

    Along axes that are no longer than a window, the window is the axis and does not shift. Others are padded with zeros
    behind, up to a multiple of the window. Shifted windows reach round the border: there tokens of different sides are
    kept apart.

    Args:
        shifted: whether to shift by half a window.

    Shapes: (B, z, y, x, features) -> the same.
    """

    def __init__(self, features: int, heads: int, window: Sequence[int], *, shifted: bool):
        super().__init__()
        self.window, self.heads, self.shifted = tuple(window), heads, shifted
        z, y, x = (2 * size - 1 for size in window)
        self.relative_position_bias_table = nn.Parameter(torch.empty(z * y * x, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        places = torch.cartesian_prod(*(torch.arange(size) for size in window))  # (tokens, 3)
        z_offset, y_offset, x_offset = (places[:, None] - places - places.amin(0) + places.amax(0)).unbind(-1)
        self.relative_position_index: Tensor
        self.register_buffer("relative_position_index", (z_offset * y + y_offset) * x + x_offset)
        self.qkv = nn.Linear(features, 3 * features)
        self.proj = nn.Linear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        grid = x.shape[1:4]
        clipped = [axis <= size for axis, size in zip(grid, self.window, strict=True)]
        window = [min(axis, size) for axis, size in zip(grid, self.window, strict=True)]
        shift = [0 if clip or not self.shifted else size // 2 for clip, size in zip(clipped, window, strict=True)]
        padding = [-axis % size for axis, size in zip(grid, window, strict=True)]
        x = F.pad(x, (0, 0, 0, padding[2], 0, padding[1], 0, padding[0]))
        padded = x.shape[1:4]
        if any(shift):
            x = x.roll([-step for step in shift], (1, 2, 3))
        counts = {name: axis // size for name, axis, size in zip("ijk", padded, window, strict=True)}
        sizes = dict(zip("pqr", window, strict=True))
        windows = rearrange(x, _SPLIT, **sizes)
        regions = _regions(padded, window, shift, x.device).repeat(len(x), 1) if any(shift) else None
        x = rearrange(self._grouped(windows, regions), _JOIN, **counts, **sizes)
        if any(shift):
            x = x.roll(shift, (1, 2, 3))
        return x[:, : grid[0], : grid[1], : grid[2]]

    def _grouped(self, windows: Tensor, regions: Tensor | None) -> Tensor:
        tokens = windows.shape[1]
        index = self.relative_position_index[:tokens, :tokens]  # as published, also for windows smaller than planned
        bias = rearrange(self.relative_position_bias_table[index], "t u h -> 1 h t u")
        size = max(GROUP // (self.heads * tokens**2), 1)
        if torch.compiler.is_compiling():  # it would lay out the loop at full length
            size = len(windows)
        parts = []
        for start in range(0, len(windows), size):
            group = slice(start, start + size)
            inputs = windows[group], bias, None if regions is None else regions[group]
            parts.append(
                checkpoint(self._attended, *inputs, use_reentrant=False, preserve_rng_state=False)
                if torch.is_grad_enabled()
                else self._attended(*inputs)
            )
        return torch.cat(parts)

    def _attended(self, windows: Tensor, bias: Tensor, regions: Tensor | None) -> Tensor:
        """Attention of (windows, tokens, features), kept apart where regions (windows, tokens) differ."""
        pattern = "w t (r h d) -> r w h t d"
        query, key, value = rearrange(self.qkv(windows), pattern, r=3, h=self.heads).contiguous()
        if regions is not None:
            apart = regions[:, None, :, None] != regions[:, None, None, :]
            bias = bias + MASK * apart
        attended = attend(query, key, value, bias=bias.to(query.dtype))
        out: Tensor = self.proj(rearrange(attended, "w h t d -> w t (h d)"))
        return out


def _regions(padded: Sequence[int], window: Sequence[int], shift: Sequence[int], device: torch.device) -> Tensor:
    """The part of the unshifted map that each token of each window is from, (windows, tokens)."""
    labels = torch.zeros(*padded, 1, dtype=torch.uint8, device=device)[None]
    for axis, (length, size, step) in enumerate(zip(padded, window, shift, strict=True)):
        places = torch.arange(length, device=device)
        label = (places >= length - size).byte() + (places >= length - step).byte()
        labels = 3 * labels + label.view([-1 if other == axis + 1 else 1 for other in range(5)])
    return rearrange(labels, _SPLIT, **dict(zip("pqr", window, strict=True)))[..., 0]
