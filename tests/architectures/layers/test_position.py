"""Codes of positions on grids of one, two and three axes."""

import math

import pytest
import torch

from nnunetv2_ext.architectures.layers.position import axial_code, sequence_code


@pytest.mark.parametrize("grid", [(5,), (2, 3), (2, 3, 4)], ids=str)
def test_each_axis_has_a_share_of_the_dimensions(grid: tuple[int, ...]) -> None:
    like = torch.zeros(17, dtype=torch.float64)
    code = axial_code(grid, like)
    assert code.shape == (math.prod(grid), 17)
    assert code.dtype == like.dtype
    width = {1: 16, 2: 8, 3: 4}[len(grid)]  # whole pairs
    code = code.reshape(*grid, 17)
    for axis, length in enumerate(grid):
        expected = sequence_code(length, torch.zeros(width))  # (length, width)
        shape = [1] * len(grid) + [width]
        shape[axis] = length
        own = code[..., axis * width : (axis + 1) * width]
        torch.testing.assert_close(own, expected.reshape(shape).expand_as(own).double())
    assert not code[..., len(grid) * width :].any()
