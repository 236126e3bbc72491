"""3D UX-Net: an encoder of large depthwise kernels whose channels hardly mix, a decoder of residual convolutions.

Paper: Lee et al., "3D UX-Net: A Large Kernel Volumetric ConvNet Modernizing Hierarchical Transformer for Medical Image
Segmentation", ICLR 2023.
Original code: https://github.com/MASILab/3DUX-Net (its README names MIT, a licence file is missing); written anew here
from its description, the convolutional blocks are MONAI's.

Departures from the original: the head takes `feat_size[0]` channels, not always 48; `strides` per stage and axis. None
of these changes an output: what is cheap (norms, activations, the four-fold expansion, concatenations, 1x1x1
convolutions) is computed again in the backward pass instead of kept, and the expansion, in which every
channel is on its own, is computed without convolutions. As in the code, and unlike the paper's figure, the bottleneck
is 16 times smaller than the image.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.blocks.dynunet_block import UnetOutBlock, UnetResBlock, get_conv_layer
from torch import Tensor, nn

from nnunetv2_ext.architectures.backbones.record import Shape, triple
from nnunetv2_ext.architectures.layers.few_channels import depthwise
from nnunetv2_ext.architectures.layers.recompute import recomputed
from nnunetv2_ext.errors import InputError, check_per_level, check_whole, is_whole

STAGES = 4
KERNEL = 7
EXPANSION = 4


class _ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, z, y, x)."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class _LargeKernelBlock(nn.Module):
    """x + gamma pwconv2(GELU(pwconv1(norm(dwconv x)))): a large depthwise kernel; each channel to four and back."""

    def __init__(self, channels: int):
        super().__init__()
        self.dwconv = nn.Conv3d(channels, channels, KERNEL, padding=KERNEL // 2, groups=channels)
        self.norm = _ChannelNorm(channels)
        self.pwconv1 = nn.Conv3d(channels, EXPANSION * channels, 1, groups=channels)
        self.pwconv2 = nn.Conv3d(EXPANSION * channels, channels, 1, groups=channels)
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        return recomputed(self._scaled, x, depthwise(self.dwconv, x))

    def _scaled(self, x: Tensor, y: Tensor) -> Tensor:
        y = self.norm(y)
        # the four weights of each channel: (C * 4, 1, 1, 1, 1), (C * 4,) and (C, 4, 1, 1, 1) -> 4 times (C, 1, 1, 1)
        assert self.pwconv1.bias is not None
        assert self.pwconv2.bias is not None
        up, bias, down = (
            one.reshape(-1, EXPANSION, 1, 1, 1).unbind(1)
            for one in (self.pwconv1.weight, self.pwconv1.bias, self.pwconv2.weight)
        )
        mixed = self.pwconv2.bias[:, None, None, None]
        for one in range(EXPANSION):
            mixed = torch.addcmul(mixed, down[one], F.gelu(torch.addcmul(bias[one], up[one], y)))
        return torch.addcmul(x, self.gamma[:, None, None, None], mixed)


class _LargeKernelEncoder(nn.Module):
    """Four stages, each down by its stride and then through its blocks; each has a normed output."""

    def __init__(self, input_channels: int, widths: Sequence[int], depths: Sequence[int], strides: Sequence[Shape]):
        super().__init__()
        stem = nn.Conv3d(input_channels, widths[0], KERNEL, strides[0], KERNEL // 2)
        self.downsample_layers = nn.ModuleList([nn.Sequential(stem, _ChannelNorm(widths[0]))])
        for above, width, stride in zip(widths, widths[1:], strides[1:], strict=False):
            self.downsample_layers.append(nn.Sequential(_ChannelNorm(above), nn.Conv3d(above, width, stride, stride)))
        self.stages = nn.ModuleList(
            nn.Sequential(*(_LargeKernelBlock(width) for _ in range(depth)))
            for width, depth in zip(widths, depths, strict=True)
        )
        self.norm0, self.norm1, self.norm2, self.norm3 = (_ChannelNorm(width) for width in widths)

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = []
        norms = (self.norm0, self.norm1, self.norm2, self.norm3)
        for down, stage, norm in zip(self.downsample_layers, self.stages, norms, strict=True):
            x = stage(down(x))
            outputs.append(norm(x))
        return outputs


class _ResidualBlock(UnetResBlock):
    """MONAI's residual block over concatenated maps; it keeps these and what its 3x3x3 convolutions make."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(3, in_channels, out_channels, kernel_size=3, stride=1, norm_name="instance")

    def forward(self, *maps: Tensor) -> Tensor:
        y = recomputed(lambda *maps: self.conv1(torch.cat(maps, dim=1)), *maps) if len(maps) > 1 else self.conv1(*maps)
        y = recomputed(lambda y: self.conv2(self.lrelu(self.norm1(y))), y)
        return recomputed(self._joined, y, *maps)

    def _joined(self, y: Tensor, *maps: Tensor) -> Tensor:
        residual = self.norm3(self._pointwise(maps)) if self.downsample else maps[0]
        return self.lrelu(self.norm2(y).add_(residual))

    def _pointwise(self, maps: Sequence[Tensor]) -> Tensor:
        """`conv3` of the concatenation, without it."""
        weights = self.conv3.conv.weight.flatten(1).split([one.shape[1] for one in maps], dim=1)
        products = [torch.einsum("oc,bczyx->bozyx", weight, one) for weight, one in zip(weights, maps, strict=True)]
        return products[0] if len(products) == 1 else products[0].add_(products[1])


