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
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnunetv2_ext.architectures.contract import Shape, three_axes
from nnunetv2_ext.architectures.layers.checkpointing import make_stages
from nnunetv2_ext.architectures.layers.neighbourhoods import Blocks, Windows, blocks_around
from nnunetv2_ext.architectures.layers.position import axial_code, sequence_code
from nnunetv2_ext.architectures.layers.transformer import TransformerLayer
from nnunetv2_ext.architectures.measure import kept_elements
from nnunetv2_ext.errors import InputError, is_whole

CONTEXTS = ("patch", "block")
SIZES: dict[str, dict[str, int]] = {
    "S": {"embed_dim": 384, "depth": 12, "num_heads": 6, "mlp_dim": 1536},
    "B": {"embed_dim": 768, "depth": 12, "num_heads": 12, "mlp_dim": 3072},
    "L": {"embed_dim": 1024, "depth": 24, "num_heads": 16, "mlp_dim": 4096},
    "paper": {"embed_dim": 1024, "depth": 7, "num_heads": 4, "mlp_dim": 1024},  # Karimi et al., section 2
}
# what one chunk of blocks may hold for its backward pass: half a gigabyte in float32
_CHUNK_ELEMENTS = 2**27


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
            TransformerLayer(
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
        if activation_checkpointing and context == "patch":
            make_stages(self, ("layers.*",))

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
        tokens = self.dropout(tokens + axial_code(grid, self.embed.weight))
        for index, layer in enumerate(self.layers):
            regroup = None if self.window is None else Windows(grid, self.window, spread=index % 2 == 1)
            tokens = layer(tokens, regroup)
        return tokens

    @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator]  # one graph for all chunks takes hours
    def _in_blocks(self, tokens: Tensor, grid: Shape) -> Tensor:
        """Each token (B, N, D) as the centre of its block."""
        code = sequence_code(self.block_tokens**3, self.embed.weight)
        recompute = self.training and torch.is_grad_enabled()
        centres, features = [], []
        for block in blocks_around(grid, self.block_tokens):
            per_chunk = max(1, self._chunk_tokens() // (len(tokens) * block.neighbours.shape[1]))
            for chunk in block.chunks(per_chunk, tokens.device):
                arguments = (tokens, code, chunk)
                # PyTorch's function itself, which the compiler leaves out: a graph then knows of no number of chunks
                features.append(
                    checkpoint(self._centres, *arguments, use_reentrant=False)
                    if recompute
                    else self._centres(*arguments)
                )
                centres.append(chunk.centres)
        return torch.cat(features, 1).index_select(1, torch.cat(centres).argsort())

    def _centres(self, tokens: Tensor, code: Tensor, chunk: Blocks) -> Tensor:
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
        return kept / 2

    def _whole_patch(self, layers: int) -> nn.Module:
        """This network over a whole patch with another number of layers, all of them the first one."""
        shell = copy.copy(self)
        shell.context = "patch"
        shell._modules = {**self._modules, "layers": nn.ModuleList([self.layers[0]] * layers)}
        return shell

    def _grid(self, patch_size: Sequence[int]) -> Shape:
        """The number of tokens per axis of a patch."""
        sizes = three_axes(patch_size)
        if min(sizes) < 1 or any(size % token for size, token in zip(sizes, self.token_size, strict=True)):
            below = [max(size // token, 1) * token for size, token in zip(sizes, self.token_size, strict=True)]
            above = [max(-(-size // token), 1) * token for size, token in zip(sizes, self.token_size, strict=True)]
            nearest = f"{below}" if below == above else f"{below} or {above}"
            raise InputError(
                f"a patch of {list(sizes)}",
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
        return isinstance(value, Sequence) and len(value) == 3 and all(map(is_whole, value))

    if not are_sizes(token_size):
        refuse(f"token_size = {token_size!r}", "three whole numbers of voxels (z, y, x), from 1")
    for name, value in sizes.items():
        if not is_whole(value):
            refuse(f"{name} = {value!r}", "a whole number from 1")
    if sizes["embed_dim"] % sizes["num_heads"]:
        refuse(f"embed_dim = {sizes['embed_dim']} with num_heads = {sizes['num_heads']}", "a multiple of num_heads")
    if context not in CONTEXTS:
        refuse(f"context = {context!r}", " or ".join(CONTEXTS))
    if not is_whole(block_tokens) or block_tokens % 2 == 0:
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
