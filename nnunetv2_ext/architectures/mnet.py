"""MNet: 2D and 3D streams fused in a 5 x 5 mesh.

Paper: Dong et al., "MNet: Rethinking 2D/3D Networks for Anisotropic Medical Image Segmentation", IJCAI 2022.
Original code: https://github.com/zfdong-code/MNet (for nnU-Net v1); written anew here from the paper's description.

Departures from the original, none of which changes an output: the mesh is a loop over the grid; the first activation of
every block and the pooling indices are recomputed in the backward pass instead of kept; on CPU the features lie
channels last. Sizes that cannot work are refused before anything is computed.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_ext.architectures.contract import Shape, three_axes
from nnunetv2_ext.architectures.layers.heads import Heads
from nnunetv2_ext.architectures.layers.instance_norm import instance_norm
from nnunetv2_ext.architectures.layers.memory_format import channels_last
from nnunetv2_ext.architectures.layers.recompute import RecomputedOnce, absolute, computed_again, max_pool
from nnunetv2_ext.errors import InputError

Node = tuple[int, int]

MERGES = ("difference", "sum", "concat")
PLANE_POOL, VOLUME_POOL = (1, 2, 2), (2, 2, 2)
MIN_IN_PLANE = 16  # four poolings leave one voxel
LEAK = 0.01

_NODES = sorted(((i, j) for i in range(1, 6) for j in range(1, 6)), key=lambda node: (sum(node), node))
_OUTPUT_NODES: list[Node] = [(5, 5), (5, 4), (4, 5), (5, 3), (3, 5), (5, 2), (2, 5)]


def _depth(node: Node) -> int:
    i, j = node
    return min(i + j - 1, 11 - i - j)


def _skip(node: Node) -> Node:
    """The encoder node whose features a decoder node takes over."""
    i, j = node
    return 6 - j, 6 - i


def _streams(node: Node) -> tuple[str, ...]:
    """Which blocks a node has: "plane" (2D) feeds the 2D stream, "volume" (3D) the 3D stream."""
    i, j = node
    if i == j or (i < 5 and j < 5):
        return "plane", "volume"
    return ("volume",) if i == 5 else ("plane",)


def _mesh_shapes(patch_size: Sequence[int], min_pool_slices: int) -> dict[Node, Shape]:
    """The size (Z, Y, X) of every node's features. Slices depend on the row, in-plane size on the depth.

    Raises:
        InputError: the patch has not three axes, is below 16 in plane, or leaves a single voxel at the deepest node.
    """
    sizes = three_axes(patch_size)
    if sizes[0] < 1 or min(sizes[1:]) < MIN_IN_PLANE:
        raise InputError(
            f"a patch of {sizes}",
            f"at least 1 slice and {MIN_IN_PLANE} voxels along both in-plane axes",
            "choose a larger patch_size in the plans",
        )
    slices = [sizes[0]]
    for _ in range(4):
        slices.append(slices[-1] // 2 if slices[-1] >= min_pool_slices else slices[-1])
    shapes = {}
    for node in _NODES:
        row, halvings = (node if sum(node) <= 6 else _skip(node))[0], _depth(node) - 1
        shapes[node] = (slices[row - 1], sizes[1] >> halvings, sizes[2] >> halvings)
    if max(shapes[5, 1]) == 1:
        raise InputError(
            f"a patch of {sizes}",
            "more than one voxel at the deepest node, where instance norm needs two",
            f"choose at least {2 * MIN_IN_PLANE} voxels along one in-plane axis",
        )
    return shapes


def _node_channels(node: Node, input_channels: int, features: Sequence[int], merge: str) -> int:
    """The channels of a node's input."""
    i, j = node
    depth = _depth(node)
    width = 2 if merge == "concat" else 1
    if node == (1, 1):
        return input_channels
    if i + j <= 6:
        return features[depth - 2] * (width if i > 1 and j > 1 else 1)
    return (features[depth - 1] + features[depth]) * width


def conv_feature_map_size(
    patch_size: Sequence[int],
    *,
    input_channels: int,
    num_classes: int,
    features_per_stage: Sequence[int] = (32, 48, 64, 80, 96),
    merge: str = "difference",
    min_pool_slices: int = 8,
    activation_checkpointing: bool = False,
    deep_supervision: bool = True,
) -> int:
    """What nnU-Net's planner compares with its reference, computed without building a network.

    nnU-Net counts the elements of every convolution's output in its U-Net, which keeps two tensors of that size for
    the backward pass. MNet keeps three per block of two convolutions, its nodes' merged inputs, and the masks of the
    differences; their sum is counted in units of two, so that equal numbers mean equal memory. With checkpointing,
    nodes keep the outputs of their blocks, and all that they compute (four per block) in their turn alone.

    Args:
        patch_size: (Z, Y, X) in voxels.

    Returns:
        Elements per sample.

    Raises:
        InputError: a patch that MNet cannot take.
    """
    shapes = _mesh_shapes(patch_size, min_pool_slices)
    kept, highest = 0.0, 0.0
    for node, (z, y, x) in shapes.items():
        channels: float = _node_channels(node, input_channels, features_per_stage, merge)
        if merge == "difference" and node != (1, 1):
            channels *= 5 / 4  # a byte per element for the signs
        features = features_per_stage[_depth(node) - 1] * len(_streams(node))
        if activation_checkpointing and node != _OUTPUT_NODES[0]:
            highest = max(highest, kept + z * y * x * (channels + 4 * features))
            kept += z * y * x * features
        else:
            kept += z * y * x * (channels + 3 * features)
        if node in _OUTPUT_NODES and (deep_supervision or node == (5, 5)):
            kept += 2 * z * y * x * num_classes
    return round(max(highest, kept) / 2)


