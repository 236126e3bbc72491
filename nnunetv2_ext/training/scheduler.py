"""The optimizer and the learning-rate scheduler that the `training` block names."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch.optim.lr_scheduler import ReduceLROnPlateau

Losses = Callable[[], Sequence[float]]
"""Gives the validation losses so far, one per epoch."""


class EpochScheduler(Protocol):
    """What nnU-Net's trainer asks of a scheduler. It does not save it, so the rate must follow from the epoch."""

    def step(self, current_step: int) -> None:
        """Set the rate of the epoch `current_step`, before that epoch trains."""


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


# one per entry of nnunetv2_ext.training.schedule.SCHEDULERS
BUILDERS: dict[str, Callable[..., EpochScheduler]] = {
    "poly": lambda optimizer, lr, epochs, losses, **settings: PolyLRScheduler(optimizer, lr, epochs, **settings),
    "plateau": lambda optimizer, lr, epochs, losses, **settings: PlateauScheduler(optimizer, lr, losses, **settings),
}


def build_scheduler(
    optimizer: torch.optim.Optimizer, schedule: Mapping[str, Any], *, epochs: int, losses: Losses
) -> EpochScheduler:
    """The scheduler of a resolved schedule.

    Args:
        epochs: length of the training.
        losses: the validation losses so far, for a scheduler that follows them.
    """
    name, settings = _split(schedule["scheduler"])
    return BUILDERS[name](optimizer, schedule["optimizer"]["lr"], epochs, losses, **settings)


def build_optimizer(parameters: Sequence[torch.nn.Parameter], schedule: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The optimizer of a resolved schedule."""
    name, settings = _split(schedule["optimizer"])
    optimizer: torch.optim.Optimizer = getattr(torch.optim, name)(parameters, **settings)
    return optimizer


def _split(named: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    return named["name"], {key: value for key, value in named.items() if key != "name"}
