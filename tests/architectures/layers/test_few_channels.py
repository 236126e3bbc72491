"""Convolutions of few channels against PyTorch's own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_ext.architectures.layers.few_channels import depthwise, feed_forward, pointwise, spread, upsampled


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


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=str)
def test_depthwise_in_bfloat16(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    conv, x = nn.Conv3d(20, 20, 3, padding=1, groups=20, bias=False), torch.randn(2, 20, 2, 2, 4).bfloat16()
    weights = torch.randn(x.shape)
    (expected,) = torch.autograd.grad((depthwise(conv, x.float()) * weights).sum(), conv.weight)
    with torch.autocast("cpu", torch.bfloat16):
        output = depthwise(conv, x.contiguous(memory_format=layout))
    (found,) = torch.autograd.grad((output.float() * weights).sum(), conv.weight)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02 * float(expected.abs().max()))


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


Built = tuple[list[nn.Module], Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


def _spread(step: Any) -> Built:
    conv = nn.ConvTranspose3d(3, 3, step, step, groups=3)
    return [conv], lambda x: spread(conv, x), conv


def _upsampled(step: Any) -> Built:
    conv, mix = nn.ConvTranspose3d(3, 3, step, step, groups=3), nn.Conv3d(3, 2, 1)
    return [conv, mix], lambda x: upsampled(conv, mix, x), lambda x: mix(conv(x))


def _feed_forward(wide: Any) -> Built:
    up, down = nn.Conv3d(3, wide, 1, bias=False), nn.Conv3d(wide, 3, 1, bias=False)
    return [up, down], lambda x: feed_forward(up, down, x), lambda x: down(F.gelu(up(x)))


@pytest.mark.parametrize(
    ("build", "argument"),
    [
        (_spread, (1, 1, 1)),
        (_spread, (2, 1, 4)),
        (_upsampled, (2, 2, 2)),
        (_upsampled, (1, 2, 3)),
        (_feed_forward, 12),
        (_feed_forward, 1),
    ],
)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("shape", [(2, 3, 3, 5, 4), (1, 3, 1, 70, 61), (3, 3, 1, 1, 1)], ids=str)
def test_outputs_and_gradients(
    build: Callable[[Any], Built], argument: Any, last: bool, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    layers, ours, plain = build(argument)
    x = torch.randn(shape, dtype=torch.float64)
    x = (x.to(memory_format=torch.channels_last_3d) if last else x).requires_grad_()
    inputs = [x, *(parameter for layer in layers for parameter in layer.double().parameters())]
    expected = plain(x)
    weights = torch.randn_like(expected)
    found = ours(x)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    of_ours, of_plain = (torch.autograd.grad((one * weights).sum(), inputs) for one in (found, expected))
    for one, other in zip(of_ours, of_plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), expected, rtol=1e-10, atol=1e-10)
