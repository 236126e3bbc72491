"""nnFormer as plainly as its description tells it, for the tests to compare with.

Windows by rolls, attention in full, from the tensors of a state dict.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

Weights = Mapping[str, Tensor]


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def layer_norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    """Over the last axis."""
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])


def convolved(weights: Weights, name: str, x: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """(B, z, y, x, D) -> (B, z', y', x', D')."""
    out = F.conv3d(x.movedim(-1, 1), weights[f"{name}.weight"], weights[f"{name}.bias"], tuple(stride), tuple(padding))
    return out.movedim(1, -1)


def upsampled(
    weights: Weights, name: str, x: Tensor, stride: Sequence[int], added: Sequence[int] = (0, 0, 0)
) -> Tensor:
    """Transposed, kernel = stride: (B, z, y, x, D) -> (B, z', y', x', D')."""
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    out = F.conv_transpose3d(x.movedim(-1, 1), weight, bias, tuple(stride), output_padding=tuple(added))
    return out.movedim(1, -1)


def embedded(weights: Weights, x: Tensor, patch_size: Sequence[int]) -> Tensor:
    name = "model_down.patch_embed"
    first, second = (
        [{1: 1, 2: 2, 4: 2}[size] for size in patch_size],
        [{1: 1, 2: 1, 4: 2}[size] for size in patch_size],
    )
    x = x.movedim(1, -1)
    for layer, norm, stride in (
        ("proj1.conv1", "proj1.norm1", first),
        ("proj1.conv2", "proj1.norm2", (1, 1, 1)),
        ("proj2.conv1", "proj2.norm1", second),
    ):
        x = layer_norm(weights, f"{name}.{norm}", F.gelu(convolved(weights, f"{name}.{layer}", x, stride, (1, 1, 1))))
    x = convolved(weights, f"{name}.proj2.conv2", x, (1, 1, 1), (1, 1, 1))
    return layer_norm(weights, f"{name}.norm", x)


def regions(sizes: Sequence[int], window: Sequence[int], shift: Sequence[int]) -> Tensor:
    """Swin's, (1, z, y, x, 1): each of three parts of every shifted axis has a number of its own."""
    numbers = torch.zeros(1, *sizes, 1)
    for axis, (size, length, step) in enumerate(zip(sizes, window, shift, strict=True)):
        along = numbers.movedim(axis + 1, 0)
        along[size - length : size - step] += 10**axis
        along[size - step :] += 2 * 10**axis
    return numbers


