"""ConvFreeTrainer: its network on its own and on other plans, its training block, and that it learns."""

from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_ext.architectures.convfree import SIZES, ConvFreeTransformer
from nnunetv2_ext.architectures.measure import without_values
from nnunetv2_ext.block import NNUNET_BLOCK
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.trainers.convfree import ConvFreeTrainer
from nnunetv2_ext.training.scheduler import WarmupPolyScheduler
from tests.training.conftest import MNET, UNET, Build, hand_made_plans, log_epoch

CONVFREE: dict[str, Any] = {
    "network_class_name": "nnunetv2_ext.architectures.ConvFreeTransformer",
    "arch_kwargs": {
        "spatial_shape": [8, 32, 32],
        "token_size": [4, 16, 16],
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 2,
        "pre_norm": False,
    },
    "_kw_requires_import": [],
}


@pytest.mark.parametrize(
    ("architecture", "changes", "expected"),
    [
        (CONVFREE, {}, CONVFREE["arch_kwargs"]),
        (UNET, {}, {"token_size": (2, 8, 8), **SIZES["S"]}),
        (MNET, {"patch_size": [16, 32, 48], "spacing": [1.0, 1.0, 1.0]}, {"token_size": (8, 8, 8), **SIZES["S"]}),
    ],
    ids=["its plans", "stock plans", "MNet's plans"],
)
def test_network(architecture: dict[str, Any], changes: dict[str, Any], expected: dict[str, Any]) -> None:
    manager = PlansManager(hand_made_plans(architecture, **changes))
    configuration = manager.get_configuration("3d_fullres")
    patch = tuple(configuration.patch_size)
    with without_values():
        network: Any = ConvFreeTrainer.build_network_architecture(manager, configuration, 2, 4, False)
        same = ConvFreeTransformer(2, 4, **{"spatial_shape": patch, **expected})
        assert network(torch.zeros(1, 2, *patch)).shape == (1, 4, *patch)
    assert type(network) is ConvFreeTransformer
    assert network.token_size == tuple(expected["token_size"])
    assert {key: tensor.shape for key, tensor in network.state_dict().items()} == {
        key: tensor.shape for key, tensor in same.state_dict().items()
    }


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        (UNET, {"patch_size": [8, 33, 32]}, r"a patch of \[8, 33, 32\] .*nearly cubic token"),
        (MNET, {"patch_size": [8, 32, 31]}, r"a patch of \[8, 32, 31\] .*.*plan with ConvFreePlanner"),
        (CONVFREE, {"patch_size": [8, 40, 32]}, r"a patch of \[8, 40, 32\]; expected multiples of the token \[4, 16"),
        (
            {**CONVFREE, "arch_kwargs": {**CONVFREE["arch_kwargs"], "tokens": 3}},
            {},
            r"arch_kwargs that ConvFreeTransformer cannot take \(.*'tokens'\)",
        ),
        (
            {**CONVFREE, "arch_kwargs": {**CONVFREE["arch_kwargs"], "window": 5}},
            {},
            "window = 5; expected null or three",
        ),
        (CONVFREE, {"training": {"freeze_backbone": True}}, "ConvFreeTransformer, which has no backbone to freeze"),
        (CONVFREE, {"training": {"scheduler": {"patience": 3}}}, "'training.scheduler.patience'.* for warmup_poly"),
    ],
)
def test_refused_plans(build: Build, architecture: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(hand_made_plans(architecture, **changes), trainer=ConvFreeTrainer)
    assert list((build.folder / "nnUNet_results").iterdir()) == []


def test_published_training_block(build: Build) -> None:
    trainer = build.initialized(hand_made_plans(CONVFREE), trainer=ConvFreeTrainer)
    assert trainer.block == NNUNET_BLOCK | {
        "optimizer": {"name": "AdamW", "lr": 3e-4, "betas": [0.9, 0.999], "weight_decay": 0.01},
        "scheduler": {"name": "warmup_poly", "exponent": 0.9, "warmup_iterations": None},
        "grad_clip": 1.0,
    }
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    assert isinstance(trainer.lr_scheduler, WarmupPolyScheduler)
    assert trainer.lr_scheduler.warmup == 12500
    assert [trainer.lr_scheduler.rate(iteration) for iteration in (0, 12499, 250_000)] == [3e-4 / 12500, 3e-4, 0]
    assert not trainer.enable_deep_supervision


def test_it_learns_with_clipped_gradients(build: Build) -> None:
    torch.manual_seed(0)
    block = {"epochs": 1, "iterations_per_epoch": 8, "scheduler": {"warmup_iterations": 2}, "optimizer": {"lr": 1e-2}}
    trainer = build.initialized(hand_made_plans(CONVFREE, training=block), trainer=ConvFreeTrainer)
    norms = []
    trainer.optimizer.register_step_pre_hook(
        lambda *_: norms.append(torch.stack([p.grad.norm() for p in trainer.network.parameters()]).norm().item())
    )
    whole = trainer.loss
    trainer.loss = lambda outputs, target: 100 * whole(outputs, target)
    data = torch.randn(2, 1, 8, 32, 32)
    data[:, :, :, :16] += 3
    samples = {"data": data, "target": (torch.arange(32) < 16).float()[:, None].expand_as(data)}
    trainer.on_train_epoch_start()
    losses = [float(trainer.train_step(samples)["loss"]) for _ in range(8)]
    assert losses[-1] < losses[0]
    assert norms == pytest.approx([1.0] * 8, rel=1e-3)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"context": "block"}, "arch_kwargs.context: None and block"),
        ({"window": [1, 2, 2]}, r"arch_kwargs.window: None and \[1, 2, 2\]"),
        ({"num_heads": 4}, "arch_kwargs.num_heads: 2 and 4"),
        ({"token_size": [8, 8, 16]}, r"arch_kwargs.token_size: \[4, 16, 16\] and \[8, 8, 16\]"),
        ({"pre_norm": True}, "arch_kwargs.pre_norm: False and True"),
    ],
    ids=str,
)
def test_resuming_as_another_network_is_refused(build: Build, edit: dict[str, Any], message: str) -> None:
    """Most of them have the same weights, so that nothing else would tell."""
    trainer = build.initialized(hand_made_plans(CONVFREE), trainer=ConvFreeTrainer)
    path = str(Path(trainer.output_folder) / "checkpoint_latest.pth")
    log_epoch(trainer)
    trainer.save_checkpoint(path)
    edited = {**CONVFREE, "arch_kwargs": {**CONVFREE["arch_kwargs"], **edit}}
    another = build.initialized(hand_made_plans(edited), resume=True, trainer=ConvFreeTrainer)
    with pytest.raises(InputError, match=rf"a network that differs from the checkpoint's \(3d_fullres.*{message}\)"):
        another.load_checkpoint(path)


@pytest.mark.parametrize(("warmup", "warned"), [(None, True), (8, True), (7, False)])
def test_a_warm_up_as_long_as_the_training_is_told(build: Build, warmup: int | None, warned: bool) -> None:
    scheduler = {"name": "warmup_poly", "warmup_iterations": warmup}
    training = {"epochs": 2, "iterations_per_epoch": 4, "scheduler": scheduler}
    build.initialized(hand_made_plans(CONVFREE, training=training), trainer=ConvFreeTrainer)
    assert ("WARNING: the warm-up of" in build.log()) == warned
