"""Convolutions of few channels, or of few per group: the CPU's own kernels for them use little of its width."""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nnunetv2_ext.architectures.layers.memory_format import channels_last
from nnunetv2_ext.architectures.layers.recompute import computed_again, recomputed

# from so many outputs on, the CPU's own kernels are as quick
_ENOUGH = 12
_TARGET = 16
# voxels whose features, four times as many as channels, fit into the caches
_PIECE = 4096


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
    in_half = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    if in_half:  # PyTorch's gradients of channels-last maps in bfloat16 are wrong for some numbers of channels
        x = x.contiguous()
    if in_half or x.device.type != "cpu" or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return F.conv3d(x, conv.weight, conv.bias, padding="same", groups=conv.groups)
    result: Tensor = _Depthwise.apply(x, conv.weight, conv.bias)
    return result


def spread(conv: nn.ConvTranspose3d, x: Tensor) -> Tensor:
    """`conv(x)` of a transposed convolution with bias on each channel, kernel = stride.

    On the CPU each voxel is multiplied with the kernel.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return conv(x)
    result: Tensor = _Spread.apply(x, conv.weight, conv.bias)
    return result


def feed_forward(up: nn.Conv3d, down: nn.Conv3d, x: Tensor) -> Tensor:
    """`down(GELU(up(x)))` of 1x1x1 convolutions without bias, keeping `x` alone for the backward pass.

    On the CPU voxels go in pieces whose wide features stay in the processor's caches.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):

        def both(x: Tensor) -> Tensor:
            return pointwise(down, F.gelu(pointwise(up, x)))

        return computed_again(both, None, x, preserve_rng_state=False) if torch.is_grad_enabled() else both(x)
    result: Tensor = _FeedForward.apply(x, up.weight, down.weight)
    return result


def upsampled(transposed: nn.ConvTranspose3d, mix: nn.Conv3d, x: Tensor) -> Tensor:
    """`mix(transposed(x))` of a transposed convolution with bias on each channel, kernel = stride, and a 1x1x1
    convolution with bias, keeping `x` alone for the backward pass.

    On the CPU one transposed convolution does both, since each result is that of a single voxel.
    """
    if x.device.type != "cpu":
        return recomputed(lambda x: F.conv3d(transposed(x), mix.weight, mix.bias), x)
    assert transposed.bias is not None
    assert mix.bias is not None
    weight = rearrange(mix.weight, "o c 1 1 1 -> c o 1 1 1") * transposed.weight
    bias = mix.bias + mix.weight.flatten(1) @ transposed.bias
    stride = (transposed.stride[0], transposed.stride[1], transposed.stride[2])
    return F.conv_transpose3d(x, weight, bias, stride)


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


class _Spread(torch.autograd.Function):
    """See `spread`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        # rows of the result: each voxel as often as the kernel is wide, times the kernel's row for each voxel
        voxels = rearrange(x.repeat_interleave(weight.shape[-1], dim=-1), "b c z y x -> b c z 1 y 1 x")
        kernel = rearrange(weight.repeat(1, 1, 1, 1, x.shape[-1]), "c 1 i j x -> c 1 i 1 j x")
        result = torch.addcmul(rearrange(bias, "c -> c 1 1 1 1 1"), voxels, kernel)
        return rearrange(result, "b c z i y j x -> b c (z i) (y j) x")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        i, j, k = weight.shape[2:]
        by_voxel = rearrange(gradient, "b c (z i) (y j) (x k) -> b c (z y x) (i j k)", i=i, j=j, k=k)
        of_x = (by_voxel @ rearrange(weight, "c 1 i j k -> c (i j k) 1")).view(x.shape)
        of_weight = (rearrange(x, "b c z y x -> b c 1 (z y x)") @ by_voxel).sum(0).view(weight.shape)
        return of_x, of_weight, gradient.sum((0, 2, 3, 4))


class _FeedForward(torch.autograd.Function):
    """See `feed_forward`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
        ctx.save_for_backward(x, up, down)
        result = x.new_empty(x.shape)
        for piece, of_result in zip(_pieces(x), _pieces(result), strict=True):
            torch.mm(down.flatten(1), F.gelu(up.flatten(1) @ piece), out=of_result)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, up, down = ctx.saved_tensors
        of_x, of_up, of_down = x.new_empty(x.shape), torch.zeros_like(up), torch.zeros_like(down)
        for piece, below, above in zip(_pieces(x), _pieces(of_x), _pieces(gradient), strict=True):
            wide = up.flatten(1) @ piece
            of_down.flatten(1).addmm_(above, F.gelu(wide).T)
            of_wide = torch.ops.aten.gelu_backward(down.flatten(1).T @ above, wide)
            of_up.flatten(1).addmm_(of_wide, piece.T)
            torch.mm(up.flatten(1).T, of_wide, out=below)
        return of_x, of_up, of_down


def _pieces(x: Tensor) -> list[Tensor]:
    """The voxels of (B, C, ...) in parts (C, voxels), views where it is contiguous."""
    return [piece for sample in x.flatten(2) for piece in sample.split(_PIECE, dim=1)]


def _biased(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + rearrange(bias, "c -> c 1 1 1")
