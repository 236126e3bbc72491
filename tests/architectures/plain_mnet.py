"""The plain, unoptimised MNet: the readable oracle that the package's own MNet is compared with and timed against.

Paper: Dong et al., MNet: Rethinking 2D/3D Networks for Anisotropic Medical Image Segmentation, IJCAI 2022.
Only PyTorch's own layers, one after the other, in the order in which the paper draws them; submodules carry the names
of the published code, so that published weights load with `strict=True`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

SIDE = 5
GRID = [(i, j) for i in range(1, SIDE + 1) for j in range(1, SIDE + 1)]
HEADS = [(5, 5), (5, 4), (4, 5), (5, 3), (3, 5), (5, 2), (2, 5)]
ONLY_2D = {(1, 5), (2, 5), (3, 5), (4, 5)}
ONLY_3D = {(5, 1), (5, 2), (5, 3), (5, 4)}


def depth(i: int, j: int) -> int:
    """Depth of a node, 1 (full resolution) to 5 (bottlenecks)."""
    return min(i + j - 1, 11 - i - j)


def published_name(i: int, j: int) -> str:
    """The node's name in the published code."""
    if i + j <= 5:
        return f"down{i}{j}"
    return f"bottleneck{i}" if i + j == 6 else f"up{6 - j}{i + j - 6}"


class Layer(nn.Module):
    """conv - InstanceNorm - LeakyReLU, same size."""

    def __init__(self, channels_in: int, channels_out: int, kernel: tuple[int, int, int]):
        super().__init__()
        padding = tuple(size // 2 for size in kernel)
        self.conv = nn.Conv3d(channels_in, channels_out, kernel, padding=padding)  # type: ignore[arg-type]
        self.norm = nn.InstanceNorm3d(channels_out, affine=True)
        self.activation = nn.LeakyReLU(0.01)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(x)))


class Block(nn.Module):
    """Two layers with one kernel."""

    def __init__(self, channels_in: int, channels_out: int, kernel: tuple[int, int, int]):
        super().__init__()
        self.conv1 = Layer(channels_in, channels_out, kernel)
        self.conv2 = Layer(channels_out, channels_out, kernel)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))


class PlainMNet(nn.Module):
    """MNet on `(batch, input_channels, z, y, x)`; the arguments are those of `nnunetv2_ext.architectures.MNet`.

    The forward pass returns the logits of the seven heads, or with `deep_supervision` off those of (5, 5) alone.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        features_per_stage: Sequence[int] = (32, 48, 64, 80, 96),
        merge: str = "difference",
        min_pool_slices: int = 8,
        deep_supervision: bool = True,
    ):
        super().__init__()
        self.merge_name = merge
        self.min_pool_slices = min_pool_slices
        self.deep_supervision = deep_supervision
        merged = 2 if merge == "concat" else 1
        for i, j in GRID:
            d = depth(i, j)
            filters = features_per_stage[d - 1]
            if (i, j) == (1, 1):
                channels = input_channels
            elif i + j <= 6:
                channels = features_per_stage[d - 2] * (merged if i > 1 and j > 1 else 1)
            else:
                channels = (filters + features_per_stage[d]) * merged
            blocks = nn.ModuleDict()
            if (i, j) not in ONLY_3D:
                blocks["CB2d"] = Block(channels, filters, (1, 3, 3))
            if (i, j) not in ONLY_2D:
                blocks["CB3d"] = Block(channels, filters, (3, 3, 3))
            self.add_module(published_name(i, j), blocks)
        self.outputs = nn.ModuleList(
            nn.Conv3d(features_per_stage[depth(i, j) - 1], num_classes, 1, bias=False) for i, j in HEADS
        )

    def merge(self, from_2d: Tensor, from_3d: Tensor) -> Tensor:
        """The two streams as one; `concat` doubles the channels."""
        if self.merge_name == "difference":
            return torch.abs(from_2d - from_3d)
        if self.merge_name == "sum":
            return from_2d + from_3d
        return torch.cat((from_2d, from_3d), dim=1)

    def pool_3d(self, x: Tensor) -> Tensor:
        """Halve all axes, but keep the slices where there are few of them."""
        return functional.max_pool3d(x, (1, 2, 2) if x.shape[2] < self.min_pool_slices else (2, 2, 2))

    def forward(self, x: Tensor) -> list[Tensor] | Tensor:
        results_2d: dict[tuple[int, int], Tensor] = {}
        results_3d: dict[tuple[int, int], Tensor] = {}
        for i, j in GRID:
            if (i, j) == (1, 1):
                node_input = x
            elif i + j <= 6:
                pooled = []
                if j > 1:
                    pooled.append(functional.max_pool3d(results_2d[i, j - 1], (1, 2, 2)))
                if i > 1:
                    pooled.append(self.pool_3d(results_3d[i - 1, j]))
                node_input = self.merge(*pooled) if len(pooled) == 2 else pooled[0]
            else:
                skip = (6 - j, 6 - i)
                size = results_2d[skip].shape[2:]
                up_2d = functional.interpolate(results_2d[i - 1, j], size, mode="trilinear", align_corners=False)
                up_3d = functional.interpolate(results_3d[i, j - 1], size, mode="trilinear", align_corners=False)
                skips = self.merge(results_2d[skip], results_3d[skip])
                node_input = torch.cat((skips, self.merge(up_2d, up_3d)), dim=1)
            blocks = self.get_submodule(published_name(i, j))
            for name, child in blocks.named_children():
                results = results_2d if name == "CB2d" else results_3d
                results[i, j] = child(node_input)

        logits = []
        for head, node in zip(self.outputs, HEADS, strict=True):
            streams = [results[node] for results in (results_2d, results_3d) if node in results]
            # only (5, 5) has both streams, and whatever the merge, the published code adds them there
            logits.append(head(sum(streams[1:], start=streams[0])))
            if not self.deep_supervision:
                return logits[0]
        return logits
