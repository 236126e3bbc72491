"""The post-axial refiner as plainly as the paper tells it, for the tests to compare with: slow, attention in full."""

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_ext.architectures.par import PaR


def attention(weights: dict[str, Tensor], x: Tensor, heads: int) -> Tensor:
    """(S, T, length) -> (S, T, length)."""
    sequences, tokens, length = x.shape
    query, key, value = (x @ weights["to_qkv.weight"].T).split(length, dim=-1)

    def per_head(tensor: Tensor) -> Tensor:
        return tensor.reshape(sequences, tokens, heads, length // heads).transpose(1, 2)

    scores = per_head(query) @ per_head(key).transpose(-1, -2) * (length // heads) ** -0.5
    result = (scores.softmax(-1) @ per_head(value)).transpose(1, 2).reshape(x.shape)
    return result @ weights["to_out.weight"].T + weights["to_out.bias"]


def pdi(weights: dict[str, Tensor], y: Tensor, heads: int) -> Tensor:
    """(B, C, W, H, D) -> the same."""
    total = torch.zeros_like(y)
    for number, dimension in enumerate((1, 3, 4)):
        moved = y.movedim((dimension, 2), (-2, -1))
        own = {key.removeprefix(f"{number}."): value for key, value in weights.items() if key.startswith(f"{number}.")}
        result = attention(own, moved.reshape(-1, *moved.shape[-2:]), heads).reshape(moved.shape)
        total = total + result.movedim((-2, -1), (dimension, 2))
    return total


def group_norm(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return F.group_norm(x, x.shape[1], weights[f"{name}.weight"], weights[f"{name}.bias"])


def sai(weights: dict[str, Tensor], y: Tensor, groups: int, variant: str) -> Tensor:
    """(B, C, W, H, D) -> the same, one group and sample after the other."""
    x = F.relu(group_norm(F.conv3d(y, weights["conv1.weight"], weights["conv1.bias"]), weights, "norm1"))
    inner = F.conv3d(x, weights["conv2.weight"], weights["conv2.bias"], padding="same")
    x = F.relu(group_norm(inner + x, weights, "norm2"))
    features = group_norm(F.conv3d(x, weights["conv3.weight"], weights["conv3.bias"]), weights, "norm3")
    length = features.shape[2]
    padded = features
    while padded.shape[2] % (2 * groups):
        padded = torch.cat([padded, padded[:, :, -1:]], dim=2)
    gated = torch.zeros_like(padded)
    for sample in range(padded.shape[0]):
        for group in range(groups):
            gate_group(weights, padded[sample], gated[sample], group, groups, variant)
    slices = torch.arange(padded.shape[2]).reshape(groups, -1).T.flatten()
    result = (gated + gated[:, :, slices])[:, :, :length]
    return result + features if variant == "published_code" else result


def gate_group(
    weights: dict[str, Tensor], source: Tensor, target: Tensor, group: int, groups: int, variant: str
) -> None:
    """Gate one group of (C, W, H, D), written into `target`."""
    channels, length, height, depth = source.shape
    size = length // groups
    if variant == "paper":
        part, place = source[:, group * size : (group + 1) * size], target[:, group * size : (group + 1) * size]
    else:  # consecutive slices of all channels one after the other, taken as channels again
        rows = slice(group * channels * size, (group + 1) * channels * size)
        part = source.reshape(-1, height, depth)[rows].reshape(channels, size, height, depth)
        place = target.view(-1, height, depth)[rows].view(channels, size, height, depth)
    first, second = part[:, : size // 2], part[:, size // 2 :]
    pooled = first.flatten(1).max(1).values + first.flatten(1).mean(1)
    gate = torch.sigmoid(weights["channel_weight"] * pooled[:, None, None, None] + weights["channel_bias"])
    convolved = F.conv3d(second[None], weights["spatial_conv.weight"], padding=3)[0]
    spatial = torch.sigmoid(weights["spatial_weight"] * convolved + weights["spatial_bias"])
    place.copy_(torch.cat([first * gate, second * spatial], dim=1))


def refine(network: PaR, y: Tensor) -> Tensor:
    """What `network(y)` has to be, for fusion add and multiply, without gradients."""
    weights = network.state_dict()

    def below(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}

    moved = y.movedim(2 + network.axis, 2)
    first = pdi(below("pdi.attentions."), moved, network.heads)
    second = sai(below("sai."), moved, network.groups, network.variant)
    fused = {"add": first + second, "multiply": first * second}.get(network.fusion)
    if fused is None:
        both = torch.cat([first, second], dim=1)
        fused = F.conv3d(both, weights["fusion_conv.weight"], weights["fusion_conv.bias"])
    return y * torch.sigmoid(fused.movedim(2, 2 + network.axis)) + y
