"""PaR: published outputs, the plain refiner, sizes that do not divide, memory, errors; what PaRNetwork promises."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nnunetv2_ext.architectures.backbones.network import BackboneNetwork
from nnunetv2_ext.architectures.layers import few_features
from nnunetv2_ext.architectures.layers.attention import attend_on_cuda
from nnunetv2_ext.architectures.mnet import MNet
from nnunetv2_ext.architectures.par import (
    PaR,
    PaRNetwork,
    backbone_state_dict,
    resolve_groups,
    resolve_heads,
    resolved_sizes,
)
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.weights.par import convert_published_state_dict
from tests.architectures.plain_par import refine

VARIANTS = ["paper", "published_code"]


def published(golden: Path, variant: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The published weights, and the input with the outputs of every part."""
    with np.load(golden / f"par_{variant}.npz") as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files if key != "meta"}
    weights = {key.removeprefix("w/"): value for key, value in arrays.items() if key.startswith("w/")}
    return weights, {key: value for key, value in arrays.items() if not key.startswith("w/")}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 2e-5)], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_published_outputs(golden: Path, variant: str, dtype: torch.dtype, tolerance: float) -> None:
    weights, expected = published(golden, variant)
    x = expected["x"].to(dtype)
    network = PaR(4, x.shape[2:], heads=4, groups=2, variant=variant)
    network.load_state_dict(convert_published_state_dict(weights), strict=True)
    network = network.to(dtype)
    with torch.no_grad():
        results = {"pdi": network.pdi(x), "sai": network.sai(x), "y": network(x)}
    for name, result in results.items():
        largest = float(expected[name].abs().max())
        assert float((result - expected[name]).abs().max()) <= tolerance * largest, name


def test_the_published_size_has_the_published_parameters() -> None:
    counts = {name: parameter.numel() for name, parameter in PaR(5, (96, 96, 96)).named_parameters()}
    assert sum(counts.values()) == 168_053
    assert round((sum(counts.values()) - counts["sai.spatial_bias"]) / 1e6, 2) == 0.11


# classes, size, arguments: every axis, one class, one slice, padding, many groups, wide and narrow convolutions
TABLE: list[tuple[int, tuple[int, int, int], dict[str, Any]]] = [
    (3, (10, 12, 9), {}),
    (3, (12, 7, 10), {"axis": 1}),
    (2, (12, 9, 20), {"axis": 2, "heads": 4, "groups": 4}),
    (1, (6, 8, 8), {}),
    (1, (1, 8, 8), {}),
    (4, (1, 6, 7), {"axis": 2}),
    (5, (13, 6, 5), {"groups": 4}),
    (3, (40, 5, 6), {"groups": 1}),
    (3, (16, 5, 6), {"kernel_size": 7}),
    (2, (9, 6, 5), {"kernel_size": 1, "fusion": "multiply"}),
    (3, (7, 6, 5), {"fusion": "concat"}),
    (26, (7, 5, 6), {}),
]


