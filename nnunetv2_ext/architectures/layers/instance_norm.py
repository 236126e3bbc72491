"""Instance norm of channels-last features on the CPU, where PyTorch's own would lay them out anew.

Features are worked off in pieces that the processor's cache holds: memory is slower than the arithmetic.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nnunetv2_ext.architectures.layers.memory_format import channels_last

_PIECE = 2**17  # elements


def instance_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Instance norm of (B, C, y, x) or (B, C, z, y, x), which keeps the layout.

    PyTorch's group norm, which keeps it too, takes the variance of channels-last features as E[x^2] - E[x]^2 and sums
    in one long chain of float32: of a channel whose mean is three times its deviation some results are wrong by 0.1.
    """
    return normed_and_activated(x, weight, bias, eps, 1.0)[0]


def normed_and_activated(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`instance_norm` and a leaky ReLU, which keep x alone for the backward pass.

    Args:
        slope: of the leaky ReLU, above 0.

    Returns:
        The result, and scale and shift (B, C) for `scaled_and_activated`.
    """
    result: tuple[Tensor, Tensor, Tensor] = _InstanceNorm.apply(x, weight, bias, eps, slope)
    return result


def scaled_and_activated(x: Tensor, scale: Tensor, shift: Tensor, slope: float) -> Tensor:
    """The result of `normed_and_activated` once more, without a gradient."""
    values = channels_last(x.to(scale.dtype))
    result = torch.empty_like(values)
    for sample, rows, out in _pieces(values, result):
        torch.addcmul(shift[sample], rows, scale[sample], out=out)
        nn.functional.leaky_relu_(out, slope)
    return result.to(x.dtype)


class _InstanceNorm(torch.autograd.Function):
    """With c = x - mean(x), r = 1 / sqrt(mean(c^2) + eps) and the gradient g of y = c r weight + bias,

    dx = r weight (g - mean(g) - c r^2 mean(g c)),    dweight = sum(g c) r,    dbias = sum(g).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = _moments(channels_last(x.to(weight.dtype)))
        inverse = (variance + eps).rsqrt()
        scale = inverse * weight
        shift = bias - mean * scale
        ctx.save_for_backward(x, mean, inverse, scale, shift)
        ctx.slope = slope
        ctx.mark_non_differentiable(scale, shift)
        ctx.set_materialize_grads(False)
        return scaled_and_activated(x, scale, shift, slope), scale, shift

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, *_: object) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return None, None, None, None, None
        x, mean, inverse, scale, shift = ctx.saved_tensors
        values, gradient = channels_last(x.to(scale.dtype)), channels_last(gradient.to(scale.dtype))
        result = torch.empty_like(values)  # at first the gradient of y
        total, along = torch.zeros_like(mean), torch.zeros_like(mean)
        for sample, rows, given, out in _pieces(values, gradient, result):
            if ctx.slope == 1:
                out.copy_(given)
            else:
                y = torch.addcmul(shift[sample], rows, scale[sample])
                torch.ops.aten.leaky_relu_backward.grad_input(given, y, ctx.slope, False, grad_input=out)
            total[sample] += out.sum(0)
            along[sample] += (rows - mean[sample]).mul_(out).sum(0)
        along *= inverse  # in units of the deviation
        voxels = x.shape[2:].numel()
        back = scale * inverse * along / voxels
        rest = back * mean - scale * total / voxels
        for sample, rows, out in _pieces(values, result):
            torch.addcmul(rest[sample], out, scale[sample], out=out)
            out.addcmul_(rows, back[sample], value=-1)
        return result.to(x.dtype), along.sum(0), total.sum(0), None, None


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each sample and channel, (B, C), from those of the pieces."""
    means, variances = [], []
    for sample in range(len(x)):
        pieces = [(len(rows), rows.mean(0), rows) for _, rows in _pieces(x[sample : sample + 1])]
        counts = torch.tensor([[count] for count, _, _ in pieces], dtype=x.dtype, device=x.device)
        of_pieces = torch.stack([mean for _, mean, _ in pieces])
        squares = sum((rows - mean).square_().sum(0) for _, mean, rows in pieces)
        mean = (of_pieces * counts).sum(0) / counts.sum()
        means.append(mean)
        variances.append((squares + ((of_pieces - mean).square() * counts).sum(0)) / counts.sum())
    return torch.stack(means), torch.stack(variances)


def _pieces(*features: Tensor) -> Iterator[tuple[Any, ...]]:
    """Each sample's number and some of its voxels, (voxels, C), as views of channels-last features of one shape."""
    length = max(1, _PIECE // features[0].shape[1])
    for sample in range(len(features[0])):
        rows = [x[sample].movedim(0, -1).flatten(0, -2) for x in features]
        yield from ((sample, *pieces) for pieces in zip(*(torch.split(one, length) for one in rows), strict=True))


class ChannelsLastInstanceNorm(nn.Module):
    """What an affine instance norm without running statistics computes, with its own parameters."""

    def __init__(self, norm: nn.InstanceNorm2d | nn.InstanceNorm3d):
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        return instance_norm(x, self.weight, self.bias, self.eps)
