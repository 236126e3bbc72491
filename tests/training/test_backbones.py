"""PaRTrainer and BackboneTrainer: on plans of any network, with a frozen backbone, for inference, from trained ones."""

import warnings
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_ext.architectures.backbones.network import BackboneNetwork
from nnunetv2_ext.architectures.measure import without_values
from nnunetv2_ext.architectures.mnet import MNet
from nnunetv2_ext.architectures.par import PaRNetwork
from nnunetv2_ext.cli import main
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.trainers.backbone import BackboneTrainer
from nnunetv2_ext.trainers.mnet import MNetTrainer
from nnunetv2_ext.trainers.par import PaRTrainer
from tests.architectures.test_backbones import SMALL_BACKBONES
from tests.training.conftest import MNET, UNET, Build, hand_made_plans

PATCH = (8, 32, 32)
TRAINERS = [PaRTrainer, BackboneTrainer]


class OwnUNet(PlainConvUNet):
    """A network of the user, with the layout of nnU-Net's."""


def wrapped(name: str, backbone: str, patch: tuple[int, ...] = PATCH, **options: Any) -> dict[str, Any]:
    """The architecture as our planners write it."""
    return {
        "network_class_name": name,
        "arch_kwargs": {
            "backbone": backbone,
            "spatial_shape": list(patch),
            "backbone_kwargs": SMALL_BACKBONES[backbone],
            **options,
        },
        "_kw_requires_import": [],
    }


PAR = "nnunetv2_ext.architectures.PaRNetwork"
BACKBONE = "nnunetv2_ext.architectures.BackboneNetwork"
# architecture of the plans, the backbone's name, the number of its outputs
PLANS: dict[str, tuple[dict[str, Any], str, int]] = {
    "stock": (UNET, "PlainConvUNet", 2),
    "MNet's": (MNET, "MNet", 7),
    "PaR's": (wrapped(PAR, "ResidualEncoderUNet", axis=1), "ResidualEncoderUNet", 2),
    "a backbone's": (wrapped(BACKBONE, "MedNeXt"), "MedNeXt", 4),
    "one output": (wrapped(BACKBONE, "UNet"), "UNet", 1),
    "one output, PaR's": (wrapped(PAR, "SegResNet"), "SegResNet", 1),
    "a user's": ({**UNET, "network_class_name": f"{__name__}.OwnUNet"}, f"{__name__}.OwnUNet", 2),
}


def built(trainer: Any, plans: dict[str, Any], supervised: bool = True) -> Any:
    """The network as nnU-Net's training and, without deep supervision, its inference ask for it."""
    manager = PlansManager(deepcopy(plans))
    return trainer.build_network_architecture(manager, manager.get_configuration("3d_fullres"), 1, 3, supervised)


def batch(trainer: Any, patch: tuple[int, ...] = PATCH) -> dict[str, Any]:
    data = torch.randn(2, 1, *patch, generator=torch.Generator().manual_seed(0))
    target = (data > 0).float()
    scales = trainer._get_deep_supervision_scales()
    if scales is None:
        return {"data": data, "target": target}
    down = DownsampleSegForDSTransform(scales)
    return {"data": data, "target": [part[:, None] for part in down(segmentation=target[:, 0])["segmentation"]]}


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield


