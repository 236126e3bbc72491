"""nnFormer: a U-shaped transformer, attention within shifted windows, skips through attention.

Paper: Zhou et al., "nnFormer: Volumetric Medical Image Segmentation via a 3D Transformer", IEEE Transactions on Image
Processing 2023. Original code: 282857341/nnFormer, MIT licence. Written anew here from its description, with the names
of its tensors, so that published weights load.

Departures: sizes travel with the features, so that any patch of whole tokens works; strides per axis; the table of
relative positions has a row for each offset (the published index lets offsets share rows; published weights bring it
with them, and keep their outputs); windows that reach round the border of the image can be kept from it (`masked`,
always so with cubes); tokens as large as `patch_size` says (two of the published files shrink z by 8 for 4, or not at
all for 2); attention without its matrix, and cheap steps computed again in the backward pass.
"""

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any, NoReturn

import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_ext.architectures.backbones.record import triple
from nnunetv2_ext.architectures.contract import Shape, check_planned, three_axes
from nnunetv2_ext.architectures.layers.memory_format import channels_last
from nnunetv2_ext.architectures.layers.recompute import recomputed
from nnunetv2_ext.architectures.layers.window_blocks import CrossWindowBlock, WindowBlock
from nnunetv2_ext.architectures.layers.windows import ShiftedWindows
from nnunetv2_ext.errors import InputError, check_share, is_whole

WINDOW_RULES = ("cube", "per_axis")
# strides of the two convolutions that make tokens, by the voxels of a token along an axis
_EMBEDDING_STRIDES = {1: (1, 1), 2: (2, 1), 4: (2, 2)}


