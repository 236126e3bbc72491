"""3D UX-Net written down plainly, from its description: slow, wasteful and easy to check; what tests compare with.

Every operation is PyTorch's or MONAI's own, one after the other.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from monai.networks.blocks.dynunet_block import UnetOutBlock
from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrUpBlock
from torch import Tensor, nn, ones, zeros

Shape = tuple[int, int, int]


class ChannelNorm(nn.Module):
    """Layer norm over the channels of (B, C, z, y, x)."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(ones(channels)), nn.Parameter(zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).square().mean(1, keepdim=True)
        weight, bias = (one[:, None, None, None] for one in (self.weight, self.bias))
        return weight * (x - mean) / (variance + 1e-6).sqrt() + bias


class Block(nn.Module):
    """x + gamma pwconv2(GELU(pwconv1(norm(dwconv x))))"""

    def __init__(self, channels: int):
        super().__init__()
        self.dwconv = nn.Conv3d(channels, channels, 7, padding=3, groups=channels)
        self.norm = ChannelNorm(channels)
        self.pwconv1 = nn.Conv3d(channels, 4 * channels, 1, groups=channels)
        self.pwconv2 = nn.Conv3d(4 * channels, channels, 1, groups=channels)
        self.gamma = nn.Parameter(1e-6 * ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.pwconv2(F.gelu(self.pwconv1(self.norm(self.dwconv(x)))))
        return x + self.gamma[:, None, None, None] * y


class Encoder(nn.Module):
    def __init__(self, input_channels: int, widths: Sequence[int], depths: Sequence[int], strides: Sequence[Shape]):
        super().__init__()
        stem = nn.Conv3d(input_channels, widths[0], 7, stride=strides[0], padding=3)
        self.downsample_layers = nn.ModuleList([nn.Sequential(stem, ChannelNorm(widths[0]))])
        for below, width, stride in zip(widths, widths[1:], strides[1:], strict=False):
            down = nn.Conv3d(below, width, stride, stride=stride)
            self.downsample_layers.append(nn.Sequential(ChannelNorm(below), down))
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(width) for _ in range(depth))) for width, depth in zip(widths, depths, strict=True)
        )
        for level, width in enumerate(widths):
            self.add_module(f"norm{level}", ChannelNorm(width))

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for level, (down, stage) in enumerate(zip(self.downsample_layers, self.stages, strict=True)):
            x = stage(down(x))
            outputs.append(self.get_submodule(f"norm{level}")(x))
        return outputs


class PlainUXNet(nn.Module):
    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        feat_size: Sequence[int] = (48, 96, 192, 384),
        hidden_size: int = 768,
        depths: Sequence[int] = (2, 2, 2, 2),
        strides: Sequence[Shape] = ((2, 2, 2),) * 4,
    ):
        super().__init__()
        self.uxnet_3d = Encoder(input_channels, feat_size, depths, strides)
        widths = [*feat_size, hidden_size]
        for number, (below, width) in enumerate(zip([input_channels, *feat_size], widths, strict=True), start=1):
            self.add_module(f"encoder{number}", UnetrBasicBlock(3, below, width, 3, 1, "instance", res_block=True))
        for number in (5, 4, 3, 2):
            deep, width, stride = widths[number - 1], widths[number - 2], strides[number - 2]
            self.add_module(f"decoder{number}", UnetrUpBlock(3, deep, width, 3, stride, "instance", res_block=True))
        self.decoder1 = UnetrBasicBlock(3, widths[0], widths[0], 3, 1, "instance", res_block=True)
        self.out = UnetOutBlock(3, widths[0], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        skips = [self.get_submodule(f"encoder{n}")(one) for n, one in enumerate([x, *self.uxnet_3d(x)], start=1)]
        y = skips.pop()
        for number in (5, 4, 3, 2):
            y = self.get_submodule(f"decoder{number}")(y, skips.pop())
        logits: Tensor = self.out(self.decoder1(y))
        return logits
