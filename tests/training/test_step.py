"""Our steps and nnU-Net's, on the same batches: the same losses, counts and weights to the last bit."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.trainers.backbone import BackboneTrainer
from nnunetv2_ext.training.step import Objective, term_key
from nnunetv2_ext.training.trainer import ExtTrainer
from tests.training.conftest import LABELS, MNET, REGIONS, UNET, Build

PATCH = (8, 32, 32)
IGNORE = {"labels": {"background": 0, "left": 1, "right": 2, "ignore": 3}}
IGNORED_REGIONS = {"labels": {**REGIONS["labels"], "ignore": 3}, "regions_class_order": [1, 2]}
ONE_OUTPUT = {**UNET, "arch_kwargs": {**UNET["arch_kwargs"], "n_stages": 2, "features_per_stage": [4, 8]}}
for _key in ("kernel_sizes", "strides", "n_conv_per_stage"):
    ONE_OUTPUT["arch_kwargs"][_key] = ONE_OUTPUT["arch_kwargs"][_key][:2]
ONE_OUTPUT["arch_kwargs"]["n_conv_per_stage_decoder"] = [2]


def batches(trainer: Any, count: int) -> list[dict[str, Any]]:
    """Random images, and targets of every output as nnU-Net's transforms lay them out."""
    random = torch.Generator().manual_seed(0)
    regions, ignore = trainer.label_manager.has_regions, trainer.label_manager.has_ignore_label
    shapes = trainer.bare_network.deep_supervision_shapes(PATCH) if trainer.enable_deep_supervision else [PATCH]

    def target(shape: Any) -> Tensor:
        if regions:
            return torch.rand(2, 2 + ignore, *shape, generator=random) > 0.7
        return torch.randint(0, 3 + ignore, (2, 1, *shape), generator=random).to(torch.int16)

    made = []
    for _ in range(count):
        targets = [target(shape) for shape in shapes]
        data = torch.randn(2, 1, *PATCH, generator=random)
        made.append({"data": data, "target": targets if trainer.enable_deep_supervision else targets[0], "keys": "ab"})
    return made


def copied(batch: dict[str, Any]) -> dict[str, Any]:
    """nnU-Net's validation step writes into its target."""
    target = batch["target"]
    return {**batch, "target": [one.clone() for one in target] if isinstance(target, list) else target.clone()}


def followed(trainer: Any, train: Callable[..., Any], validate: Callable[..., Any]) -> tuple[list[Any], dict[str, Any]]:
    """What four steps and a validation step return, and the weights after them."""
    made = batches(trainer, 5)
    torch.manual_seed(3)
    trainer.network.train()
    results = [train(trainer, copied(batch)) for batch in made[:4]]
    trainer.network.eval()
    with torch.no_grad():
        results.append(validate(trainer, copied(made[4])))
    return results, trainer.network.state_dict()


@pytest.mark.parametrize(
    "labels", [LABELS, REGIONS, IGNORE, IGNORED_REGIONS], ids=["labels", "regions", "ignore", "both"]
)
@pytest.mark.parametrize("architecture", [MNET, ONE_OUTPUT], ids=["seven outputs", "one output"])
@pytest.mark.parametrize("scaled", [False, True], ids=["", "scaled"])
def test_as_nnunets(build: Build, scaled: bool, architecture: dict[str, Any], labels: dict[str, Any]) -> None:
    outcomes = []
    trainer_class = None if architecture is MNET else BackboneTrainer
    for steps in (nnUNetTrainer, ExtTrainer):
        torch.manual_seed(1)
        trainer = build.initialized(
            architecture=architecture, labels=labels, trainer=trainer_class, training={"optimizer": {"lr": 0.1}}
        )
        assert trainer.enable_deep_supervision is (architecture is MNET)
        if scaled:  # as on CUDA
            trainer.grad_scaler = torch.amp.GradScaler("cpu")
        outcomes.append(followed(trainer, steps.train_step, steps.validation_step))
    (theirs, their_weights), (ours, our_weights) = outcomes
    for expected, result in zip(theirs, ours, strict=True):
        assert expected.keys() == result.keys()
        for key, value in expected.items():
            assert np.array_equal(value, result[key]) and np.asarray(value).dtype == np.asarray(result[key]).dtype, key
    assert len({float(one["loss"]) for one in ours}) == 5
    assert all(torch.equal(value, our_weights[key]) for key, value in their_weights.items())


class TwoTerms(BackboneTrainer):
    """A method of the user that computes its own loss."""

    def objective(self, batch: Any) -> Objective:
        base = super().objective(batch)
        size = sum(parameter.square().mean() for parameter in self.network.parameters())
        return Objective(
            base.loss + 0.5 * size, base.logits, base.target, {"labels": base.loss.detach(), "size": size.detach()}
        )


def test_terms_of_an_objective_are_returned_and_logged(build: Build) -> None:
    trainer = build.initialized(architecture=UNET, trainer=TwoTerms)
    trainer.network.train()
    results = [trainer.train_step(batch) for batch in batches(trainer, 2)]
    for result in results:
        assert result["loss"] == pytest.approx(result["labels"] + 0.5 * result["size"], rel=1e-5)
    trainer.on_train_epoch_end(results)
    logged = trainer.logger.get_value(term_key("size"), step=None)
    assert logged == pytest.approx([np.mean([result["size"] for result in results])])
    assert "size_loss" in build.log()


@pytest.mark.parametrize("spoiled", [None, "weights", "images", "half"], ids=str)
def test_an_epoch_without_a_number_ends_the_training(build: Build, spoiled: str | None) -> None:
    trainer = build.initialized(architecture=UNET, trainer=BackboneTrainer)
    trainer.network.train()
    made = batches(trainer, 2)
    if spoiled in ("images", "half"):
        made[1]["data"][0, 0, 0, 0, 0] = np.nan
    if spoiled == "weights":
        next(trainer.network.parameters()).data.fill_(np.inf)
    results = [trainer.train_step(batch) for batch in made]
    if spoiled is None:
        trainer.on_train_epoch_end(results)
        return
    if spoiled == "half":  # a loss that is lost where the weights stay, as a GPU's scaler keeps them
        for parameter in trainer.network.parameters():
            parameter.data.fill_(0.1)
        trainer.optimizer.state.clear()
        trainer.on_train_epoch_end(results)
        return
    cause = {
        "weights": r"at the learning rate 0.01; .* -c 3d_fullres --lr 0.001, then",
        "images": r"voxels \(a, b\); exp",
    }
    with pytest.raises(InputError, match=cause[spoiled]):
        trainer.on_train_epoch_end(results)


def test_a_learning_rate_beyond_all_measure(build: Build) -> None:
    trainer = build.initialized(
        architecture=UNET, trainer=BackboneTrainer, training={"optimizer": {"lr": 1e30, "momentum": 0.5}}
    )
    trainer.network.train()
    results = [trainer.train_step(batch) for batch in batches(trainer, 3)]
    with pytest.raises(InputError, match=r"at the learning rate 1e\+30; .* --lr 0.01, then"):
        trainer.on_train_epoch_end(results)
