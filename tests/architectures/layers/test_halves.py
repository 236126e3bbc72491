"""Convolutions of one sample by halves against PyTorch's own."""

from typing import Any

import pytest
import torch
from torch import nn

from nnunetv2_ext.architectures.layers.halves import HalvedConv3d


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 2, 8, 6, 4), {"padding": 1}),
        ((1, 2, 5, 6, 4), {"padding": 1}),  # the first axis has no halves
        ((1, 2, 5, 7, 9), {"padding": 1}),  # none has
        ((3, 2, 8, 6, 4), {"padding": 1}),
        ((1, 2, 8, 6, 4), {"padding": 1, "stride": 2}),
        ((1, 2, 6, 8, 4), {"padding": 1, "stride": 2}),
        ((1, 2, 7, 9, 4), {"padding": (0, 2, 1), "stride": (1, 2, 1), "kernel_size": (2, 5, 3)}),
    ],
    ids=str,
)
def test_outputs_and_gradients(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    ours = HalvedConv3d(2, 3, **{"kernel_size": 3, **options}).double()
    plain = nn.Conv3d(2, 3, **{"kernel_size": 3, **options}).double()
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    same = x.detach().clone().requires_grad_()
    output, expected = ours(x), plain(same)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    weights = torch.randn_like(output)
    (output * weights).sum().backward()
    (expected * weights).sum().backward()
    assert ours.weight.grad is not None and plain.weight.grad is not None
    torch.testing.assert_close(x.grad, same.grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.weight.grad, plain.weight.grad, rtol=0, atol=1e-11)
