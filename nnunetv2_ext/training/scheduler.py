"""The optimizer and the learning-rate scheduler that the `training` block names."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch.optim.lr_scheduler import ReduceLROnPlateau

Losses = Callable[[], Sequence[float]]
"""Gives the validation losses so far, one per epoch."""


class EpochScheduler(Protocol):
    """What nnU-Net's trainer asks of a scheduler. It does not save it, so the rate must follow from the epoch."""

    def step(self, current_step: int) -> None:
        """Set the rate that the epoch `current_step` starts with, before that epoch trains."""


class PlateauScheduler:
    """PyTorch's ReduceLROnPlateau without a state of its own.

    Each step replays the rule from the initial rate over the validation losses of the epochs before. Those lie in
    every checkpoint, so that a training resumed from any of them gets the rates of one that was never stopped.

    The threshold of an improvement is absolute: nnU-Net's losses are negative (minus the Dice), and PyTorch's relative
    one would take a slightly worse negative loss for a better one.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, initial_lr: float, losses: Losses, *, factor: float, patience: int
    ):
        self.optimizer = optimizer
        self.initial_lr = initial_lr
        self.losses = losses
        self.factor = factor
        self.patience = patience

    def step(self, current_step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.initial_lr
        rule = ReduceLROnPlateau(
            self.optimizer, factor=self.factor, patience=self.patience, threshold=1e-4, threshold_mode="abs"
        )
        for loss in self.losses()[:current_step]:
            rule.step(loss)


class WarmupPolyScheduler:
    """A linear warm-up and then a polynomial decay to 0, both by the iteration.

    Iteration t (from 0) of T in all has the rate `initial_lr * (t + 1) / W` in the W iterations of the warm-up, and
    `initial_lr * (1 - (t - W) / (T - W)) ** exponent` after them. A training shorter than its warm-up ends in it.

    `step` starts an epoch; within it each step of the optimizer sets its own rate and moves on by one iteration. A
    step that the gradient scaler skips has no iteration, which the start of the next epoch makes up for.

    Args:
        iterations: training iterations per epoch.
        warmup_iterations: W; None: the larger of 200 and 5 % of T.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        initial_lr: float,
        epochs: int,
        iterations: int,
        *,
        exponent: float,
        warmup_iterations: int | None,
    ):
        self.optimizer = optimizer
        self.initial_lr = initial_lr
        self.exponent = exponent
        self.iterations = iterations
        self.total = epochs * iterations
        self.warmup = max(200, -(-self.total // 20)) if warmup_iterations is None else warmup_iterations
        optimizer.register_step_pre_hook(self._before_optimizer_step)
        self.step(0)

    def rate(self, iteration: int) -> float:
        """The learning rate of an iteration, counted from 0 over the whole training."""
        if iteration < self.warmup:
            return self.initial_lr * (iteration + 1) / self.warmup
        # what is left of the decay, from 1 to 0; nothing after the last iteration
        left = max(self.total - iteration, 0) / max(self.total - self.warmup, 1)
        return float(self.initial_lr * left**self.exponent)

    def step(self, current_step: int) -> None:
        self.iteration = current_step * self.iterations
        self._set_rate()

    def _set_rate(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.iteration)

    def _before_optimizer_step(self, *_: Any) -> None:
        self._set_rate()
        self.iteration += 1


class _Course(NamedTuple):
    """What a builder may need of the training; the fields are the arguments of `build_scheduler`."""

    epochs: int
    iterations: int
    losses: Losses


# one per entry of nnunetv2_ext.block.SCHEDULERS
BUILDERS: dict[str, Callable[..., EpochScheduler]] = {
    "poly": lambda optimizer, lr, course, **settings: PolyLRScheduler(optimizer, lr, course.epochs, **settings),
    "plateau": lambda optimizer, lr, course, **settings: PlateauScheduler(optimizer, lr, course.losses, **settings),
    "warmup_poly": lambda optimizer, lr, course, **settings: WarmupPolyScheduler(
        optimizer, lr, course.epochs, course.iterations, **settings
    ),
}


def build_scheduler(
    optimizer: torch.optim.Optimizer, block: Mapping[str, Any], *, epochs: int, iterations: int, losses: Losses
) -> EpochScheduler:
    """The scheduler of a resolved training block.

    Args:
        epochs: length of the training.
        iterations: training iterations per epoch, for a scheduler that goes by them.
        losses: the validation losses so far, for a scheduler that follows them.
    """
    name, settings = _split(block["scheduler"])
    return BUILDERS[name](optimizer, block["optimizer"]["lr"], _Course(epochs, iterations, losses), **settings)


def build_optimizer(parameters: Sequence[torch.nn.Parameter], block: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The optimizer of a resolved training block."""
    name, settings = _split(block["optimizer"])
    optimizer: torch.optim.Optimizer = getattr(torch.optim, name)(parameters, **settings)
    return optimizer


def _split(named: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    return named["name"], {key: value for key, value in named.items() if key != "name"}
