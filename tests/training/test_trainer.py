"""Our trainers: what they take from plans, what they refuse, their losses and deep-supervision targets."""

import errno
import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunetv2_ext.architectures import MNet
from nnunetv2_ext.architectures.measure import without_values
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.trainers.mnet import MNetTrainer
from nnunetv2_ext.training.scheduler import PlateauScheduler
from nnunetv2_ext.training.trainer import ExtTrainer
from nnunetv2_ext.training.workers import EndWithTraining
from tests.training.conftest import LABELS, MNET, REGIONS, UNET, Build, hand_made_plans, log_epoch

PUBLISHED_WEIGHTS = np.array([1, 1 / 2, 1 / 2, 1 / 4, 1 / 4, 1 / 8, 1 / 8])


@pytest.mark.parametrize(
    ("changes", "configuration", "message"),
    [
        ({}, "2d", "the 2D configuration '2d'; expected a 3D one for MNetTrainer"),
        ({}, "3d_lowres", "the configuration '3d_lowres'; expected one of 2d, 3d_fullres, 3d_cascade_fullres"),
        ({"patch_size": [8, 12, 32]}, "3d_fullres", r"a patch of \(8, 12, 32\); expected at least 1 slice and 16"),
        ({"patch_size": [1, 16, 16]}, "3d_fullres", "a patch of"),
        ({"training": {"epoch": 5}}, "3d_fullres", "unknown key 'training.epoch'"),
        ({"training": {"epochs": "5"}}, "3d_fullres", "training.epochs = '5'"),
        ({"training": {"epochs": "5"}}, "3d_cascade_fullres", "training.epochs = '5'"),
        (
            {"training": {"freeze_backbone": True}},
            "3d_fullres",
            "freeze_backbone = true with MNet, which has no backbone",
        ),
        (
            {"training": {"optimizer": {"name": "AdamW", "momentum": 0.9}}},
            "3d_fullres",
            "unknown key 'training.optimizer.momentum'",
        ),
        ({"training": {"deep_supervision_weights": [1, 0.5]}}, "3d_fullres", "got 2 numbers .* expected 7, one per"),
    ],
    ids=str,
)
def test_refused_plans(build: Build, changes: dict[str, Any], configuration: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(configuration=configuration, **changes)
    assert list((build.folder / "nnUNet_results").iterdir()) == []


def test_unset_results_folder(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_results")
    with pytest.raises(InputError, match=r"no value of nnUNet_results; .* run export nnUNet_results="):
        build()


def test_a_file_in_the_place_of_the_results(build: Build) -> None:
    (build.folder / "nnUNet_results" / "Dataset901_Boxes").touch()
    with pytest.raises(InputError, match=r"a file in the place of the folder .*Dataset901_Boxes.*; correct nnUNet_res"):
        build()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS], ids=errno.errorcode.get)
def test_read_only_results_folder(build: Build, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(folder: Any, *_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), str(folder))

    monkeypatch.setattr(os, "makedirs", refuse)
    with pytest.raises(InputError, match=r"the read-only folder .*fold_0; expected a results folder to write to"):
        build()


def test_missing_preprocessed_data(build: Build) -> None:
    with pytest.raises(InputError, match=r"no preprocessed data at .*nnUNetPlans_3d_fullres; .*plan_and_preprocess"):
        build().initialize()


def test_published_training_block_is_the_default(build: Build) -> None:
    trainer = build()
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (
        500,
        250,
        50,
    )
    assert (trainer.initial_lr, trainer.weight_decay, trainer.oversample_foreground_percent) == (0.01, 3e-5, 0.33)
    assert trainer.configuration_manager.batch_size == 2
    assert trainer.save_every == 1
    assert np.allclose(trainer.block["deep_supervision_weights"], PUBLISHED_WEIGHTS)


@pytest.mark.parametrize("configuration", ["3d_fullres", "3d_cascade_fullres"])
def test_the_plans_training_block_is_applied(build: Build, configuration: str) -> None:
    block = {
        "epochs": 7,
        "iterations_per_epoch": 3,
        "val_iterations_per_epoch": 2,
        "optimizer": {"lr": 0.5, "momentum": 0.8, "nesterov": False, "weight_decay": 0.1},
        "scheduler": {"exponent": 2.0},
        "batch_size": 5,
        "oversample_foreground": 0.5,
    }
    plans = hand_made_plans(training=block)
    trainer = build.initialized(plans, configuration=configuration)
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (7, 3, 2)
    assert trainer.batch_size == 5
    assert trainer.oversample_foreground_percent == 0.5
    (group,) = trainer.optimizer.param_groups
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (0.5, 0.8, False, 0.1)
    trainer.lr_scheduler.step(3)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * (1 - 3 / 7) ** 2)
    assert plans == hand_made_plans(training=block), "the plans go into the model folder as they were"


