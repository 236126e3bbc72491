"""Attention within windows against products written out, and as an operator of PyTorch."""

from typing import Any

import pytest
import torch
from torch import Tensor

from nnunetv2_ext.architectures.layers import windows as module
from nnunetv2_ext.architectures.layers.windows import ShiftedWindows, attend_in_windows, relative_positions

WINDOWS = ShiftedWindows((5, 2, 7), (2, 2, 3), (1, 0, 1))


def tensors(heads: int = 2, width: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys and values of two images, the table of offsets."""
    generator = torch.Generator().manual_seed(0)
    sequences, tokens = WINDOWS.regions().shape  # type: ignore[union-attr]
    shape = (2 * sequences, heads, tokens, width)
    query, key, value, table = (
        torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()
        for shape in (shape, shape, shape, (3 * 3 * 5, heads))
    )
    return query, key, value, table


def plain(query: Tensor, key: Tensor, value: Tensor, table: Tensor, rows: Tensor, regions: Tensor | None) -> Tensor:
    products = query @ key.mT / query.shape[-1] ** 0.5 + table[rows].movedim(-1, 0)
    if regions is not None:
        apart = (regions[:, None] != regions[:, :, None]).repeat(len(query) // len(regions), 1, 1)
        products = products - 100 * apart[:, None]
    return products.softmax(-1) @ value


@pytest.mark.parametrize("elements", [1, 1000, 10**9])
@pytest.mark.parametrize("regions", [None, WINDOWS.regions()], ids=["plain", "shifted"])
def test_outputs_and_gradients(regions: Any, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of windows one by one, some and all at a time."""
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", elements)
    given, rows = tensors(), relative_positions(WINDOWS.window)
    attended, expected = attend_in_windows(*given, rows, regions), plain(*given, rows, regions)
    torch.testing.assert_close(attended, expected)
    weights = torch.rand(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for one, other in zip(
        torch.autograd.grad(attended, given, weights), torch.autograd.grad(expected, given, weights), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_backward_within_autocast(dtype: torch.dtype) -> None:
    """As a loop has it that leaves autocast only after the backward pass."""
    query, key, value, table = (tensor.detach().to(dtype).requires_grad_() for tensor in tensors())
    table = table.detach().float().requires_grad_()  # parameters stay as they are
    given, rows = (query, key, value, table), relative_positions(WINDOWS.window)
    with torch.autocast("cpu", torch.bfloat16):
        loss = attend_in_windows(*given, rows, WINDOWS.regions()).float().square().sum()
        within = torch.autograd.grad(loss, given, retain_graph=True)
    for one, other in zip(within, torch.autograd.grad(loss, given), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("regions", [None, WINDOWS.regions()], ids=["plain", "shifted"])
def test_operator(regions: Any) -> None:
    """What PyTorch asks of operators that are to be compiled: the fake results, their strides, the gradients."""
    arguments = (*tensors(), relative_positions(WINDOWS.window), regions)
    of_operators = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(module._window_attention, arguments, test_utils=of_operators)


def test_no_region_without_a_shift() -> None:
    assert ShiftedWindows((4, 4, 4), (2, 2, 2)).regions() is None
