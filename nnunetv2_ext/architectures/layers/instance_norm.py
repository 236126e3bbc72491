"""Instance norm of channels-last features on the CPU, where PyTorch's own would lay them out anew."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def instance_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Instance norm of (B, C, ...), which keeps the layout.

    PyTorch's group norm, which keeps it too, takes the variance of channels-last features as E[x^2] - E[x]^2 and sums
    in one long chain of float32: of a channel whose mean is three times its deviation some results are wrong by 0.1.
    Its backward pass takes ten times as long as this one.
    """
    return _InstanceNorm.apply(x, weight, bias, eps)


class _InstanceNorm(torch.autograd.Function):
    """With c = x - mean(x), r = 1 / sqrt(mean(c^2) + eps) and the gradient g of y = c r weight + bias,

    dx = r weight (g - mean(g) - c r^2 mean(g c)),    dweight = sum(g c) r,    dbias = sum(g).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        axes, values = tuple(range(2, x.ndim)), x.to(weight.dtype)
        mean = values.mean(axes, keepdim=True)
        result = values - mean  # one new tensor, since fresh memory costs more than a pass over it
        inverse = (result.square_().mean(axes, keepdim=True) + eps).rsqrt()
        ctx.save_for_backward(x, mean, inverse, weight)
        scale = inverse * _per_channel(weight, x.ndim)
        return torch.addcmul(_per_channel(bias, x.ndim) - mean * scale, values, scale, out=result).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, mean, inverse, weight = ctx.saved_tensors
        axes, values, gradient = tuple(range(2, x.ndim)), x.to(weight.dtype), gradient.to(weight.dtype)
        result = values - mean
        along = result.mul_(gradient).sum(axes, keepdim=True) * inverse  # (B, C, 1, ...), in units of the deviation
        total = gradient.sum(axes, keepdim=True)
        scale, voxels = inverse * _per_channel(weight, x.ndim), x.shape[2:].numel()
        back = scale * inverse * along / voxels
        result = torch.addcmul(back * mean - scale * total / voxels, gradient, scale, out=result)
        result.addcmul_(values, back, value=-1)
        return result.to(x.dtype), along.sum(0).flatten(), total.sum(0).flatten(), None


def _per_channel(values: Tensor, axes: int) -> Tensor:
    return values.reshape(-1, *[1] * (axes - 2))


class ChannelsLastInstanceNorm(nn.Module):
    """What an affine instance norm without running statistics computes, with its own parameters."""

    def __init__(self, norm: nn.InstanceNorm2d | nn.InstanceNorm3d):
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        return instance_norm(x, self.weight, self.bias, self.eps)
