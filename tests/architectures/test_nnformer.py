"""nnFormer against the published network's outputs and against the plain version, gradients included."""

import ast
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nnunetv2_ext.architectures import NNFormer
from nnunetv2_ext.architectures.backbones import find_backbone
from nnunetv2_ext.architectures.layers.windows import ShiftedWindows, relative_positions
from nnunetv2_ext.architectures.measure import kept_elements, without_values
from nnunetv2_ext.errors import InputError
from tests.architectures.plain_nnformer import nnformer

SMALL: dict[str, Any] = {
    "embedding_dim": 8,
    "depths": [1, 2, 1, 1],
    "num_heads": [1, 2, 2, 4],
    "patch_size": [2, 4, 4],
    "window_size": [2, 2, 2, 2],
    "drop_path": 0.0,
}
THICK = {"patch_size": [1, 4, 4], "strides": [[1, 2, 2], [2, 2, 2], [2, 2, 2]], "window_rule": "per_axis"}
# arguments over the small ones, patch
CASES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "as published": ({"depths": [2, 1, 1, 1], "window_size": [4, 4, 8, 4]}, (16, 32, 64)),
    "windows that do not divide": ({"window_size": [3, 3, 2, 1], "depths": [2, 2, 1, 1]}, (16, 32, 32)),
    "three blocks of a level": ({"depths": [1, 3, 1, 1], "window_size": [2, 3, 1, 2]}, (16, 32, 32)),
    "tumours": ({"patch_size": [4, 4, 4], "decoder_num_heads": [2, 4, 8]}, (32, 32, 64)),
    "three levels": ({"depths": [1, 1, 2], "num_heads": [1, 2, 4], "window_size": [2, 2, 2]}, (8, 16, 32)),
    "thick slices, cubes": ({k: THICK[k] for k in ("patch_size", "strides")}, (8, 32, 64)),
    "heart": ({**THICK, "window_size": [[3, 5, 5], [3, 5, 5], [7, 10, 10], [3, 5, 5]]}, (7, 36, 32)),
    "heart, masked": ({**THICK, "window_size": [[3, 2, 2], [3, 2, 3], [3, 2, 2], 2], "masked": True}, (9, 32, 44)),
    "heart, a window of one token": ({**THICK, "window_size": [[1, 4, 4], [3, 2, 2], 2, 2]}, (5, 32, 32)),
}


def build(arguments: dict[str, Any], patch: tuple[int, ...]) -> Any:
    """The network, with larger tables than at its start, so that they matter."""
    torch.manual_seed(0)
    network = NNFormer(2, 3, spatial_shape=patch, **{**SMALL, **arguments})
    for name, parameter in network.named_parameters():
        if "table" in name or "norm" in name:
            nn.init.normal_(parameter)
    return network


def image(patch: tuple[int, ...], batch: int = 2) -> Tensor:
    return torch.randn(batch, 2, *patch, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def plain(network: nn.Module, x: Tensor, arguments: dict[str, Any]) -> list[Tensor]:
    """The plain version with the network's own tensors."""
    given = {**SMALL, **arguments}
    given = {key: value for key, value in given.items() if key not in ("embedding_dim", "drop_path")}
    return nnformer({**dict(network.named_parameters()), **dict(network.named_buffers())}, x, **given)


def loss_of(outputs: list[Tensor]) -> Tensor:
    """A sum over all outputs that treats every voxel and class differently."""
    generator = torch.Generator().manual_seed(2)
    weights = [torch.rand(output.shape, dtype=output.dtype, generator=generator) for output in outputs]
    return torch.stack([(output.sin() * w).sum() for output, w in zip(outputs, weights, strict=True)]).sum()


def gradients(network: nn.Module, x: Tensor, outputs: list[Tensor]) -> dict[str, Tensor]:
    sources = {"image": x, **dict(network.named_parameters())}
    return dict(zip(sources, torch.autograd.grad(loss_of(outputs), list(sources.values())), strict=True))


@pytest.mark.parametrize(("arguments", "patch"), CASES.values(), ids=CASES)
def test_outputs_and_gradients_are_those_of_the_plain_version(arguments: Any, patch: Any) -> None:
    network, x = build(arguments, patch).double(), image(patch).requires_grad_()
    outputs, expected = network(x), plain(network, x, arguments)
    assert [tuple(output.shape[2:]) for output in outputs] == network.deep_supervision_shapes(patch)
    assert len(outputs) == len(expected)
    for output, y in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, y, rtol=1e-10, atol=1e-12)
    found, theirs = gradients(network, x, outputs), gradients(network, x, expected)
    for name, gradient in theirs.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-10 * float(gradient.abs().max()), msg=name)
        # a key's bias shifts all products of a query alike, and a table is not used where windows are one token
        assert gradient.abs().max() > 1e-9 or gradient.numel() <= 4, name