class _ConvLayer(nn.Module):
    """Convolution, instance norm, leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Shape):
        super().__init__()
        depth, height, width = kernel
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, padding=(depth // 2, height // 2, width // 2))
        self.norm: nn.Module = nn.InstanceNorm3d(out_channels, affine=True)

    def normalize(self, x: Tensor) -> Tensor:
        # PyTorch's own would lay channels-last features out anew. Prediction puts in a norm of its own.
        if x.device.type == "cpu" and isinstance(self.norm, nn.InstanceNorm3d) and not torch.compiler.is_compiling():
            return instance_norm(x, self.norm.weight, self.norm.bias, self.norm.eps)
        return self.norm(x)

    def activate(self, x: Tensor) -> Tensor:
        return F.leaky_relu_(self.normalize(x), LEAK)


class _Block(nn.Module):
    """Two convolution layers with kernel 1x3x3 ("plane") or 3x3x3 ("volume")."""

    def __init__(self, in_channels: int, out_channels: int, stream: str):
        super().__init__()
        kernel = (1, 3, 3) if stream == "plane" else (3, 3, 3)
        self.layer1 = _ConvLayer(in_channels, out_channels, kernel)
        self.layer2 = _ConvLayer(out_channels, out_channels, kernel)

    def forward(self, x: Tensor, *, keep: bool = False) -> Tensor:
        """Features of x; `keep`: with all that the backward pass needs, where a whole node is computed again."""
        x = self.layer1.conv(x)
        if keep or torch.compiler.is_compiling() or not torch.is_grad_enabled():  # the compiler recomputes by itself
            x = self.layer2.conv(self.layer1.activate(x))
        else:
            x = self._convolve_activated(x)
        return self.layer2.activate(x)

    def _convolve_activated(self, x: Tensor) -> Tensor:
        """`layer2.conv(layer1.activate(x))`, keeping x alone for the backward pass."""
        normed = self.layer1.normalize(x)
        hooks = RecomputedOnce(self.layer1.activate, x, normed)
        with torch.autograd.graph.saved_tensors_hooks(hooks.pack, hooks.unpack):
            return self.layer2.conv(F.leaky_relu_(normed, LEAK))


class MNet(nn.Module):
    """The mesh network of Dong et al. (IJCAI 2022, section 3).

    Rows and columns run from 1 to 5. Nodes (i, j) with i + j <= 6 encode: the 2D stream runs right (pooling 1x2x2), the
    3D stream down (2x2x2). The others decode: the 2D stream runs down, the 3D stream right, both up-sampled to the skip
    node (6 - j, 6 - i). Where streams meet they are merged.

    Args:
        input_channels: channels of the image.
        num_classes: channels of the logits.
        features_per_stage: filters at depth 1 to 5.
        merge: how two streams meet: "difference" |a - b| (the paper's choice), "sum" or "concat".
        min_pool_slices: the 3D stream pools along z only from this many slices on.
        activation_checkpointing: in training keep the results of the nodes alone, and compute each node again in the
            backward pass; not the last one, with which that pass begins.
        deep_supervision: return the logits of all seven outputs, the first at full resolution, or only the first.

    Shapes: (B, input_channels, Z, Y, X) -> (B, num_classes, Z, Y, X), or a list of seven, see
    `deep_supervision_shapes`. Any Z >= 1, Y and X >= 16, odd sizes too; one slice needs 32 along one in-plane axis.

    Raises:
        InputError: an unknown merge, a wrong number of features, min_pool_slices below 2; in `forward`, a size that
            cannot work.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        features_per_stage: Sequence[int] = (32, 48, 64, 80, 96),
        merge: str = "difference",
        min_pool_slices: int = 8,
        activation_checkpointing: bool = False,
        deep_supervision: bool = True,
    ):
        super().__init__()
        if merge not in MERGES:
            raise InputError(f"merge={merge!r}", f"one of {', '.join(MERGES)}", "correct it")
        if len(features_per_stage) != 5 or min(features_per_stage) < 1:
            raise InputError(
                f"features_per_stage={tuple(features_per_stage)}", "five positive numbers, one per depth", "correct it"
            )
        if min_pool_slices < 2:
            raise InputError(
                f"min_pool_slices={min_pool_slices}", "2 or more", "choose a number from 2 (8 as published)"
            )
        self.input_channels, self.num_classes = input_channels, num_classes
        self.features_per_stage = tuple(features_per_stage)
        self.merge, self.min_pool_slices = merge, min_pool_slices
        self.activation_checkpointing = activation_checkpointing
        self.deep_supervision = deep_supervision
        self.blocks = nn.ModuleDict()
        for node in _NODES:
            channels = _node_channels(node, input_channels, self.features_per_stage, merge)
            for stream in _streams(node):
                block = _Block(channels, self.features_per_stage[_depth(node) - 1], stream)
                self.blocks[self._block_name(node, stream)] = block
        widths = [self.features_per_stage[_depth(node) - 1] for node in _OUTPUT_NODES]
        self.heads = Heads(widths, num_classes, bias=False)

    @staticmethod
    def _block_name(node: Node, stream: str) -> str:
        return f"{node[0]}_{node[1]}_{stream}"

    @property
    def head(self) -> nn.Module:
        """The layer whose input is the last feature map; MNet applies it to both streams, whose sum that is."""
        return self.heads.seg_layers[0]  # type: ignore[no-any-return]

    def deep_supervision_shapes(self, patch_size: Sequence[int]) -> list[Shape]:
        """The true size (Z, Y, X) of each of the seven outputs for a patch of that size.

        Raises:
            InputError: a patch that MNet cannot take.
        """
        shapes = _mesh_shapes(patch_size, self.min_pool_slices)
        return [shapes[node] for node in _OUTPUT_NODES]

    def compute_conv_feature_map_size(self, patch_size: Sequence[int]) -> int:
        """What nnU-Net's planner compares with its reference; see `conv_feature_map_size`."""
        return conv_feature_map_size(
            patch_size,
            input_channels=self.input_channels,
            num_classes=self.num_classes,
            features_per_stage=self.features_per_stage,
            merge=self.merge,
            min_pool_slices=self.min_pool_slices,
            activation_checkpointing=self.activation_checkpointing,
            deep_supervision=self.deep_supervision,
        )

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        shapes = _mesh_shapes(x.shape[2:], self.min_pool_slices)
        if x.device.type == "cpu":
            x = channels_last(x)
        again = self.activation_checkpointing and self.training and torch.is_grad_enabled()
        plane: dict[Node, Tensor] = {}
        volume: dict[Node, Tensor] = {}
        for node in _NODES:
            i, j = node
            if node == (1, 1):
                sources = [x]
            elif sum(node) <= 6:
                sources = ([plane[i, j - 1]] if j > 1 else []) + ([volume[i - 1, j]] if i > 1 else [])
            else:
                sources = [plane[_skip(node)], volume[_skip(node)], plane[i - 1, j], volume[i, j - 1]]
            if again and node != _OUTPUT_NODES[0]:
                results = computed_again(self._computed, self, node, shapes[node], *sources, keep=True)
            else:
                results = self._computed(node, shapes[node], *sources)
            for stream, result in zip(_streams(node), results, strict=True):
                (plane if stream == "plane" else volume)[node] = result
        return self._logits(plane, volume)

    def _computed(self, node: Node, shape: Shape, *sources: Tensor, keep: bool = False) -> list[Tensor]:
        """The results of a node's blocks, from those that it takes."""
        x = self._encoder_input(node, *sources) if sum(node) <= 6 else self._decoder_input(shape, *sources)
        return [self.blocks[self._block_name(node, stream)](x, keep=keep) for stream in _streams(node)]

    def _encoder_input(self, node: Node, *sources: Tensor) -> Tensor:
        i, j = node
        if node == (1, 1):
            return sources[0]
        pooled = []
        if j > 1:
            pooled.append(max_pool(sources[0], PLANE_POOL))
        if i > 1:
            above = sources[-1]
            pooled.append(max_pool(above, VOLUME_POOL if above.shape[2] >= self.min_pool_slices else PLANE_POOL))
        return self._merge(*pooled) if len(pooled) == 2 else pooled[0]

    def _decoder_input(self, shape: Shape, *sources: Tensor) -> Tensor:
        plane_skip, volume_skip, plane, volume = sources
        up = self._merge(self._resize(plane, shape), self._resize(volume, shape))
        return torch.cat([self._merge(plane_skip, volume_skip), up], dim=1)

    def _logits(self, plane: dict[Node, Tensor], volume: dict[Node, Tensor]) -> Tensor | list[Tensor]:
        first, *others = self.heads.seg_layers
        # the head is linear: its sum over both results is its result for their sum, which training need not keep then
        one, other = plane[_OUTPUT_NODES[0]], volume[_OUTPUT_NODES[0]]
        logits = [first(one) + first(other) if torch.is_grad_enabled() else first(one + other)]
        if not self.deep_supervision:
            return logits[0]
        for head, node in zip(others, _OUTPUT_NODES[1:], strict=True):
            logits.append(head(volume[node] if node in volume else plane[node]))
        return logits

    def _merge(self, plane: Tensor, volume: Tensor) -> Tensor:
        if self.merge == "concat":
            return torch.cat([plane, volume], dim=1)
        if self.merge == "sum":
            return plane + volume
        return absolute(plane - volume)

    @staticmethod
    def _resize(x: Tensor, shape: Shape) -> Tensor:
        return F.interpolate(x, size=shape, mode="trilinear", align_corners=False)
