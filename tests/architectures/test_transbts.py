"""TransBTS against the published network's outputs and against the plain oracle, gradients included."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nnunetv2_ext.architectures import BackboneNetwork, TransBTS
from nnunetv2_ext.architectures.backbones.network import record_of
from nnunetv2_ext.architectures.measure import kept_elements
from nnunetv2_ext.errors import InputError
from tests.architectures.plain_transbts import PlainTransBTS
from tests.architectures.published import assert_alike, check_published

NO_DROPOUT: dict[str, Any] = {"initial_dropout": 0.0, "dropout": 0.0}
SMALL: dict[str, Any] = {"base_channels": 2, "groups": 2, "hidden_dim": 24, "num_heads": 4}
THICK = ((1, 2, 2), (1, 2, 2), (2, 2, 2))


def image(*size: int) -> torch.Tensor:
    return torch.randn(2, 2, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("network", "more"), [(TransBTS, NO_DROPOUT), (PlainTransBTS, {})], ids=["ours", "plain"])
def test_published_outputs(golden: Path, network: Callable[..., nn.Module], more: dict[str, Any]) -> None:
    options = {**SMALL, **more, "hidden_dim": 48, "spatial_shape": (16, 24, 32)}
    check_published(golden / "transbts.npz", network(2, 3, **options), record_of("TransBTS").unused)


@pytest.mark.parametrize(
    ("more", "size"),
    [
        ({}, (8, 16, 24)),
        ({"strides": THICK, "base_channels": 3, "groups": 1, "num_heads": 6, "num_layers": 2}, (6, 8, 16)),
    ],
    ids=str,
)
def test_oracle_outputs_gradients_and_statistics(more: dict[str, Any], size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    options = {**SMALL, **more, "spatial_shape": size}
    plain = PlainTransBTS(2, 3, **options)
    nn.init.normal_(plain.position_encoding["position_embeddings"])
    assert_alike(TransBTS(2, 3, **options, **NO_DROPOUT), plain, image(*size))


def test_dropout_acts_in_training_alone() -> None:
    network, x = TransBTS(2, 3, **SMALL, spatial_shape=(8, 8, 16)).double(), image(8, 8, 16)
    with torch.no_grad():
        assert not torch.equal(network(x), network(x))
        network.eval()
        assert torch.equal(network(x), network(x))


@pytest.mark.parametrize(("rate", "where"), [("initial_dropout", "Unet.EnBlock1"), ("dropout", "transformer.net.0")])
def test_each_dropout(rate: str, where: str) -> None:
    """The first one takes whole channels."""
    network = TransBTS(2, 3, **{**SMALL, **NO_DROPOUT, rate: 0.5}, spatial_shape=(8, 8, 16)).double()
    seen: list[torch.Tensor] = []
    network.get_submodule(where).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    torch.manual_seed(0)
    for _ in range(8):
        network(image(8, 8, 16))
    zeros = torch.stack(seen) == 0
    assert 0.3 < zeros.double().mean() < 0.7
    whole = zeros.flatten(3).double().mean(-1)
    assert bool(((whole == 0) | (whole == 1)).all()) == (rate == "initial_dropout")


def test_positions_of_a_patch() -> None:
    record = record_of("TransBTS")
    assert record.positions is not None
    network = TransBTS(1, 2, **SMALL, strides=THICK, spatial_shape=(6, 16, 24))
    ((name, grid),) = record.positions({"strides": THICK}, (6, 16, 24)).items()
    assert grid == network.grid == (3, 2, 3)
    assert network.state_dict()[name].shape == (1, 18, 64)


def test_the_backward_pass_keeps_less_than_the_plain_one_does() -> None:
    options: dict[str, Any] = {"spatial_shape": (16, 32, 32), "num_layers": 1, "hidden_dim": 1}
    with torch.device("meta"):
        networks = [TransBTS(1, 3, **options, **NO_DROPOUT), PlainTransBTS(1, 3, **options)]
    ours, plain = (kept_elements(network, (2, 1, 16, 32, 32)) for network in networks)
    assert ours < 0.7 * plain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 3}, "groups=3 with base_channels=16; expected a divisor of 16"),
        ({"num_heads": 7}, "num_heads=7 with base_channels=16; expected a divisor of 512"),
        ({"num_heads": 0}, "num_heads=0; expected a whole number from 1"),
        ({"groups": 1.0}, "groups=1.0"),
        ({"num_layers": -1}, "num_layers=-1; expected a whole number from 1"),
        ({"num_layers": 0}, "num_layers=0"),
        ({"hidden_dim": 0}, "hidden_dim=0; expected a whole number from 1"),
        ({"base_channels": 0}, "base_channels=0; expected a whole number from 1"),
        ({"dropout": 1.5}, r"dropout=1.5; expected a number in \[0, 1\)"),
        ({"initial_dropout": "a"}, "initial_dropout='a'"),
        ({"strides": ((2, 2, 2.5), *THICK[1:])}, "strides="),
        ({"strides": ("222", *THICK[1:])}, "strides="),
        ({"strides": THICK[1:]}, "2 strides; expected 3"),
        ({"strides": [[2, 2]] * 3}, "one stride of three axes"),
        ({"strides": ((0, 2, 2), *THICK[1:])}, "strides="),
    ],
    ids=str,
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TransBTS(1, 2, spatial_shape=(16, 16, 16), **options)
    with pytest.raises(InputError, match=message):
        BackboneNetwork(1, 2, backbone="TransBTS", spatial_shape=(16, 16, 16), backbone_kwargs=options)


@pytest.mark.parametrize(
    ("size", "remedy"), [((8, 8, 8), r"choose patch_size \[8, 8, 16\]"), ((16, 20, 16), r"\[16, 16, 16\] or \[16, 24")]
)
def test_sizes_that_cannot_work(size: tuple[int, ...], remedy: str) -> None:
    """A single voxel at the bottleneck is refused whatever the batch."""
    with pytest.raises(InputError, match=remedy):
        TransBTS(1, 2, **SMALL, spatial_shape=size)


def test_another_patch() -> None:
    network = TransBTS(2, 2, **SMALL, spatial_shape=(8, 8, 16)).double()
    with pytest.raises(InputError, match=r"a patch of \(8, 16, 16\) for TransBTS; expected \(8, 8, 16\)"):
        network(image(8, 16, 16))
