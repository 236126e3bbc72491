"""MultiResUNet in 3D: blocks of three chained convolutions, and paths of residual steps in place of plain skips.

Paper: Ibtehaz and Rahman, "MultiResUNet: Rethinking the U-Net architecture for multimodal biomedical image
segmentation", Neural Networks 121, 2020. Original code: https://github.com/nibtehaz/MultiResUNet (MIT); written anew
here from its description, under the published names, so that published weights load as they are.

Departures from the original: as many logits as classes, where it makes one more; `alpha` reaches the blocks; pooling
and up-sampling have a stride for each axis. None of these changes an output: norms and activations between the
convolutions are computed again in the backward pass instead of kept.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_ext.architectures.backbones.record import cumulative, strides_argument
from nnunetv2_ext.architectures.contract import check_patch
from nnunetv2_ext.architectures.layers.recompute import StatisticsKept, keeps_all, max_pool, recomputed
from nnunetv2_ext.errors import InputError, check_whole

LEVELS = 4
SHARES = (0.167, 0.333, 0.5)
"""Of a block's width, for its three convolutions."""


class MultiResUNet(nn.Module):
    """MultiResUNet (section 3): five levels of blocks, with paths of 4, 3, 2 and 1 residual steps between both sides.

    Args:
        input_channels: channels of the image.
        num_classes: channels of the logits.
        base: the nominal width of the first level; each further one doubles it.
        alpha: how many times wider a block is than the nominal width (section 3.1).
        strides: of each of the four poolings, along (z, y, x).

    Shapes: (B, input_channels, Z, Y, X) -> (B, num_classes, Z, Y, X). Z, Y and X are multiples of the product of the
    strides, with more than one voxel at the bottleneck, whatever the batch: batch norm over the samples alone tells
    nothing of an image.

    Raises:
        InputError: strides that are not four triples, a width that leaves a convolution without a channel; in
            `forward`, a size that cannot work.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        base: int = 32,
        alpha: float = 1.67,
        strides: Sequence[Sequence[int]] = ((2, 2, 2),) * LEVELS,
    ):
        super().__init__()
        self.strides = strides_argument({"strides": strides})
        if len(self.strides) != LEVELS:
            raise InputError(f"{len(self.strides)} strides", f"{LEVELS}, one per pooling", "correct them")
        check_whole(base=base)
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
            raise InputError(f"alpha={alpha!r}", "a number above 0 (1.67 as published)", "correct it")
        if min(_widths(base, alpha)) < 1:
            raise InputError(
                f"base={base} with alpha={alpha}",
                "a width that leaves each convolution of the first block a channel",
                "choose a larger base (32 as published)",
            )
        nominal = [base * 2**level for level in range(LEVELS + 1)]
        wide = [sum(_widths(width, alpha)) for width in nominal]
        inputs = [input_channels, *wide]
        for level in range(LEVELS + 1):
            self.add_module(f"multiresblock{level + 1}", _MultiResBlock(inputs[level], nominal[level], alpha))
        for level, stride in enumerate(self.strides):
            width, mirror = nominal[level], 2 * LEVELS + 1 - level
            self.add_module(f"respath{level + 1}", _ResPath(wide[level], width, LEVELS - level))
            self.add_module(f"upsample{mirror}", nn.ConvTranspose3d(wide[level + 1], width, stride, stride))
            self.add_module(f"multiresblock{mirror}", _MultiResBlock(2 * width, width, alpha))
        self.conv_final = _ConvNorm(wide[0], num_classes, 1)

    @property
    def head(self) -> nn.Module:
        """The layer that makes the logits: a convolution and, as published, batch norm."""
        return self.conv_final

    def forward(self, x: Tensor) -> Tensor:
        check_patch("MultiResUNet", x.shape[2:], cumulative(self.strides)[-1])
        skips = []
        for level, stride in enumerate(self.strides, start=1):
            x = self.get_submodule(f"multiresblock{level}")(x)
            skips.append(self.get_submodule(f"respath{level}")(x))
            x = max_pool(x, stride)
        x = self.get_submodule(f"multiresblock{LEVELS + 1}")(x)
        for mirror in range(LEVELS + 2, 2 * LEVELS + 2):
            up = self.get_submodule(f"upsample{mirror}")(x)
            x = self.get_submodule(f"multiresblock{mirror}")(torch.cat([up, skips.pop()], dim=1))
        logits: Tensor = self.conv_final(x)
        return logits


def _widths(nominal: int, alpha: float) -> list[int]:
    """The channels of the three convolutions of a block."""
    return [int(share * alpha * nominal) for share in SHARES]


class _ConvNorm(nn.Module):
    """Convolution and batch norm."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int):
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, out_channels, kernel, padding=kernel // 2)
        self.batchnorm = nn.BatchNorm3d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.normalize(self.conv1(x))

    def normalize(self, convolved: Tensor) -> Tensor:
        normalized: Tensor = self.batchnorm(convolved)
        return normalized

    def activate(self, convolved: Tensor) -> Tensor:
        return F.relu(self.normalize(convolved), inplace=True)


