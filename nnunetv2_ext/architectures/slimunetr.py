"""Slim UNETR: a light U-shaped network of blocks that mix a voxel's surroundings, then voxels far apart.

Paper: Pang et al., "Slim UNETR: Scale Hybrid Transformers to Efficient 3D Medical Image Segmentation Under Limited
Computational Resources", IEEE TMI 2024.
Original code: https://github.com/aigzhusmart/Slim-UNETR (MIT); written anew here from its description.

Kept, though one would do otherwise: the decoder reads the tokens (B, tokens, features) as (B, features, z, y, x)
without transposing them, attention is not scaled, and the logits pass a group norm.

Departures, none of which changes an output: the number of tokens follows from the patch, which need not be a cube, and
attention never holds its matrix.
"""

from collections.abc import Sequence
from functools import partial
from math import prod

import torch
from einops import rearrange
from torch import Tensor, nn

from nnunetv2_ext.architectures.backbones.record import triple
from nnunetv2_ext.architectures.contract import Shape, three_axes
from nnunetv2_ext.architectures.layers.slim_block import SlimBlock
from nnunetv2_ext.errors import InputError, check_per_level, check_share, check_whole

STRIDES = (4, 2, 2, 2)


class SlimUNETR(nn.Module):
    """The network of Pang et al.: four levels of blocks on the way down, the same on the way up, sums as skips.

    Args:
        input_channels: channels of the image.
        num_classes: channels of the logits.
        spatial_shape: the patch (z, y, x) in voxels, the only one that it takes; multiples of 32.
        embed_dim: features of the tokens, at the deepest level.
        channels: features of the three levels above, fine to coarse.
        blocks: blocks per level, fine to coarse.
        heads: attention heads per level.
        r: at each level attention sees every r-th voxel along each axis.
        dropout: of the tokens.

    Shapes: (B, input_channels, Z, Y, X) -> (B, num_classes, Z, Y, X).

    Raises:
        InputError: a patch, heads or an r that do not divide, lists of another length, numbers out of their range.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        spatial_shape: Sequence[int],
        embed_dim: int = 96,
        channels: Sequence[int] = (24, 48, 60),
        blocks: Sequence[int] = (1, 2, 3, 2),
        heads: Sequence[int] = (1, 2, 4, 4),
        r: Sequence[int] = (4, 2, 2, 1),
        dropout: float = 0.3,
    ):
        super().__init__()
        check_whole(embed_dim=embed_dim)
        check_per_level(len(STRIDES) - 1, channels=channels)
        check_per_level(len(STRIDES), blocks=blocks, heads=heads, r=r)
        check_share(dropout=dropout)
        widths = [*channels, embed_dim]
        grids = token_grids(spatial_shape)
        for width, of_level, step, grid in zip(widths, heads, r, grids, strict=True):
            if width % of_level or any(size % step for size in grid):
                raise InputError(
                    f"{of_level} heads of {width} features, attention to every {step}-th voxel of {grid}",
                    "heads that divide the features, and a step that divides each axis",
                    "correct heads, channels or r, or choose another patch",
                )
        levels = list(zip(widths, blocks, heads, r, strict=True))
        self.Encoder = _Encoder(input_channels, levels, prod(grids[-1]), dropout)
        self.Decoder = _Decoder(num_classes, levels)

    @property
    def head(self) -> nn.Module:
        """What makes the logits, the norm on them included."""
        return self.Decoder.SegHead

    def forward(self, x: Tensor) -> Tensor:
        skips, tokens = self.Encoder(x)
        logits: Tensor = self.Decoder(skips, tokens)
        return logits


def token_grids(spatial_shape: Sequence[int]) -> list[Shape]:
    """The size (z, y, x) of each level's map, the tokens' last.

    Raises:
        InputError: a patch that the strides do not divide.
    """
    sizes, grids = three_axes(spatial_shape), []
    down = 1
    for stride in STRIDES:
        down *= stride
        z, y, x = (size // down for size in sizes)
        grids.append((z, y, x))
    if min(sizes) < 1 or any(size % down for size in sizes):
        raise InputError(f"a patch of {sizes} for SlimUNETR", f"multiples of {down}", "choose another patch")
    return grids


Level = tuple[int, int, int, int]
"""Features, blocks, heads and the step of attention."""


class _Encoder(nn.Module):
    """Four times a strided convolution and blocks; then tokens with positions."""

    def __init__(self, input_channels: int, levels: Sequence[Level], tokens: int, dropout: float):
        super().__init__()
        channels = input_channels
        for number, (stride, level) in enumerate(zip(STRIDES, levels, strict=True), 1):
            self.add_module(f"DWconv{number}", _Down(channels, level[0], stride))
            self.add_module(f"block{number}", _blocks(level))
            channels = level[0]
        self.position_embeddings = nn.Parameter(torch.zeros(1, tokens, channels))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """The maps of all levels, fine to coarse, and the tokens (B, tokens, features) as a map of the last one."""
        maps: list[Tensor] = []
        for number in range(1, len(STRIDES) + 1):
            x = self.get_submodule(f"block{number}")(self.get_submodule(f"DWconv{number}")(x))
            maps.append(x)
        tokens = self.dropout(rearrange(x, "b c z y x -> b (z y x) c") + self.position_embeddings)
        return maps, tokens.reshape(x.shape)  # untransposed, as published


class _Decoder(nn.Module):
    """Blocks on the tokens' map, then three times up, a sum with the skip, and blocks; then up to the logits."""

    def __init__(self, num_classes: int, levels: Sequence[Level]):
        super().__init__()
        coarsest, *finer = levels[::-1]
        self.add_module(f"block{len(levels)}", _blocks(coarsest))
        channels = coarsest[0]
        for number, (level, stride) in enumerate(zip(finer, STRIDES[:0:-1], strict=True), 1):
            self.add_module(f"TSconv{number}", _Up(channels, level[0], stride))
            self.add_module(f"block{len(levels) - number}", _blocks(level))
            channels = level[0]
        self.SegHead = _Up(channels, num_classes, STRIDES[0])

    def forward(self, maps: Sequence[Tensor], x: Tensor) -> Tensor:
        x = self.get_submodule(f"block{len(maps)}")(x)
        for number, skip in enumerate(maps[-2::-1], 1):
            x = self.get_submodule(f"TSconv{number}")(x) + skip
            x = self.get_submodule(f"block{len(maps) - number}")(x)
        logits: Tensor = self.SegHead(x)
        return logits


class _Down(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.depth_wise = nn.Conv3d(in_channels, out_channels, stride, stride)
        self.norm = nn.GroupNorm(1, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.depth_wise(x))
        return out


class _Up(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.transposed = nn.ConvTranspose3d(in_channels, out_channels, stride, stride)
        self.norm = nn.GroupNorm(1, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.transposed(x))
        return out


def _blocks(level: Level) -> nn.Sequential:
    channels, blocks, heads, step = level
    block = partial(SlimBlock, channels, heads, triple(step), norm=nn.BatchNorm3d, scale=1.0)
    return nn.Sequential(*(block() for _ in range(blocks)))
