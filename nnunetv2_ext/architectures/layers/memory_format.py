"""Channels-last tensors, in which the CPU's convolutions and norms are fastest."""

import torch
from torch import Tensor, nn


def channels_last(x: Tensor) -> Tensor:
    """The same tensor with strides that convolutions recognise as channels last, also for a single channel.

    Args:
        x: (B, C, y, x) or (B, C, z, y, x).
    """
    x = x.contiguous(memory_format=torch.channels_last_3d if x.ndim == 5 else torch.channels_last)
    if x.shape[1] == 1:  # then both layouts look alike, and PyTorch would choose the other
        x = x.as_strided(x.shape, (x.stride(0), 1, *x.stride()[2:]))
    return x


class Conv3d(nn.Conv3d):
    """PyTorch's, except that on the CPU a sample alone is convolved like one of several where nothing is learned.

    PyTorch takes another convolution for it if it has few values (below 20480 channels x slices x rows), of half the
    speed and not channels last. nnU-Net validates and predicts one sample at a time.
    """

    def forward(self, input: Tensor) -> Tensor:
        library, padding = torch.backends.mkldnn, self.padding
        if (
            torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or torch.is_autocast_enabled("cpu")
            or not (len(input) == 1 and input.device.type == "cpu" and input.dtype == torch.float32)
            or not (library.is_available() and library.enabled)
            or isinstance(padding, str)
            or self.padding_mode != "zeros"
        ):
            return super().forward(input)
        return torch.mkldnn_convolution(input, self.weight, self.bias, padding, self.stride, self.dilation, self.groups)
