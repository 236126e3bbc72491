"""Instance norm of channels-last features on the CPU, where PyTorch's own would lay them out anew."""

import torch
from torch import Tensor, nn


def instance_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Instance norm of (B, C, ...), which keeps the layout.

    PyTorch's group norm, which keeps it too, takes the variance of channels-last features as E[x^2] - E[x]^2 and sums
    in one long chain of float32: of a channel whose mean is three times its deviation some results are wrong by 0.1.
    """
    axes = tuple(range(2, x.ndim))
    weight, bias = (one.reshape(-1, *[1] * len(axes)) for one in (weight, bias))
    x = x - x.mean(axes, keepdim=True)
    return torch.addcmul(bias, x, (x.square().mean(axes, keepdim=True) + eps).rsqrt() * weight)


class ChannelsLastInstanceNorm(nn.Module):
    """What an affine instance norm without running statistics computes, with its own parameters."""

    def __init__(self, norm: nn.InstanceNorm2d | nn.InstanceNorm3d):
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        return instance_norm(x, self.weight, self.bias, self.eps)
