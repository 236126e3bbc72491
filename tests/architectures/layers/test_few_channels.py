"""Convolutions of few channels against PyTorch's own."""

import pytest
import torch
from torch import nn

from nnunetv2_ext.architectures.layers.few_channels import depthwise, pointwise


@pytest.mark.parametrize(("kernel", "shape"), [(7, (2, 3, 5, 9, 8)), (3, (1, 4, 1, 6, 7)), (7, (3, 1, 2, 4, 16))])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_depthwise(kernel: int, shape: tuple[int, ...], last: bool, bias: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv3d(shape[1], shape[1], kernel, padding=kernel // 2, groups=shape[1], bias=bias).double()
    x = torch.randn(shape, dtype=torch.float64)
    x = (x.to(memory_format=torch.channels_last_3d) if last else x).requires_grad_()
    weights = torch.randn(shape, dtype=torch.float64)
    inputs = [x, *conv.parameters()]
    gradients = []
    for function in (conv, lambda x: depthwise(conv, x)):
        output = function(x)
        gradients.append([output, *torch.autograd.grad((output * weights).sum(), inputs)])
    for expected, ours in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_pointwise_keeps_the_layout(last: bool, bias: bool) -> None:
    """Of channels-last maps PyTorch's group norm is less exact, so that nothing may become one unasked."""
    torch.manual_seed(0)
    conv, x = nn.Conv3d(3, 5, 1, bias=bias).double(), torch.randn(2, 3, 4, 6, 7, dtype=torch.float64)
    layout = torch.channels_last_3d if last else torch.contiguous_format
    output = pointwise(conv, x.to(memory_format=layout))
    assert output.is_contiguous(memory_format=layout)
    torch.testing.assert_close(output, conv(x), rtol=1e-12, atol=1e-12)
