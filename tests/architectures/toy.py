"""A backbone in one file, as somebody would add one: the network and its record."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunetv2_ext.architectures.backbones.record import Backbone, strides_argument, triple


class ToyNet(nn.Module):
    """A convolution down and a transposed one up per level, with skips."""

    def __init__(self, in_channels: int, out_channels: int, strides: Sequence[Sequence[int]], features: int = 8):
        super().__init__()
        self.stem = nn.Conv3d(in_channels, features, 3, padding=1)
        self.down = nn.ModuleList(nn.Conv3d(features, features, triple(s), triple(s)) for s in strides)
        self.up = nn.ModuleList(nn.ConvTranspose3d(features, features, triple(s), triple(s)) for s in strides)
        self.mix = nn.Conv3d(features, features, 3, padding=1)
        self.head = nn.Conv3d(features, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        levels = [torch.relu(self.stem(x))]
        for down in self.down:
            levels.append(torch.relu(down(levels[-1])))
        x = levels.pop()
        for up in reversed(self.up):
            x = torch.relu(up(x)) + levels.pop()
        logits: Tensor = self.head(torch.relu(self.mix(x)))
        return logits


TOY = Backbone(
    "ToyNet",
    "tests.architectures.toy.ToyNet",
    "a toy for the tests",
    strides=strides_argument,
    one_voxel=True,
    heads=("head.",),
    planned=lambda strides, kernel_sizes, features: {"strides": strides[1:]},
    small={"strides": [[1, 2, 2], [2, 2, 2]], "features": 4},
    patches=((6, 20, 16), (2, 12, 20)),
    paper="none",
)
