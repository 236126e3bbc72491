"""ConvFreeTransformer: segmentation with linear layers, attention and layer norm, without a convolution.

Papers: Karimi et al., "Convolution-Free Medical Image Segmentation Using Transformers", MICCAI 2021; Gang, "A Novel
Convolutional-Free Method for 3D Medical Imaging Segmentation", 2025 (sections 3.1 to 3.5). Neither has published code;
written from the papers.

Departures: besides the papers' blocks (`context="block"`) a whole patch as one sequence (`context="patch"`, the
default, with a position code per axis); tokens of different size per axis for anisotropic voxels; layer norm before
each sublayer (`pre_norm`, the default; the papers' norm after it is `pre_norm=False`); biases in the attention;
stochastic depth.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import product
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnunetv2_ext.architectures.measure import kept_elements
from nnunetv2_ext.errors import InputError

Shape = tuple[int, int, int]

CONTEXTS = ("patch", "block")
SIZES: dict[str, dict[str, int]] = {
    "S": {"embed_dim": 384, "depth": 12, "num_heads": 6, "mlp_dim": 1536},
    "B": {"embed_dim": 768, "depth": 12, "num_heads": 12, "mlp_dim": 3072},
    "L": {"embed_dim": 1024, "depth": 24, "num_heads": 16, "mlp_dim": 4096},
    "paper": {"embed_dim": 1024, "depth": 7, "num_heads": 4, "mlp_dim": 1024},  # Karimi et al., section 2
}
# voxels of a token (Karimi et al.: 512), how near a shape must be to the most cubic one to count as equal to it, and
# the ratio of longest to shortest edge that is refused
_MIN_VOXELS, _VOXELS, _MAX_VOXELS = 128, 512, 1024
_EQUALLY_CUBIC = 0.01
_LONGEST_EDGE = 4
# what one chunk of blocks may hold for its backward pass: half a gigabyte in float32
_CHUNK_ELEMENTS = 2**27
_WAVELENGTH = 10_000


def token_size_for(spacing: Sequence[float], patch_size: Sequence[int] | None = None) -> Shape:
    """The token (z, y, x), in voxels, that is nearest to a cube in millimetres.

    Among tokens of 128 to 1024 voxels, even in plane, those of the smallest logarithm of longest to shortest edge;
    among those the one nearest to 512 voxels. 5 x 0.8 x 0.8 mm gives 2 x 12 x 12.

    Args:
        spacing: (z, y, x) in mm.
        patch_size: (z, y, x) in voxels, which the token must then divide.

    Raises:
        InputError: no such token divides the patch, or none whose longest edge is at most 4 times its shortest.
    """
    depths, in_plane = range(1, _MAX_VOXELS // 4 + 1), range(2, _MAX_VOXELS // 2 + 1, 2)
    axes: list[Sequence[int]] = [depths, in_plane, in_plane]
    if patch_size is not None:
        axes = [[size for size in sizes if axis % size == 0] for sizes, axis in zip(axes, patch_size, strict=True)]
    candidates = []
    for depth, height in product(axes[0], axes[1]):
        if depth * height * 2 > _MAX_VOXELS:
            continue
        for width in axes[2]:
            if _MIN_VOXELS <= depth * height * width <= _MAX_VOXELS:
                edges = [math.log(size * mm) for size, mm in zip((depth, height, width), spacing, strict=True)]
                candidates.append((max(edges) - min(edges), (depth, height, width)))
    best = min(candidates, default=(math.inf,))[0]
    if patch_size is not None and best > math.log(_LONGEST_EDGE):
        raise InputError(
            f"a patch of {list(patch_size)} at {list(spacing)} mm",
            f"one that a nearly cubic token of {_MIN_VOXELS} to {_MAX_VOXELS} voxels divides",
            "plan with ConvFreePlanner",
        )
    return min(
        (token for spread, token in candidates if spread <= best + _EQUALLY_CUBIC),
        key=lambda token: (abs(math.prod(token) - _VOXELS), token),
    )


class ConvFreeTransformer(nn.Module):
    """A transformer over tokens of voxels, which predicts every voxel of a token by one linear layer.

    With X the tokens of a patch, flattened and embedded linearly to D dimensions, plus sines and cosines of their
    position, `depth` layers of

        X <- X + W_O Concat_h softmax(Q_h K_h^T / sqrt(D / heads)) V_h,     Q, K, V = LayerNorm(X) W_Q, W_K, W_V
        X <- X + W_2 ReLU(W_1 LayerNorm(X) + b_1) + b_2

    (`pre_norm=False`: X <- LayerNorm(X + ...), eq. 9 of Gang) and a linear layer from D to voxels x classes.

    `context="patch"`: all tokens of the patch are one sequence; each axis has a third of the position code.
    `context="block"`, the papers': every token is predicted as the centre of its own `block_tokens`^3 neighbours, at
    the border from those that exist; the code is that of the index in the block. It costs up to `block_tokens`^3
    times as much. In training, chunks of tokens are recomputed in the backward pass, so that memory is bounded.

    Both have the same parameters, so one state dict loads into either. No parameter depends on `spatial_shape`.

    Args:
        spatial_shape: (z, y, x) of the planned patch in voxels; others that its tokens (and windows) divide work too.
        token_size: voxels per axis (z, y, x).
        mlp_dim: width of the feed-forward layers; None: 4 x `embed_dim`.
        block_tokens: tokens per axis of a block, odd.
        dropout: after the position code and each sublayer, as in "Attention is all you need".
        drop_path: probability with which the last layer's sublayers are skipped for a sample; it rises linearly from 0
            in the first layer.
        window: tokens per axis (z, y, x) of windowed attention in `context="patch"`; must divide the grid of tokens.
            Layers attend by turns within windows of neighbouring tokens and within as many tokens spread evenly over
            the whole patch (Tu et al., "MaxViT", ECCV 2022). None: all tokens attend to all.
        activation_checkpointing: recompute each layer in the backward pass (`context="patch"`).
        deep_supervision: return a list of the one output.

    Raises:
        InputError: sizes that do not fit each other.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        spatial_shape: Sequence[int],
        token_size: Sequence[int] = (8, 8, 8),
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_dim: int | None = None,
        context: str = "patch",
        block_tokens: int = 3,
        pre_norm: bool = True,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        window: Sequence[int] | None = None,
        activation_checkpointing: bool = False,
        deep_supervision: bool = False,
    ):
        super().__init__()
        mlp_dim = 4 * embed_dim if mlp_dim is None else mlp_dim
        sizes = {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads, "mlp_dim": mlp_dim}
        _check_arguments(sizes, token_size, context, block_tokens, pre_norm, dropout, drop_path, window)
        self.input_channels = input_channels
        self.token_size = tuple(token_size)
        self.context = context
        self.block_tokens = block_tokens
        self.window = None if window is None else tuple(window)
        self.activation_checkpointing = activation_checkpointing
        self.deep_supervision = deep_supervision
        self._grid(spatial_shape)

        voxels = math.prod(token_size)
        self.embed = nn.Linear(input_channels * voxels, embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            _Layer(
                embed_dim,
                num_heads,
                mlp_dim,
                pre_norm=pre_norm,
                dropout=dropout,
                drop_path=drop_path * index / max(depth - 1, 1),
            )
            for index in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim) if pre_norm else nn.Identity()
        self.decoder = _Decoder(embed_dim, num_classes * voxels)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Any:
        """Logits (B, num_classes, Z, Y, X) of images (B, input_channels, Z, Y, X).

        Raises:
            InputError: a shape that the tokens do not divide.
        """
        logits = self.decode(self.encode(x), x.shape[2:])
        return [logits] if self.deep_supervision else logits

    @property
    def head(self) -> nn.Module:
        """The layer whose input, (B, tokens, D), is the last feature map."""
        return self.decoder.seg_layers[0]  # type: ignore[no-any-return]

    def encode(self, x: Tensor) -> Tensor:
        """Features (B, tokens, D) of images (B, input_channels, Z, Y, X); tokens run z, y, x."""
        grid = self._grid(x.shape[2:])
        depth, height, width = self.token_size
        # (B, C, Z, Y, X) -> (B, tokens, C * voxels)
        patches = rearrange(x, "b c (z d) (y h) (x w) -> b (z y x) (c d h w)", d=depth, h=height, w=width)
        tokens = self.embed(patches)
        features = self._in_patch(tokens, grid) if self.context == "patch" else self._in_blocks(tokens, grid)
        return self.norm(features)

    def decode(self, features: Tensor, patch_size: Sequence[int]) -> Tensor:
        """Logits (B, num_classes, Z, Y, X) of features (B, tokens, D)."""
        grid = self._grid(patch_size)
        depth, height, width = self.token_size
        # (B, tokens, classes * voxels) -> (B, classes, Z, Y, X)
        return rearrange(
            self.decoder(features),
            "b (z y x) (k d h w) -> b k (z d) (y h) (x w)",
            z=grid[0],
            y=grid[1],
            d=depth,
            h=height,
            w=width,
        )

    def _in_patch(self, tokens: Tensor, grid: Shape) -> Tensor:
        """All tokens (B, N, D) of the patch as one sequence."""
        tokens = self.dropout(tokens + _axial_code(grid, self.embed.weight))
        recompute = self.activation_checkpointing and self.training and torch.is_grad_enabled()
        for index, layer in enumerate(self.layers):
            regroup = None if self.window is None else _Windows(grid, self.window, spread=index % 2 == 1)
            tokens = checkpoint(layer, tokens, regroup, use_reentrant=False) if recompute else layer(tokens, regroup)
        return tokens

    @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator]  # one graph for all chunks takes hours
    def _in_blocks(self, tokens: Tensor, grid: Shape) -> Tensor:
        """Each token (B, N, D) as the centre of its block."""
        code = _sequence_code(self.block_tokens**3, self.embed.weight)
        recompute = self.training and torch.is_grad_enabled()
        centres, features = [], []
        for block in _blocks(grid, self.block_tokens):
            per_chunk = max(1, self._chunk_tokens() // (len(tokens) * block.neighbours.shape[1]))
            for chunk in block.chunks(per_chunk, tokens.device):
                arguments = (tokens, code, chunk)
                features.append(
                    checkpoint(self._centres, *arguments, use_reentrant=False)
                    if recompute
                    else self._centres(*arguments)
                )
                centres.append(chunk.centres)
        return torch.cat(features, 1).index_select(1, torch.cat(centres).argsort())

    def _centres(self, tokens: Tensor, code: Tensor, chunk: "_Blocks") -> Tensor:
        """Features (B, blocks, D) of the centres of some blocks, from all tokens (B, N, D) and code (n^3, D)."""
        blocks, length = chunk.neighbours.shape
        # flat indices: the backward pass of index_select adds up, that of indexing sorts
        sequences = tokens.index_select(1, chunk.neighbours.flatten()) + code.index_select(0, chunk.places.flatten())
        sequences = rearrange(self.dropout(sequences), "b (n l) d -> (b n) l d", n=blocks, l=length)
        for layer in self.layers:
            sequences = layer(sequences)
        sequences = rearrange(sequences, "(b n) l d -> b (n l) d", n=blocks)
        return sequences.index_select(1, chunk.centre_places)

    def _chunk_tokens(self) -> int:
        """How many tokens, in all blocks of a chunk, are computed at a time."""
        return max(1, _CHUNK_ELEMENTS // (len(self.layers) * self.layers[0].kept_per_token()))  # type: ignore[operator]

    def deep_supervision_shapes(self, patch_size: Sequence[int]) -> list[Shape]:
        """The size of the one output, that of the patch.

        Raises:
            InputError: a patch that the tokens do not divide.
        """
        self._grid(patch_size)
        depth, height, width = (int(size) for size in patch_size)
        return [(depth, height, width)]

    def compute_conv_feature_map_size(self, patch_size: Sequence[int]) -> float:
        """Half of what training keeps per sample, see `kept_elements`; with the largest part that is recomputed.

        In blocks that is a chunk, which all samples of a batch share: to count it for each errs on the safe side.

        Raises:
            InputError: a patch that the tokens do not divide.
        """
        grid = self._grid(patch_size)
        shape, width = (1, self.input_channels, *patch_size), self.embed.out_features

        def of_layers(shape: Sequence[int], network: Callable[[int], nn.Module]) -> float:
            """All layers are alike, so that two of them tell the size of many."""
            one, two = (kept_elements(network(layers), shape) for layers in (1, 2))
            return one + (len(self.layers) - 1) * (two - one)

        if self.context == "block":  # to count all chunks would take minutes; between them only tokens are kept
            length = self.block_tokens**3
            blocks = max(1, min(math.prod(grid), self._chunk_tokens() // length))
            kept = kept_elements(self._whole_patch(0), shape)
            kept += of_layers((blocks, length, width), lambda layers: nn.Sequential(*[self.layers[0]] * layers))
        else:
            kept = of_layers(shape, self._whole_patch)
            if self.activation_checkpointing:
                kept += kept_elements(self.layers[0], (1, math.prod(grid), width))
        return kept / 2

    def _whole_patch(self, layers: int) -> nn.Module:
        """This network over a whole patch with another number of layers, all of them the first one."""
        shell = copy.copy(self)
        shell.context = "patch"
        shell._modules = {**self._modules, "layers": nn.ModuleList([self.layers[0]] * layers)}
        return shell

    def _grid(self, patch_size: Sequence[int]) -> Shape:
        """The number of tokens per axis of a patch."""
        sizes = [int(size) for size in patch_size]
        if len(sizes) != 3:
            raise InputError(f"a patch of {len(sizes)} axes {sizes}", "three axes (z, y, x)", "use a 3D configuration")
        if min(sizes) < 1 or any(size % token for size, token in zip(sizes, self.token_size, strict=True)):
            below = [max(size // token, 1) * token for size, token in zip(sizes, self.token_size, strict=True)]
            above = [max(-(-size // token), 1) * token for size, token in zip(sizes, self.token_size, strict=True)]
            nearest = f"{below}" if below == above else f"{below} or {above}"
            raise InputError(
                f"a patch of {sizes}",
                f"multiples of the token {list(self.token_size)}, {nearest} for instance",
                "change the patch or the token size",
            )
        grid = tuple(size // token for size, token in zip(sizes, self.token_size, strict=True))
        if self.window is not None and any(axis % size for axis, size in zip(grid, self.window, strict=True)):
            raise InputError(
                f"windows of {list(self.window)} tokens for a patch of {sizes}",
                f"divisors of its {list(grid)} tokens",
                "correct window in the plans, or plan this patch",
            )
        return grid  # type: ignore[return-value]


class _Decoder(nn.Module):
    """The linear layer to logits; `seg_layers` is the name that nnU-Net's -pretrained_weights leaves out."""

    def __init__(self, embed_dim: int, outputs: int):
        super().__init__()
        self.seg_layers = nn.ModuleList([nn.Linear(embed_dim, outputs)])

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.seg_layers[0](features)
        return logits


class _Layer(nn.Module):
    """Self-attention and feed-forward network, each with residual and layer norm."""

    def __init__(self, width: int, heads: int, mlp_dim: int, *, pre_norm: bool, dropout: float, drop_path: float):
        super().__init__()
        self.heads = heads
        self.pre_norm = pre_norm
        self.drop_path = drop_path
        self.dropout = nn.Dropout(dropout)
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.expansion = nn.Linear(width, mlp_dim)
        self.contraction = nn.Linear(mlp_dim, width)

    def kept_per_token(self) -> int:
        """Elements that the backward pass needs: inputs of norms and linear layers, attention's queries to values."""
        return 8 * self.projection.in_features + self.expansion.out_features

    def forward(self, x: Tensor, windows: "_Windows | None" = None) -> Tensor:
        """(B, N, D) -> (B, N, D); attention within windows, or among all N."""
        if self.pre_norm:
            x = x + self._dropped(self._attend(self.attention_norm(x), windows))
            return x + self._dropped(self._feed_forward(self.mlp_norm(x)))
        x = self.attention_norm(x + self._dropped(self._attend(x, windows)))
        return self.mlp_norm(x + self._dropped(self._feed_forward(x)))

    def _attend(self, x: Tensor, windows: "_Windows | None") -> Tensor:
        if windows is not None:
            x = windows.split(x)
        # (B, N, 3 D) -> (3, B, heads, N, D / heads)
        query, key, value = rearrange(self.query_key_value(x), "b n (r h d) -> r b h n d", r=3, h=self.heads)
        attended = rearrange(F.scaled_dot_product_attention(query, key, value), "b h n d -> b n (h d)")
        out: Tensor = self.projection(attended)
        return out if windows is None else windows.join(out)

    def _feed_forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.contraction(F.relu(self.expansion(x), inplace=True))
        return out

    def _dropped(self, branch: Tensor) -> Tensor:
        """Dropout, and stochastic depth (Huang et al., ECCV 2016) over the samples."""
        branch = self.dropout(branch)
        if not self.training or self.drop_path == 0:
            return branch
        kept = torch.rand(len(branch), 1, 1, device=branch.device) >= self.drop_path
        return branch * (kept / (1 - self.drop_path)).to(branch.dtype)


class _Windows:
    """Groups of tokens that attend to each other: neighbours, or, with `spread`, a grid over the whole patch."""

    def __init__(self, grid: Shape, window: Sequence[int], *, spread: bool):
        axes = "(p i) (q j) (r k)" if spread else "(i p) (j q) (k r)"
        sizes = zip("ijk", grid, window, strict=True)
        self.counts = {name: axis // size for name, axis, size in sizes}
        self.window = dict(zip("pqr", window, strict=True))
        self.split_pattern = f"b ({axes.replace('(', '').replace(')', '')}) d -> (b i j k) (p q r) d"
        self.join_pattern = f"(b i j k) (p q r) d -> b ({axes.replace('(', '').replace(')', '')}) d"

    def split(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B * windows, tokens of a window, D)"""
        return rearrange(x, self.split_pattern, **self.counts, **self.window)

    def join(self, x: Tensor) -> Tensor:
        """(B * windows, tokens of a window, D) -> (B, N, D)"""
        return rearrange(x, self.join_pattern, **self.counts, **self.window)


class _Blocks:
    """Blocks of equally many tokens: the indices of their tokens, those tokens' places in the block, the centres."""

    def __init__(self, neighbours: Tensor, places: Tensor, centres: Tensor, centre_places: Tensor):
        self.neighbours = neighbours  # (blocks, tokens) of the patch's tokens
        self.places = places  # (blocks, tokens) of the n^3 places
        self.centres = centres  # (blocks,) of the patch's tokens
        self.centre_places = centre_places  # (blocks,) of the tokens of all these blocks, one after the other

    def chunks(self, size: int, device: torch.device) -> Any:
        """The same in parts of at most `size` blocks, on a device."""
        for start in range(0, len(self.centres), size):
            part = slice(start, start + size)
            yield _Blocks(
                self.neighbours[part].to(device),
                self.places[part].to(device),
                self.centres[part].to(device),
                (self.centre_places[part] - start * self.neighbours.shape[1]).to(device),
            )


@torch.compiler.disable  # type: ignore[untyped-decorator]
@lru_cache(maxsize=8)
def _blocks(grid: Shape, size: int) -> list[_Blocks]:
    """The blocks around all tokens of a grid, sorted by the number of their tokens; no token lies outside the grid."""
    with torch.device("cpu"), torch.inference_mode(False):
        coordinates = torch.cartesian_prod(*(torch.arange(axis) for axis in grid))  # (N, 3)
        reach = torch.arange(size) - size // 2
        offsets = torch.cartesian_prod(reach, reach, reach)  # (n^3, 3)
        around = coordinates[:, None] + offsets  # (N, n^3, 3)
        exists = ((around >= 0) & (around < torch.tensor(grid))).all(-1)
        indices = (around * torch.tensor([grid[1] * grid[2], grid[2], 1])).sum(-1)
        groups = []
        for length in exists.sum(1).unique().tolist():
            centres = (exists.sum(1) == length).nonzero()[:, 0]
            places = exists[centres].nonzero()[:, 1].reshape(-1, length)
            neighbours = indices[centres].gather(1, places)
            centre_places = (places.flatten() == len(offsets) // 2).nonzero()[:, 0]
            groups.append(_Blocks(neighbours, places, centres, centre_places))
        return groups


def _sequence_code(length: int, like: Tensor) -> Tensor:
    """Sines and cosines of "Attention is all you need" (section 3.5): (length, D), in the dtype of `like`, (D, ...)."""
    return _code(length, len(like), like.device).to(like.dtype)


def _axial_code(grid: Shape, like: Tensor) -> Tensor:
    """The same for each axis in a third of the dimensions, whole pairs; what is left over is 0: (N, D)."""
    width = len(like) // 6 * 2
    code = torch.zeros(*grid, len(like), device=like.device)
    for axis, length in enumerate(grid):
        shape = [1, 1, 1, width]
        shape[axis] = length
        code[..., axis * width : (axis + 1) * width] = _code(length, width, like.device).reshape(shape)
    return code.reshape(math.prod(grid), -1).to(like.dtype)


def _code(length: int, width: int, device: torch.device) -> Tensor:
    frequencies = _WAVELENGTH ** (-torch.arange(0, width, 2, device=device) / max(width, 1))
    angles = torch.arange(length, device=device)[:, None] * frequencies  # (length, pairs)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :width]


def _initialise(module: nn.Module) -> None:
    """Glorot's, as PyTorch's own transformer; the 0.02 of vision transformers learns two cases in twice the steps."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def _check_arguments(
    sizes: Mapping[str, Any],
    token_size: Any,
    context: Any,
    block_tokens: Any,
    pre_norm: Any,
    dropout: Any,
    drop_path: Any,
    window: Any,
) -> None:
    def refuse(got: str, expected: str) -> None:
        raise InputError(got, expected, "correct the argument, or the plans")

    def are_sizes(value: Any) -> bool:
        return isinstance(value, Sequence) and len(value) == 3 and all(map(_is_size, value))

    if not are_sizes(token_size):
        refuse(f"token_size = {token_size!r}", "three whole numbers of voxels (z, y, x), from 1")
    for name, value in sizes.items():
        if not _is_size(value):
            refuse(f"{name} = {value!r}", "a whole number from 1")
    if sizes["embed_dim"] % sizes["num_heads"]:
        refuse(f"embed_dim = {sizes['embed_dim']} with num_heads = {sizes['num_heads']}", "a multiple of num_heads")
    if context not in CONTEXTS:
        refuse(f"context = {context!r}", " or ".join(CONTEXTS))
    if not _is_size(block_tokens) or block_tokens % 2 == 0:
        refuse(f"block_tokens = {block_tokens!r}", "an odd number, so that a block has a centre")
    if not isinstance(pre_norm, bool):
        refuse(f"pre_norm = {pre_norm!r}", "true or false")
    for name, value in {"dropout": dropout, "drop_path": drop_path}.items():
        if not isinstance(value, int | float) or not 0 <= value < 1:
            refuse(f"{name} = {value!r}", "a number in [0, 1)")
    if window is not None and not are_sizes(window):
        refuse(f"window = {window!r}", "null or three whole numbers of tokens (z, y, x), from 1")
    if window is not None and context == "block":
        refuse(f"window = {window!r} with context = 'block'", "null; blocks are windows already")


def _is_size(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1