def refiner(classes: int, shape: tuple[int, ...], **options: Any) -> PaR:
    """A refiner in double precision with weights that leave nothing at one or zero."""
    torch.manual_seed(0)
    network = PaR(classes, shape, **options).double()
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return network


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("classes", "shape", "options"), TABLE, ids=str)
def test_it_computes_what_the_plain_refiner_does(
    classes: int, shape: tuple[int, int, int], options: dict[str, Any], variant: str
) -> None:
    network = refiner(classes, shape, variant=variant, **options)
    y = torch.randn(2, classes, *shape, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(network(y), refine(network, y), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("classes", "shape", "options"), [TABLE[0], TABLE[4], TABLE[6]], ids=str)
def test_gradients(classes: int, shape: tuple[int, int, int], options: dict[str, Any]) -> None:
    network = refiner(classes, shape, **options)
    y = torch.randn(1, classes, *shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(y)

    def loss() -> Tensor:
        return (network(y) * weight).sum()

    names, parameters = zip(*network.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss(), [y, *parameters])
    for name, tensor, gradient in zip(("y", *names), (y, *parameters), gradients, strict=True):
        direction = torch.randn_like(tensor)
        with torch.no_grad():
            values = []
            for sign in (1, -1):
                tensor.add_(direction, alpha=sign * 1e-6)
                values.append(loss())
                tensor.sub_(direction, alpha=sign * 1e-6)
        numeric = float(values[0] - values[1]) / 2e-6
        assert float((gradient * direction).sum()) == pytest.approx(numeric, rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize(
    ("length", "heads", "expected"), [(96, 8, 8), (10, 8, 5), (7, 8, 7), (13, 8, 1), (1, 8, 1), (20, 8, 5), (28, 8, 7)]
)
def test_heads_divide(length: int, heads: int, expected: int) -> None:
    assert resolve_heads(length, heads) == expected


@pytest.mark.parametrize(
    ("length", "groups", "expected"),
    [
        *((96, 8, 8), (16, 8, 8), (10, 8, 5), (7, 8, 4), (20, 8, 5), (28, 8, 7), (40, 8, 5), (1, 8, 1), (2, 8, 1)),
        *((3, 8, 2), (12, 8, 6), (13, 8, 7), (18, 8, 5), (16, 1, 1), (17, 2, 1)),
    ],
)
def test_groups_need_the_least_padding(length: int, groups: int, expected: int) -> None:
    assert resolve_groups(length, groups) == expected
    padding = resolved_sizes(length, 8, groups)["padding"]
    assert (length + padding) % (2 * expected) == 0


class _LargestResult(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


@pytest.mark.parametrize("shape", [(4, 96, 6), (4, 6, 96)], ids=str)
def test_no_attention_matrix_is_held(shape: tuple[int, int, int]) -> None:
    network, y = PaR(3, shape), torch.randn(1, 3, *shape, requires_grad=True)
    with _LargestResult() as seen:
        network(y).sum().backward()
    assert y.numel() < seen.largest <= 3 * y.numel()  # queries, keys and values in one; the matrix is 96 times y


@pytest.mark.parametrize("width", [1, 3, 8, 12])
@pytest.mark.parametrize("limit", [4, 7, 100])
def test_attention_in_cudas_sizes_is_the_same(width: int, limit: int) -> None:
    query, key, value = torch.randn(3, 15, 2, 6, width, dtype=torch.float64)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(attend_on_cuda(query, key, value, limit=limit), expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(("most", "size"), [(1, 1), (40, 1), (2000, 1), (40, 0.1), (40, 30)])
def test_attention_in_pieces_is_the_same(axis: int, most: int, size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, whatever number of scores a piece holds and however large these are, against PyTorch's own attention
    with its gradients."""
    network = refiner(3, (6, 8, 10), axis=axis, heads=2)
    y = (size * torch.randn(2, 3, 6, 8, 10, dtype=torch.float64)).requires_grad_()
    results = []
    for in_pieces in (True, False):
        monkeypatch.setattr(few_features, "_SCORES", most)
        if not in_pieces:
            monkeypatch.setattr(few_features, "is_meant_for", lambda x: False)
        result = network(y)
        results.append([result, *torch.autograd.grad((result / size).square().sum(), [y, *network.parameters()])])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_memory_counts_what_cudas_kernels_fill_up() -> None:
    """Eight slices are one feature per head, which CUDA's kernels fill up to eight; 64 slices need no filling."""
    thin, thick = (PaR(2, shape).feature_map_size() for shape in ((8, 32, 64), (64, 16, 16)))
    logits = 2 * 64 * 16 * 16
    assert 10 * logits < thick < 15 * logits
    assert 4.5 < thin / thick < 5.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 2.5}, "heads=2.5; expected a whole number from 1"),
        ({"groups": "8"}, "groups='8'"),
        ({"spatial_shape": 8}, "spatial_shape=8; expected three positive whole numbers"),
        ({"spatial_shape": (8, 8.5, 8)}, "spatial_shape="),
        ({"axis": "0"}, "axis='0'; expected 0, 1 or 2"),
        ({"axis": 3}, "axis=3; expected 0, 1 or 2"),
        ({"axis": -1}, "axis=-1"),
        ({"variant": "code"}, "variant='code'; expected one of paper, published_code"),
        ({"fusion": "mean"}, "fusion='mean'; expected one of add, multiply, concat"),
        ({"kernel_size": 4}, "kernel_size=4; expected an odd number"),
        ({"heads": 0}, "heads=0"),
        ({"groups": 0}, "groups=0"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"spatial_shape": (8, 8)}, r"spatial_shape=\(8, 8\)"),
        ({"spatial_shape": (8, 0, 8)}, "three positive whole numbers"),
    ],
    ids=str,
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PaR(**{"num_classes": 3, "spatial_shape": (8, 8, 8), **arguments})


@pytest.mark.parametrize("shape", [(3, 8, 8, 9), (4, 8, 8, 8)], ids=str)
def test_logits_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"logits of .*; expected \(3, 8, 8, 8\)"):
        PaR(3, (8, 8, 8))(torch.zeros(1, *shape))


def test_published_weights_of_another_shape_or_kind(golden: Path) -> None:
    weights, _ = published(golden, "paper")
    converted = convert_published_state_dict(weights)
    with pytest.raises(InputError, match=r"refiner of another shape .*to_qkv.weight is \(48, 16\)"):
        PaR(4, (8, 12, 10)).load_state_dict(converted)
    with pytest.raises(InputError, match=r"another shape \(sai.channel_bias is \(4, 1, 1, 1\)"):
        PaR(3, (16, 12, 10), heads=4, groups=2).load_state_dict(converted)
    with pytest.raises(InputError, match=r"no key 'sai\.gn2\.bias'"):
        convert_published_state_dict({key: value for key, value in weights.items() if key != "sai.gn2.bias"})
    with pytest.raises(InputError, match="unexpected keys more"):
        convert_published_state_dict({**weights, "more": torch.zeros(1)})


SMALL_MNET: dict[str, Any] = {"features_per_stage": [2, 3, 4, 5, 6]}
PATCH = (4, 32, 32)


def network(classes: int = 3, **options: Any) -> PaRNetwork:
    torch.manual_seed(0)
    options = {"backbone": "MNet", "backbone_kwargs": SMALL_MNET, "spatial_shape": PATCH, **options}
    return PaRNetwork(2, classes, **options)


def test_only_the_finest_output_is_refined() -> None:
    ours, x = network(), torch.randn(1, 2, *PATCH)
    with torch.no_grad():
        coarse, refined = ours.backbone(x), ours(x)
        assert torch.equal(refined[0], ours.refiner(coarse[0]))
        assert not torch.equal(refined[0], coarse[0])
        assert all(torch.equal(one, other) for one, other in zip(refined[1:], coarse[1:], strict=True))


@pytest.mark.parametrize("wrapped", [False, True], ids=["network", "BackboneNetwork"])
def test_a_trained_backbone_is_taken_over_with_its_heads(wrapped: bool, tmp_path: Path) -> None:
    torch.manual_seed(1)
    source: Any = MNet(2, 3, **SMALL_MNET)
    if wrapped:
        source = BackboneNetwork(2, 3, backbone="MNet", backbone_kwargs=SMALL_MNET, spatial_shape=PATCH)
    ours, x = network(), torch.randn(1, 2, *PATCH)
    assert not any(".seg_layers." in key for key in ours.state_dict())
    torch.save(
        {"network_weights": {**ours.state_dict(), **backbone_state_dict(source.state_dict())}}, tmp_path / "start.pth"
    )
    load_pretrained_weights(ours, tmp_path / "start.pth")
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(ours.backbone(x), source(x), strict=True))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))], ids=["copy", "pickle"])
def test_copies_keep_the_names_of_their_heads(copied: Any) -> None:
    one = network()
    other = copied(one)
    assert other.state_dict().keys() == one.state_dict().keys()
    other.load_state_dict(one.state_dict(), strict=True)


