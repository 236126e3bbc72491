"""Activation checkpointing: stages that keep their input alone and are computed again in the backward pass.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016. PyTorch's own `torch.utils.checkpoint` without
reentrance does it, with the same dropout and autocast both times. What is added here: modules become stages as they
are, and running statistics move once (`recompute`).
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from nnunetv2_ext.architectures.layers.recompute import computed_again


def make_stages(network: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Let modules of a network be computed again, in training; parameters, state dict and pickling stay as they are.

    Args:
        patterns: of `fnmatch`, for the modules' names; what lies within a stage is computed again with it.

    Returns:
        The names of the stages.
    """
    found: list[str] = []
    for name, module in network.named_modules():
        within = any(name.startswith(f"{stage}.") for stage in found)
        if not within and any(fnmatchcase(name, pattern) for pattern in patterns):
            found.append(name)
            module.forward = Stage(module)
    return found


def stages_of(network: nn.Module) -> list[nn.Module]:
    """The modules that `make_stages` has found."""
    return [module for module in network.modules() if isinstance(vars(module).get("forward"), Stage)]


class Stage:
    """Stands in a module for its `forward`; goes with it where it is copied or pickled."""

    def __init__(self, module: nn.Module):
        self.module = module

    def once(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own `forward`."""
        return type(self.module).forward(self.module, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not (self.module.training and torch.is_grad_enabled()):
            return self.once(*args, **kwargs)
        return computed_again(self.once, self.module, *args, **kwargs)
