"""TransBTS: a residual U-Net whose lowest feature map passes through a transformer.

Paper: Wang et al., "TransBTS: Multimodal Brain Tumor Segmentation Using Transformer", MICCAI 2021. Original code:
https://github.com/Rubics-Xuan/TransBTS (Apache-2.0); written anew here from its description, under the published names,
so that published weights load as they are, without the two layers that it never uses.

Departures from the original: any number of channels, classes and tokens; logits instead of a softmax; the first dropout
acts in training only; the attention's weights are not dropped one by one, its result is; every level has a stride for
each axis. None of these changes an output: norms and activations between the convolutions are computed again in the
backward pass instead of kept.
"""

from collections import OrderedDict
from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from nnunetv2_ext.architectures.backbones.record import Shape, cumulative, strides_argument, triple
from nnunetv2_ext.architectures.contract import check_patch
from nnunetv2_ext.architectures.layers.attention import attend
from nnunetv2_ext.architectures.layers.recompute import recomputed
from nnunetv2_ext.errors import InputError, check_share, check_whole

LEVELS = 3
EMBEDDING = 32
"""Features of a token, in units of the first level's channels."""
BLOCKS = {
    "": ["EnBlock1"],
    "EnDown1": ["EnBlock2_1", "EnBlock2_2"],
    "EnDown2": ["EnBlock3_1", "EnBlock3_2"],
    "EnDown3": ["EnBlock4_1", "EnBlock4_2", "EnBlock4_3", "EnBlock4_4"],
}
"""What leads to each level, and its blocks."""


class TransBTS(nn.Module):
    """TransBTS (section 2): convolutional encoder, transformer over the voxels of its last map, convolutional decoder.

    Args:
        input_channels: channels of the image.
        num_classes: channels of the logits.
        spatial_shape: the patch (z, y, x) in voxels: each token has a position of its own.
        base_channels: of the first level; each further one doubles them. A token has 32 times as many features.
        groups: of the encoder's group norms.
        hidden_dim: of the transformer's feed-forward networks.
        num_heads, num_layers: of the transformer.
        initial_dropout: the share of channels that the first convolution loses in training.
        dropout: of tokens, attention and feed-forward networks.
        strides: of each of the three levels below the first, along (z, y, x).

    Shapes: (B, input_channels, *spatial_shape) -> (B, num_classes, *spatial_shape). Each axis is a multiple of the
    product of the strides, with more than one voxel at the bottleneck, whatever the batch: batch norm over the samples
    alone tells nothing of an image.

    Raises:
        InputError: numbers out of their range, strides that are not three triples, channels that groups or heads do
            not divide, a spatial_shape that cannot work; in `forward`, another size.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        spatial_shape: Sequence[int],
        base_channels: int = 16,
        groups: int = 8,
        hidden_dim: int = 4096,
        num_heads: int = 8,
        num_layers: int = 4,
        initial_dropout: float = 0.2,
        dropout: float = 0.1,
        strides: Sequence[Sequence[int]] = ((2, 2, 2),) * LEVELS,
    ):
        super().__init__()
        check_whole(base_channels=base_channels, groups=groups, hidden_dim=hidden_dim)
        check_whole(num_heads=num_heads, num_layers=num_layers)
        check_share(initial_dropout=initial_dropout, dropout=dropout)
        triples = strides_argument({"strides": strides})
        if len(triples) != LEVELS:
            raise InputError(f"{len(triples)} strides", f"{LEVELS}, one per level below the first", "correct them")
        width = EMBEDDING * base_channels
        for what, number, divided in (("groups", groups, base_channels), ("num_heads", num_heads, width)):
            if divided % number:
                raise InputError(
                    f"{what}={number} with base_channels={base_channels}", f"a divisor of {divided}", "correct one"
                )
        divisor = cumulative(triples)[-1]
        self.spatial_shape = check_patch("TransBTS", spatial_shape, divisor)
        pairs = zip(self.spatial_shape, divisor, strict=True)
        self.grid = triple([size // step for size, step in pairs])

        channels = [base_channels * 2**level for level in range(LEVELS + 1)]
        deepest = channels[-1]
        self.Unet = _Encoder(input_channels, channels, groups, triples, initial_dropout)
        self.bn = nn.BatchNorm3d(deepest)
        self.conv_x = nn.Conv3d(deepest, width, 3, padding=1)
        self.position_encoding = _Positions(prod(self.grid), width)
        self.pe_dropout = nn.Dropout(dropout)
        layers: list[nn.Module] = []
        for _ in range(num_layers):
            layers += [_Residual(width, _Attention(width, num_heads), dropout)]
            layers += [_Residual(width, _FeedForward(width, hidden_dim, dropout), 0.0)]
        self.transformer = nn.ModuleDict({"net": nn.Sequential(*layers)})
        self.Enblock8_1 = _DecoderBlock(width, deepest, residual=False)
        self.Enblock8_2 = _DecoderBlock(deepest, deepest)
        for level, stride in enumerate(triples):
            self.add_module(f"DeUp{level + 2}", _Up(channels[level + 1], channels[level], stride))
            self.add_module(f"DeBlock{level + 2}", _DecoderBlock(channels[level], channels[level]))
        self.endconv = nn.Conv3d(base_channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[2:]) != self.spatial_shape:
            raise InputError(
                f"a patch of {tuple(x.shape[2:])} for TransBTS",
                f"{self.spatial_shape}, for whose tokens it has positions",
                "use this patch, or build the network for another",
            )
        x, skips = self.Unet(x)
        x = self.Enblock8_2(self.Enblock8_1(self._transformed(self.conv_x(F.relu(self.bn(x))))))
        for level in reversed(range(LEVELS)):
            x = self.get_submodule(f"DeUp{level + 2}")(x, skips[level])
            x = self.get_submodule(f"DeBlock{level + 2}")(x)
        logits: Tensor = self.endconv(x)
        return logits

    def _transformed(self, x: Tensor) -> Tensor:
        """(B, D, z, y, x) -> the same, each voxel a token."""
        z, y, _ = self.grid
        tokens = self.pe_dropout(self.position_encoding(rearrange(x, "b d z y x -> b (z y x) d")))
        return rearrange(self.transformer["net"](tokens), "b (z y x) d -> b d z y x", z=z, y=y)


class _Encoder(nn.Module):
    """Levels of 1, 2, 2 and 4 residual blocks."""

    def __init__(
        self, input_channels: int, channels: Sequence[int], groups: int, strides: Sequence[Shape], dropout: float
    ):
        super().__init__()
        first = nn.Conv3d(input_channels, channels[0], 3, padding=1)
        self.InitConv = nn.Sequential(OrderedDict(conv=first, dropout=nn.Dropout3d(dropout)))
        for level, (down, blocks) in enumerate(BLOCKS.items()):
            if down:
                conv = nn.Conv3d(channels[level - 1], channels[level], 3, strides[level - 1], padding=1)
                self.add_module(down, nn.Sequential(OrderedDict(conv=conv)))
            for block in blocks:
                self.add_module(block, _EncoderBlock(channels[level], groups))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The last map, and those of all levels from the finest on."""
        maps = []
        x = self.InitConv(x)
        for down, blocks in BLOCKS.items():
            if down:
                x = self.get_submodule(down)(x)
            for block in blocks:
                x = self.get_submodule(block)(x)
            maps.append(x)
        return x, maps


