"""Operations that keep less for the backward pass than PyTorch's: they compute it again."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from nnunetv2_ext.architectures.contract import Shape

Result = TypeVar("Result", Tensor, tuple[Tensor, Tensor])


def keeps_all() -> bool:
    """Whether nothing is to be computed again: there is no backward pass, or the compiler sees to it by itself."""
    return torch.compiler.is_compiling() or not torch.is_grad_enabled()


def recomputed(function: Callable[..., Result], *inputs: Tensor, module: nn.Module | None = None) -> Result:
    """`function(*inputs)`, keeping the inputs alone; the backward pass calls it again up to its last operation.

    That operation is not repeated, since its result is not needed: where a function ends with a convolution, it is
    only what comes before that is computed again.

    Args:
        function: without dropout.
        module: holds the batch norms of the function, whose running statistics move in the forward pass only.
    """
    if keeps_all():
        return function(*inputs)
    result: Result = computed_again(function, module, *inputs, preserve_rng_state=False)
    return result


def computed_again(function: Callable[..., Any], module: nn.Module | None, *args: Any, **kwargs: Any) -> Any:
    """`function(*args, **kwargs)`, which keeps its arguments for the backward pass and is called there once more.

    Args:
        module: holds the norms of the function, whose running statistics move in the forward pass only.
        kwargs: of the function, or of `torch.utils.checkpoint`.
    """
    if not torch.compiler.is_compiling():  # there, what is computed again has no effects
        kwargs["context_fn"] = partial(_contexts, module)
    return checkpoint(function, *args, use_reentrant=False, **kwargs)


def _contexts(module: nn.Module | None) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Of the forward pass and of the second time."""
    return nullcontext(), StatisticsKept(*([] if module is None else [module]))


class StatisticsKept:
    """A context in which norms move copies of their running statistics, which are dropped at its end.

    It may be entered again, as the backward pass may be run again.
    """

    def __init__(self, *modules: nn.Module):
        layers = (layer for module in modules for layer in module.modules())
        self.norms = [layer for layer in layers if isinstance(layer, _NormBase)]
        self.statistics: list[tuple[nn.Module, str, Tensor]] = []

    def __enter__(self) -> None:
        training = [norm for norm in self.norms if norm.training]
        self.statistics = [(norm, *buffer) for norm in training for buffer in norm.named_buffers(recurse=False)]
        for norm, name, buffer in self.statistics:
            setattr(norm, name, buffer.clone())

    def __exit__(self, *_: object) -> None:
        for norm, name, buffer in self.statistics:
            setattr(norm, name, buffer)


def absolute(x: Tensor) -> Tensor:
    """|x|, in place where the compiler does not see to it, keeping a byte per element for the backward pass."""
    if torch.compiler.is_compiling():
        return x.abs()
    return _AbsoluteValue.apply(x) if torch.is_grad_enabled() else x.abs_()


def max_pool(x: Tensor, kernel: Shape) -> Tensor:
    """Max-pooling of kernel = stride that keeps no indices (eight bytes each) for the backward pass."""
    return F.max_pool3d(x, kernel) if torch.compiler.is_compiling() else _MaxPool.apply(x, kernel)


class _AbsoluteValue(torch.autograd.Function):
    """|x| in place, keeping a byte per element (the sign) for the backward pass instead of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.sign().to(torch.int8))
        ctx.mark_dirty(x)
        return x.abs_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (sign,) = ctx.saved_tensors
        return gradient * sign


class _MaxPool(torch.autograd.Function):
    """Max-pooling that finds its indices (eight bytes each) again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Shape) -> Tensor:
        ctx.save_for_backward(x)
        ctx.kernel = kernel
        return F.max_pool3d(x, kernel)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            pooled = F.max_pool3d(x, ctx.kernel)
        return torch.autograd.grad(pooled, x, gradient)[0], None


class RecomputedOnce:
    """Saved-tensor hooks that keep `source` instead of `result = function(source)`, which two operations save."""

    def __init__(self, function: Callable[[Tensor], Tensor], source: Tensor, result: Tensor):
        self.function, self.source, self.pointer = function, source.detach(), result.data_ptr()
        self.held: Tensor | None = None

    def pack(self, tensor: Tensor) -> Tensor | None:
        return None if tensor.data_ptr() == self.pointer and tensor.shape == self.source.shape else tensor

    def unpack(self, packed: Tensor | None) -> Tensor:
        if packed is not None:
            return packed
        if self.held is None:  # asked for by the convolution, then by the activation
            with torch.no_grad():
                self.held = self.function(self.source)
            return self.held
        tensor, self.held = self.held, None
        return tensor
