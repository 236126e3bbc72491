"""The convolution-free transformer as plainly as the papers tell it, for the tests to compare with.

One token and one head at a time, attention in full.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_ext.architectures import ConvFreeTransformer

Weights = dict[str, Tensor]


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def layer_norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def attention(weights: Weights, name: str, x: Tensor, heads: int) -> Tensor:
    """(N, D) -> (N, D)."""
    query, key, value = linear(weights, f"{name}.query_key_value", x).chunk(3, dim=-1)
    size = x.shape[-1] // heads
    results = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = query[:, part] @ key[:, part].T / math.sqrt(size)
        results.append(scores.softmax(-1) @ value[:, part])
    return linear(weights, f"{name}.projection", torch.cat(results, -1))


def encoder(weights: Weights, x: Tensor, *, depth: int, heads: int, pre_norm: bool) -> Tensor:
    """(N, D) -> (N, D); eq. 4 to 9 of the paper, or with the norm before each sublayer."""

    def feed_forward(name: str, x: Tensor) -> Tensor:
        return linear(weights, f"{name}.contraction", F.relu(linear(weights, f"{name}.expansion", x)))

    for name in (f"layers.{index}" for index in range(depth)):
        if pre_norm:
            x = x + attention(weights, name, layer_norm(weights, f"{name}.attention_norm", x), heads)
            x = x + feed_forward(name, layer_norm(weights, f"{name}.mlp_norm", x))
        else:
            x = layer_norm(weights, f"{name}.attention_norm", x + attention(weights, name, x, heads))
            x = layer_norm(weights, f"{name}.mlp_norm", x + feed_forward(name, x))
    return layer_norm(weights, "norm", x) if pre_norm else x


def sines_and_cosines(position: int, width: int) -> Tensor:
    """(width,), "Attention is all you need", section 3.5."""
    code = torch.zeros(width, dtype=torch.float64)
    for dimension in range(width):
        angle = position / 10_000 ** (2 * (dimension // 2) / width)
        code[dimension] = math.cos(angle) if dimension % 2 else math.sin(angle)
    return code


def voxels_of(image: Tensor, token: Sequence[int], size: Sequence[int]) -> Tensor:
    """The voxels of one token of an image (C, Z, Y, X)."""
    z, y, x = (slice(index * edge, (index + 1) * edge) for index, edge in zip(token, size, strict=True))
    return image[:, z, y, x]


def centre_of_block(
    network: ConvFreeTransformer, image: Tensor, token: Sequence[int], *, heads: int, pre_norm: bool
) -> Tensor:
    """Logits (classes, *token size) of one token of an image (C, Z, Y, X) from the block cut out around it."""
    weights, size, n = network.state_dict(), network.token_size, network.block_tokens
    grid = [axis // edge for axis, edge in zip(image.shape[1:], size, strict=True)]
    sequence: list[Tensor] = []
    centre = -1
    for place, offset in enumerate((z, y, x) for z in range(n) for y in range(n) for x in range(n)):
        neighbour = [index + step - n // 2 for index, step in zip(token, offset, strict=True)]
        if any(not 0 <= index < axis for index, axis in zip(neighbour, grid, strict=True)):
            continue
        if neighbour == list(token):
            centre = len(sequence)
        embedded = linear(weights, "embed", voxels_of(image, neighbour, size).flatten())
        sequence.append(embedded + sines_and_cosines(place, len(embedded)))
    features = encoder(weights, torch.stack(sequence), depth=len(network.layers), heads=heads, pre_norm=pre_norm)
    return linear(weights, "decoder.seg_layers.0", features[centre]).reshape(-1, *size)


def whole_patch(network: ConvFreeTransformer, image: Tensor, *, heads: int, pre_norm: bool) -> Tensor:
    """Logits (classes, Z, Y, X) of an image (C, Z, Y, X), all tokens in one sequence with a code per axis."""
    weights, size = network.state_dict(), network.token_size
    grid = [axis // edge for axis, edge in zip(image.shape[1:], size, strict=True)]
    tokens = [(z, y, x) for z in range(grid[0]) for y in range(grid[1]) for x in range(grid[2])]
    sequence = []
    for token in tokens:
        embedded = linear(weights, "embed", voxels_of(image, token, size).flatten())
        width = len(embedded) // 6 * 2
        code = torch.cat([sines_and_cosines(index, width) for index in token])
        sequence.append(embedded + F.pad(code, (0, len(embedded) - len(code))))
    features = encoder(weights, torch.stack(sequence), depth=len(network.layers), heads=heads, pre_norm=pre_norm)
    predicted = linear(weights, "decoder.seg_layers.0", features)
    classes = predicted.shape[1] // math.prod(size)
    logits = torch.zeros(classes, *image.shape[1:], dtype=predicted.dtype)
    for token, values in zip(tokens, predicted, strict=True):
        voxels_of(logits, token, size).copy_(values.reshape(classes, *size))
    return logits