def window_attention(
    weights: Weights,
    name: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    heads: int,
    window: Sequence[int],
    shift: Sequence[int],
    masked: bool,
) -> Tensor:
    """(B, z, y, x, D) three times, of whole windows, already shifted -> the same, projected."""
    lengths = dict(zip("pqr", window, strict=True))
    split = "b (i p) (j q) (k r) (h e) -> (b i j k) h (p q r) e"
    q, k, v = (rearrange(tensor, split, h=heads, **lengths) for tensor in (query, key, value))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    table, index = weights[f"{name}.relative_position_bias_table"], weights[f"{name}.relative_position_index"]
    scores = scores + table[index].permute(2, 0, 1)
    if masked and any(shift):
        labels = regions(query.shape[1:4], window, shift).expand(len(query), -1, -1, -1, -1)
        labels = rearrange(labels, split, h=1, **lengths)
        scores = scores - 100.0 * (labels != labels.transpose(-1, -2))
    counts = {axis: size // length for axis, size, length in zip("ijk", query.shape[1:4], window, strict=True)}
    join = "(b i j k) h (p q r) e -> b (i p) (j q) (k r) (h e)"
    return linear(weights, f"{name}.proj", rearrange(scores.softmax(-1) @ v, join, **lengths, **counts))


def block(
    weights: Weights,
    name: str,
    x: Tensor,
    skip: Tensor | None,
    *,
    window: Sequence[int],
    shift: Sequence[int],
    **rule: Any,
) -> Tensor:
    """(B, z, y, x, D) -> the same; with a skip its keys and values."""
    sizes = x.shape[1:4]
    fill = [-size % step for size, step in zip(sizes, window, strict=True)]

    def prepared(tokens: Tensor) -> Tensor:
        tokens = layer_norm(weights, f"{name}.norm1", tokens)
        tokens = F.pad(tokens, (0, 0, 0, fill[2], 0, fill[1], 0, fill[0]))
        return tokens.roll([-step for step in shift], (1, 2, 3))

    if skip is None:
        query, key, value = linear(weights, f"{name}.attn.qkv", prepared(x)).chunk(3, -1)
    else:
        query = prepared(x)
        key, value = linear(weights, f"{name}.attn.kv", prepared(skip)).chunk(2, -1)
        x = x + skip
    attended = window_attention(weights, f"{name}.attn", query, key, value, window=window, shift=shift, **rule)
    attended = attended.roll(tuple(shift), (1, 2, 3))[:, : sizes[0], : sizes[1], : sizes[2]]
    x = x + attended
    hidden = F.gelu(linear(weights, f"{name}.mlp.fc1", layer_norm(weights, f"{name}.norm2", x)))
    return x + linear(weights, f"{name}.mlp.fc2", hidden)


def windows_of(grid: Sequence[int], size: int | Sequence[int], rule: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Window and shift of a level."""
    none = (0, 0, 0)
    if rule == "cube":
        assert isinstance(size, int)
        side = min(size, min(grid))
        return (side,) * 3, (side // 2,) * 3 if min(grid) > size else none
    window = (size,) * 3 if isinstance(size, int) else tuple(size)
    shift = tuple(step // 2 for step in window)
    return window, none if tuple(grid) == window or min(shift) == 0 else shift


def nnformer(
    weights: Weights,
    x: Tensor,
    *,
    depths: Sequence[int],
    num_heads: Sequence[int],
    patch_size: Sequence[int],
    window_size: Sequence[int | Sequence[int]],
    window_rule: str = "cube",
    masked: bool = False,
    decoder_num_heads: Sequence[int] | None = None,
    strides: Sequence[Sequence[int]] = ((2, 2, 2), (2, 2, 2), (2, 2, 2)),
) -> list[Tensor]:
    """All logits, finest first, of an image (B, channels, Z, Y, X)."""
    masked = masked or window_rule == "cube"
    rules: list[dict[str, Any]] = []
    skips: list[Tensor] = []
    x = embedded(weights, x, patch_size)
    for level, depth in enumerate(depths):
        window, shift = windows_of(x.shape[1:4], window_size[level], window_rule)
        rules.append({"window": window, "shift": shift, "masked": masked})
        name = f"model_down.layers.{level}"
        for index in range(depth):
            rule = {**rules[level], "heads": num_heads[level]} | ({} if index % 2 else {"shift": (0, 0, 0)})
            x = block(weights, f"{name}.blocks.{index}", x, None, **rule)
        skips.append(layer_norm(weights, f"model_down.norm{level}", x))
        if level < len(depths) - 1:
            padding = [
                1 if step == 2 and size % 2 == 0 else 0 for size, step in zip(x.shape[1:4], strides[level], strict=True)
            ]
            x = layer_norm(weights, f"{name}.downsample.norm", F.gelu(x))
            x = convolved(weights, f"{name}.downsample.reduction", x, strides[level], padding)
    x = skips.pop()
    outputs = []
    for level in reversed(range(len(skips))):
        name, skip = f"decoder.layers.{level}", skips[level]
        x = layer_norm(weights, f"{name}.Upsample.norm", x)
        odd = [
            size - step * half for size, step, half in zip(skip.shape[1:4], strides[level], x.shape[1:4], strict=True)
        ]
        x = upsampled(weights, f"{name}.Upsample.up", x, strides[level], odd)
        for index in range(depths[level]):
            rule = {**rules[level], "heads": (decoder_num_heads or num_heads)[level]}
            rule |= {} if index else {"shift": (0, 0, 0)}
            x = block(weights, f"{name}.blocks.{index}", x, None if index else skip, **rule)
        outputs.append(upsampled(weights, f"final.{level}.up", x, patch_size).movedim(-1, 1))
    return outputs[::-1]
