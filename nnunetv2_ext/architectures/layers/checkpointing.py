"""Activation checkpointing: stages that keep their input alone and are computed again in the backward pass.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016. PyTorch's own `torch.utils.checkpoint` without
reentrance does it, with the same dropout and autocast both times. What is added here: modules become stages as they
are, and what a stage notes in its buffers (the running statistics of batch normalisation) is noted once.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


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


def computed_again(function: Callable[..., Any], module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """`function(*args, **kwargs)`, which keeps its arguments for the backward pass and is called there once more.

    Args:
        module: whose buffers the function may change.
    """
    if not torch.compiler.is_compiling():  # there, what is computed again has no effects
        kwargs["context_fn"] = partial(_contexts, module)
    return checkpoint(function, *args, use_reentrant=False, **kwargs)


def _contexts(module: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Of the forward pass and of the second time."""
    return nullcontext(), _on_copies_of_buffers(module)


@contextmanager
def _on_copies_of_buffers(module: nn.Module) -> Iterator[None]:
    own = [(one, dict(one._buffers)) for one in module.modules()]
    for one, buffers in own:
        one._buffers.update({name: None if buffer is None else buffer.clone() for name, buffer in buffers.items()})
    try:
        yield
    finally:
        for one, buffers in own:
            one._buffers.update(buffers)
