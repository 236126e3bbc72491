"""Channels-last tensors, in which the CPU's convolutions and norms are fastest."""

import torch
from torch import Tensor


def channels_last(x: Tensor) -> Tensor:
    """The same tensor with strides that convolutions recognise as channels last, also for a single channel.

    Args:
        x: (B, C, y, x) or (B, C, z, y, x).
    """
    x = x.contiguous(memory_format=torch.channels_last_3d if x.ndim == 5 else torch.channels_last)
    if x.shape[1] == 1:  # then both layouts look alike, and PyTorch would choose the other
        x = x.as_strided(x.shape, (x.stride(0), 1, *x.stride()[2:]))
    return x
