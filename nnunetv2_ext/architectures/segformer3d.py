"""SegFormer3D: four levels of attention over reduced keys, and a decoder of linear layers.

Paper: Perera et al., "SegFormer3D: an Efficient Transformer for 3D Medical Image Segmentation", CVPR workshops 2024.
Original code: https://github.com/OSUPCVLab/SegFormer3D (GPL-3.0); written anew here from its description.

Departures from the original: any patch, not cubes alone, since sizes travel along and no side is a cube root of the
tokens' number; `patch_stride` per axis; keys and values of a map that is smaller than `sr_ratios` along an axis are
reduced by that size, with the first planes of the kernel; biases begin at zero. None of these changes an output of a
cube: attention does not hold its matrix, GELU is computed again in the backward pass.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from nnunetv2_ext.architectures.backbones.ours import patch_stride_argument
from nnunetv2_ext.architectures.contract import Shape, three_axes
from nnunetv2_ext.architectures.layers.attention import attend
from nnunetv2_ext.architectures.layers.recompute import recomputed
from nnunetv2_ext.errors import InputError, check_per_level, check_whole

LEVELS = 4
# from so many tokens along an axis on, three halvings leave more than one
_TWO_AT_THE_BOTTLENECK = 9


class _Embedding(nn.Module):
    """Overlapping patches as tokens: (B, C, z, y, x) -> (B, z', y', x', features)."""

    def __init__(self, channels: int, width: int, kernel: int, stride: Shape):
        super().__init__()
        self.patch_embeddings = nn.Conv3d(channels, width, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.norm(self.patch_embeddings(x).movedim(1, -1))
        return tokens


class _Attention(nn.Module):
    """Attention of all tokens to the tokens of a map that is `reduction` times smaller."""

    def __init__(self, width: int, heads: int, reduction: int):
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        if reduction > 1:
            self.sr = nn.Conv3d(width, width, reduction, reduction)
            self.sr_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        reduced = self._reduced(x) if self.reduction > 1 else x
        query = rearrange(self.query(x), "b z y x (h d) -> b h (z y x) d", h=self.heads)
        key, value = rearrange(self.key_value(reduced), "b z y x (r h d) -> r b h (z y x) d", r=2, h=self.heads)
        attended = rearrange(attend(query, key, value), "b h n d -> b n (h d)")
        out: Tensor = self.proj(attended.unflatten(1, x.shape[1:4]))
        return out

    def _reduced(self, x: Tensor) -> Tensor:
        steps = [min(self.reduction, size) for size in x.shape[1:4]]
        kernel = self.sr.weight[:, :, : steps[0], : steps[1], : steps[2]]
        tokens: Tensor = self.sr_norm(F.conv3d(x.movedim(-1, 1), kernel, self.sr.bias, steps).movedim(1, -1))
        return tokens


class _DepthwiseConv(nn.Module):
    """A depthwise convolution, which tells tokens their places, and batch norm."""

    def __init__(self, width: int):
        super().__init__()
        self.dwconv = nn.Conv3d(width, width, 3, padding=1, groups=width)
        self.bn = nn.BatchNorm3d(width)

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.bn(self.dwconv(x.movedim(-1, 1))).movedim(1, -1)
        return tokens


class _FeedForward(nn.Module):
    def __init__(self, width: int, ratio: int):
        super().__init__()
        self.fc1 = nn.Linear(width, ratio * width)
        self.dwconv = _DepthwiseConv(ratio * width)
        self.fc2 = nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return recomputed(lambda x: self.fc2(F.gelu(x)), self.dwconv(self.fc1(x)))


class _Block(nn.Module):
    """Attention and feed-forward network over (B, z, y, x, features), each with residual and layer norm."""

    def __init__(self, width: int, heads: int, reduction: int, ratio: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = _Attention(width, heads, reduction)
        self.mlp = _FeedForward(width, ratio)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        tokens: Tensor = x + self.mlp(self.norm2(x))
        return tokens


class _Encoder(nn.Module):
    """Four levels, each of an embedding, its blocks and a norm; attributes carry the published names."""

    def __init__(
        self,
        input_channels: int,
        embed_dims: Sequence[int],
        num_heads: Sequence[int],
        sr_ratios: Sequence[int],
        depths: Sequence[int],
        mlp_ratios: Sequence[int],
        patch_stride: Shape,
    ):
        super().__init__()
        channels = [input_channels, *embed_dims]
        for i, width in enumerate(embed_dims):
            kernel, stride = (3, (2, 2, 2)) if i else (7, patch_stride)
            blocks = [_Block(width, num_heads[i], sr_ratios[i], mlp_ratios[i]) for _ in range(depths[i])]
            self.add_module(f"embed_{i + 1}", _Embedding(channels[i], width, kernel, stride))
            self.add_module(f"tf_block{i + 1}", nn.Sequential(*blocks))
            self.add_module(f"norm{i + 1}", nn.LayerNorm(width))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, Z, Y, X) -> (B, z, y, x, features) of every level, the finest first."""
        levels: list[Tensor] = []
        for level in range(1, LEVELS + 1):
            for name in (f"embed_{level}", f"tf_block{level}", f"norm{level}"):
                x = self.get_submodule(name)(x)
            levels.append(x)
            x = x.movedim(-1, 1)
        return levels


class _Projection(nn.Module):
    """A linear layer to the decoder's width; what is called `bn` is a layer norm."""

    def __init__(self, width: int, decoder_width: int):
        super().__init__()
        self.proj = nn.Linear(width, decoder_width)
        self.bn = nn.LayerNorm(decoder_width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, z, y, x, features) -> (B, decoder's width, z, y, x)"""
        features: Tensor = self.bn(self.proj(x)).movedim(-1, 1)
        return features


class _Decoder(nn.Module):
    def __init__(self, embed_dims: Sequence[int], width: int, num_classes: int):
        super().__init__()
        self.linear_c1, self.linear_c2, self.linear_c3, self.linear_c4 = (_Projection(dim, width) for dim in embed_dims)
        self.linear_fuse = nn.Sequential(
            nn.Conv3d(LEVELS * width, width, 1, bias=False), nn.BatchNorm3d(width), nn.ReLU()
        )
        self.linear_pred = nn.Conv3d(width, num_classes, 1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Logits (B, classes, z, y, x) at the finest level."""
        projections = (self.linear_c1, self.linear_c2, self.linear_c3, self.linear_c4)
        features = [projection(level) for projection, level in zip(projections, levels, strict=True)]
        resized = [features[0], *(_resize(one, features[0].shape[2:]) for one in features[1:])]
        logits: Tensor = self.linear_pred(self.linear_fuse(torch.cat(resized[::-1], dim=1)))
        return logits


def _resize(x: Tensor, shape: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=tuple(shape), mode="trilinear", align_corners=False)


class SegFormer3D(nn.Module):
    """SegFormer3D of Perera et al. (2024).

    Args:
        input_channels: channels of the image.
        num_classes: channels of the logits.
        embed_dims: features of each level, multiples of its `num_heads`.
        num_heads: heads of each level's attention.
        sr_ratios: by how much each level reduces the map of keys and values along every axis, at most its size.
        depths: blocks of each level.
        mlp_ratios: by how much each level's feed-forward networks widen the features.
        decoder_head_embedding_dim: features of the decoder.
        patch_stride: voxels from token to token of the first level, 1, 2 or 4, one number or (z, y, x). Its kernel
            stays 7; the levels after it halve every axis, rounding up.

    Shapes: (B, input_channels, Z, Y, X) -> (B, num_classes, Z, Y, X); in training a batch of one needs more than one
    token at the bottleneck, for its batch norm.

    Raises:
        InputError: lists of another length than four, heads that do not divide the features, other strides; in
            `forward`, a batch of one with one token at the bottleneck.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        embed_dims: Sequence[int] = (32, 64, 160, 256),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        sr_ratios: Sequence[int] = (4, 2, 1, 1),
        depths: Sequence[int] = (2, 2, 2, 2),
        mlp_ratios: Sequence[int] = (4, 4, 4, 4),
        decoder_head_embedding_dim: int = 256,
        patch_stride: int | Sequence[int] = 4,
    ):
        super().__init__()
        check_per_level(
            LEVELS,
            embed_dims=embed_dims,
            num_heads=num_heads,
            sr_ratios=sr_ratios,
            depths=depths,
            mlp_ratios=mlp_ratios,
        )
        check_whole(decoder_head_embedding_dim=decoder_head_embedding_dim)
        _check_heads(embed_dims, num_heads)
        self.patch_stride = patch_stride_argument({"patch_stride": patch_stride})
        self.segformer_encoder = _Encoder(
            input_channels, embed_dims, num_heads, sr_ratios, depths, mlp_ratios, self.patch_stride
        )
        self.segformer_decoder = _Decoder(embed_dims, decoder_head_embedding_dim, num_classes)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) == 1:
            self.deep_supervision_shapes(x.shape[2:])
        return _resize(self.segformer_decoder(self.segformer_encoder(x)), x.shape[2:])

    def deep_supervision_shapes(self, patch_size: Sequence[int]) -> list[Shape]:
        """The size of the one output, that of the patch.

        Raises:
            InputError: a patch that leaves one token at the bottleneck, of which batch norm has no deviation.
        """
        sizes = three_axes(patch_size)
        if not any(
            size > (_TWO_AT_THE_BOTTLENECK - 1) * step for size, step in zip(sizes, self.patch_stride, strict=True)
        ):
            least = [_TWO_AT_THE_BOTTLENECK * step for step in self.patch_stride]
            raise InputError(
                f"a patch of {sizes}",
                "more than one token at SegFormer3D's bottleneck, where batch norm needs two",
                f"choose a patch_size of at least {least[0]}, {least[1]} or {least[2]} voxels along z, y or x",
            )
        return [sizes]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv3d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    if isinstance(module, nn.Linear | nn.Conv3d) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _check_heads(embed_dims: Sequence[int], num_heads: Sequence[int]) -> None:
    for width, heads in zip(embed_dims, num_heads, strict=True):
        if width % heads:
            raise InputError(
                f"embed_dims={embed_dims!r} with num_heads={num_heads!r}",
                "features of each level that its heads divide",
                f"choose a multiple of {heads} for {width}, or other heads",
            )
