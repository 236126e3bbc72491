"""SwinSMT against the published network's outputs and against the plain one, gradients and memory included."""

import ast
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nnunetv2_ext.architectures.layers.experts import SoftMixture
from nnunetv2_ext.architectures.measure import kept_elements
from nnunetv2_ext.architectures.swinsmt import SwinSMT, mixture_memory
from nnunetv2_ext.errors import InputError
from tests.architectures.plain_swinsmt import PlainMixture, plain_encoder, plain_swinsmt

GOLDEN = os.environ.get("NNUNETV2_EXT_GOLDEN")
SMALL: dict[str, Any] = {
    "feature_size": 4,
    "depths": (2, 1, 2, 1),
    "num_heads": (1, 2, 2, 4),
    "window_size": (4, 4, 4),
}


def same_weights(plain: nn.Module, ours: nn.Module) -> None:
    """Weights at random, of both networks the same; zeros and ones would hide a mistake."""
    torch.manual_seed(0)
    for parameter in plain.parameters():
        nn.init.normal_(parameter, 0.5 * (parameter.ndim == 1), 0.3)
    ours.load_state_dict(plain.state_dict(), strict=True)


def outputs_and_gradients(network: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = network(x)
    weights = torch.rand(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(2))
    (y * weights).sum().backward()
    found = dict(network.named_parameters())
    gradients = [found[name].grad for name in sorted(found)]
    assert x.grad is not None
    return [y.detach(), x.grad, *(gradient for gradient in gradients if gradient is not None)]


def assert_equal(plain: nn.Module, ours: nn.Module, x: Tensor) -> None:
    expected = outputs_and_gradients(plain, x)
    found = outputs_and_gradients(ours, x)
    assert len(found) == len(expected) == len(list(ours.parameters())) + 2
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9 * float(other.abs().max()) + 1e-12)


@pytest.mark.skipif(GOLDEN is None, reason="the published network's outputs are not here")
def test_golden() -> None:
    with np.load(Path(str(GOLDEN)) / "golden" / "swinsmt.npz") as arrays:
        meta = ast.literal_eval(str(arrays["meta"]))
        tensors = {name: torch.from_numpy(arrays[name]).double() for name in arrays.files if name != "meta"}
    names = ("feature_size", "depths", "num_heads", "num_experts", "num_layers_with_moe")
    network = SwinSMT(meta["in_channels"], meta["out_channels"], **{name: meta[name] for name in names}).double()
    weights = {name.removeprefix("w/"): tensor for name, tensor in tensors.items() if name.startswith("w/")}
    indices = {name: tensor for name, tensor in network.named_buffers() if name.endswith("relative_position_index")}
    network.load_state_dict({**weights, **indices}, strict=True)
    assert sum(parameter.numel() for parameter in network.parameters()) == meta["params"]
    difference = (network.eval()(tensors["x"]) - tensors["y"]).abs().max()
    assert difference <= 1e-8 * tensors["y"].abs().max()


