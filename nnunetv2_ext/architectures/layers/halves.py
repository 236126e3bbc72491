"""3D convolutions of one small sample: PyTorch's CPU kernel for them takes three times as long as that for several."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class HalvedConv3d(nn.Conv3d):
    """`nn.Conv3d` without dilation and groups; on the CPU one sample becomes two, the halves of an axis.

    PyTorch 2.14 takes `slow_conv3d` for a single sample of less than 20 480 values in four of its axes, and oneDNN's
    convolution for two.
    """

    def forward(self, input: Tensor) -> Tensor:  # (B, C, Z, Y, X)
        axis = self._halved(input) if input.device.type == "cpu" and len(input) == 1 else None
        if axis is None:
            return super().forward(input)
        kernel, stride, padding = self.kernel_size[axis], self.stride[axis], int(self.padding[axis])
        outputs = self._outputs(input.shape[2 + axis], axis) // 2
        rows = (outputs - 1) * stride + kernel  # that a half is computed from
        edges = [0] * 6
        edges[4 - 2 * axis : 6 - 2 * axis] = padding, padding
        padded = F.pad(input, edges)
        halves = torch.cat([padded.narrow(2 + axis, first, rows) for first in (0, outputs * stride)])
        others = [0 if other == axis else int(self.padding[other]) for other in range(3)]
        result = F.conv3d(halves, self.weight, self.bias, self.stride, others)
        return torch.cat(result.split(1), dim=2 + axis)

    def _outputs(self, length: int, axis: int) -> int:
        return (length + 2 * int(self.padding[axis]) - self.kernel_size[axis]) // self.stride[axis] + 1

    def _halved(self, x: Tensor) -> int | None:
        """The first axis with an even number of outputs."""
        return next((axis for axis in range(3) if self._outputs(x.shape[2 + axis], axis) % 2 == 0), None)
