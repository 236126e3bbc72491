"""The contract that every registered architecture keeps, whatever it computes."""

import io
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import Tensor, nn

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.registry import ARCHITECTURES, Entry

CHANNELS, CLASSES = 2, 3
# arguments that make an architecture small enough for the tests, as a plan holds them
SMALL: dict[str, dict[str, Any]] = {
    "MNet": {"features_per_stage": [4, 6, 8, 10, 12], "merge": "difference", "min_pool_slices": 8},
}
# a planned patch, odd ones in every axis, few slices
PATCHES = [(8, 32, 32), (9, 33, 47), (3, 37, 32), (17, 32, 35)]
IMPOSSIBLE = [(0, 32, 32), (8, 4, 32), (8, 32), (1, 1, 8, 32, 32)]


def build(entry: Entry, *, deep_supervision: bool = True) -> Any:
    """The network as nnU-Net builds it from plans, always with the same weights."""
    torch.manual_seed(0)
    return get_network_from_plans(
        entry.path, SMALL[entry.name], [], CHANNELS, CLASSES, allow_init=True, deep_supervision=deep_supervision
    )


def image(patch: Sequence[int], batch: int = 2) -> Tensor:
    return torch.randn(batch, CHANNELS, *patch, generator=torch.Generator().manual_seed(1))


def backward(network: nn.Module, outputs: list[Tensor]) -> dict[str, Tensor | None]:
    """Gradients of a sum over all outputs, by parameter."""
    sum(output.float().square().mean() for output in outputs).backward()  # type: ignore[union-attr]
    return {name: parameter.grad for name, parameter in network.named_parameters()}


def flat(gradients: dict[str, Tensor | None]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients.values() if gradient is not None])


@pytest.fixture(params=ARCHITECTURES, ids=lambda entry: entry.name)
def entry(request: pytest.FixtureRequest) -> Entry:
    return request.param


def test_small_arguments_are_known_for_every_architecture() -> None:
    assert {entry.name for entry in ARCHITECTURES} == SMALL.keys()


@pytest.mark.parametrize("patch", PATCHES, ids=str)
def test_forward_and_backward(entry: Entry, patch: tuple[int, ...]) -> None:
    network = build(entry)
    outputs = network(image(patch))
    shapes = network.deep_supervision_shapes(patch)
    assert [tuple(output.shape) for output in outputs] == [(2, CLASSES, *shape) for shape in shapes]
    assert tuple(shapes[0]) == patch
    assert all(output.isfinite().all() for output in outputs)
    without = [name for name, gradient in backward(network, outputs).items() if gradient is None]
    assert without == [], "DistributedDataParallel fails on parameters without a gradient"


def test_deep_supervision_is_a_switch_over_the_same_weights(entry: Entry) -> None:
    on, off = build(entry), build(entry, deep_supervision=False)
    assert (on.deep_supervision, off.deep_supervision) == (True, False)
    off.load_state_dict(on.state_dict(), strict=True)
    x = image(PATCHES[0])
    with torch.no_grad():
        outputs, alone = on(x), off(x)
        assert isinstance(outputs, list)
        assert isinstance(alone, Tensor)
        assert torch.equal(outputs[0], alone)
        on.deep_supervision = False
        assert torch.equal(on(x), alone)


def test_without_gradients_the_outputs_are_the_same(entry: Entry) -> None:
    network, x = build(entry), image(PATCHES[1])
    with torch.inference_mode():
        expected = network.eval()(x)
    for output, one in zip(network.train()(x), expected, strict=True):
        torch.testing.assert_close(output, one, rtol=1e-5, atol=1e-5)


def test_a_sample_does_not_depend_on_its_batch(entry: Entry) -> None:
    network, x = build(entry, deep_supervision=False).double(), image(PATCHES[0]).double()
    with torch.no_grad():
        torch.testing.assert_close(network(x)[1:], network(x[1:]), rtol=1e-6, atol=1e-9)


def test_autocast(entry: Entry) -> None:
    """Outputs and gradients point where those in full precision do."""
    network, x = build(entry), image(PATCHES[0])
    exact = network(x)
    expected = flat(backward(network, exact))
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network(x)
    for output, one in zip(outputs, exact, strict=True):
        assert torch.cosine_similarity(output.float().flatten(), one.flatten(), dim=0) > 0.95
    found = flat(backward(network, outputs))
    assert found.isfinite().all()
    # rounding to bfloat16 turns signs of differences and places of maxima, so gradients agree only in direction
    assert torch.cosine_similarity(found, expected, dim=0) > 0.4


def test_state_dict_round_trip(entry: Entry) -> None:
    network, x = build(entry), image(PATCHES[0], batch=1)
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    other = build(entry)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(network(x), other(x), strict=True))


def test_pickling(entry: Entry) -> None:
    network, x = build(entry), image(PATCHES[0], batch=1)
    other = pickle.loads(pickle.dumps(network))
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(network(x), other(x), strict=True))


@pytest.mark.parametrize("patch", IMPOSSIBLE, ids=str)
def test_impossible_sizes(entry: Entry, patch: tuple[int, ...]) -> None:
    network = build(entry)
    for measure in (network.deep_supervision_shapes, network.compute_conv_feature_map_size):
        with pytest.raises(InputError, match="patch"):
            measure(patch)
    with pytest.raises(InputError, match="patch"):
        network(torch.zeros(1, CHANNELS, *patch))


def test_feature_map_size_grows_with_the_patch(entry: Entry) -> None:
    network = build(entry)
    sizes = [network.compute_conv_feature_map_size(patch) for patch in [(4, 32, 32), (8, 32, 32), (8, 64, 64)]]
    assert 0 < sizes[0] < sizes[1] < sizes[2]
    assert 3.5 < sizes[2] / sizes[1] < 4.5


def test_heads_are_what_pretrained_weights_leave_out(entry: Entry) -> None:
    fewer, more = (
        get_network_from_plans(entry.path, SMALL[entry.name], [], CHANNELS, classes, deep_supervision=True)
        for classes in (2, 4)
    )
    others = more.state_dict()
    differing = {key for key, tensor in fewer.state_dict().items() if tensor.shape != others[key].shape}
    assert differing
    assert all(".seg_layers." in key for key in differing)


def test_no_initialisation_of_its_own_is_needed(entry: Entry) -> None:
    """nnU-Net applies a network's `initialize` in training only; a plan must give the same network with and without."""
    torch.manual_seed(0)
    plain = get_network_from_plans(entry.path, SMALL[entry.name], [], CHANNELS, CLASSES, allow_init=False)
    assert plain.state_dict().keys() == build(entry).state_dict().keys()
