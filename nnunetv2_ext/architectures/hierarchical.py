"""HierarchicalSegmentor: a light U-shaped network of which small inputs leave out the first stages.

Paper: Kim et al., CMC 2025 (region of interest first, then the organ). No code was published, and number of stages,
widths and strides are not given; written anew from the paper's description. The block of every stage is that of Slim
UNETR, which the paper takes over; see `layers.slim_block`.

Ours: strides and kernels of nnU-Net's plan, so that an input of any spacing enters at its own size, where the paper
resizes it to a cube; group norm for batch norm, attention with its scale, a step of attention for each axis; the gates
of deeper entries take part in an entry above, so that every parameter is trained there.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_ext.architectures.backbones.record import cumulative, triple
from nnunetv2_ext.architectures.contract import Shape, check_patch
from nnunetv2_ext.architectures.layers.checkpointing import make_stages
from nnunetv2_ext.architectures.layers.few_channels import Pointwise, upsampled
from nnunetv2_ext.architectures.layers.heads import Heads
from nnunetv2_ext.architectures.layers.slim_block import EXPANSION, SlimBlock
from nnunetv2_ext.architectures.measure import kept_elements
from nnunetv2_ext.errors import InputError, check_whole, is_whole

HEAD_FEATURES = 32
STAGES = ("encoder.*", "decoder.*")


class HierarchicalSegmentor(nn.Module):
    """The segmentor of Kim et al. (CMC 2025), with stage skipping.

    Stage k = 1..N works at W_1 = `spatial_shape`, W_(k+1) = W_k / stride_k. At entry r stage r starts from a gate, a
    convolution of the image of size W_r; stages above it are not called. Deeper gates see the image pooled to their
    stage and are added to what comes down:

        x_r = B_r(gate_r(image)),    x_k = B_k(down_k(x_(k-1)) + gate_k(image pooled to W_k)),    no gate for k > R
        y_N = x_N,    y_k = B'_k(up_k(y_(k+1)) + x_k),    logits_k = seg_layer_k(y_k),    k = N - 1, ..., r

    Args:
        input_channels: channels of the image.
        num_classes: channels of the logits.
        spatial_shape: the patch (z, y, x) in voxels.
        strides: of every stage, from the one above it, as nnU-Net plans them: the first is [1, 1, 1].
        kernel_sizes: of every stage's depth-wise convolutions and gate, as nnU-Net plans them; odd.
        entries: R, as many as there are stages at most.
        features: of the first stage; each further one has twice as many.
        max_features: no stage has more.
        tokens: attention sees at most so many voxels of a stage's map in the planned patch.
        deep_supervision: return the logits of the stages r..R, finest first, or only the first.
        activation_checkpointing: in training compute the stages' blocks again in the backward pass.

    Attributes:
        divisor: every axis of an input of the first entry is a multiple of it.
        widths: features of every stage.

    Shapes: (B, input_channels, Z, Y, X) -> (B, num_classes, Z, Y, X), or a list, see `deep_supervision_shapes`. Sizes
    of `entry_shapes` go in at their entry, others that all strides divide at the first.

    Raises:
        InputError: lists of strides and kernels that do not fit each other, numbers out of their range, a spatial_shape
            that the strides do not divide; in `forward`, a size that cannot work.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        spatial_shape: Sequence[int],
        strides: Sequence[Sequence[int]],
        kernel_sizes: Sequence[Sequence[int]],
        entries: int = 3,
        features: int = 16,
        max_features: int = 320,
        tokens: int = 512,
        deep_supervision: bool = False,
        activation_checkpointing: bool = False,
    ):
        super().__init__()
        check_whole(entries=entries, features=features, max_features=max_features, tokens=tokens)
        _check_stages(strides, kernel_sizes)
        self.input_channels, self.num_classes = input_channels, num_classes
        self.deep_supervision = deep_supervision
        self.activation_checkpointing = activation_checkpointing
        self.strides = [triple(stride) for stride in strides]
        self.divisor = cumulative(self.strides)[-1]
        kernels = [triple(kernel) for kernel in kernel_sizes]
        sizes = check_patch(type(self).__name__, spatial_shape, self.divisor, one_voxel=True)
        shapes = [_shrunk(sizes, stride) for stride in cumulative(self.strides)]
        self._entry_shapes = shapes[:entries]
        self.widths = widths = [min(features * 2**stage, max_features) for stage in range(len(shapes))]
        stages = list(zip(widths, kernels, shapes, strict=True))

        self.gates = nn.ModuleList(_Gate(input_channels, width, kernel) for width, kernel, _ in stages[:entries])
        self.encoder = nn.ModuleList(_block(*stage, tokens) for stage in stages)
        self.decoder = nn.ModuleList(_block(*stage, tokens) for stage in stages[:-1])
        below = list(zip(widths, widths[1:], self.strides[1:], strict=False))
        self.downs = nn.ModuleList(_Down(width, wider, stride) for width, wider, stride in below)
        self.ups = nn.ModuleList(_Up(wider, width, stride) for width, wider, stride in below)
        self.heads = Heads(widths[:entries], num_classes, bias=True)
        if activation_checkpointing:
            make_stages(self, STAGES)

    @property
    def head(self) -> nn.Module:
        """The layer that makes the finest logits of entry 1; its input is the last feature map."""
        return self.heads.seg_layers[0]  # type: ignore[no-any-return]

    @property
    def entry_shapes(self) -> Sequence[Shape]:
        """Sizes (z, y, x) of the entries' inputs in voxels, the patch first."""
        return tuple(self._entry_shapes)

    def forward(self, x: Tensor) -> Any:
        image, entry = x, self._entry(x.shape[2:])
        x = self.encoder[entry](self.gates[entry](image))
        skips = [x]
        for stage in range(entry + 1, len(self.strides)):
            x = self.downs[stage - 1](x)
            if stage < len(self.gates):
                image = F.avg_pool3d(image, self.strides[stage])
                x = x + self.gates[stage](image)
            x = self.encoder[stage](x)
            skips.append(x)
        logits: list[Tensor] = []
        for stage in range(len(self.strides) - 1, entry - 1, -1):
            skip = skips.pop()
            if stage < len(self.decoder):
                x = self.decoder[stage](self.ups[stage](x) + skip)
            if stage == entry or (self.deep_supervision and stage < len(self.gates)):
                logits.insert(0, self.heads.seg_layers[stage](x))
        return logits if self.deep_supervision else logits[0]

    def deep_supervision_shapes(self, patch_size: Sequence[int]) -> list[Shape]:
        """The size (z, y, x) of every output for an input of that size, which decides on the entry.

        Raises:
            InputError: a patch that the network cannot take.
        """
        entry = self._entry(patch_size)
        steps = cumulative([(1, 1, 1), *self.strides[entry + 1 : len(self.gates)]])
        return [_shrunk(patch_size, step) for step in steps]

    def compute_conv_feature_map_size(self, patch_size: Sequence[int]) -> float:
        """Half of what training keeps per sample, see `kept_elements`; with one feed-forward layer, computed again.

        Raises:
            InputError: a patch that the network cannot take.
        """
        width = self.widths[self._entry(patch_size)]
        kept = kept_elements(self, (1, self.input_channels, *patch_size))
        return kept / 2 + float(EXPANSION * width * prod(patch_size))  # half of before and after the activation

    def _entry(self, patch_size: Sequence[int]) -> int:
        """The entry of an input of that size, from 0."""
        sizes = tuple(patch_size)
        if sizes in self._entry_shapes:
            return self._entry_shapes.index(sizes)
        check_patch(type(self).__name__, patch_size, self.divisor, one_voxel=True)
        return 0


