"""Tokens of voxels for anisotropic images: their size in millimetres, and windows of them."""

import math
from collections.abc import Sequence
from itertools import product

from nnunetv2_ext.errors import InputError

# voxels of a token (Karimi et al.: 512), how near a shape must be to the most cubic one to count as equal to it, and
# the ratio of longest to shortest edge that is refused
_MIN_VOXELS, _VOXELS, _MAX_VOXELS = 128, 512, 1024
_EQUALLY_CUBIC = 0.01
_LONGEST_EDGE = 4
_WINDOW_TOKENS = 512


def token_size_for(spacing: Sequence[float], patch_size: Sequence[int] | None = None) -> tuple[int, int, int]:
    """The token (z, y, x), in voxels, that is nearest to a cube in millimetres.

    Among tokens of 128 to 1024 voxels, even in plane, those of the smallest logarithm of longest to shortest edge;
    among those the one nearest to 512 voxels. 5 x 0.8 x 0.8 mm gives 2 x 12 x 12.

    Args:
        spacing: (z, y, x) in mm.
        patch_size: (z, y, x) in voxels, which the token must then divide.

    Raises:
        InputError: no such token divides the patch, or none whose longest edge is at most 4 times its shortest.
    """
    depths, in_plane = range(1, _MAX_VOXELS // 4 + 1), range(2, _MAX_VOXELS // 2 + 1, 2)
    axes: list[Sequence[int]] = [depths, in_plane, in_plane]
    if patch_size is not None:
        axes = [[size for size in sizes if axis % size == 0] for sizes, axis in zip(axes, patch_size, strict=True)]
    candidates = []
    for depth, height in product(axes[0], axes[1]):
        if depth * height * 2 > _MAX_VOXELS:
            continue
        for width in axes[2]:
            if _MIN_VOXELS <= depth * height * width <= _MAX_VOXELS:
                edges = [math.log(size * mm) for size, mm in zip((depth, height, width), spacing, strict=True)]
                candidates.append((max(edges) - min(edges), (depth, height, width)))
    best = min(candidates, default=(math.inf,))[0]
    if patch_size is not None and best > math.log(_LONGEST_EDGE):
        raise InputError(
            f"a patch of {list(patch_size)} at {list(spacing)} mm",
            f"one that a nearly cubic token of {_MIN_VOXELS} to {_MAX_VOXELS} voxels divides",
            "plan with ConvFreePlanner",
        )
    return min(
        (token for spread, token in candidates if spread <= best + _EQUALLY_CUBIC),
        key=lambda token: (abs(math.prod(token) - _VOXELS), token),
    )


def window_for(grid: Sequence[int]) -> list[int] | None:
    """The largest window of at most 512 tokens for attention in a grid of tokens, the most cubic among equal ones.

    Along each axis it divides the grid into no more windows than it has tokens. Layers attend by turns within windows
    of neighbours and within tokens spread evenly over the grid, so that two layers let every token see every other.

    Args:
        grid: tokens along z, y, x.

    Returns:
        Tokens along z, y, x; None where no divisors of the grid do it, as with large prime numbers.
    """
    axes = [[size for size in range(1, axis + 1) if axis % size == 0 and size**2 >= axis] for axis in grid]
    windows = [window for window in product(*axes) if math.prod(window) <= _WINDOW_TOKENS]
    return list(max(windows, key=lambda window: (math.prod(window), -max(window) / min(window)), default=())) or None