def test_another_optimizer_and_scheduler(build: Build) -> None:
    block = {
        "optimizer": {"name": "AdamW", "lr": 0.5, "betas": [0.8, 0.9], "weight_decay": 0.1},
        "scheduler": {"name": "plateau", "factor": 0.5, "patience": 0},
    }
    trainer = build.initialized(training=block)
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    (group,) = trainer.optimizer.param_groups
    assert (group["lr"], tuple(group["betas"]), group["weight_decay"]) == (0.5, (0.8, 0.9), 0.1)
    assert (trainer.initial_lr, trainer.weight_decay) == (0.5, 0.1)
    assert isinstance(trainer.lr_scheduler, PlateauScheduler)
    for epoch in range(3):
        trainer.logger.log("val_losses", -0.1, epoch)
    trainer.lr_scheduler.step(3)
    assert group["lr"] == 0.5**3


def test_the_training_block_travels_with_the_checkpoint(build: Build) -> None:
    trainer = build(training={"epochs": 7})
    planned = trainer.my_init_kwargs["plans"]["configurations"]["3d_fullres"]
    assert planned["training"] == {"epochs": 7}


@pytest.mark.parametrize(
    ("architecture", "features", "merge"),
    [
        (MNET, (2, 3, 4, 5, 6), "sum"),
        ({**MNET, "network_class_name": "nnunetv2_ext.architectures.MNet"}, (2, 3, 4, 5, 6), "sum"),
        (UNET, (32, 48, 64, 80, 96), "difference"),
    ],
    ids=["its plans", "its plans, short name", "stock plans"],
)
def test_network(architecture: dict[str, Any], features: tuple[int, ...], merge: str) -> None:
    manager = PlansManager(hand_made_plans(architecture))
    with without_values():
        network = MNetTrainer.build_network_architecture(manager, manager.get_configuration("3d_fullres"), 2, 4, False)
    assert isinstance(network, MNet)
    assert (network.input_channels, network.num_classes, network.deep_supervision) == (2, 4, False)
    assert (network.features_per_stage, network.merge) == (features, merge)


@pytest.mark.parametrize("architecture", [MNET, UNET], ids=["its plans", "stock plans"])
def test_memory_estimate_is_logged(build: Build, architecture: dict[str, Any]) -> None:
    build.initialized(hand_made_plans(architecture))
    (line,) = [line for line in build.log().splitlines() if "Estimated GPU memory" in line]
    assert "of MNet: 0." in line
    assert "patch [8, 32, 32] and batch 2" in line
    assert ("the plans were made for PlainConvUNet with 0." in line) == (architecture is UNET)


@pytest.mark.parametrize(("optimizer", "copies"), [("SGD", 3), ("AdamW", 4)])
def test_memory_of_the_weights_is_logged(build: Build, optimizer: str, copies: int) -> None:
    trainer = build.initialized(training={"optimizer": {"name": optimizer}})
    parameters = sum(parameter.numel() for parameter in trainer.network.parameters())
    assert f"{optimizer} take {4e-9 * copies * parameters:.2f} GB" in build.log()


@pytest.mark.parametrize(
    ("labels", "loss_class", "channels"), [(LABELS, DC_and_CE_loss, 3), (REGIONS, DC_and_BCE_loss, 2)]
)
def test_loss(build: Build, labels: dict[str, Any], loss_class: Any, channels: int) -> None:
    trainer = build.initialized(labels=labels, training={"loss": {"dice": 0.25, "ce": 2}})
    assert isinstance(trainer.loss.loss, loss_class)
    assert (trainer.loss.loss.weight_dice, trainer.loss.loss.weight_ce) == (0.25, 2)
    assert trainer.network.num_classes == channels
    assert np.allclose(trainer.loss.weight_factors, PUBLISHED_WEIGHTS / PUBLISHED_WEIGHTS.sum())


