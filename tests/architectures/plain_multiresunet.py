"""The plain MultiResUNet: the readable oracle that the package's own is compared with and timed against.

Ibtehaz and Rahman, MultiResUNet: Rethinking the U-Net architecture for multimodal biomedical image segmentation, Neural
Networks 121, 2020, in 3D. Only PyTorch's own layers, one after the other; submodules carry the published names.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class ConvBatchNorm(nn.Module):
    """Convolution, batch norm and, where asked for, ReLU."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, *, relu: bool):
        super().__init__()
        self.conv1 = nn.Conv3d(channels_in, channels_out, kernel, padding=kernel // 2)
        self.batchnorm = nn.BatchNorm3d(channels_out)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.batchnorm(self.conv1(x))
        return functional.relu(x) if self.relu else x


def widths(base: int, alpha: float) -> list[int]:
    """The channels of the three convolutions of a block."""
    return [int(share * alpha * base) for share in (0.167, 0.333, 0.5)]


class MultiResBlock(nn.Module):
    def __init__(self, channels_in: int, base: int, alpha: float):
        super().__init__()
        a, b, c = widths(base, alpha)
        self.shortcut = ConvBatchNorm(channels_in, a + b + c, 1, relu=False)
        self.conv_3x3 = ConvBatchNorm(channels_in, a, 3, relu=True)
        self.conv_5x5 = ConvBatchNorm(a, b, 3, relu=True)
        self.conv_7x7 = ConvBatchNorm(b, c, 3, relu=True)
        self.batch_norm1 = nn.BatchNorm3d(a + b + c)
        self.batch_norm2 = nn.BatchNorm3d(a + b + c)

    def forward(self, x: Tensor) -> Tensor:
        a = self.conv_3x3(x)
        b = self.conv_5x5(a)
        c = self.conv_7x7(b)
        joined = self.batch_norm1(torch.cat([a, b, c], dim=1))
        return functional.relu(self.batch_norm2(joined + self.shortcut(x)))


class ResPath(nn.Module):
    def __init__(self, channels_in: int, channels: int, steps: int):
        super().__init__()
        inputs = [channels_in] + [channels] * (steps - 1)
        self.shortcuts = nn.ModuleList(ConvBatchNorm(width, channels, 1, relu=False) for width in inputs)
        self.convs = nn.ModuleList(ConvBatchNorm(width, channels, 3, relu=True) for width in inputs)
        self.bns = nn.ModuleList(nn.BatchNorm3d(channels) for _ in inputs)

    def forward(self, x: Tensor) -> Tensor:
        for conv, shortcut, norm in zip(self.convs, self.shortcuts, self.bns, strict=True):
            once = functional.relu(norm(conv(x)))
            x = functional.relu(norm(once + shortcut(x)))
        return x


class PlainMultiResUNet(nn.Module):
    """MultiResUNet on (B, input_channels, z, y, x); the arguments are those of `nnunetv2_ext.architectures`."""

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        base: int = 32,
        alpha: float = 1.67,
        strides: Sequence[Sequence[int]] = ((2, 2, 2),) * 4,
    ):
        super().__init__()
        self.strides = [tuple(stride) for stride in strides]
        wide = [sum(widths(base * 2**level, alpha)) for level in range(5)]
        for level in range(5):
            inputs = wide[level - 1] if level else input_channels
            self.add_module(f"multiresblock{level + 1}", MultiResBlock(inputs, base * 2**level, alpha))
        for level in range(4):
            channels = base * 2**level
            self.add_module(f"respath{level + 1}", ResPath(wide[level], channels, 4 - level))
            up = nn.ConvTranspose3d(wide[level + 1], channels, self.strides[level], self.strides[level])  # type: ignore[arg-type]
            self.add_module(f"upsample{9 - level}", up)
            self.add_module(f"multiresblock{9 - level}", MultiResBlock(2 * channels, channels, alpha))
        self.conv_final = ConvBatchNorm(wide[0], num_classes, 1, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, stride in enumerate(self.strides, 1):
            x = self.get_submodule(f"multiresblock{level}")(x)
            skips.append(self.get_submodule(f"respath{level}")(x))
            x = functional.max_pool3d(x, stride, stride)
        x = self.get_submodule("multiresblock5")(x)
        for level in (6, 7, 8, 9):
            up = self.get_submodule(f"upsample{level}")(x)
            x = self.get_submodule(f"multiresblock{level}")(torch.cat([up, skips[9 - level]], dim=1))
        logits: Tensor = self.conv_final(x)
        return logits
