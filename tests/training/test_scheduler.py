"""Optimizers and schedulers: built from the block, and the same rates after a resume as without one."""

import math
import shutil
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from nnunetv2_ext.block import named_defaults, resolve_block
from nnunetv2_ext.schema import OPTIMIZERS, SCHEDULERS
from nnunetv2_ext.training.scheduler import (
    BUILDERS,
    PlateauScheduler,
    WarmupPolyScheduler,
    build_optimizer,
    build_scheduler,
)
from tests.training.conftest import Build, log_epoch
from tests.training.test_trainer import RefinedTrainer, batch

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


@pytest.mark.parametrize(
    ("epochs", "iterations", "settings", "expected"),
    [
        (2, 3, {"exponent": 1.0, "warmup_iterations": 2}, [1 / 2, 1, 1, 3 / 4, 1 / 2, 1 / 4]),
        (2, 2, {"exponent": 0.5, "warmup_iterations": 0}, [1, math.sqrt(3 / 4), math.sqrt(1 / 2), math.sqrt(1 / 4)]),
        (2, 2, {"exponent": 0.5, "warmup_iterations": 3}, [1 / 3, 2 / 3, 1, 1]),
        (2, 2, {"exponent": 0.5, "warmup_iterations": 4}, [1 / 4, 2 / 4, 3 / 4, 1]),
        (2, 2, {"exponent": 0.5, "warmup_iterations": 8}, [1 / 8, 2 / 8, 3 / 8, 4 / 8]),
        (2, 2, {"exponent": 0.0, "warmup_iterations": 1}, [1, 1, 1, 1]),
        (2, 2, {"exponent": 0.9, "warmup_iterations": None}, [1 / 200, 2 / 200, 3 / 200, 4 / 200]),
    ],
    ids=str,
)
def test_rates_of_warmup_poly(epochs: int, iterations: int, settings: dict[str, Any], expected: list[float]) -> None:
    optimizer = some_optimizer(lr=0.5)
    scheduler = WarmupPolyScheduler(optimizer, 0.5, epochs, iterations, **settings)
    rates = []
    for epoch in range(epochs):
        scheduler.step(epoch)
        assert optimizer.param_groups[0]["lr"] == scheduler.rate(epoch * iterations)  # what nnU-Net logs
        for _ in range(iterations):
            optimizer.step()
            first, second = optimizer.param_groups
            assert first["lr"] == second["lr"]
            rates.append(first["lr"])
    assert rates == pytest.approx([0.5 * share for share in expected])
    optimizer.step()  # beyond the training
    assert 0 <= optimizer.param_groups[0]["lr"] <= 0.5


@pytest.mark.parametrize(
    ("epochs", "iterations", "expected"),
    [(1, 1, 200), (16, 250, 200), (1, 4001, 201), (20, 250, 250), (1000, 250, 12500)],
)
def test_warmup_of_its_own_length(epochs: int, iterations: int, expected: int) -> None:
    scheduler = WarmupPolyScheduler(some_optimizer(), 0.5, epochs, iterations, exponent=0.9, warmup_iterations=None)
    assert scheduler.warmup == expected


class Walk:
    """A weight with the gradient -1, so that each step of the optimizer adds its rate, and a scheduler of it."""

    def __init__(self, *, epochs: int = 4, iterations: int = 3):
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        block = {
            "optimizer": {"lr": 0.5, "momentum": 0, "nesterov": False, "weight_decay": 0},
            "scheduler": {"name": "warmup_poly", "exponent": 2, "warmup_iterations": 4},
        }
        schedule = resolve_block(block)
        self.optimizer = build_optimizer([self.weight], schedule)
        self.scheduler = build_scheduler(self.optimizer, schedule, epochs=epochs, iterations=iterations, losses=list)

    def step(self, scaler: torch.amp.GradScaler, gradient: float = -1.0) -> float:
        """One training step as nnU-Net takes it; returns by how much the weight has moved."""
        before = self.weight.item()
        self.optimizer.zero_grad(set_to_none=True)
        scaler.scale(gradient * self.weight.sum()).backward()
        scaler.unscale_(self.optimizer)
        scaler.step(self.optimizer)
        scaler.update()
        return self.weight.item() - before


