"""SwinSMT as described: MONAI's SwinUNETR, the old order of octants, mixtures whose matrices are all there.

Slow and large, to compare with.
"""

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from monai.networks.nets import swin_unetr
from torch import Tensor, nn

# voxels of a 2 x 2 x 2 cube in the order in which MONAI up to 1.4 joins them, as (z, y, x)
PUBLISHED = ["000", "100", "010", "001", "101", "010", "001", "111"]
CURRENT = ["000", "100", "010", "001", "110", "101", "011", "111"]


def joined(x: Tensor, order: Sequence[str]) -> Tensor:
    """(B, z, y, x, C) -> (B, z/2, y/2, x/2, 8 C), cube by cube."""
    batch, depth, height, width, channels = x.shape
    out = torch.empty(batch, depth // 2, height // 2, width // 2, 8 * channels, dtype=x.dtype)
    for place, octant in enumerate(order):
        for z in range(depth // 2):
            for y in range(height // 2):
                for column in range(width // 2):
                    voxel = x[:, 2 * z + int(octant[0]), 2 * y + int(octant[1]), 2 * column + int(octant[2])]
                    out[:, z, y, column, place * channels : (place + 1) * channels] = voxel
    return out


class OldMerging(swin_unetr.PatchMerging):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        cubes = rearrange(x, "b (z r) (y s) (x t) c -> b z y x r s t c", r=2, s=2, t=2)
        octants = [cubes[..., int(zyx[0]), int(zyx[1]), int(zyx[2]), :] for zyx in PUBLISHED]
        out: Tensor = self.reduction(self.norm(torch.cat(octants, -1)))
        return out


class PlainNorm(nn.Module):
    def __init__(self, features: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=-1, keepdim=True) * x.shape[-1] ** 0.5 * self.gamma


class PlainMixture(nn.Module):
    """The mixture with its three matrices, tokens x slots: products, dispatch, combine."""

    def __init__(self, features: int, experts: int):
        super().__init__()
        self.norm = PlainNorm(features)
        embed = nn.Linear(features, experts * features, bias=False)
        self.to_slot_embeds = nn.ModuleList([embed, nn.Identity(), PlainNorm(features)])
        self.experts = nn.ModuleList(
            nn.Sequential(
                nn.Linear(features, 4 * features), nn.GELU(), nn.Identity(), nn.Linear(4 * features, features)
            )
            for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        shape, experts = x.shape, len(self.experts)
        x = self.norm(x.reshape(shape[0], -1, shape[-1]))
        tokens = x.shape[1]
        pads = -tokens % experts
        x = torch.cat([x, x.new_zeros(len(x), pads, x.shape[-1])], 1)
        real = torch.arange(tokens + pads, device=x.device) < tokens
        sums = x.unflatten(1, (-1, experts)).sum(2)
        means = sums / real.unflatten(0, (-1, experts)).sum(1)[:, None]
        linear, _, norm = self.to_slot_embeds
        embeddings = norm(linear(means).unflatten(-1, (experts, -1)))  # (B, s, e, d)
        logits = torch.einsum("bnd,bsed->bnes", x, embeddings)
        logits = logits.masked_fill(~real[:, None, None], -torch.inf)
        dispatch = logits.softmax(1)
        slots = torch.einsum("bnes,bnd->besd", dispatch, x)
        results = torch.stack([expert(slots[:, number]) for number, expert in enumerate(self.experts)], 1)
        combine = logits[:, :tokens].flatten(2).softmax(-1).unflatten(-1, (experts, -1))
        return torch.einsum("bnes,besd->bnd", combine, results).reshape(shape)


def plain_swinsmt(
    input_channels: int,
    num_classes: int,
    *,
    feature_size: int,
    num_experts: int,
    num_layers_with_moe: int,
    **options: Any,
) -> Any:
    """MONAI's network with the mixtures put in."""
    merging: Any = OldMerging
    network = swin_unetr.SwinUNETR(
        input_channels, num_classes, feature_size=feature_size, downsample=merging, **options
    )
    return with_mixtures(network, feature_size, num_experts, num_layers_with_moe)


def plain_encoder(
    input_channels: int,
    *,
    feature_size: int,
    num_experts: int,
    num_layers_with_moe: int,
    window_size: Sequence[int],
    **options: Any,
) -> Any:
    """Its encoder alone, of any width."""
    encoder = swin_unetr.SwinTransformer(
        input_channels, feature_size, window_size, (2, 2, 2), downsample=OldMerging, **options
    )
    network = nn.ModuleDict({"swinViT": encoder})
    return with_mixtures(network, feature_size, num_experts, num_layers_with_moe)["swinViT"]


def with_mixtures(network: Any, feature_size: int, experts: int, stages: int) -> Any:
    for number in range(4 - stages, 4):
        for block in network.get_submodule(f"swinViT.layers{number + 1}.0.blocks"):
            block.mlp = PlainMixture(feature_size * 2**number, experts)
    return network
