"""Convolutions of few channels, or of few per group: the CPU's own kernels for them use little of its width."""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nnunetv2_ext.architectures.layers.memory_format import channels_last

# from so many outputs on, the CPU's own kernels are as quick
_ENOUGH = 12
_TARGET = 16


def pointwise(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """A 1x1x1 convolution; as a matrix product, which the CPU computes many times faster for few channels.

    The result, and the gradient of `x`, lie in memory as `x` does.
    """
    if x.device.type != "cpu":
        return F.conv3d(x, conv.weight, conv.bias)
    if x.is_contiguous():
        weights = conv.weight.flatten(1).to(x.dtype).expand(len(x), -1, -1)
        return _biased(torch.bmm(weights, x.flatten(2)).unflatten(2, x.shape[2:]), conv.bias)
    return F.linear(x.movedim(1, -1), conv.weight.flatten(1), conv.bias).movedim(-1, 1)


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


def depthwise(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """`conv(x)` of an odd kernel on each channel, stride 1, padded to the same size.

    On the CPU its gradients are computed as convolutions forward, which are there many times faster than backward.
    """
    plain = torch.compiler.is_compiling() or not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
    if plain or x.device.type != "cpu":
        return F.conv3d(x, conv.weight, conv.bias, padding="same", groups=conv.groups)
    result: Tensor = _Depthwise.apply(x, conv.weight, conv.bias)
    return result


class Pointwise(nn.Conv3d):
    """A 1x1x1 convolution by `pointwise`."""

    def forward(self, x: Tensor) -> Tensor:
        return pointwise(self, x)


class Depthwise(nn.Conv3d):
    """A convolution on each channel by `depthwise`."""

    def forward(self, x: Tensor) -> Tensor:
        return depthwise(self, x)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        return F.conv3d(x, weight, bias, padding="same", groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        padding = [size // 2 for size in weight.shape[2:]]
        of_x = F.conv3d(gradient, weight.flip(2, 3, 4), padding=padding, groups=len(weight))
        # each channel of each sample is the map, its gradient the kernel
        maps, kernels = rearrange(x, "b c z y x -> 1 (b c) z y x"), rearrange(gradient, "b c z y x -> (b c) 1 z y x")
        of_weight = F.conv3d(maps, kernels, padding=padding, groups=len(kernels))
        of_weight = rearrange(of_weight, "1 (b c) z y x -> b c 1 z y x", b=len(x)).sum(0)
        return of_x, of_weight, gradient.sum((0, 2, 3, 4)) if ctx.biased else None


def _biased(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + rearrange(bias, "c -> c 1 1 1")