class _BasicBlock(nn.Module):
    """A residual block under the name that MONAI's `UnetrBasicBlock` has for it."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.layer = _ResidualBlock(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class _UpBlock(nn.Module):
    """Up by a transposed convolution, then a residual block with the skip, named as in MONAI's `UnetrUpBlock`."""

    def __init__(self, in_channels: int, out_channels: int, stride: Shape):
        super().__init__()
        self.transp_conv = get_conv_layer(
            3, in_channels, out_channels, kernel_size=stride, stride=stride, conv_only=True, is_transposed=True
        )
        self.conv_block = _ResidualBlock(2 * out_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.conv_block(self.transp_conv(x), skip)


class UXNet(nn.Module):
    """3D UX-Net of Lee et al. (ICLR 2023).

    Args:
        input_channels: channels of the image.
        num_classes: channels of the logits.
        feat_size: channels of the four stages, and of the decoder's levels from the image on.
        hidden_size: channels of the decoder's bottleneck.
        depths: blocks of each stage.
        strides: how far each stage shrinks the image, one number or three (z, y, x) per stage. The stem's kernel stays
            7; the others' are their strides.

    Shapes: (B, input_channels, Z, Y, X) -> (B, num_classes, Z, Y, X); the product of the strides divides the image,
    and two voxels are left at the bottleneck, where instance norm needs them.

    Raises:
        InputError: lists of another length than four, numbers below 1.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        feat_size: Sequence[int] = (48, 96, 192, 384),
        hidden_size: int = 768,
        depths: Sequence[int] = (2, 2, 2, 2),
        strides: Sequence[int | Sequence[int]] = (2, 2, 2, 2),
    ):
        super().__init__()
        check_per_level(STAGES, feat_size=feat_size, depths=depths)
        check_whole(hidden_size=hidden_size)
        _check_strides(strides)
        steps = [triple(stride) for stride in strides]
        first, second, third, fourth = feat_size
        self.uxnet_3d = _LargeKernelEncoder(input_channels, feat_size, depths, steps)
        self.encoder1 = _BasicBlock(input_channels, first)
        self.encoder2 = _BasicBlock(first, second)
        self.encoder3 = _BasicBlock(second, third)
        self.encoder4 = _BasicBlock(third, fourth)
        self.encoder5 = _BasicBlock(fourth, hidden_size)
        self.decoder5 = _UpBlock(hidden_size, fourth, steps[3])
        self.decoder4 = _UpBlock(fourth, third, steps[2])
        self.decoder3 = _UpBlock(third, second, steps[1])
        self.decoder2 = _UpBlock(second, first, steps[0])
        self.decoder1 = _BasicBlock(first, first)
        self.out = UnetOutBlock(3, first, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        one, two, three, four = self.uxnet_3d(x)
        y = self.decoder5(self.encoder5(four), self.encoder4(three))
        y = self.decoder4(y, self.encoder3(two))
        y = self.decoder3(y, self.encoder2(one))
        y = self.decoder2(y, self.encoder1(x))
        logits: Tensor = self.out(self.decoder1(y))
        return logits


def _check_strides(strides: Sequence[object]) -> None:
    def is_stride(value: object) -> bool:
        three = isinstance(value, list | tuple) and len(value) == 3 and all(map(is_whole, value))
        return three or is_whole(value)

    if not isinstance(strides, list | tuple) or len(strides) != STAGES or not all(map(is_stride, strides)):
        raise InputError(
            f"strides={strides!r}", f"{STAGES} strides, each one whole number or three (z, y, x) from 1", "correct it"
        )
