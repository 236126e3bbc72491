"""MNet against the published network's outputs and against the plain oracle, gradients included."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnunetv2_ext.architectures import MNet
from nnunetv2_ext.architectures.mnet import conv_feature_map_size
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.weights.mnet import convert_published_state_dict
from tests.architectures.plain_mnet import PlainMNet
from tests.architectures.test_plain_mnet import load_golden

FEATURES = (4, 6, 8, 10, 12)
MERGES = ("difference", "sum", "concat")
PUBLISHED_PARAMETERS = 8_775_264


def pair(merge: str = "difference", **options: Any) -> tuple[PlainMNet, MNet]:
    """The oracle and our network with the same weights, in float64."""
    torch.manual_seed(0)
    plain = PlainMNet(2, 3, features_per_stage=FEATURES, merge=merge, **options).double()
    ours = MNet(2, 3, features_per_stage=FEATURES, merge=merge, **options).double()
    ours.load_state_dict(convert_published_state_dict(plain.state_dict()), strict=True)
    return plain, ours


def image(*size: int) -> Tensor:
    return torch.randn(2, 2, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def loss_of(outputs: Sequence[Tensor]) -> Tensor:
    """A sum over all outputs that treats every voxel and class differently."""
    generator = torch.Generator().manual_seed(2)
    weights = [torch.rand(output.shape, dtype=output.dtype, generator=generator) for output in outputs]
    return torch.stack([(output * w).mean() for output, w in zip(outputs, weights, strict=True)]).sum()


def gradients(network: nn.Module) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert all(gradient is not None for gradient in found.values())
    return found  # type: ignore[return-value]


def assert_close(ours: Tensor, expected: Tensor, tolerance: float) -> None:
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 5e-4)], ids=str)
@pytest.mark.parametrize("file", ["mnet_difference.npz", "mnet_sum_odd_shape.npz"])
def test_published_outputs(golden: Path, file: str, dtype: torch.dtype, tolerance: float) -> None:
    plain, x, expected = load_golden(golden / file)
    features: list[Any] = [plain.outputs[n].in_channels for n in (0, 1, 3, 5)]
    deepest: Any = plain.get_submodule("bottleneck1.CB2d.conv2.conv").out_channels
    ours = MNet(
        x.shape[1],
        expected[0].shape[1],
        features_per_stage=(*features, deepest),
        merge=plain.merge_name,
        min_pool_slices=plain.min_pool_slices,
    ).to(dtype)
    ours.load_state_dict(convert_published_state_dict(plain.state_dict()), strict=True)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            outputs = ours(x.to(dtype))
        for output, y in zip(outputs, expected, strict=True):
            assert_close(output.double(), y, tolerance)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize(("size", "min_pool_slices"), [((9, 33, 37), 8), ((1, 32, 16), 8), ((16, 32, 35), 2)], ids=str)
def test_oracle_outputs_and_gradients(merge: str, size: tuple[int, ...], min_pool_slices: int) -> None:
    plain, ours = pair(merge, min_pool_slices=min_pool_slices)
    x = image(*size)
    expected, outputs = plain(x), ours(x)
    for output, y in zip(outputs, expected, strict=True):
        assert_close(output, y, 1e-9)
    loss_of(expected).backward()
    loss_of(outputs).backward()
    # the oracle's gradients go by the names of our parameters
    renamed = convert_published_state_dict(gradients(plain))
    largest = max(gradient.abs().max() for gradient in renamed.values())
    for name, gradient in gradients(ours).items():
        assert (gradient - renamed[name]).abs().max() <= 1e-9 * largest, name
    # a bias before instance norm has no effect: its gradient is zero but for rounding
    norms = [gradient.abs().max() / largest for name, gradient in renamed.items() if not name.endswith("conv.bias")]
    assert min(norms) > 1e-7, "the comparison says nothing about a parameter with a vanishing gradient"


def test_gradient_of_the_image() -> None:
    plain, ours = pair()
    x, same = (image(8, 32, 32).requires_grad_() for _ in range(2))
    loss_of(plain(x)).backward()
    loss_of(ours(same)).backward()
    assert x.grad is not None
    assert same.grad is not None
    assert_close(same.grad, x.grad, 1e-9)


def test_single_channel_image() -> None:
    torch.manual_seed(0)
    plain = PlainMNet(1, 2, features_per_stage=FEATURES).double()
    ours = MNet(1, 2, features_per_stage=FEATURES).double()
    ours.load_state_dict(convert_published_state_dict(plain.state_dict()))
    x = image(8, 32, 32)[:, 1:]  # no contiguous tensor
    for output, y in zip(ours(x), plain(x), strict=True):
        assert_close(output, y, 1e-9)


def test_the_graph_can_be_used_twice() -> None:
    _, ours = pair()
    loss = loss_of(ours(image(8, 32, 32)))
    loss.backward(retain_graph=True)
    once = {name: gradient.clone() for name, gradient in gradients(ours).items()}
    ours.zero_grad()
    loss.backward()
    for name, gradient in gradients(ours).items():
        assert torch.equal(gradient, once[name]), name


def test_two_forward_passes_before_a_backward_pass() -> None:
    _, ours = pair()
    first, second = image(8, 32, 32), image(9, 33, 32)
    separate: dict[str, Tensor] = {}
    for x in (first, second):
        ours.zero_grad()
        loss_of(ours(x)).backward()
        separate = {name: gradient + separate.get(name, 0) for name, gradient in gradients(ours).items()}
    ours.zero_grad()
    losses = [loss_of(ours(x)) for x in (first, second)]
    (losses[0] + losses[1]).backward()
    for name, gradient in gradients(ours).items():
        torch.testing.assert_close(gradient, separate[name], rtol=1e-9, atol=1e-12)


def test_frozen_parameters_leave_the_others_gradients_unchanged() -> None:
    _, ours = pair()
    x = image(8, 32, 32)
    loss_of(ours(x)).backward()
    expected = {name: gradient.clone() for name, gradient in gradients(ours).items()}
    ours.zero_grad()
    for name, parameter in ours.named_parameters():
        parameter.requires_grad_("layer2.conv.weight" not in name)
    loss_of(ours(x)).backward()
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-12)


def test_autocast_follows_the_oracle() -> None:
    """Features that the backward pass computes again, outside autocast, have the precision that autocast chose."""
    plain, ours = (network.float() for network in pair("sum"))
    x = image(8, 32, 32).float()
    for network in (plain, ours):
        with torch.autocast("cpu", torch.bfloat16):
            outputs = network(x)
        loss_of([output.float() for output in outputs]).backward()
    renamed = convert_published_state_dict(gradients(plain))
    theirs = torch.cat([renamed[name].flatten() for name in gradients(ours)])
    found = torch.cat([gradient.flatten() for gradient in gradients(ours).values()])
    assert torch.cosine_similarity(found, theirs, dim=0) > 0.9


def test_compiled_outputs_and_gradients() -> None:
    _, ours = pair()
    x = image(8, 32, 32)
    expected = ours(x)
    loss_of(expected).backward()
    eager = {name: gradient.clone() for name, gradient in gradients(ours).items()}
    ours.zero_grad()
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    outputs = compiled(x)
    loss_of(outputs).backward()
    for output, y in zip(outputs, expected, strict=True):
        assert_close(output, y, 1e-9)
    for name, gradient in gradients(ours).items():
        torch.testing.assert_close(gradient, eager[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("input_channels", "merge"), [(1, "difference"), (1, "sum")], ids=str)
def test_published_parameter_count(input_channels: int, merge: str) -> None:
    with torch.device("meta"):
        network = MNet(input_channels, 3, merge=merge)
    assert sum(parameter.numel() for parameter in network.parameters()) == PUBLISHED_PARAMETERS


@pytest.mark.parametrize(
    ("patch", "min_pool_slices", "expected"),
    [
        (
            (16, 128, 128),
            8,
            [(16, 128, 128), (8, 64, 64), (16, 64, 64), (4, 32, 32), (16, 32, 32), (4, 16, 16), (16, 16, 16)],
        ),
        (
            (1, 32, 32),
            8,
            [(1, 32, 32), (1, 16, 16), (1, 16, 16), (1, 8, 8), (1, 8, 8), (1, 4, 4), (1, 4, 4)],
        ),
        (
            (9, 33, 47),
            8,
            [(9, 33, 47), (4, 16, 23), (9, 16, 23), (4, 8, 11), (9, 8, 11), (4, 4, 5), (9, 4, 5)],
        ),
        (
            (7, 16, 32),
            2,
            [(7, 16, 32), (3, 8, 16), (7, 8, 16), (1, 4, 8), (7, 4, 8), (1, 2, 4), (7, 2, 4)],
        ),
    ],
)
def test_size_table(patch: tuple[int, ...], min_pool_slices: int, expected: list[tuple[int, ...]]) -> None:
    network = MNet(1, 2, features_per_stage=FEATURES, min_pool_slices=min_pool_slices)
    expected_of_the_oracle = PlainMNet(1, 2, features_per_stage=FEATURES, min_pool_slices=min_pool_slices)
    x = torch.zeros(1, 1, *patch)
    with torch.no_grad():
        assert [tuple(output.shape[2:]) for output in network(x)] == network.deep_supervision_shapes(patch)
        oracle = [tuple(output.shape[2:]) for output in expected_of_the_oracle(x)]
    assert network.deep_supervision_shapes(patch) == oracle == expected


@pytest.mark.parametrize(
    ("patch", "min_pool_slices", "message"),
    [
        ((8, 15, 64), 8, "16 voxels along both in-plane axes"),
        ((8, 64, 15), 8, "choose a larger patch_size"),
        ((0, 32, 32), 8, "at least 1 slice"),
        ((1, 16, 16), 8, "instance norm needs two"),
        ((1, 31, 31), 8, "32 voxels along one in-plane axis"),
        ((16, 16, 16), 2, "instance norm needs two"),
        ((32, 32), 8, "use a 3D configuration"),
    ],
    ids=str,
)
def test_impossible_sizes(patch: tuple[int, ...], min_pool_slices: int, message: str) -> None:
    network = MNet(1, 2, features_per_stage=FEATURES, min_pool_slices=min_pool_slices)
    with pytest.raises(InputError, match=message):
        network.deep_supervision_shapes(patch)
    with pytest.raises(InputError, match=message):
        network(torch.zeros(1, 1, *patch))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"merge": "sub"}, "merge='sub'; expected one of difference, sum, concat"),
        ({"features_per_stage": (32, 48, 64, 80)}, "five positive numbers"),
        ({"features_per_stage": (32, 48, 0, 80, 96)}, "five positive numbers"),
        ({"min_pool_slices": 1}, "min_pool_slices=1; expected 2 or more"),
    ],
    ids=str,
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MNet(1, 2, **options)


def test_options_are_keyword_only() -> None:
    kinds = {name: parameter.kind for name, parameter in inspect.signature(MNet).parameters.items()}
    assert list(kinds)[:2] == ["input_channels", "num_classes"]
    assert all(kinds[name] is inspect.Parameter.KEYWORD_ONLY for name in list(kinds)[2:])


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("deep_supervision", [True, False])
def test_feature_map_size_without_a_network_equals_the_networks_own(merge: str, deep_supervision: bool) -> None:
    network = MNet(2, 3, features_per_stage=FEATURES, merge=merge, min_pool_slices=4, deep_supervision=deep_supervision)
    for patch in [(8, 32, 32), (9, 33, 47)]:
        analytic = conv_feature_map_size(
            patch,
            input_channels=2,
            num_classes=3,
            features_per_stage=FEATURES,
            merge=merge,
            min_pool_slices=4,
            deep_supervision=deep_supervision,
        )
        assert analytic == network.compute_conv_feature_map_size(patch)


def test_feature_map_size_orders_the_merges_by_what_they_keep() -> None:
    sizes = {
        merge: conv_feature_map_size((8, 32, 32), input_channels=1, num_classes=2, merge=merge) for merge in MERGES
    }
    assert sizes["sum"] < sizes["difference"] < sizes["concat"]


@pytest.mark.parametrize(
    ("features", "again"), [((8, 12, 16, 20, 24), False), ((4, 6, 8, 10, 12), True)], ids=["kept", "checkpointed"]
)
def test_what_the_backward_pass_keeps_agrees_with_the_estimate(features: tuple[int, ...], again: bool) -> None:
    """Bytes that autograd holds after a forward pass, counted by storage, beside the analytic estimate."""
    network = MNet(1, 2, features_per_stage=features, activation_checkpointing=again)
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = network(torch.randn(1, 1, 8, 64, 64))
    parameters = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept = sum(size for pointer, size in held.items() if pointer not in parameters) / 4
    estimate = 2 * network.compute_conv_feature_map_size((8, 64, 64))
    assert len(outputs) == 7
    assert 0.8 < kept / estimate < 1.2


def without(key: str) -> Any:
    return lambda state: {name: tensor for name, tensor in state.items() if name != key}


def renamed(key: str, new: str) -> Any:
    return lambda state: {new if name == key else name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("outputs.6.weight"), r"1 missing key \(outputs\.6\.weight\); expected the 174 tensors"),
        (lambda state: {**state, "extra.bias": torch.zeros(1)}, r"1 unexpected key \(extra\.bias\)"),
        (
            renamed("down11.CB2d.conv1.conv.weight", "down11.CB2d.conv1.weight"),
            r"1 missing key \(down11\.CB2d\.conv1\.conv\.weight\) and 1 unexpected key",
        ),
        (lambda state: {f"module.{name}": tensor for name, tensor in state.items()}, "missing keys .* unexpected keys"),
        (lambda state: {}, "missing keys"),
    ],
)
def test_published_weights_with_other_keys(change: Any, message: str) -> None:
    with torch.device("meta"):
        state_dict = PlainMNet(1, 3, features_per_stage=FEATURES).state_dict()
    message = message.replace("174", str(len(state_dict)))
    with pytest.raises(InputError, match=message):
        convert_published_state_dict(change(state_dict))


def test_conversion_shares_tensors_and_keeps_their_order_independent() -> None:
    plain, ours = pair()
    state_dict = plain.state_dict()
    backwards = dict(reversed(state_dict.items()))
    converted = convert_published_state_dict(backwards)
    assert converted.keys() == ours.state_dict().keys()
    assert {tensor.data_ptr() for tensor in converted.values()} == {t.data_ptr() for t in state_dict.values()}
