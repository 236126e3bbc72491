"""Averages of probabilities over slabs, as logits: the direct evaluation, saturated logits, gradients, memory."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nnunetv2_ext.losses import slab_features, slab_logits
from nnunetv2_ext.losses.thin_thick import feature_distance
from tests.losses.plain import MATRICES, SIZE, SLICES, dense_logits, random


@pytest.mark.parametrize("scale", [1.0, 1e3], ids=["usual", "saturated"])
@pytest.mark.parametrize(("regions", "beta"), [(False, 1.0), (False, 4.0), (True, 1.0), (True, 4.0)])
@pytest.mark.parametrize("name", MATRICES)
def test_slab_logits_are_the_direct_evaluation(name: str, regions: bool, beta: float, scale: float) -> None:
    slabs, logits = MATRICES[name], random(2, 3, SLICES, *SIZE, scale=scale)
    weights = random(2, 3, slabs.shape[1], *SIZE, seed=1)
    expected_input = logits.clone().requires_grad_()
    expected = dense_logits(expected_input, slabs, beta=beta, regions=regions)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), expected_input)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 3e-4)):
        given = logits.to(dtype).requires_grad_()
        result = slab_logits(given, slabs.to(dtype), beta=beta, regions=regions)
        (gradient,) = torch.autograd.grad((result * weights).sum(), given)
        assert result.dtype == dtype
        torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(gradient.double(), expected_gradient, rtol=tolerance, atol=tolerance * beta)


@pytest.mark.parametrize("name", MATRICES)
def test_softmax_of_slab_logits_is_the_average_of_the_probabilities(name: str) -> None:
    slabs, logits = MATRICES[name], random(2, 3, SLICES, *SIZE)
    covered = (slabs.sum(-1) > 0)[:, None, :, None, None]
    for regions, probabilities in ((False, logits.softmax(1)), (True, logits.sigmoid())):
        result = slab_logits(logits, slabs, regions=regions)
        result = result.sigmoid() if regions else result.softmax(1)
        average = torch.einsum("bts,bcsyx->bctyx", slabs, probabilities)
        torch.testing.assert_close(result * covered, average)


@pytest.mark.parametrize("extreme", [1e3, -1e3])
@pytest.mark.parametrize("regions", [False, True])
def test_extreme_logits_stay_finite(regions: bool, extreme: float) -> None:
    logits = torch.zeros(2, 2, SLICES, *SIZE)
    logits[:, 0, ::2] = extreme
    logits.requires_grad_()
    result = slab_logits(logits, MATRICES["ratio 3.7 and gaps"].float(), beta=4.0, regions=regions)
    target = torch.ones_like(result)
    loss = F.binary_cross_entropy_with_logits(result, target) if regions else F.cross_entropy(result, target.softmax(1))
    loss.backward()
    assert torch.isfinite(result).all()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("regions", [False, True])
def test_gradients_are_those_of_finite_differences(regions: bool) -> None:
    slabs = torch.tensor([[[0.5, 0.5, 0.0], [0.0, 0.2, 0.8], [0.0, 0.0, 0.0]]], dtype=torch.float64)
    logits = random(1, 2, 3, 1, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: slab_logits(x, slabs, beta=4.0, regions=regions), (logits,))
    thin, thick = random(1, 2, 3, 1, 2, seed=1).requires_grad_(), random(1, 2, 3, 1, 2, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: feature_distance(slab_features(a, slabs), b), (thin, thick))


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.untyped_storage().nbytes() // result.element_size())
        return result


def test_no_tensor_is_larger_than_the_logits() -> None:
    logits = random(2, 3, SLICES, 16, 16).requires_grad_()
    with Largest() as largest:
        slab_logits(logits, MATRICES["ratio 3.7 and gaps"]).sum().backward()
    assert largest.elements <= logits.numel()