@pytest.mark.parametrize("file", ["nnformer.npz", "nnformer_anisotropic.npz"])
def test_published_outputs(golden: Path, file: str) -> None:
    with np.load(golden / file) as arrays:
        meta = ast.literal_eval(str(arrays["meta"]))
        tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files if name != "meta"}
    keys = ("embedding_dim", "depths", "num_heads", "patch_size", "window_size")
    rule: dict[str, Any] = {}
    if "down_stride" in meta:  # counted from the image
        image_to_level = np.array(meta["down_stride"])
        rule = {"window_rule": "per_axis", "strides": (image_to_level[1:] // image_to_level[:-1]).tolist()}
    network = NNFormer(
        meta["input_channels"],
        meta["num_classes"],
        spatial_shape=meta["crop_size"],
        **{key: meta[key] for key in keys},
        **rule,
    )
    assert sum(parameter.numel() for parameter in network.parameters()) == meta["params"]
    weights = {name.removeprefix("w/"): tensor for name, tensor in tensors.items() if name.startswith("w/")}
    network.double().load_state_dict(weights, strict=True)
    for supervised in (True, False):
        network.do_ds = supervised
        with torch.no_grad():
            outputs = network.eval()(tensors["x"])
        for number, output in enumerate(outputs if supervised else [outputs]):
            y = tensors[f"y{number}"]
            assert (output - y).abs().max() <= 1e-8 * y.abs().max()
    # the published index lets offsets share rows of the table; it stays what the file holds
    name = "model_down.layers.0.blocks.0.attn.relative_position_index"
    z, y, x = network.model_down.layers[0].blocks[0].windows.window  # type: ignore[union-attr, index]
    places = torch.cartesian_prod(torch.arange(z), torch.arange(y), torch.arange(x))
    offsets = places[:, None] - places[None] + torch.tensor([z - 1, y - 1, x - 1])
    assert torch.equal(weights[name], (offsets * torch.tensor([3 * y - 1, 2 * y - 1, 1])).sum(-1))
    assert torch.equal(network.state_dict()[name], weights[name])
    assert torch.equal(
        relative_positions((z, y, x)), (offsets @ torch.tensor([(2 * y - 1) * (2 * x - 1), 2 * x - 1, 1]))
    )


def test_every_offset_has_a_row_of_its_own() -> None:
    rows = relative_positions((2, 3, 4))
    places = torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(4)).tolist()
    by_row: dict[int, set[tuple[int, ...]]] = {}
    for query, of_query in enumerate(places):
        for key, of_key in enumerate(places):
            offset = tuple(a - b for a, b in zip(of_query, of_key, strict=True))
            by_row.setdefault(int(rows[query, key]), set()).add(offset)
    assert sorted(by_row) == list(range(3 * 5 * 7))
    assert all(len(offsets) == 1 for offsets in by_row.values())


def test_windows_of_a_shifted_grid_join_to_the_grid() -> None:
    windows = ShiftedWindows((5, 4, 7), (2, 4, 3), (1, 2, 1))
    x = torch.randn(2, 5, 4, 7, 3)
    parts = windows.split(x)
    assert parts.shape == (2 * 3 * 1 * 3, 2 * 4 * 3, 3)
    assert torch.equal(windows.join(parts), x)
    # the last window along each axis holds what comes round the border: two regions along each
    regions = windows.regions()
    assert regions is not None
    numbers = [len(region.unique()) for region in regions]
    assert numbers == [2, 2, 4, 2, 2, 4, 4, 4, 8]


def test_less_is_kept_than_by_the_plain_version() -> None:
    patch = (32, 96, 96)
    given = {"depths": [2, 2, 2, 2], "num_heads": [6, 12, 24, 48], "window_size": [4, 4, 8, 4], "embedding_dim": 192}
    with without_values():
        network = build(given, patch)

        class Plain(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.network = network

            def forward(self, x: Tensor) -> list[Tensor]:
                return plain(self.network, x, given)

        ours, theirs = (kept_elements(one, (1, 2, *patch)) for one in (network, Plain()))
    assert ours <= 0.6 * theirs


def test_no_matrix_of_attention_is_kept() -> None:
    """With windows twice as long along each axis every token attends to eight times as many, and no more is kept."""
    kept = [
        kept_elements(build({"window_size": [size, 1, 1, 1]}, (32, 64, 64)), (1, 2, 32, 64, 64)) for size in (2, 4, 8)
    ]
    assert max(kept) < 1.02 * min(kept)


def test_drop_path_rises_from_none_to_the_last_block() -> None:
    network = build({"depths": [1, 2, 1, 1], "drop_path": 0.2}, (16, 32, 32))
    down = [block.drop_path for layer in network.model_down.layers for block in layer.blocks]
    up = [block.drop_path for layer in network.decoder.layers[::-1] for block in layer.blocks]
    assert down == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert up == pytest.approx([0, 0.2 / 3, 0.4 / 3, 0.2])


@pytest.mark.parametrize(
    ("spacing", "tokens", "first"),
    [
        ((1, 1, 1), [4, 4, 4], [2, 2, 2]),
        ((1.9, 1, 1), [4, 4, 4], [2, 2, 2]),
        ((2, 1, 1), [2, 4, 4], [2, 2, 2]),
        ((4.9, 1, 1), [2, 4, 4], [2, 2, 2]),
        ((5, 1, 1), [1, 4, 4], [1, 2, 2]),
        ((0.5, 1.5, 3), [4, 2, 1], [2, 2, 1]),
    ],
    ids=str,
)
def test_tokens_by_spacing(spacing: Any, tokens: list[int], first: list[int]) -> None:
    record = find_backbone("nnFormer")
    assert record.planned_by_spacing is not None
    assert record.planned_by_spacing(spacing) == {"patch_size": tokens, "strides": [first, [2, 2, 2], [2, 2, 2]]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depths": [2]}, "depths = [2]; expected two or more"),
        ({"depths": [2, 0, 1, 1]}, "numbers of blocks, from 1"),
        ({"num_heads": [1, 2, 2]}, "num_heads = [1, 2, 2] with 4 levels in depths; expected 4"),
        ({"num_heads": [1, 2, 3, 4]}, "a divisor of the 32 features of level 2 in place of 3"),
        ({"decoder_num_heads": [1, 2, 2, 4]}, "expected 3 of them"),
        ({"decoder_num_heads": [1, 5, 2]}, "a divisor of the 16 features of level 1"),
        ({"window_size": [2, 2, 2]}, "window_size = [2, 2, 2] with 4 levels"),
        ({"window_size": [2, 2, 0, 2]}, "0 in window_size"),
        ({"window_size": [[2, 2, 2], 2, 2, 2]}, "[2, 2, 2] in window_size with window_rule = 'cube'"),
        ({"window_size": [[2, 2], 2, 2, 2], "window_rule": "per_axis"}, "or three (z, y, x)"),
        ({"window_rule": "sphere"}, "expected cube or per_axis"),
        ({"patch_size": [2, 3, 4]}, "three numbers (z, y, x) of 1, 2, 4"),
        ({"strides": [[2, 2, 2], [2, 2, 2]]}, "with 4 levels in depths; expected 3 of them"),
        ({"strides": [[2, 2, 2], [2, 2, 2], [4, 2, 2]]}, "of 1, 2"),
        ({"embedding_dim": 7}, "an even number"),
        ({"drop_path": 1.0}, "[0, 1)"),
    ],
    ids=str,
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        build(arguments, (16, 32, 32))


@pytest.mark.parametrize(
    ("arguments", "patch", "message"),
    [
        ({}, (12, 32, 32), "multiples of [16, 32, 32], from [16, 32, 32] on; choose patch_size [16, 32, 32]"),
        (THICK, (3, 32, 32), "multiples of [1, 4, 4], from [4, 32, 32] on; choose patch_size [4, 32, 32]"),
        (THICK, (7, 34, 30), "choose patch_size [7, 36, 32]"),
    ],
    ids=str,
)
def test_impossible_patches(arguments: dict[str, Any], patch: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        build(arguments, patch)


def test_another_patch_than_the_planned_one() -> None:
    network = build({}, (16, 32, 32))
    for refused in (
        lambda: network(torch.zeros(1, 2, 16, 32, 64)),
        lambda: network.deep_supervision_shapes((32, 32, 32)),
    ):
        with pytest.raises(InputError, match=r"the size .* that it was built for"):
            refused()


def test_compiled_outputs_and_gradients() -> None:
    arguments = {**THICK, "strides": [[1, 2, 2]], "depths": [1, 2], "num_heads": [1, 2], "window_size": [[3, 2, 2], 2]}
    network, x = build({**arguments, "masked": True}, (3, 20, 24)).double(), image((3, 20, 24)).requires_grad_()
    outputs = network(x)
    expected = gradients(network, x, outputs)
    compiled = torch.compile(network, backend="eager", fullgraph=True)(x)
    for output, y in zip(compiled, outputs, strict=True):
        torch.testing.assert_close(output, y, rtol=1e-9, atol=1e-12)
    for name, gradient in gradients(network, x, compiled).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-8, atol=1e-12, msg=name)
