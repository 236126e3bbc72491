"""SwinSMT: Swin UNETR whose deepest stages have a soft mixture of experts in place of each block's MLP.

Paper: Plotka et al., "Swin SMT: Global Sequential Modeling in 3D Medical Image Segmentation", MICCAI 2024.
Original code: https://github.com/MI2DataLab/SwinSMT (no licence), on MONAI 1.3 (Apache-2.0); written anew here from its
description, on the blocks of the MONAI that is installed.

Departures, none of which changes an output: attention and mixtures never hold their matrices, tokens x tokens, and what
windows and MLPs hold within is computed again in the backward pass; the mixtures' products of tokens and slots are
computed twice instead (1.2 G of 323.0 G multiply-adds at 96 x 96 x 96). Any `feature_size` that the heads divide, not
multiples of 12 alone, and windows of their own size along each axis. Nothing is printed.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch.nn.functional as F
from einops import rearrange
from monai.networks.blocks import MLPBlock, PatchEmbed, UnetOutBlock, UnetrBasicBlock, UnetrUpBlock
from torch import Tensor, nn

from nnunetv2_ext.architectures.backbones.record import Shape, triple
from nnunetv2_ext.architectures.layers.experts import SoftMixture
from nnunetv2_ext.architectures.layers.recompute import recomputed
from nnunetv2_ext.architectures.layers.window_blocks import WindowAttention
from nnunetv2_ext.architectures.layers.windows import ShiftedWindows
from nnunetv2_ext.architectures.measure import without_values
from nnunetv2_ext.architectures.swin_unetr import merging_class
from nnunetv2_ext.errors import InputError, check_per_level, check_whole, is_whole

STAGES = 4
MLP_RATIO = 4


class SwinSMT(nn.Module):
    """The network of Plotka et al.

    Args:
        input_channels: channels of the image.
        num_classes: channels of the logits.
        feature_size: features of the first stage; each of the next has twice as many.
        depths: blocks per stage.
        num_heads: attention heads per stage.
        window_size: tokens of a window along each axis, or along (z, y, x).
        num_experts: experts of a mixture.
        num_layers_with_moe: how many stages, from the deepest up, have mixtures.
        merging: the order of the octants that patch merging joins: "published", MONAI's up to 1.4, or "current".

    Shapes: (B, input_channels, Z, Y, X) -> (B, num_classes, Z, Y, X); Z, Y and X are multiples of 32.

    Raises:
        InputError: not four stages, heads that do not divide, a number out of its range, an unknown merging.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        feature_size: int = 48,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int | Sequence[int] = 7,
        num_experts: int = 4,
        num_layers_with_moe: int = 2,
        merging: str = "published",
    ):
        super().__init__()
        check_whole(feature_size=feature_size, num_experts=num_experts)
        check_per_level(STAGES, depths=depths, num_heads=num_heads)
        widths, window = [feature_size * 2**stage for stage in range(STAGES)], _window(window_size)
        _check_stages(widths, num_heads, num_layers_with_moe)
        self.swinViT = _SwinTransformer(
            input_channels,
            [
                _Stage(
                    width,
                    depth,
                    heads,
                    window,
                    experts=num_experts if number >= STAGES - num_layers_with_moe else 0,
                    merging=merging,
                )
                for number, (width, depth, heads) in enumerate(zip(widths, depths, num_heads, strict=True))
            ],
            feature_size,
        )
        self.encoder1 = _convolutions(input_channels, feature_size)
        self.encoder2 = _convolutions(feature_size, feature_size)
        self.encoder3 = _convolutions(2 * feature_size, 2 * feature_size)
        self.encoder4 = _convolutions(4 * feature_size, 4 * feature_size)
        self.encoder10 = _convolutions(16 * feature_size, 16 * feature_size)
        self.decoder5 = _up(16 * feature_size, 8 * feature_size)
        self.decoder4 = _up(8 * feature_size, 4 * feature_size)
        self.decoder3 = _up(4 * feature_size, 2 * feature_size)
        self.decoder2 = _up(2 * feature_size, feature_size)
        self.decoder1 = _up(feature_size, feature_size)
        self.out = UnetOutBlock(3, feature_size, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        half, quarter, eighth, sixteenth, deepest = self.swinViT(x)
        skips = [sixteenth, self.encoder4(eighth), self.encoder3(quarter), self.encoder2(half), self.encoder1(x)]
        x = self.encoder10(deepest)
        for decoder, skip in zip(
            (self.decoder5, self.decoder4, self.decoder3, self.decoder2, self.decoder1), skips, strict=True
        ):
            x = decoder(x, skip)
        logits: Tensor = self.out(x)
        return logits


def _window(window_size: int | Sequence[int]) -> Shape:
    """The tokens of a window along (z, y, x)."""
    sizes: Any = window_size if isinstance(window_size, list | tuple) else [window_size] * 3
    if len(sizes) != 3 or not all(map(is_whole, sizes)):
        raise InputError(f"window_size={window_size!r}", "a whole number from 1, or three (z, y, x)", "correct it")
    return triple(sizes)


def _check_stages(widths: Sequence[int], heads: Sequence[int], mixed: int) -> None:
    if any(width % number for width, number in zip(widths, heads, strict=True)):
        raise InputError(
            f"stages of {', '.join(map(str, widths))} features with {', '.join(map(str, heads))} heads",
            "heads that divide the features",
            "correct feature_size or num_heads",
        )
    if not is_whole(mixed, 0) or mixed > STAGES:
        raise InputError(f"num_layers_with_moe={mixed!r}", f"a whole number from 0 to {STAGES}", "correct it")


def _convolutions(in_channels: int, out_channels: int) -> UnetrBasicBlock:
    return UnetrBasicBlock(3, in_channels, out_channels, kernel_size=3, stride=1, norm_name="instance", res_block=True)


def _up(in_channels: int, out_channels: int) -> UnetrUpBlock:
    return UnetrUpBlock(
        3, in_channels, out_channels, kernel_size=3, upsample_kernel_size=2, norm_name="instance", res_block=True
    )


class _SwinTransformer(nn.Module):
    """The encoder: patches of 2 x 2 x 2 voxels as tokens, then the stages."""

    def __init__(self, input_channels: int, stages: Sequence[nn.Module], features: int):
        super().__init__()
        self.patch_embed = PatchEmbed(2, input_channels, features, norm_layer=None)  # type: ignore[arg-type]
        for number, stage in enumerate(stages, 1):
            self.add_module(f"layers{number}", nn.ModuleList([stage]))

    def stages(self) -> list[Any]:
        """The stages, finest first."""
        return [self.get_submodule(f"layers{number}.0") for number in range(1, STAGES + 1)]

    def forward(self, x: Tensor) -> list[Tensor]:
        """The maps of tokens of 1/2, 1/4, 1/8, 1/16 and 1/32 of the image, normed without parameters."""
        x = self.patch_embed(x)
        maps = [_normed(x)]
        for stage in self.stages():
            x = stage(x)
            maps.append(_normed(x))
        return maps


def _normed(x: Tensor) -> Tensor:
    """Layer norm over the channels of (B, C, z, y, x)."""
    last = rearrange(x, "b c z y x -> b z y x c")
    return rearrange(F.layer_norm(last, last.shape[-1:]), "b z y x c -> b c z y x")


class _Stage(nn.Module):
    """Blocks, plain and shifted in turn, then patch merging: (B, C, z, y, x) -> (B, 2 C, z/2, y/2, x/2)."""

    def __init__(self, features: int, depth: int, heads: int, window: Shape, *, experts: int, merging: str):
        super().__init__()
        self.features = features
        self.blocks = nn.ModuleList(
            _Block(features, heads, window, shifted=bool(number % 2), experts=experts) for number in range(depth)
        )
        self.downsample = merging_class(merging)(features)

    def forward(self, x: Tensor) -> Tensor:
        x = rearrange(x, "b c z y x -> b z y x c")
        for block in self.blocks:
            x = block(x)
        return rearrange(self.downsample(x), "b z y x c -> b c z y x")


class _Block(nn.Module):
    """Attention within windows, then an MLP or, with experts, their mixture, each with norm and residual."""

    def __init__(self, features: int, heads: int, window: Shape, *, shifted: bool, experts: int):
        super().__init__()
        self.window, self.shifted = window, shifted
        self.norm1 = nn.LayerNorm(features)
        self.attn = WindowAttention(features, heads, window, "qkv")
        self.norm2 = nn.LayerNorm(features)
        self.mlp: nn.Module = (
            SoftMixture(features, experts)
            if experts
            else MLPBlock(features, MLP_RATIO * features, act="GELU", dropout_mode="swin")
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + recomputed(self._attended, x)
        if isinstance(self.mlp, SoftMixture):
            return x + self.mlp(self.norm2(x))
        return x + recomputed(lambda x: self.mlp(self.norm2(x)), x)

    def _attended(self, x: Tensor) -> Tensor:
        windows = self._windows(x.shape[1:4])
        query, key, value = self.attn.by_heads(self.attn.projected(windows.split(self.norm1(x))))
        return windows.join(self.attn(query, key, value, windows.regions(x.device)))

    def _windows(self, grid: Any) -> ShiftedWindows:
        """MONAI's rule: along axes that are no longer than a window, the window is the axis and does not shift."""
        pairs = list(zip(grid, self.window, strict=True))
        window: Any = tuple(min(pair) for pair in pairs)
        shift: Any = tuple(size // 2 if self.shifted and axis > size else 0 for axis, size in pairs)
        return ShiftedWindows(grid, window, shift)


def mixed_tokens(kwargs: Mapping[str, Any], patch: Sequence[int]) -> tuple[int, int]:
    """Tokens n of the largest mixture, and multiply-adds per sample of all mixtures' products of tokens and slots.

    As many slots as tokens: two products with the embeddings, one for either softmax, and one with each softmax make
    4 n^2 features a block, in the forward pass.

    Args:
        kwargs: arguments of `SwinSMT`.
        patch: (z, y, x) in voxels.
    """
    with without_values():
        network = SwinSMT(1, 1, **kwargs)
    largest = products = 0
    for number, stage in enumerate(network.swinViT.stages(), 1):
        tokens = prod(size // 2**number for size in patch)
        for block in stage.blocks:
            if isinstance(block.mlp, SoftMixture):
                largest = max(largest, tokens)
                products += 4 * tokens**2 * stage.features
    return largest, products
