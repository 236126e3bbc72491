"""MultiResUNet against the published network's outputs and against the plain oracle, gradients included."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nnunetv2_ext.architectures import BackboneNetwork, MultiResUNet
from nnunetv2_ext.architectures.measure import kept_elements
from nnunetv2_ext.errors import InputError
from tests.architectures.plain_multiresunet import PlainMultiResUNet
from tests.architectures.published import assert_alike, check_published

THICK = ((1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2))


def image(*size: int) -> torch.Tensor:
    return torch.randn(2, 2, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("network", [MultiResUNet, PlainMultiResUNet])
def test_published_outputs(golden: Path, network: Callable[..., nn.Module]) -> None:
    check_published(golden / "multiresunet.npz", network(2, 3, base=4))


@pytest.mark.parametrize(
    ("options", "size"),
    [({"base": 4}, (16, 32, 16)), ({"base": 5, "alpha": 2.1, "strides": THICK}, (4, 16, 32))],
    ids=str,
)
def test_oracle_outputs_gradients_and_statistics(options: dict[str, Any], size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    assert_alike(MultiResUNet(2, 3, **options), PlainMultiResUNet(2, 3, **options), image(*size))


def test_the_batch_norm_of_a_step_moves_twice_a_pass_the_others_once() -> None:
    network = MultiResUNet(2, 3, base=4).double()
    network(image(16, 16, 32)).mean().backward()
    moved = {name: int(count) for name, count in network.named_buffers() if name.endswith("num_batches_tracked")}
    assert {name for name, count in moved.items() if count == 2} == {name for name in moved if ".bns." in name}
    assert set(moved.values()) == {1, 2}


def test_the_graph_can_be_used_twice() -> None:
    network = MultiResUNet(2, 3, base=4).double()
    loss = network(image(16, 16, 32)).square().mean()
    loss.backward(retain_graph=True)
    once = [parameter.grad.clone() for parameter in network.parameters()]  # type: ignore[union-attr]
    network.zero_grad()
    loss.backward()
    for parameter, gradient in zip(network.parameters(), once, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_widths() -> None:
    with torch.device("meta"):
        network = MultiResUNet(1, 3)
    wide = [network.get_submodule(f"multiresblock{level}.batch_norm2").num_features for level in range(1, 10)]
    assert wide == [51, 105, 212, 426, 853, 426, 212, 105, 51]
    assert [len(network.get_submodule(f"respath{level}").bns) for level in range(1, 5)] == [4, 3, 2, 1]  # type: ignore[arg-type]


def test_the_backward_pass_keeps_half_of_what_the_plain_one_does() -> None:
    with torch.device("meta"):
        networks = [network(1, 3, base=16) for network in (MultiResUNet, PlainMultiResUNet)]
    ours, plain = (kept_elements(network, (2, 1, 16, 64, 64)) for network in networks)
    assert ours < 0.5 * plain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": 3}, "base=3 with alpha=1.67; .* choose a larger base"),
        ({"base": 8, "alpha": -1}, "alpha=-1; expected a number above 0"),
        ({"alpha": "a"}, "alpha='a'"),
        ({"alpha": float("inf")}, "alpha=inf"),
        ({"alpha": 0.01}, "base=32 with alpha=0.01"),
        ({"base": "a"}, "base='a'; expected a whole number from 1"),
        ({"base": 8.5}, "base=8.5"),
        ({"strides": THICK[1:]}, "3 strides; expected 4"),
        ({"strides": 2}, "strides=2"),
        ({"strides": ((0, 2, 2), *THICK[1:])}, "strides="),
    ],
    ids=str,
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MultiResUNet(1, 2, **options)
    with pytest.raises(InputError, match=message):
        BackboneNetwork(1, 2, backbone="MultiResUNet", spatial_shape=(32, 32, 32), backbone_kwargs=options)


@pytest.mark.parametrize(
    ("size", "remedy"), [((16, 16, 16), r"choose patch_size \[16, 16, 32\]"), ((16, 40, 32), r"\[16, 32, 32\] or")]
)
def test_sizes_that_cannot_work(size: tuple[int, ...], remedy: str) -> None:
    """A single voxel at the bottleneck is refused whatever the batch."""
    with pytest.raises(InputError, match=remedy):
        MultiResUNet(2, 3, base=4).double()(image(*size))