class _EncoderBlock(nn.Module):
    """x + two times group norm, ReLU, convolution."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.bn1, self.bn2 = (nn.GroupNorm(groups, channels) for _ in range(2))
        self.conv1, self.conv2 = (nn.Conv3d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + recomputed(self._second, recomputed(self._first, x, module=self), module=self)

    def _first(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv1(F.relu(self.bn1(x), inplace=True))
        return y

    def _second(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(F.relu(self.bn2(x), inplace=True))
        return y


class _DecoderBlock(nn.Module):
    """Two times convolution, batch norm, ReLU, added to the input where asked for."""

    def __init__(self, in_channels: int, channels: int, *, residual: bool = True):
        super().__init__()
        self.residual = residual
        self.conv1, self.bn1 = nn.Conv3d(in_channels, channels, 3, padding=1), nn.BatchNorm3d(channels)
        self.conv2, self.bn2 = nn.Conv3d(channels, channels, 3, padding=1), nn.BatchNorm3d(channels)

    def forward(self, x: Tensor) -> Tensor:
        convolved = recomputed(self._second, self.conv1(x), module=self)
        y = recomputed(self._activated, convolved, module=self)
        return x + y if self.residual else y

    def _second(self, convolved: Tensor) -> Tensor:
        y: Tensor = self.conv2(F.relu(self.bn1(convolved), inplace=True))
        return y

    def _activated(self, convolved: Tensor) -> Tensor:
        return F.relu(self.bn2(convolved), inplace=True)


class _Up(nn.Module):
    """Up-sampling to half the channels, joined with the skip."""

    def __init__(self, in_channels: int, channels: int, stride: Shape):
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, channels, 1)
        self.conv2 = nn.ConvTranspose3d(channels, channels, stride, stride)
        self.conv3 = nn.Conv3d(2 * channels, channels, 1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        joined: Tensor = self.conv3(torch.cat([skip, self.conv2(self.conv1(x))], dim=1))
        return joined


class _Positions(nn.Module):
    """A learned vector per token, added."""

    def __init__(self, tokens: int, width: int):
        super().__init__()
        self.position_embeddings = nn.Parameter(torch.zeros(1, tokens, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.position_embeddings


class _Residual(nn.Module):
    """x + dropout(layer(layer norm(x)))."""

    def __init__(self, width: int, layer: nn.Module, dropout: float):
        super().__init__()
        self.fn = nn.ModuleDict({"norm": nn.LayerNorm(width), "fn": layer})
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.dropout(self.fn["fn"](self.fn["norm"](x)))
        return x + branch


class _Attention(nn.Module):
    """Self-attention of (B, N, D)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = rearrange(self.qkv(x), "b n (r h d) -> r b h n d", r=3, h=self.heads)
        attended: Tensor = self.proj(rearrange(attend(query, key, value), "b h n d -> b n (h d)"))
        return attended


class _FeedForward(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y
