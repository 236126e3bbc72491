"""Networks against recorded outputs of the published ones."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

TOLERANCE = 1e-8
"""Of the largest value."""


def check_published(file: Path, network: nn.Module, unused: Sequence[str] = ()) -> None:
    """Weights, outputs in evaluation and in training mode, and the running statistics after a pass in training mode.

    Args:
        network: without dropout.
        unused: what the names of weights begin with that it does not have.
    """
    held = {key: torch.from_numpy(value) for key, value in np.load(file).items() if key != "meta"}
    network.double().load_state_dict(
        {
            key[2:]: value
            for key, value in held.items()
            if key.startswith("w/") and not key[2:].startswith(tuple(unused))
        },
        strict=True,
    )
    network.eval()
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert_close(network(held["x"]), held["y"], "y")
    outputs = network.train()(held["x"])
    assert_close(outputs[:1], held["y_train"], "y_train")
    outputs.square().mean().backward()  # nothing moves once more
    state = network.state_dict()
    for key, value in held.items():
        if key.startswith("after/"):
            assert_close(state[key.removeprefix("after/")], value, key)


def assert_close(ours: Tensor, expected: Tensor, what: str) -> None:
    assert ours.shape == expected.shape, what
    assert (ours - expected).abs().max() <= TOLERANCE * expected.abs().max(), what


def assert_alike(ours: nn.Module, plain: nn.Module, x: Tensor) -> None:
    """Outputs, gradients and running statistics of a pass of both, from the same weights in float64."""
    ours.double().load_state_dict(plain.double().state_dict(), strict=True)
    for train in (False, True):
        results = []
        for network in (plain, ours):
            network.train(train).zero_grad()
            image = x.clone().requires_grad_()
            y = network(image)
            y = y * torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).reshape(y.shape)
            (y.square().mean() + y.mean()).backward()
            gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
            results.append({"output": y, "image": image.grad, **gradients, **dict(network.named_buffers())})
        expected, found = results
        assert found.keys() == expected.keys()
        largest = max(gradient.abs().max() for name, gradient in expected.items() if name in gradients)
        for name, value in expected.items():
            scale = largest if name in gradients else max(value.abs().max(), 1)
            assert (found[name] - value).abs().max() <= 1e-10 * scale, f"{name}, training {train}"