class NNFormer(nn.Module):
    """Tokens of some voxels, levels of transformer blocks and a stride between them, and back up again.

    Level i has `embedding_dim` 2^i features. Every second block of the encoder attends within shifted windows. On the
    way up, the first block of a level takes queries from below and keys and values from the skip; all others are
    shifted.

    Args:
        spatial_shape: the patch (z, y, x) in voxels, the only one that this network takes.
        depths: blocks of each level.
        num_heads: attention heads of each level.
        patch_size: voxels of a token along (z, y, x), each 1, 2 or 4.
        window_size: tokens of a window at each level: a number, or, with "per_axis", three (z, y, x).
        window_rule: "cube" (organs, tumours): windows are cubes, no larger than the shortest axis of the level, and
            shifted where they are smaller. "per_axis" (cardiac images): windows as given, shifted where they are not
            the whole level.
        masked: keep tokens apart that are neighbours only round the border of a shifted level; with "cube" it is so
            always. Published weights of "per_axis" come without.
        decoder_num_heads: attention heads of each level on the way up, fine to coarse; None: those of `num_heads`. The
            published network for tumours has 6, 12, 24 there beside 3, 6, 12, 24.
        strides: from each level to the next, along (z, y, x), each 1 or 2; None: 2.
        drop_path: probability with which the last block of the encoder, and of the decoder, loses a branch for a
            sample; it rises linearly from 0.
        deep_supervision: logits of all levels of the decoder, finest first, or of the finest alone; the attribute is
            `do_ds`.

    Shapes: (B, input_channels, Z, Y, X) -> (B, num_classes, Z, Y, X), or a list, see `deep_supervision_shapes`.

    Raises:
        InputError: arguments that do not fit each other; a patch that it cannot take, or, in `forward`, another one.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        spatial_shape: Sequence[int],
        embedding_dim: int = 192,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (6, 12, 24, 48),
        patch_size: Sequence[int] = (2, 4, 4),
        window_size: Sequence[int | Sequence[int]] = (4, 4, 8, 4),
        window_rule: str = "cube",
        masked: bool = False,
        decoder_num_heads: Sequence[int] | None = None,
        strides: Sequence[int | Sequence[int]] | None = None,
        drop_path: float = 0.2,
        deep_supervision: bool = True,
    ):
        super().__init__()
        _check(embedding_dim, depths, num_heads, decoder_num_heads, window_size, window_rule, strides, drop_path)
        self.patch_size = _triple("patch_size", patch_size, tuple(_EMBEDDING_STRIDES))
        self.strides = [_triple("strides", stride, (1, 2)) for stride in strides or [2] * (len(depths) - 1)]
        self.window_rule = window_rule
        self.do_ds = deep_supervision
        self.spatial_shape: Shape | None = None
        grids = self._grids(spatial_shape)
        self.spatial_shape = three_axes(spatial_shape)

        widths = [embedding_dim * 2**level for level in range(len(depths))]
        windows = [_windows(grid, size, window_rule) for grid, size in zip(grids, window_size, strict=True)]
        masked = masked or window_rule == "cube"
        self.model_down = _Encoder(input_channels, self.patch_size, widths)
        for level, rates in enumerate(_rates(drop_path, depths)):
            blocks = [
                WindowBlock(widths[level], num_heads[level], windows[level][index % 2], masked=masked, drop_path=rate)
                for index, rate in enumerate(rates)
            ]
            bottom = level == len(self.strides)
            down = None if bottom else _Down(widths[level], self.strides[level], grids[level])
            self.model_down.layers.append(_Level(blocks, down))
        layers = []
        for level, rates in enumerate(_rates(drop_path, depths[-2::-1])[::-1]):
            plain, shifted = windows[level]
            width, heads = widths[level], (decoder_num_heads or num_heads)[level]
            first = CrossWindowBlock(width, heads, plain, masked=masked, drop_path=rates[0])
            others = [WindowBlock(width, heads, shifted, masked=masked, drop_path=rate) for rate in rates[1:]]
            layers.append(_UpLevel(_Up(width, self.strides[level], grids[level]), first, others))
        self.decoder = nn.Module()
        self.decoder.layers = nn.ModuleList(layers)
        self.final = nn.ModuleList(_Head(width, num_classes, self.patch_size) for width in widths[:-1])

    @property
    def head(self) -> nn.Module:
        """The layer that makes the finest logits."""
        return self.final[0].up  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Any:
        """Logits (B, num_classes, Z, Y, X) of images (B, input_channels, Z, Y, X), or a list of them.

        Raises:
            InputError: another patch than that it was built for.
        """
        self._grids(x.shape[2:])
        *skips, tokens = self.model_down(x)
        outputs = []
        for level in reversed(range(len(skips))):
            tokens = self.decoder.layers[level](tokens, skips[level])  # type: ignore[index, operator]
            if self.do_ds or level == 0:
                outputs.append(self.final[level](tokens))
        return outputs[::-1] if self.do_ds else outputs[-1]

    def deep_supervision_shapes(self, patch_size: Sequence[int]) -> list[Shape]:
        """The size (Z, Y, X) of each output for a patch of that size.

        Raises:
            InputError: a patch that the network cannot take.
        """
        grids = self._grids(patch_size)[:-1]
        return [triple([size * token for size, token in zip(grid, self.patch_size, strict=True)]) for grid in grids]

    def _grids(self, patch_size: Sequence[int]) -> list[Shape]:
        """The tokens along (z, y, x) of each level."""
        sizes = three_axes(patch_size)
        down = triple([prod([stride[axis] for stride in self.strides]) for axis in range(3)])
        least = [token * step for token, step in zip(self.patch_size, down, strict=True)]
        divisor = list(self.patch_size) if self.window_rule == "per_axis" else least
        if any(size % step or size < low for size, step, low in zip(sizes, divisor, least, strict=True)):
            near = [max(-(-size // step) * step, low) for size, step, low in zip(sizes, divisor, least, strict=True)]
            raise InputError(
                f"a patch of {sizes} for nnFormer with tokens of {list(self.patch_size)} voxels",
                f"multiples of {divisor}, from {least} on",
                f"choose patch_size {near}, or plan again",
            )
        if self.spatial_shape is not None:
            check_planned("nnFormer", sizes, self.spatial_shape)
        grids = [triple([size // token for size, token in zip(sizes, self.patch_size, strict=True)])]
        for stride in self.strides:
            grids.append(triple([size // step for size, step in zip(grids[-1], stride, strict=True)]))
        return grids


class _Encoder(nn.Module):
    """Tokens, levels of blocks, and a norm for each level's skip."""

    def __init__(self, input_channels: int, patch_size: Shape, widths: Sequence[int]):
        super().__init__()
        self.patch_embed = _Embedding(input_channels, widths[0], patch_size)
        self.layers = nn.ModuleList()
        for level, width in enumerate(widths):
            self.add_module(f"norm{level}", nn.LayerNorm(width))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, channels, Z, Y, X) -> (B, z, y, x, D 2^i) of each level i."""
        x = self.patch_embed(x)
        skips = []
        layers: Any = self.layers
        for level, layer in enumerate(layers):
            x = layer(x)
            skips.append(self.get_submodule(f"norm{level}")(x))
            if hasattr(layer, "downsample"):
                x = layer.downsample(x)
        return skips


class _Level(nn.Module):
    """The blocks of a level on the way down, and the step to the next one."""

    def __init__(self, blocks: Sequence[WindowBlock], downsample: nn.Module | None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        if downsample is not None:
            self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """(B, z, y, x, D) -> the same, without the step."""
        for block in self.blocks:
            x = block(x)
        return x


class _Embedding(nn.Module):
    """Four convolutions, two of which may have a stride: (B, channels, Z, Y, X) -> (B, z, y, x, D)."""

    def __init__(self, input_channels: int, width: int, patch_size: Shape):
        super().__init__()
        strides = [_EMBEDDING_STRIDES[size] for size in patch_size]
        self.proj1 = _twice(input_channels, width // 2, [stride[0] for stride in strides], last_norm=True)
        self.proj2 = _twice(width // 2, width, [stride[1] for stride in strides], last_norm=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.proj1, self.proj2
        x = one.conv1(channels_last(x))
        for norm, convolution in ((one.norm1, one.conv2), (one.norm2, two.conv1), (two.norm1, two.conv2)):
            x = recomputed(partial(_convolved, norm, convolution), x)
        tokens: Tensor = self.norm(x.movedim(1, -1))
        return tokens


def _twice(channels: int, width: int, stride: Sequence[int], *, last_norm: bool) -> Any:
    """Two convolutions with their norms, the first with a stride."""
    module = nn.Module()
    module.conv1 = nn.Conv3d(channels, width, 3, triple(stride), padding=1)
    module.norm1 = nn.LayerNorm(width)
    module.conv2 = nn.Conv3d(width, width, 3, padding=1)
    if last_norm:
        module.norm2 = nn.LayerNorm(width)
    return module


def _convolved(norm: nn.Module, convolution: nn.Module, x: Tensor) -> Tensor:
    """GELU, layer norm over the channels of (B, C, z, y, x), then a convolution."""
    convolved: Tensor = convolution(norm(F.gelu(x).movedim(1, -1)).movedim(-1, 1))
    return convolved


class _Down(nn.Module):
    """Half as many tokens along the axes of stride 2, twice the features; of an odd number, the last is left out."""

    def __init__(self, width: int, stride: Shape, grid: Shape):
        super().__init__()
        kernel = triple([2 * step - 1 for step in stride])
        padding = triple([int(step == 2 and size % 2 == 0) for step, size in zip(stride, grid, strict=True)])
        self.norm = nn.LayerNorm(width)
        self.reduction = nn.Conv3d(width, 2 * width, kernel, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        """(B, z, y, x, D) -> (B, z / 2, y / 2, x / 2, 2 D)."""
        return recomputed(partial(_convolved, self.norm, self.reduction), x.movedim(-1, 1)).movedim(1, -1)


class _Up(nn.Module):
    """The opposite of `_Down`, onto a grid."""

    def __init__(self, width: int, stride: Shape, grid: Shape):
        super().__init__()
        odd = triple([size % step for size, step in zip(grid, stride, strict=True)])
        self.norm = nn.LayerNorm(2 * width)
        self.up = nn.ConvTranspose3d(2 * width, width, stride, stride, output_padding=odd)

    def forward(self, x: Tensor) -> Tensor:
        return recomputed(lambda x: self.up(self.norm(x).movedim(-1, 1)), x).movedim(1, -1)


class _UpLevel(nn.Module):
    """A level on the way up."""

    def __init__(self, up: _Up, first: CrossWindowBlock, others: Sequence[WindowBlock]):
        super().__init__()
        self.blocks = nn.ModuleList([first, *others])
        self.Upsample = up

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.blocks[0](self.Upsample(x), skip)
        for block in self.blocks[1:]:
            x = block(x)
        return x


class _Head(nn.Module):
    """Logits of all voxels of a token: (B, z, y, x, D) -> (B, classes, Z, Y, X)."""

    def __init__(self, width: int, num_classes: int, patch_size: Shape):
        super().__init__()
        self.up = nn.ConvTranspose3d(width, num_classes, patch_size, patch_size)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.up(tokens.movedim(-1, 1))
        return logits


def _windows(grid: Shape, size: Any, rule: str) -> tuple[ShiftedWindows, ShiftedWindows]:
    """The windows of a level, as they are and shifted where the rule has it so."""
    if rule == "cube":
        window = triple(min(size, *grid))
        shifted = min(grid) > size
    else:
        window = triple(size)
        shifted = grid != window and min(window) > 1
    shift = triple([length // 2 for length in window] if shifted else 0)
    return ShiftedWindows(grid, window), ShiftedWindows(grid, window, shift)


def _rates(highest: float, depths: Sequence[int]) -> list[list[float]]:
    """The drop-path rate of each block of each level, from 0 to the highest."""
    number = sum(depths)
    rates = iter([highest * block / max(number - 1, 1) for block in range(number)])
    return [[next(rates) for _ in range(depth)] for depth in depths]


def _refuse(got: str, expected: str) -> NoReturn:
    raise InputError(got, expected, "correct backbone_kwargs, or the plans")


def _triple(name: str, value: Any, allowed: Sequence[int]) -> Shape:
    """A value along (z, y, x), from one number or three."""
    values = [value] * 3 if is_whole(value) else value
    if not isinstance(values, Sequence) or len(values) != 3 or any(one not in allowed for one in values):
        _refuse(f"{name} = {value!r}", f"three numbers (z, y, x) of {', '.join(map(str, allowed))}")
    return triple(values)


def _check(
    embedding_dim: Any,
    depths: Any,
    num_heads: Any,
    decoder_num_heads: Any,
    window_size: Any,
    window_rule: Any,
    strides: Any,
    drop_path: Any,
) -> None:
    """Refuse arguments that do not fit each other.

    Raises:
        InputError: the first of them, with what it has to be.
    """
    if not isinstance(depths, Sequence) or len(depths) < 2 or not all(map(is_whole, depths)):
        _refuse(f"depths = {depths!r}", "two or more numbers of blocks, from 1")
    levels = len(depths)
    lengths = {"num_heads": levels, "window_size": levels, "strides": levels - 1, "decoder_num_heads": levels - 1}
    given = {
        "num_heads": num_heads,
        "window_size": window_size,
        "strides": strides,
        "decoder_num_heads": decoder_num_heads,
    }
    for name, length in lengths.items():
        value = given[name]
        if value is not None and (not isinstance(value, Sequence) or len(value) != length):
            _refuse(f"{name} = {value!r} with {levels} levels in depths", f"{length} of them")
    if window_rule not in WINDOW_RULES:
        _refuse(f"window_rule = {window_rule!r}", " or ".join(WINDOW_RULES))
    for size in window_size:
        three = isinstance(size, Sequence) and len(size) == 3 and all(map(is_whole, size))
        if not (is_whole(size) or (three and window_rule == "per_axis")):
            _refuse(
                f"{size!r} in window_size with window_rule = {window_rule!r}",
                "a number of tokens, from 1" + (", or three (z, y, x)" if window_rule == "per_axis" else ""),
            )
    if not is_whole(embedding_dim, 2) or embedding_dim % 2:
        _refuse(f"embedding_dim = {embedding_dim!r}", "an even number, half of which the first convolutions have")
    for name, heads in {"num_heads": num_heads, "decoder_num_heads": decoder_num_heads or ()}.items():
        for level, number in enumerate(heads):
            if not is_whole(number) or embedding_dim * 2**level % number:
                _refuse(
                    f"{name} = {list(heads)!r} with embedding_dim = {embedding_dim}",
                    f"a divisor of the {embedding_dim * 2**level} features of level {level} in place of {number!r}",
                )
    check_share(drop_path=drop_path)