def test_a_frozen_backbone_stays_as_it_is() -> None:
    ours, x = network(), torch.randn(1, 2, *PATCH)
    ours.freeze_backbone()
    ours.train()
    assert not ours.backbone.training
    assert ours.refiner.training
    before = copy.deepcopy(ours.state_dict())
    optimizer = torch.optim.SGD([p for p in ours.parameters() if p.requires_grad], 0.1)
    sum(output.square().mean() for output in ours(x)).backward()
    optimizer.step()
    changed = {key for key, value in ours.state_dict().items() if not torch.equal(value, before[key])}
    assert changed
    assert all(key.startswith("refiner.") for key in changed)


@pytest.mark.parametrize("patch", [(4, 32, 48), (5, 32, 32)], ids=str)
def test_another_patch_is_refused(patch: tuple[int, ...]) -> None:
    ours = network()
    for measure in (ours.deep_supervision_shapes, ours.compute_conv_feature_map_size):
        with pytest.raises(InputError, match=r"a patch of .*; expected \(4, 32, 32\)"):
            measure(patch)
    with pytest.raises(InputError, match=r"a patch of .*; expected \(4, 32, 32\)"):
        ours(torch.zeros(1, 2, *patch))


@pytest.mark.parametrize(("threads", "used"), [(1, True), (2, False)])
def test_attention_in_pieces_is_for_one_thread(threads: int, used: bool) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert few_features.is_meant_for(torch.zeros(1)) is used
    finally:
        torch.set_num_threads(before)


def test_memory_counts_backbone_and_refiner() -> None:
    ours = network()
    backbone = ours.backbone.compute_conv_feature_map_size(PATCH)
    assert ours.compute_conv_feature_map_size(PATCH) == backbone + ours.refiner.feature_map_size()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_backward_within_autocast(dtype: torch.dtype) -> None:
    network = PaR(3, (6, 8, 5))
    y = torch.randn(2, 3, 6, 8, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        network(y).float().square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())