class Flat(nn.Module):
    """An encoder whose maps lie one after the other."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([features.flatten() for features in self.encoder(x)])


@pytest.mark.parametrize(
    ("options", "patch"),
    [
        # 2 tokens at the deepest stage, fewer than experts
        ({"num_experts": 5, "num_layers_with_moe": 2}, (32, 32, 64)),
        # tokens that the experts do not divide, in three stages
        ({"num_experts": 3, "num_layers_with_moe": 3}, (32, 64, 32)),
        ({"num_experts": 4, "num_layers_with_moe": 0, "window_size": (2, 7, 3)}, (64, 32, 32)),
    ],
    ids=str,
)
def test_the_encoder_is_the_plain_one(options: dict[str, Any], patch: tuple[int, ...]) -> None:
    options = {**SMALL, **options}
    plain, ours = Flat(plain_encoder(2, **options)).double(), Flat(SwinSMT(2, 3, **options).swinViT).double()
    same_weights(plain, ours)
    assert_equal(
        plain, ours, torch.randn(1, 2, *patch, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    )


def test_the_network_is_the_plain_one() -> None:
    options = {**SMALL, "feature_size": 12, "num_experts": 4, "num_layers_with_moe": 2}
    plain, ours = plain_swinsmt(1, 3, **options), SwinSMT(1, 3, **options)
    same_weights(plain, ours)
    x = torch.randn(1, 1, 32, 32, 64)
    with torch.no_grad():
        expected = plain(x)
        assert (ours(x) - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize(("tokens", "experts"), [((4, 3, 2), 4), ((1, 2, 5), 4), ((1, 1, 3), 5), ((3, 3, 3), 2)])
def test_the_mixture(tokens: tuple[int, ...], experts: int) -> None:
    plain, ours = PlainMixture(6, experts).double(), SoftMixture(6, experts).double()
    same_weights(plain, ours)
    x = torch.randn(2, *tokens, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert_equal(plain, ours, x)


def test_the_mixture_of_one_expert_and_one_token_by_hand() -> None:
    mixture = SoftMixture(2, 1).double()
    x = torch.tensor([[[3.0, 4.0]]], dtype=torch.float64)
    normed = torch.tensor([0.6, 0.8], dtype=torch.float64) * 2**0.5
    torch.testing.assert_close(mixture(x)[0, 0], mixture.experts[0](normed))


def test_the_memory_of_the_mixture_grows_with_the_tokens_and_not_with_their_square() -> None:
    features, experts = 8, 4
    with torch.device("meta"):
        plain, ours = PlainMixture(features, experts), SoftMixture(features, experts)
    kept = {tokens: kept_elements(ours, (1, tokens, features)) for tokens in (1024, 2048)}
    assert kept[2048] < 2.1 * kept[1024]
    # products of tokens and slots, their two softmaxes: what a network with the matrices would keep
    matrices = kept_elements(plain, (1, 2048, features)) - 2 * kept_elements(plain, (1, 1024, features))
    assert matrices == pytest.approx(2 * 2 * 1024**2, rel=0.05)
    assert kept[2048] < 0.05 * kept_elements(plain, (1, 2048, features))


def test_mixture_memory() -> None:
    tokens, elements = mixture_memory({**SMALL, "num_experts": 4, "num_layers_with_moe": 3}, (32, 64, 64))
    assert tokens == 8 * 16 * 16  # of the second stage, a quarter of the image
    with torch.device("meta"):
        mixtures = [SoftMixture(features, 4) for features in (8, 16, 16, 32)]
    counts = (2048, 256, 256, 32)
    expected = [kept_elements(one, (1, n, one.norm.gamma.numel())) for one, n in zip(mixtures, counts, strict=True)]
    assert elements == sum(expected)
    assert mixture_memory({**SMALL, "num_layers_with_moe": 0}, (32, 64, 64)) == (0, 0)


def test_a_network_keeps_less_than_the_plain_one() -> None:
    options: dict[str, Any] = {"feature_size": 24, "num_experts": 4, "num_layers_with_moe": 2}
    with torch.device("meta"):
        ours = SwinSMT(1, 3, **options)
    shape = (1, 1, 64, 64, 64)
    assert kept_elements(ours, shape) < 0.7 * kept_elements(plain_swinsmt(1, 3, **options), shape)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": (2, 2, 2)}, r"depths=\(2, 2, 2\).*4 numbers of blocks"),
        ({"num_heads": (3, 6, 0, 24)}, "all from 1"),
        ({"feature_size": 16}, "stages of 16, 32, 64, 128 features with 3, 6, 12, 24 heads"),
        ({"num_experts": 0}, "num_experts=0"),
        ({"num_layers_with_moe": 5}, "num_layers_with_moe=5"),
        ({"window_size": (7, 0, 7)}, r"window_size=\(7, 0, 7\)"),
        ({"merging": "old"}, "merging='old'; expected one of published, current"),
    ],
    ids=str,
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SwinSMT(1, 2, **options)
