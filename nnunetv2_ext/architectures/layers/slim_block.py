"""The block of Slim UNETR: a voxel's surroundings and features, then voxels far apart.

Paper: Pang et al., "Slim UNETR", IEEE TMI 2024. Original code: https://github.com/aigzhusmart/Slim-UNETR (MIT);
written anew here from its description, under the published names of its parameters. Ours: norm, scale of attention,
kernel and a step per axis are arguments; norms, the feed-forward layers and what attention is spread to are computed
again in the backward pass instead of kept.
"""

from collections.abc import Callable
from functools import partial

from einops import rearrange
from torch import Tensor, nn

from nnunetv2_ext.architectures.contract import Shape
from nnunetv2_ext.architectures.layers.attention import attend
from nnunetv2_ext.architectures.layers.few_channels import Depthwise, Pointwise, feed_forward, spread
from nnunetv2_ext.architectures.layers.recompute import recomputed

EXPANSION = 4


class SlimBlock(nn.Module):
    """Six residual steps: positions, surroundings, features; positions, voxels far apart, features.

    Args:
        channels: of the map.
        heads: of the attention.
        step: attention sees every `step`-th voxel along (z, y, x).
        norm: makes the two norms of the surroundings, from the channels.
        kernel: odd, of the depth-wise convolutions (z, y, x).
        scale: of the attention's products; None: that of the features per head, E^-0.5.

    Shapes: (B, channels, z, y, x) -> the same.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        step: Shape,
        *,
        norm: Callable[[int], nn.Module],
        kernel: Shape = (3, 3, 3),
        scale: float | None = None,
    ):
        super().__init__()
        self.patch1 = _Positions(channels, kernel)
        self.LocalRC = _Surroundings(channels, kernel, norm)
        self.LineConv1 = _Features(channels)
        self.patch2 = _Positions(channels, kernel)
        self.GlobalST = _SparseAttention(channels, heads, step, scale)
        self.LocalRD = _Spread(channels, step)
        self.LineConv2 = _Features(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = _added(self.patch1(x), x)
        x = _added(self.LocalRC(x), x)
        x = _added(self.LineConv1(x), x)
        x = _added(self.patch2(x), x)
        x = _added(self.LocalRD(self.GlobalST(x), x.shape[2:]), x)
        return _added(self.LineConv2(x), x)


def _added(result: Tensor, x: Tensor) -> Tensor:
    """Their sum, in the memory of a result that nothing else needs, unless autocast made it less precise than `x`."""
    return result.add_(x) if result.dtype == x.dtype else result + x


def _depthwise(channels: int, kernel: Shape) -> Depthwise:
    z, y, x = kernel
    return Depthwise(channels, channels, kernel, padding=(z // 2, y // 2, x // 2), groups=channels, bias=False)


class _Positions(nn.Module):
    def __init__(self, channels: int, kernel: Shape):
        super().__init__()
        self.positional_encoding = _depthwise(channels, kernel)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.positional_encoding(x)
        return out


class _Surroundings(nn.Module):
    def __init__(self, channels: int, kernel: Shape, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.bn1 = norm(channels)
        self.pointwise_conv_0 = Pointwise(channels, channels, 1, bias=False)
        self.depthwise_conv = _depthwise(channels, kernel)
        self.bn2 = norm(channels)
        self.pointwise_conv_1 = Pointwise(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise_conv(recomputed(lambda x: self.pointwise_conv_0(self.bn1(x)), x, module=self.bn1))
        return recomputed(lambda x: self.pointwise_conv_1(self.bn2(x)), x, module=self.bn2)


class _Features(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.line_conv_0 = Pointwise(channels, EXPANSION * channels, 1, bias=False)
        self.line_conv_1 = Pointwise(EXPANSION * channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return feed_forward(self.line_conv_0, self.line_conv_1, x)


class _SparseAttention(nn.Module):
    """Attention among every `step`-th voxel along each axis."""

    def __init__(self, channels: int, heads: int, step: Shape, scale: float | None):
        super().__init__()
        self.heads, self.step, self.scale = heads, step, scale
        self.qkv = Pointwise(channels, 3 * channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        depth, height, width = self.step
        seen = x[:, :, ::depth, ::height, ::width].contiguous()
        # of each head's channels the first third are queries, then keys, then values
        pattern = "b (h r d) z y x -> r b h (z y x) d"
        query, key, value = rearrange(self.qkv(seen), pattern, h=self.heads, r=3).contiguous()
        attended = attend(query, key, value, scale=self.scale)
        z, y, _ = seen.shape[2:]
        return rearrange(attended, "b h (z y x) d -> b (h d) z y x", z=z, y=y)


class _Spread(nn.Module):
    """From every `step`-th voxel back to all of them."""

    def __init__(self, channels: int, step: Shape):
        super().__init__()
        self.conv_trans = nn.ConvTranspose3d(channels, channels, step, step, groups=channels)
        self.norm = nn.GroupNorm(1, channels)
        self.pointwise_conv = Pointwise(channels, channels, 1, bias=False)

    def forward(self, x: Tensor, shape: Shape) -> Tensor:
        """(B, channels, every `step`-th voxel) -> (B, channels, *shape)."""
        return recomputed(partial(self._mixed, shape), x)

    def _mixed(self, shape: Shape, x: Tensor) -> Tensor:
        depth, height, width = shape
        reached = spread(self.conv_trans, x)[:, :, :depth, :height, :width]  # the last step may pass the border
        out: Tensor = self.pointwise_conv(self.norm(reached))
        return out