def test_weights_of_the_loss_reach_its_value(build: Build) -> None:
    logits = torch.randn(1, 3, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    target = torch.randint(0, 3, (1, 1, 8, 8, 8), generator=torch.Generator().manual_seed(1))
    values = {}
    for dice, ce in ((1, 0), (0, 1), (2, 3)):
        loss = build.initialized(training={"loss": {"dice": dice, "ce": ce}}).loss.loss
        values[dice, ce] = float(loss(logits, target))
    assert values[2, 3] == pytest.approx(2 * values[1, 0] + 3 * values[0, 1])
    assert values[1, 0] < 0 < values[0, 1]


def test_own_deep_supervision_weights(build: Build) -> None:
    trainer = build.initialized(training={"deep_supervision_weights": [2, 0, 0, 0, 0, 0, 2]})
    assert trainer.loss.weight_factors == (0.5, 0, 0, 0, 0, 0, 0.5)


@pytest.mark.parametrize("patch", [(8, 32, 32), (7, 33, 47), (9, 35, 39), (31, 33, 95), (1, 32, 33)], ids=str)
def test_targets_have_exactly_the_outputs_sizes(build: Build, patch: tuple[int, ...]) -> None:
    trainer = build.initialized(patch_size=list(patch))
    scales = trainer._get_deep_supervision_scales()
    assert scales[0] == [1, 1, 1]
    targets = DownsampleSegForDSTransform(scales)(segmentation=torch.zeros(1, *patch))["segmentation"]
    with torch.no_grad():
        outputs = trainer.network(torch.zeros(1, 1, *patch))
    assert [target.shape[1:] for target in targets] == [output.shape[2:] for output in outputs]


def test_a_training_step_moves_every_weight_and_lowers_the_loss(build: Build) -> None:
    torch.manual_seed(0)
    trainer = build.initialized(training={"optimizer": {"momentum": 0.5}})
    before = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
    data = torch.randn(2, 1, 8, 32, 32)
    down = DownsampleSegForDSTransform(trainer._get_deep_supervision_scales())
    target = [part[:, None] for part in down(segmentation=(data[:, 0] > 0).float())["segmentation"]]
    losses = [float(trainer.train_step({"data": data, "target": target})["loss"]) for _ in range(6)]
    assert losses[-1] < losses[0]
    after = trainer.network.state_dict()
    assert [name for name in before if name.endswith("weight") and torch.equal(before[name], after[name])] == []


@pytest.mark.parametrize(("clip", "expected"), [(None, 12.0), (12, 12.0), (0.5, 0.5)])
def test_gradients_are_clipped(build: Build, clip: float | None, expected: float) -> None:
    block = {"optimizer": {"lr": 1.0, "momentum": 0, "nesterov": False, "weight_decay": 0}}
    trainer = build.initialized(training=block if clip is None else {**block, "grad_clip": clip})
    before = torch.cat([parameter.detach().flatten().clone() for parameter in trainer.network.parameters()])
    trainer.loss = lambda outputs, target: 1e6 * sum(output.square().mean() for output in outputs)
    trainer.train_step({"data": torch.randn(2, 1, 8, 32, 32), "target": torch.zeros(1)})
    after = torch.cat([parameter.detach().flatten() for parameter in trainer.network.parameters()])
    assert float((after - before).norm()) == pytest.approx(expected, rel=1e-3)


def test_deep_supervision_is_switched_on_the_network(build: Build) -> None:
    trainer = build.initialized()
    assert trainer.network.deep_supervision
    trainer.set_deep_supervision_enabled(False)
    assert not trainer.network.deep_supervision
    assert len(trainer._get_deep_supervision_scales()) == 7


def test_transforms_start_with_the_watch_of_the_workers(build: Build) -> None:
    trainer = build.initialized()
    scales = trainer._get_deep_supervision_scales()
    training = trainer.get_training_transforms([8, 32, 32], (-0.1, 0.1), scales, (0, 1, 2), True)
    validation = trainer.get_validation_transforms(scales)
    for transforms in (training, validation):
        assert isinstance(transforms.transforms[0], EndWithTraining)
        sample = transforms(image=torch.rand(1, 8, 32, 32), segmentation=torch.zeros(1, 8, 32, 32, dtype=torch.int16))
        assert len(sample["segmentation"]) == 7


@pytest.mark.parametrize("content", [b'[{"train": ["case_0"', b"", b"\xff\xfe\x00"])
def test_damaged_splits(build: Build, content: bytes) -> None:
    trainer = build.initialized()
    (build.preprocessed / "splits_final.json").write_bytes(content)
    with pytest.raises(
        InputError, match=r"a damaged file .*splits_final\.json .*; expected valid JSON; restore splits_final"
    ):
        trainer.do_split()


def test_the_plans_are_not_changed(build: Build) -> None:
    plans = hand_made_plans(training={"batch_size": 7})
    before = deepcopy(plans)
    build.initialized(plans)
    assert plans == before
    assert Path(build.fold).is_dir()


class Refined(nn.Module):
    """A network of a single output that refines a backbone; one weight is frozen from the start."""

    def __init__(self, input_channels: int, num_classes: int, *, deep_supervision: bool = True):
        super().__init__()
        self.deep_supervision = deep_supervision
        self.backbone = nn.Conv3d(input_channels, num_classes, 1)
        self.refiner = nn.Conv3d(num_classes, num_classes, 1)
        self.unused = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, x: torch.Tensor) -> Any:
        refined = self.refiner(self.backbone(x))
        return [refined] if self.deep_supervision else refined

    def deep_supervision_shapes(self, patch_size: Any) -> list[Any]:
        return [np.array(patch_size)]

    def compute_conv_feature_map_size(self, patch_size: Any) -> int:
        return int(np.prod(patch_size))

    def freeze_backbone(self) -> None:
        self.backbone.requires_grad_(False)