RATES = [0.5 * share for share in (1 / 4, 2 / 4, 3 / 4, 1)] + [0.5 * (left / 8) ** 2 for left in range(8, 0, -1)]


@pytest.mark.parametrize("scaled", [False, True], ids=["", "gradient scaler"])
def test_the_optimizer_steps_by_the_rates_of_warmup_poly(scaled: bool) -> None:
    walk, scaler = Walk(), torch.amp.GradScaler("cpu", enabled=scaled)
    moves = []
    for epoch in range(4):
        walk.scheduler.step(epoch)
        moves += [walk.step(scaler) for _ in range(3)]
    assert moves == pytest.approx(RATES)


def test_a_skipped_step_shifts_the_rates_of_its_epoch_alone() -> None:
    walk, scaler = Walk(), torch.amp.GradScaler("cpu")
    walk.scheduler.step(0)
    moves = [walk.step(scaler, gradient) for gradient in (-1.0, -INF, -1.0)]
    walk.scheduler.step(1)
    moves += [walk.step(scaler) for _ in range(3)]
    assert moves == pytest.approx([RATES[0], 0, RATES[1], *RATES[3:6]])


def iterate(trainer: Any, epochs: range) -> list[float]:
    """The rate of each iteration of nnU-Net's epochs, with a validation and a checkpoint after each."""
    rates, samples = [], batch()
    for epoch in epochs:
        assert trainer.current_epoch == epoch
        trainer.on_train_epoch_start()
        for _ in range(trainer.num_iterations_per_epoch):
            trainer.train_step(samples)
            rates.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.on_validation_epoch_start()
        trainer.validation_step(samples)
        log_epoch(trainer)
        trainer.save_checkpoint(f"{trainer.output_folder}/after_{epoch}.pth")
        trainer.current_epoch += 1
    return rates


def test_a_resumed_warmup_poly_has_the_rates_of_an_uninterrupted_one(build: Build) -> None:
    block = {
        "epochs": 4,
        "iterations_per_epoch": 3,
        "optimizer": {"name": "AdamW", "lr": 0.5},
        "scheduler": {"name": "warmup_poly", "exponent": 2, "warmup_iterations": 4},
        "grad_clip": 1,
    }
    uninterrupted = iterate(build.initialized(training=block, trainer=RefinedTrainer), range(4))
    assert uninterrupted == pytest.approx(RATES)
    for epoch in range(3):
        trainer = build.initialized(training=block, trainer=RefinedTrainer, resume=True)
        trainer.load_checkpoint(f"{trainer.output_folder}/after_{epoch}.pth")
        assert iterate(trainer, range(epoch + 1, 4)) == uninterrupted[3 * (epoch + 1) :]


def test_every_scheduler_has_its_builder() -> None:
    assert BUILDERS.keys() == SCHEDULERS.keys()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_starts_from_the_rate_given(name: str) -> None:
    optimizer = some_optimizer()
    schedule = resolve_block({"optimizer": {"lr": 0.5}, "scheduler": {"name": name}})
    build_scheduler(optimizer, schedule, epochs=5, iterations=3, losses=list).step(0)
    expected = {"warmup_poly": 0.5 / 200}.get(name, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [expected, expected]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_takes_its_keys(name: str) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = build_optimizer([parameter], resolve_block({"optimizer": {"name": name}}))
    assert type(optimizer) is getattr(torch.optim, name)
    (group,) = optimizer.param_groups
    for key, value in named_defaults("optimizer", name).items():
        if key != "name":
            assert group[key] == (tuple(value) if isinstance(value, list) else value)
    parameter.sum().backward()
    optimizer.step()
    assert (parameter < 1).all()
