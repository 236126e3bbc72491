"""Optimizers and schedulers: built from the block, and the same rates after a resume as without one."""

import shutil
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from nnunetv2_ext.training.schedule import OPTIMIZERS, SCHEDULERS, named_defaults, resolve_schedule
from nnunetv2_ext.training.scheduler import BUILDERS, PlateauScheduler, build_optimizer, build_scheduler
from tests.training.conftest import Build

NAN = float("nan")
INF = float("inf")


def some_optimizer(lr: float = 0.5) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)]}], lr)


def rates_of_torch(losses: list[float], *, lr: float, factor: float, patience: int) -> list[float]:
    """The rate of each epoch when PyTorch's own scheduler is stepped after each."""
    optimizer = some_optimizer(lr)
    scheduler = ReduceLROnPlateau(optimizer, factor=factor, patience=patience, threshold=1e-4, threshold_mode="abs")
    rates = [lr]
    for loss in losses:
        scheduler.step(loss)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize(
    ("losses", "reductions"),
    [
        ([], 0),
        ([1.0] * 4, 1),
        ([-0.5] * 7, 2),
        ([-0.1, -0.2, -0.3, -0.4, -0.5, -0.6], 0),
        ([-0.5, -0.50005, -0.5001, -0.50009], 1),
        ([NAN] * 4, 1),
        ([NAN, -0.1, NAN, NAN, NAN, -0.2], 1),
        ([INF, -INF, 0.0, 0.0, 0.0], 1),
    ],
    ids=str,
)
def test_plateau_is_pytorchs(losses: list[float], reductions: int) -> None:
    optimizer, settings = some_optimizer(), {"factor": 0.25, "patience": 2}
    scheduler = PlateauScheduler(optimizer, 0.5, lambda: losses, factor=0.25, patience=2)
    rates = []
    for epoch in range(len(losses) + 1):
        scheduler.step(epoch)
        first, second = optimizer.param_groups
        assert first["lr"] == second["lr"]
        rates.append(first["lr"])
    assert rates == rates_of_torch(losses, lr=0.5, **settings)  # type: ignore[arg-type]
    assert rates[-1] == 0.5 * 0.25**reductions


def test_plateau_needs_no_order() -> None:
    losses = [-0.5] * 20
    optimizer = some_optimizer()
    scheduler = PlateauScheduler(optimizer, 0.5, lambda: losses, factor=0.5, patience=2)
    for epoch in (20, 3, 3, 11, 0):
        scheduler.step(epoch)
        expected = rates_of_torch(losses, lr=0.5, factor=0.5, patience=2)[epoch]
        assert optimizer.param_groups[0]["lr"] == expected


LOSSES = [-0.1, -0.3, -0.2, -0.2, NAN, -0.4, -0.1, -0.1, -0.1]


def train(trainer: Any, losses: list[float]) -> list[float]:
    """Epochs with these validation losses, as far as nnU-Net logs and saves; returns all rates logged so far."""
    for loss in losses:
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
        epoch = trainer.current_epoch
        for key, value in {"train_losses": -0.1, "val_losses": loss, "mean_fg_dice": 0.5}.items():
            trainer.logger.log(key, value, epoch)
        trainer.logger.log("dice_per_class_or_region", [0.5, 0.5], epoch)
        trainer.on_epoch_end()
        shutil.copy(trainer.output_folder + "/checkpoint_latest.pth", trainer.output_folder + f"/after_{epoch}.pth")
    return list(trainer.logger.get_value("lrs", step=None))


def test_a_resumed_plateau_has_the_rates_of_an_uninterrupted_one(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnunetv2.training.logging.nnunet_logger.MetaLogger.plot_progress_png", lambda *_: None)
    block = {
        "epochs": 20,
        "optimizer": {"name": "AdamW"},
        "scheduler": {"name": "plateau", "factor": 0.5, "patience": 1},
    }
    uninterrupted = train(build.initialized(training=block), LOSSES)
    assert uninterrupted == rates_of_torch(LOSSES, lr=1e-4, factor=0.5, patience=1)[:-1]
    assert uninterrupted[-1] == 1e-4 * 0.5**2
    for epoch in range(len(LOSSES) - 1):
        trainer = build.initialized(training=block, resume=True)
        trainer.load_checkpoint(str(build.fold / f"after_{epoch}.pth"))
        assert trainer.current_epoch == epoch + 1
        assert train(trainer, LOSSES[epoch + 1 :]) == uninterrupted


def test_every_scheduler_has_its_builder() -> None:
    assert BUILDERS.keys() == SCHEDULERS.keys()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_starts_at_the_rate_given(name: str) -> None:
    optimizer = some_optimizer()
    schedule = resolve_schedule({"optimizer": {"lr": 0.5}, "scheduler": {"name": name}})
    build_scheduler(optimizer, schedule, epochs=5, losses=list).step(0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_takes_its_keys(name: str) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = build_optimizer([parameter], resolve_schedule({"optimizer": {"name": name}}))
    assert type(optimizer) is getattr(torch.optim, name)
    (group,) = optimizer.param_groups
    for key, value in named_defaults("optimizer", name).items():
        if key != "name":
            assert group[key] == (tuple(value) if isinstance(value, list) else value)
    parameter.sum().backward()
    optimizer.step()
    assert (parameter < 1).all()
