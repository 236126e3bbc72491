"""nnFormer against the published network's outputs and against the plain version, gradients included."""

import ast
import inspect
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
from nnunetv2_ext.architectures.measure import kept_elements
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