class RefinedTrainer(ExtTrainer):
    network_class = Refined


@pytest.fixture
def build_refined(build: Build, monkeypatch: pytest.MonkeyPatch) -> Build:
    monkeypatch.setattr("tests.training.conftest.MNetTrainer", RefinedTrainer)
    return build


def batch() -> dict[str, torch.Tensor]:
    data = torch.randn(2, 1, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    return {"data": data, "target": (data > 0).float()}


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
@pytest.mark.parametrize("weights", [None, [0.5]], ids=str)
def test_a_single_output_is_trained_without_deep_supervision(
    build_refined: Build, labels: dict[str, Any], weights: list[float] | None
) -> None:
    torch.manual_seed(0)
    trainer = build_refined.initialized(labels=labels, training={"deep_supervision_weights": weights})
    assert not trainer.enable_deep_supervision
    assert not trainer.network.deep_supervision
    assert trainer._get_deep_supervision_scales() is None
    samples = batch()
    if labels is REGIONS:
        samples["target"] = samples["target"].repeat(1, 2, 1, 1, 1)
    assert isinstance(trainer.loss, DC_and_BCE_loss if labels is REGIONS else DC_and_CE_loss)
    losses = [float(trainer.train_step(samples)["loss"]) for _ in range(3)]
    assert losses[-1] < losses[0]
    trainer.on_validation_epoch_start()
    assert np.isfinite(trainer.validation_step(samples)["loss"])
    trainer.set_deep_supervision_enabled(True)  # as nnU-Net's validation ends
    assert isinstance(trainer.network(samples["data"]), torch.Tensor)


def test_the_samples_of_a_single_output_hold_one_target(build_refined: Build) -> None:
    trainer = build_refined.initialized()
    transforms = trainer.get_validation_transforms(trainer._get_deep_supervision_scales())
    sample = transforms(image=torch.rand(1, 8, 32, 32), segmentation=torch.zeros(1, 8, 32, 32, dtype=torch.int16))
    assert sample["segmentation"].shape == (1, 8, 32, 32)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize("freeze", [False, True])
def test_what_is_frozen_is_not_trained(build_refined: Build, freeze: bool, optimizer: str) -> None:
    block = {"optimizer": {"name": optimizer, "weight_decay": 0.5}, "freeze_backbone": freeze, "grad_clip": 1}
    trainer = build_refined.initialized(training=block)
    before = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
    trainer.train_step(batch())
    after = trainer.network.state_dict()
    moved = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == ({"refiner"} if freeze else {"backbone", "refiner"})
    (group,) = trainer.optimizer.param_groups
    assert len(group["params"]) == (2 if freeze else 4)


def test_a_frozen_training_is_resumed(build_refined: Build) -> None:
    trainer = build_refined.initialized(training={"freeze_backbone": True, "epochs": 3})
    trainer.train_step(batch())
    log_epoch(trainer)
    trainer.save_checkpoint(str(build_refined.folder / "checkpoint_latest.pth"))
    trainer = build_refined.initialized(training={"freeze_backbone": True, "epochs": 3}, resume=True)
    trainer.load_checkpoint(str(build_refined.folder / "checkpoint_latest.pth"))
    assert len(trainer.optimizer.state_dict()["state"]) == 2
    trainer = build_refined.initialized(training={"epochs": 3}, resume=True)
    with pytest.raises(InputError, match=r"training\.freeze_backbone: True and False"):
        trainer.load_checkpoint(str(build_refined.folder / "checkpoint_latest.pth"))


def test_several_outputs_keep_deep_supervision(build: Build) -> None:
    trainer = build.initialized()
    assert trainer.enable_deep_supervision
    assert trainer.network.deep_supervision


@pytest.mark.parametrize(("epoch", "epochs", "line"), [(1, 500, "about 9 h left (498 epochs of 65 s)"), (1, 2, "")])
def test_the_time_that_is_left_is_told_once(
    build: Build, monkeypatch: pytest.MonkeyPatch, epoch: int, epochs: int, line: str
) -> None:
    monkeypatch.setattr("nnunetv2.training.nnUNetTrainer.nnUNetTrainer.nnUNetTrainer.on_epoch_end", lambda _: None)
    trainer = build(training={"epochs": epochs})
    for number in range(3):
        trainer.logger.log("epoch_start_timestamps", 1000.0 * number, number)
        trainer.logger.log("epoch_end_timestamps", 1000.0 * number + 65, number)
        trainer.current_epoch = number + 1
        trainer.on_epoch_end()
    assert build.log().count("left (") == (line != "")
    assert line in build.log()