@pytest.mark.parametrize(("architecture", "backbone", "outputs"), PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("trainer", TRAINERS, ids=lambda trainer: trainer.__name__)
def test_network(trainer: Any, architecture: dict[str, Any], backbone: str, outputs: int) -> None:
    plans = hand_made_plans(architecture)
    network: Any
    with without_values():
        network, alone = built(trainer, plans), built(trainer, plans, supervised=False)
    expected = {PaRTrainer: PaRNetwork, BackboneTrainer: BackboneNetwork}[trainer].__name__
    assert type(network).__name__ == type(alone).__name__ == expected
    assert (network.deep_supervision, alone.deep_supervision) == (True, False)
    inner = network.backbone if trainer is PaRTrainer else network
    assert inner.backbone == backbone
    assert inner.spatial_shape == PATCH
    assert type(inner.network).__name__ == backbone.rpartition(".")[2]
    assert len(network.deep_supervision_shapes(PATCH)) == outputs
    if trainer is PaRTrainer:
        # of the plans' arguments only those of our own network reach the refiner
        assert network.refiner.axis == architecture["arch_kwargs"].get("axis", 0)
        assert network.refiner.spatial_shape == PATCH


@pytest.mark.parametrize(("architecture", "backbone", "outputs"), PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("trainer", TRAINERS, ids=lambda trainer: trainer.__name__)
def test_training(build: Build, trainer: Any, architecture: dict[str, Any], backbone: str, outputs: int) -> None:
    plans = hand_made_plans(architecture, training={"optimizer": {"momentum": 0.5}})
    one = build.initialized(plans, trainer=trainer)
    assert one.enable_deep_supervision == (outputs > 1)
    assert one.network.deep_supervision == (outputs > 1)
    samples = batch(one)
    before = {key: tensor.clone() for key, tensor in one.network.state_dict().items()}
    losses = [float(one.train_step(samples)["loss"]) for _ in range(4)]
    assert losses[-1] < losses[0]
    after = one.network.state_dict()
    moved = {key.partition(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert moved == ({"backbone", "refiner"} if trainer is PaRTrainer else {"network"})
    one.on_validation_epoch_start()
    one.network.eval()
    assert np.isfinite(one.validation_step(samples)["loss"])
    line = next(line for line in build.log().splitlines() if "Estimated GPU memory" in line)
    planned = architecture["network_class_name"].rpartition(".")[2]
    assert ("the plans were made for" in line) == (planned != trainer.network_class.__name__)


@pytest.mark.parametrize(("architecture", "backbone", "outputs"), PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("trainer", TRAINERS, ids=lambda trainer: trainer.__name__)
def test_inference_takes_the_trained_weights(
    build: Build, trainer: Any, architecture: dict[str, Any], backbone: str, outputs: int
) -> None:
    plans = hand_made_plans(architecture)
    trained = build.initialized(plans, trainer=trainer)
    trained.train_step(batch(trained))
    path = build.folder / "checkpoint_final.pth"
    trained.save_checkpoint(str(path))
    content = torch.load(path, weights_only=False)
    assert content["trainer_name"] == trainer.__name__
    network = built(trainer, content["init_args"]["plans"], supervised=False).eval()
    network.load_state_dict(content["network_weights"], strict=True)
    trained.set_deep_supervision_enabled(False)
    x = torch.randn(1, 1, *PATCH)
    with torch.no_grad():
        assert torch.equal(network(x), trained.network.eval()(x))


@pytest.mark.parametrize(
    ("trainer", "architecture", "changes", "message"),
    [
        (
            PaRTrainer,
            wrapped(PAR, "MNet"),
            {"patch_size": [8, 32, 40]},
            r"a patch of \(8, 32, 40\); expected \(8, 32, 32\), which the refiner was built for; .*plan with this one",
        ),
        (
            BackboneTrainer,
            wrapped(BACKBONE, "UNETR", (16, 32, 32)),
            {"patch_size": [16, 32, 48]},
            r"a patch of \(16, 32, 48\) for UNETR; expected the size \(16, 32, 32\)",
        ),
        (BackboneTrainer, UNET, {"patch_size": [8, 30, 32]}, r"a patch of \(8, 30, 32\) for PlainConvUNet; .*\[8, 32"),
        (PaRTrainer, UNET, {"patch_size": [8, 30, 32]}, r"a patch of \(8, 30, 32\) for PlainConvUNet; .*\[8, 32"),
        (PaRTrainer, wrapped(PAR, "MNet", variant="code"), {}, "variant='code'; expected one of paper"),
        (
            PaRTrainer,
            wrapped(BACKBONE, "MNet") | {"network_class_name": "gone.Network"},
            {},
            "the network gone.Network, which does not exist",
        ),
        (BackboneTrainer, UNET, {"training": {"freeze_backbone": True}}, "BackboneNetwork, which has no backbone"),
        (
            PaRTrainer,
            UNET,
            {"training": {"deep_supervision_weights": [1, 1, 1]}},
            "3 numbers in training.deep_supervision_weights; expected 2, one per output of PaRNetwork",
        ),
        (
            PaRTrainer,
            wrapped(PAR, "UNet"),
            {"training": {"deep_supervision_weights": [1, 1]}},
            "2 numbers in training.deep_supervision_weights; expected 1,",
        ),
    ],
    ids=str,
)
def test_refused_plans(
    build: Build, trainer: Any, architecture: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build(hand_made_plans(architecture, **changes), trainer=trainer)
    assert list((build.folder / "nnUNet_results").iterdir()) == []


def test_a_2d_configuration_is_refused(build: Build) -> None:
    for trainer in TRAINERS:
        with pytest.raises(InputError, match=rf"'2d'; expected a 3D one for {trainer.__name__}"):
            build(hand_made_plans(UNET), trainer=trainer, configuration="2d")


def test_a_backbone_alone_trains_on_another_patch_than_planned(build: Build) -> None:
    plans = hand_made_plans(wrapped(PAR, "SegResNet"), patch_size=[4, 16, 32])
    trainer = build.initialized(plans, trainer=BackboneTrainer)
    assert np.isfinite(trainer.train_step(batch(trainer, (4, 16, 32)))["loss"])
    assert "the plans were made for" not in build.log(), "what they were made for does not take that patch"


@pytest.mark.parametrize("architecture", [UNET, wrapped(PAR, "UNet")], ids=["stock", "PaR's"])
def test_the_refiner_alone_is_trained(build: Build, architecture: dict[str, Any]) -> None:
    block = {"freeze_backbone": True, "optimizer": {"weight_decay": 0.5}}
    trainer = build.initialized(hand_made_plans(architecture, training=block), trainer=PaRTrainer)
    (group,) = trainer.optimizer.param_groups
    assert len(group["params"]) == len(list(trainer.network.refiner.parameters()))
    before = {key: tensor.clone() for key, tensor in trainer.network.state_dict().items()}
    trainer.on_train_epoch_start()  # puts the network into training mode
    assert not trainer.network.backbone.training
    for _ in range(2):
        trainer.train_step(batch(trainer))
    after = trainer.network.state_dict()
    moved = {key.partition(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert moved == {"refiner"}


# the trainer that made the checkpoint, the architecture of its plans
SOURCES: dict[str, tuple[Any, dict[str, Any]]] = {
    "stock": (nnUNetTrainer, UNET),
    "a backbone on stock plans": (BackboneTrainer, UNET),
    "a backbone": (BackboneTrainer, wrapped(BACKBONE, "MedNeXt")),
    "MNet": (MNetTrainer, MNET),
    "one output": (BackboneTrainer, wrapped(BACKBONE, "SegResNet")),
}


@pytest.mark.parametrize("freeze", [False, True], ids=["", "frozen"])
@pytest.mark.parametrize(("source", "architecture"), SOURCES.values(), ids=SOURCES)
def test_an_imported_backbone_computes_what_its_source_does(
    build: Build, source: Any, architecture: dict[str, Any], freeze: bool, tmp_path: Path
) -> None:
    plans = hand_made_plans(architecture)
    trained = build.initialized(plans, trainer=source)
    checkpoint, start = tmp_path / "checkpoint_final.pth", tmp_path / "start.pth"
    trained.save_checkpoint(str(checkpoint))
    assert main(["import_weights", "par", str(checkpoint), "-o", str(start)]) == 0
    torch.manual_seed(1)
    plans["configurations"]["3d_fullres"]["training"] = {"freeze_backbone": freeze}
    refining = build.initialized(plans, trainer=PaRTrainer)
    load_pretrained_weights(refining.network, str(start))
    x = torch.randn(1, 1, *PATCH)
    with torch.no_grad():
        results, expected = refining.network.backbone.eval()(x), trained.network.eval()(x)
    if isinstance(expected, torch.Tensor):
        assert torch.equal(results if isinstance(results, torch.Tensor) else results[0], expected)
        return
    assert all(torch.equal(result, one) for result, one in zip(results, expected, strict=True))


class Bare(MNet):
    """A user's network that does not count its memory."""

    compute_conv_feature_map_size = None  # type: ignore[assignment]


def test_plans_of_a_network_that_counts_no_memory(build: Build) -> None:
    architecture = {**MNET, "network_class_name": f"{__name__}.Bare"}
    trainer = build.initialized(hand_made_plans(architecture), trainer=BackboneTrainer)
    assert "Estimated GPU memory of BackboneNetwork" in build.log()
    assert np.isfinite(trainer.train_step(batch(trainer))["loss"])


def test_building_says_nothing(build: Build) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for trainer in TRAINERS:
            build(hand_made_plans(wrapped(PAR, "UNet")), trainer=trainer)