class _MultiResBlock(nn.Module):
    """Three convolutions, one after the other, joined, and a 1x1x1 convolution of the input added (section 3.1)."""

    def __init__(self, in_channels: int, nominal: int, alpha: float):
        super().__init__()
        a, b, c = _widths(nominal, alpha)
        self.shortcut = _ConvNorm(in_channels, a + b + c, 1)
        self.conv_3x3 = _ConvNorm(in_channels, a, 3)
        self.conv_5x5 = _ConvNorm(a, b, 3)
        self.conv_7x7 = _ConvNorm(b, c, 3)
        self.batch_norm1 = nn.BatchNorm3d(a + b + c)
        self.batch_norm2 = nn.BatchNorm3d(a + b + c)

    def forward(self, x: Tensor) -> Tensor:
        if keeps_all():
            a = self.conv_3x3.activate(self.conv_3x3.conv1(x))
            b = self.conv_5x5.activate(self.conv_5x5.conv1(a))
            c = self.conv_7x7.activate(self.conv_7x7.conv1(b))
            return self._joined(a, b, c, self.shortcut(x))
        # the results of the convolutions are all that is kept
        a = self.conv_3x3.conv1(x)
        b = recomputed(self._second, a, module=self.conv_3x3)
        c = recomputed(self._third, b, module=self.conv_5x5)
        return recomputed(self._activated_and_joined, a, b, c, self.shortcut.conv1(x), module=self)

    def _second(self, a: Tensor) -> Tensor:
        b: Tensor = self.conv_5x5.conv1(self.conv_3x3.activate(a))
        return b

    def _third(self, b: Tensor) -> Tensor:
        c: Tensor = self.conv_7x7.conv1(self.conv_5x5.activate(b))
        return c

    def _activated_and_joined(self, a: Tensor, b: Tensor, c: Tensor, shortcut: Tensor) -> Tensor:
        with StatisticsKept(self.conv_3x3, self.conv_5x5):  # these moved on the way to the next convolution
            a, b = self.conv_3x3.activate(a), self.conv_5x5.activate(b)
        return self._joined(a, b, self.conv_7x7.activate(c), self.shortcut.normalize(shortcut))

    def _joined(self, a: Tensor, b: Tensor, c: Tensor, shortcut: Tensor) -> Tensor:
        joined = self.batch_norm1(torch.cat([a, b, c], dim=1)).add_(shortcut)
        return F.relu(self.batch_norm2(joined), inplace=True)


class _ResPath(nn.Module):
    """Residual steps on the way from one side to the other (section 3.2)."""

    def __init__(self, in_channels: int, channels: int, steps: int):
        super().__init__()
        inputs = [in_channels] + [channels] * (steps - 1)
        self.shortcuts = nn.ModuleList(_ConvNorm(width, channels, 1) for width in inputs)
        self.convs = nn.ModuleList(_ConvNorm(width, channels, 3) for width in inputs)
        self.bns = nn.ModuleList(nn.BatchNorm3d(channels) for _ in inputs)

    def forward(self, x: Tensor) -> Tensor:
        shortcut, convolved = self._convolved(0, x)
        for step in range(len(self.bns) - 1):
            shortcut, convolved = recomputed(partial(self._next, step), shortcut, convolved, module=self)
        x = recomputed(partial(self._added, len(self.bns) - 1), shortcut, convolved, module=self)
        return x

    def _convolved(self, step: int, x: Tensor) -> tuple[Tensor, Tensor]:
        shortcut, conv, _ = self._layers(step)
        return shortcut.conv1(x), conv.conv1(x)

    def _next(self, step: int, shortcut: Tensor, convolved: Tensor) -> tuple[Tensor, Tensor]:
        return self._convolved(step + 1, self._added(step, shortcut, convolved))

    def _added(self, step: int, shortcut: Tensor, convolved: Tensor) -> Tensor:
        """As published one batch norm serves twice, so its running statistics move twice a pass."""
        beside, conv, norm = self._layers(step)
        once = F.relu(norm(conv.activate(convolved)), inplace=True)
        return F.relu(norm(beside.normalize(shortcut).add_(once)), inplace=True)

    def _layers(self, step: int) -> tuple[Any, Any, Any]:
        return self.shortcuts[step], self.convs[step], self.bns[step]
