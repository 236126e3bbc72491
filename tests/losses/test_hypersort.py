"""The loss of a case by its formula: labels, regions, and voxels that do not count."""

import pytest
import torch

from nnunetv2_ext.losses.hypersort import case_loss, latent_penalty


def dice_loss(probabilities: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Mean over the channels of (C, voxels)."""
    return (1 - 2 * (probabilities * truth).sum(1) / (probabilities.sum(1) + truth.sum(1))).mean()


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn((3, 4, 5, 6), dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_labels(logits: torch.Tensor) -> None:
    target = torch.randint(0, 3, (4, 5, 6), generator=torch.Generator().manual_seed(1))
    probabilities = logits.softmax(0)
    entropy = -probabilities.gather(0, target[None]).log().mean()
    truth = torch.stack([target == value for value in range(3)]).double()
    expected = entropy + dice_loss(probabilities.flatten(1), truth.flatten(1))
    torch.testing.assert_close(case_loss(logits, target), expected)


def test_regions(logits: torch.Tensor) -> None:
    target = torch.rand((3, 4, 5, 6), generator=torch.Generator().manual_seed(1)) > 0.5
    probabilities, truth = logits.sigmoid(), target.double()
    entropy = -(truth * probabilities.log() + (1 - truth) * (1 - probabilities).log()).mean()
    expected = entropy + dice_loss(probabilities.flatten(1), truth.flatten(1))
    torch.testing.assert_close(case_loss(logits, target, regions=True), expected)


@pytest.mark.parametrize("regions", [False, True])
def test_voxels_that_do_not_count_change_nothing(logits: torch.Tensor, regions: bool) -> None:
    target = torch.randint(0, 2, (3, 4, 5, 6) if regions else (4, 5, 6)).bool()
    target = target if regions else target.long()
    valid = torch.zeros((4, 5, 6), dtype=torch.bool)
    valid[:, 1:4] = True
    whole = case_loss(logits, target, regions=regions, valid=valid)
    part = case_loss(logits[:, :, 1:4], target[..., 1:4, :], regions=regions)
    torch.testing.assert_close(whole, part)


def test_a_case_without_voxels_that_count_teaches_nothing(logits: torch.Tensor) -> None:
    logits.requires_grad_()
    valid = torch.zeros((4, 5, 6), dtype=torch.bool)
    loss = case_loss(logits, torch.zeros((4, 5, 6), dtype=torch.long), valid=valid)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss == 0 and logits.grad is not None and not logits.grad.any()


def test_penalty() -> None:
    assert latent_penalty(torch.tensor([0.5, -2.0])) == 2.5
