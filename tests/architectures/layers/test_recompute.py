"""What is computed again in the backward pass: no convolution, no running statistics, nothing else than without."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nnunetv2_ext.architectures.layers.recompute import StatisticsKept, recomputed


class Layers(nn.Module):
    """Norm, ReLU and convolution, recomputed or not."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.conv = norm, nn.Conv3d(4, 4, 3, padding=1)
        self.recompute = True

    def plain(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(F.relu(self.norm(x), inplace=True))
        return y

    def forward(self, x: Tensor) -> Tensor:
        return recomputed(self.plain, x, module=self) if self.recompute else self.plain(x)


class Calls(TorchDispatchMode):
    """Counts the operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def results(network: Layers, *, recompute: bool, autocast: bool = False) -> dict[str, Any]:
    network.recompute = recompute
    network.zero_grad()
    x = torch.randn(2, 4, 4, 5, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = network(x)
    y.float().square().mean().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}  # type: ignore[union-attr]
    return {"output": y.detach(), "x": x.grad, **gradients, **{k: b.clone() for k, b in network.named_buffers()}}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("norm", [nn.BatchNorm3d(4), nn.GroupNorm(2, 4), nn.BatchNorm3d(4, track_running_stats=False)])
def test_nothing_differs(norm: nn.Module, autocast: bool, training: bool) -> None:
    network = Layers(norm).train(training)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    plain = results(network, recompute=False, autocast=autocast)
    network.load_state_dict(state)
    for key, value in results(network, recompute=True, autocast=autocast).items():
        torch.testing.assert_close(value, plain[key], rtol=1e-6, atol=1e-6, msg=key)


def test_the_last_convolution_is_not_computed_again() -> None:
    network = Layers(nn.BatchNorm3d(4))
    y = network(torch.randn(2, 4, 4, 5, 6, requires_grad=True))
    with Calls() as calls:
        y.square().mean().backward()
    assert "native_batch_norm" in calls.names
    assert "convolution_backward" in calls.names
    assert "convolution" not in calls.names


def test_norms_that_a_pass_computes_without_gradients_move_once() -> None:
    network = Layers(nn.BatchNorm3d(4))
    with torch.no_grad():
        network(torch.randn(2, 4, 4, 5, 6))
    assert network.norm.num_batches_tracked == 1


def test_statistics_are_kept_and_the_context_may_be_entered_again() -> None:
    network = Layers(nn.BatchNorm3d(4))
    before = {name: (buffer, buffer.clone()) for name, buffer in network.named_buffers()}
    context, x = StatisticsKept(network), torch.randn(2, 4, 4, 5, 6)
    for _ in range(2):
        with context:
            network(x)
    for name, buffer in network.named_buffers():
        assert buffer is before[name][0]
        assert torch.equal(buffer, before[name][1])
    network(x)
    assert network.norm.num_batches_tracked == 1


def test_what_is_computed_again_may_hold_others() -> None:
    """As a stage that activation checkpointing computes again."""
    inner = Layers(nn.BatchNorm3d(4))
    outer = Layers(nn.Sequential(inner, nn.BatchNorm3d(4)))
    state = {key: value.clone() for key, value in outer.state_dict().items()}
    inner.recompute = False
    plain = results(outer, recompute=False)
    outer.load_state_dict(state)
    inner.recompute = True
    for key, value in results(outer, recompute=True).items():
        torch.testing.assert_close(value, plain[key], rtol=1e-6, atol=1e-6, msg=key)
