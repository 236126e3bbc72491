"""Convolutions of few channels: the CPU's own kernels for them use little of its width."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from nnunetv2_ext.architectures.layers.memory_format import channels_last

# from so many outputs on, the CPU's own kernels are as quick
_ENOUGH = 12
_TARGET = 16


def pointwise(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """A 1x1x1 convolution; as a matrix product, which the CPU computes many times faster for few channels."""
    if x.device.type != "cpu":
        return conv(x)
    return _biased(torch.einsum("oc,bcwhd->bowhd", conv.weight.flatten(1), x), conv.bias)


def convolved(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """`conv(x)` of a cubic kernel, stride 1, padded to the same size, (B, C, W, H, D) -> (B, O, W, H, D).

    On the CPU slices become channels: blocks of slices, each with the neighbours that the kernel reaches, are the
    channels of a 2D convolution whose weights are the kernel's planes in a band.
    """
    outputs, length, kernel = conv.out_channels, x.shape[2], conv.kernel_size[0]
    if x.device.type != "cpu" or outputs >= _ENOUGH:
        return conv(x)
    block = min(length, max(2, _TARGET // outputs))
    blocks, reach = -(-length // block), kernel // 2
    halo = reach if blocks > 1 else 0
    if blocks > 1:
        x = F.pad(x, (0, 0, 0, 0, reach, reach + blocks * block - length)).unfold(2, block + 2 * reach, block)
        x = rearrange(x, "b c n h d w -> (b n) (c w) h d")
    else:
        x = rearrange(x, "b c w h d -> b (c w) h d")
    source = torch.arange(block + 2 * halo, device=x.device) - halo
    plane = source - torch.arange(block, device=x.device)[:, None] + reach
    band = conv.weight[:, :, plane.clamp(0, kernel - 1)] * ((plane >= 0) & (plane < kernel))[:, :, None, None]
    band = rearrange(band, "o c w source h d -> (o w) (c source) h d")
    x = F.conv2d(channels_last(x), channels_last(band), padding=reach)
    x = rearrange(x, "(b n) (o w) h d -> b o (n w) h d", n=blocks, o=outputs)[:, :, :length]
    return _biased(x, conv.bias)


def _biased(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + rearrange(bias, "c -> c 1 1 1")
