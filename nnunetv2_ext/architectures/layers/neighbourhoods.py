"""Groups of tokens that attend to each other: windows over a grid, and the block around every token."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from nnunetv2_ext.architectures.contract import Shape


class Windows:
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


class Blocks:
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
            yield Blocks(
                self.neighbours[part].to(device),
                self.places[part].to(device),
                self.centres[part].to(device),
                (self.centre_places[part] - start * self.neighbours.shape[1]).to(device),
            )


@torch.compiler.disable  # type: ignore[untyped-decorator]
@lru_cache(maxsize=8)
def blocks_around(grid: Shape, size: int) -> list[Blocks]:
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
            groups.append(Blocks(neighbours, places, centres, centre_places))
        return groups
