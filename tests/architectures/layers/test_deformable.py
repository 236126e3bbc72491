"""Deformable attention against plain loops, its start, and the places of pixels."""

import math

import pytest
import torch
from torch import Tensor

from nnunetv2_ext.architectures.layers.deformable import DeformableAttention, pixel_places

WIDTH = 6


def value_at(of_level: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Bilinear between the centres of four pixels, (D, h, w) -> (D,), 0 for those outside; x and y in pixels."""
    column, row = math.floor(x.detach()), math.floor(y.detach())
    total = torch.zeros(len(of_level), dtype=of_level.dtype)
    for i, j in ((row, column), (row, column + 1), (row + 1, column), (row + 1, column + 1)):
        if 0 <= i < of_level.shape[1] and 0 <= j < of_level.shape[2]:
            total = total + of_level[:, i, j] * (1 - (x - j).abs()) * (1 - (y - i).abs())
    return total


def plain(attention: DeformableAttention, query: Tensor, places: Tensor, maps: list[Tensor], points: int) -> Tensor:
    """The formula of the class, number by number."""
    heads, width = attention.heads, WIDTH // attention.heads
    values = [attention.values(of_level) for of_level in maps]
    rows = []
    for sample, queries in enumerate(query):
        for place, q in zip(places, queries, strict=True):
            offsets = attention.offsets(q).reshape(heads, len(maps), points, 2)
            weights = attention.weights(q).reshape(heads, -1).softmax(-1).reshape(heads, len(maps), points)
            joined = []
            for head in range(heads):
                total = torch.zeros(width, dtype=query.dtype)
                for level, of_level in enumerate(values):
                    height, across = of_level.shape[2:]
                    of_head = of_level[sample, head * width : (head + 1) * width]
                    for point in range(points):
                        dx, dy = offsets[head, level, point]
                        x = place[0] * across - 0.5 + dx
                        y = place[1] * height - 0.5 + dy
                        total = total + weights[head, level, point] * value_at(of_head, x, y)
                joined.append(total)
            rows.append(attention.projection(torch.cat(joined)))
    return torch.stack(rows).reshape(query.shape)


@pytest.mark.parametrize(
    ("heads", "points", "sizes"),
    [(2, 2, [(3, 4)]), (3, 1, [(4, 2), (2, 1), (1, 1)]), (1, 3, [(2, 5), (3, 3)])],
    ids=["one level", "three levels", "one head"],
)
def test_outputs_and_gradients(heads: int, points: int, sizes: list[tuple[int, int]]) -> None:
    torch.manual_seed(0)
    attention = DeformableAttention(WIDTH, levels=len(sizes), heads=heads, points=points).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.7)  # points inside and outside, weights that differ
    maps = [torch.randn(2, WIDTH, *size, dtype=torch.float64, requires_grad=True) for size in sizes]
    query = torch.randn(2, 6, WIDTH, dtype=torch.float64, requires_grad=True)
    places = pixel_places(2, 3, query)
    outputs = attention(query, places, maps), plain(attention, query, places, maps, points)
    torch.testing.assert_close(*outputs)
    weights = torch.randn(2, 6, WIDTH, dtype=torch.float64)
    asked = [query, *maps, *attention.parameters()]
    gradients = (torch.autograd.grad(output, asked, weights) for output in outputs)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
        assert one.abs().max() > 0


def test_it_starts_on_the_eight_neighbours_with_equal_weights() -> None:
    attention = DeformableAttention(16, levels=2, heads=8, points=3)
    offsets = attention.offsets.bias.detach().reshape(8, 2, 3, 2)
    first = {(round(x), round(y)) for x, y in offsets[:, 0, 0].tolist()}
    assert first == {(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)} - {(0, 0)}
    torch.testing.assert_close(offsets, offsets[:, :1, :1] * torch.tensor([1.0, 2, 3])[:, None].expand(8, 2, 3, 1))
    maps = [torch.ones(1, 16, 9, 9), torch.ones(1, 16, 9, 9)]
    one = attention(torch.zeros(1, 1, 16), torch.full((1, 2), 0.5), maps)
    other = attention.projection(attention.values(maps[0])[:, :, :1, 0].mT)  # all is inside: the value itself
    torch.testing.assert_close(one, other)


def test_places_are_centres_of_pixels_row_by_row() -> None:
    expected = [[0.25, 1 / 6], [0.75, 1 / 6], [0.25, 0.5], [0.75, 0.5], [0.25, 5 / 6], [0.75, 5 / 6]]
    torch.testing.assert_close(pixel_places(3, 2, torch.zeros(1)), torch.tensor(expected))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_places_stay_exact_under_autocast(dtype: torch.dtype) -> None:
    """A point at pixel 200 of 256 is told from that a quarter pixel beside it."""
    attention = DeformableAttention(4, levels=1, heads=1, points=1)
    for name, parameter in attention.named_parameters():
        torch.nn.init.zeros_(parameter)
        if name in ("values.weight", "projection.weight"):
            parameter.data = torch.eye(4).reshape(parameter.shape)
    ramp = torch.arange(256.0).expand(1, 4, 1, 256) - 200
    places = torch.tensor([[(200.75) / 256, 0.5]])
    with torch.autocast("cpu", dtype):
        out = attention(torch.zeros(1, 1, 4), places, [ramp])
    torch.testing.assert_close(out.float(), torch.full((1, 1, 4), 0.25), rtol=0.01, atol=0.01)
