"""The oracle itself: the published network's outputs and its parameter count."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.architectures.plain_mnet import PlainMNet

MERGES = {"sub": "difference", "sum": "sum", "cat": "concat"}


def load_golden(path: Path) -> tuple[PlainMNet, torch.Tensor, list[torch.Tensor]]:
    """Network with the file's weights, its input and its seven outputs, all in float64."""
    with np.load(path) as arrays:
        meta = ast.literal_eval(str(arrays["meta"]))
        tensors = {name: torch.from_numpy(arrays[name]).double() for name in arrays.files if name != "meta"}
    network = PlainMNet(
        meta["input_channels"],
        meta["num_classes"],
        features_per_stage=meta["features"],
        merge=MERGES[meta["merge"]],
    ).double()
    weights = {name.removeprefix("w/"): tensor for name, tensor in tensors.items() if name.startswith("w/")}
    network.load_state_dict(weights, strict=True)
    assert sum(parameter.numel() for parameter in network.parameters()) == meta["params"]
    return network.eval(), tensors["x"], [tensors[f"y{n}"] for n in range(7)]


@pytest.mark.parametrize("file", ["mnet_difference.npz", "mnet_sum_odd_shape.npz"])
def test_golden_outputs(golden, file):
    network, x, expected = load_golden(golden / file)
    with torch.no_grad():
        outputs = network(x)
        network.deep_supervision = False
        alone = network(x)
    assert [tuple(output.shape) for output in outputs] == [tuple(y.shape) for y in expected]
    for output, y in zip(outputs, expected, strict=True):
        assert (output - y).abs().max() <= 1e-6 * y.abs().max()
    assert torch.equal(alone, outputs[0])


@pytest.mark.parametrize(
    ("input_channels", "num_classes", "merge", "parameters"),
    [(1, 3, "difference", 8_775_264), (1, 3, "sum", 8_775_264)],
)
def test_parameter_count(input_channels, num_classes, merge, parameters):
    network = PlainMNet(input_channels, num_classes, merge=merge)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize("merge", ["difference", "sum", "concat"])
def test_every_parameter_gets_a_gradient(merge):
    torch.manual_seed(0)
    network = PlainMNet(1, 2, features_per_stage=(2, 3, 4, 5, 6), merge=merge)
    sum(output.square().mean() for output in network(torch.randn(1, 1, 9, 33, 32))).backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(
    ("slices", "min_pool_slices", "expected"),
    # slices of (5, 5) and then of the rows 5, 4, 3, 2 that the 3D stream's heads (5, 4) (5, 3) (5, 2) come from
    [(7, 8, [7, 7, 7, 7]), (8, 8, [8, 4, 4, 4]), (16, 8, [16, 8, 4, 4]), (16, 2, [16, 8, 4, 2])],
)
def test_few_slices_are_not_pooled(slices, min_pool_slices, expected):
    network = PlainMNet(1, 2, features_per_stage=(2, 2, 2, 2, 2), min_pool_slices=min_pool_slices)
    with torch.no_grad():
        outputs = network(torch.zeros(1, 1, slices, 32, 32))
    assert [outputs[n].shape[2] for n in (0, 1, 3, 5)] == expected
