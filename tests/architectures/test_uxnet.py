"""3D UX-Net against the published network's outputs and against a plain version, gradients and memory included."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nnunetv2_ext.architectures import UXNet
from nnunetv2_ext.architectures.backbones import find_backbone
from nnunetv2_ext.architectures.measure import kept_elements, without_values
from nnunetv2_ext.errors import InputError
from tests.architectures.plain_uxnet import PlainUXNet

SMALL: dict[str, Any] = {"feat_size": (4, 6, 8, 12), "hidden_size": 16, "depths": (2, 1, 2, 1)}


def pair(**options: Any) -> tuple[PlainUXNet, UXNet]:
    """The same small network twice, in float64, with weights of ordinary size."""
    torch.manual_seed(0)
    plain = PlainUXNet(2, 3, **{**SMALL, **options}).double()
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours = UXNet(2, 3, **{**SMALL, **options}).double()
    ours.load_state_dict(plain.state_dict(), strict=True)
    return plain, ours


def image(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("grad", [True, False])
def test_published_outputs(golden: Path, grad: bool) -> None:
    file = np.load(golden / "uxnet.npz")
    network = UXNet(2, 3, **SMALL).double()
    weights = {key[2:]: torch.from_numpy(file[key]) for key in file.files if key.startswith("w/")}
    network.load_state_dict(weights, strict=True)
    expected = torch.from_numpy(file["y"])
    with torch.set_grad_enabled(grad):
        output = network(torch.from_numpy(file["x"])).detach()
    assert (output - expected).abs().max() <= 1e-8 * expected.abs().max()


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 2, 16, 16, 32), {}),
        ((2, 2, 4, 8, 24), {"strides": ((1, 2, 2), (2, 2, 2), (1, 1, 2), (1, 1, 3)), "depths": (1, 1, 1, 1)}),
    ],
    ids=str,
)
def test_plain_outputs_and_gradients(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    plain, ours = pair(**options)
    x, same = image(*shape).requires_grad_(), image(*shape).requires_grad_()
    output, expected = ours(x), plain(same)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-10 * float(expected.detach().abs().max()))
    weights = image(*output.shape)
    (output * weights).sum().backward()
    (expected * weights).sum().backward()
    found = dict(ours.named_parameters()) | {"image": x}
    for name, one in [*plain.named_parameters(), ("image", same)]:
        gradient = found[name].grad
        assert gradient is not None, name
        assert one.grad is not None, name
        largest = float(one.grad.abs().max())
        assert largest > 0, name
        torch.testing.assert_close(gradient, one.grad, rtol=0, atol=1e-9 * largest, msg=name)


def test_it_keeps_little_more_than_half_of_the_plain_version() -> None:
    with without_values():
        ours, plain = (kept_elements(network(1, 3), (1, 1, 32, 96, 96)) for network in (UXNet, PlainUXNet))
    assert ours < 0.55 * plain


def test_blocks_begin_as_what_goes_in() -> None:
    block = UXNet(1, 2, **SMALL).uxnet_3d.stages[0]
    x = image(1, 4, 3, 8, 8).float()
    torch.testing.assert_close(block(x), x, rtol=0, atol=1e-4)
    assert not torch.equal(block(x), x)


@pytest.mark.parametrize(
    ("spacing", "strides"),
    [
        ((1, 1, 1), [[2, 2, 2]] * 4),
        ((5, 1, 1), [[1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2]]),
        ((2, 1, 1), [[1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]]),
    ],
)
def test_strides_by_spacing(spacing: tuple[float, ...], strides: list[list[int]]) -> None:
    rule = find_backbone("UXNet").planned_by_spacing
    assert rule is not None
    assert rule(spacing) == {"strides": strides}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feat_size": (4, 6, 8)}, r"feat_size=\(4, 6, 8\); expected 4 whole numbers from 1, one per level"),
        ({"depths": (2, 0, 2, 2)}, "depths="),
        ({"depths": 2}, "depths=2"),
        ({"hidden_size": 1.5}, "hidden_size=1.5"),
        ({"strides": 2}, "strides=2; expected 4 strides"),
        ({"strides": (2, 2, 2)}, "strides="),
        ({"strides": (2, 2, 2, (2, 2))}, "strides="),
        ({"strides": (2, 2, 2, (0, 2, 2))}, "strides="),
    ],
    ids=str,
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        UXNet(1, 2, **{**SMALL, **options})