class _Gate(nn.Module):
    """Image to the features of a stage."""

    def __init__(self, input_channels: int, channels: int, kernel: Shape):
        super().__init__()
        z, y, x = kernel
        self.conv = nn.Conv3d(input_channels, channels, kernel, padding=(z // 2, y // 2, x // 2))
        self.norm = _norm(channels)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(image))
        return out


class _Down(nn.Module):
    """Depth-wise convolution of kernel and stride, point-wise convolution, norm."""

    def __init__(self, in_channels: int, out_channels: int, stride: Shape):
        super().__init__()
        self.depth_wise = nn.Conv3d(in_channels, in_channels, stride, stride, groups=in_channels)
        self.point_wise = Pointwise(in_channels, out_channels, 1)
        self.norm = _norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.point_wise(self.depth_wise(x)))
        return out


class _Up(nn.Module):
    """Transposed depth-wise convolution of kernel and stride, point-wise convolution."""

    def __init__(self, in_channels: int, out_channels: int, stride: Shape):
        super().__init__()
        self.depth_wise = nn.ConvTranspose3d(in_channels, in_channels, stride, stride, groups=in_channels)
        self.point_wise = Pointwise(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return upsampled(self.depth_wise, self.point_wise, x)


def _block(channels: int, kernel: Shape, shape: Shape, tokens: int) -> SlimBlock:
    most = max(1, channels // HEAD_FEATURES)
    heads = next(number for number in range(most, 0, -1) if channels % number == 0)
    return SlimBlock(channels, heads, attention_step(shape, tokens), norm=_norm, kernel=kernel)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(1, channels)


def attention_step(shape: Shape, tokens: int) -> Shape:
    """Which voxels (z, y, x) of a map attention sees: powers of 2 by which at most so many are left.

    The axis on which most are left is halved, again and again; of equal ones the first.
    """
    step, left = [1, 1, 1], list(shape)
    while prod(left) > tokens:
        axis = left.index(max(left))
        step[axis] *= 2
        left[axis] = -(-shape[axis] // step[axis])
    return triple(step)


def _shrunk(sizes: Sequence[int], step: Shape) -> Shape:
    return triple([size // by for size, by in zip(sizes, step, strict=True)])


def are_triples(value: Any) -> bool:
    """Whether it is what plans of nnU-Net's U-Nets hold: three numbers for each stage."""
    return isinstance(value, list | tuple) and all(isinstance(one, list | tuple) and len(one) == 3 for one in value)


def _check_stages(strides: Any, kernel_sizes: Any) -> None:
    def are_whole(value: Any) -> bool:
        return are_triples(value) and all(is_whole(number) for one in value for number in one)

    if not are_whole(strides) or not strides or tuple(strides[0]) != (1, 1, 1):
        raise InputError(
            f"strides={strides!r}",
            "three whole numbers (z, y, x) per stage, those of the first [1, 1, 1]",
            "take the strides of a 3D configuration from plans of nnU-Net",
        )
    if not are_whole(kernel_sizes) or len(kernel_sizes) != len(strides):
        raise InputError(
            f"kernel_sizes={kernel_sizes!r}",
            f"three whole numbers (z, y, x) for each of the {len(strides)} stages",
            "take the kernel sizes from the plans that the strides are from",
        )
    if not all(size % 2 for kernel in kernel_sizes for size in kernel):
        raise InputError(f"kernel_sizes={kernel_sizes!r}", "odd numbers", "correct them")
