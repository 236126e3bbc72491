"""Operations that keep less for the backward pass than PyTorch's: they compute it again."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from nnunetv2_ext.architectures.contract import Shape


def absolute(x: Tensor) -> Tensor:
    """|x|, in place where the compiler does not see to it, keeping a byte per element for the backward pass."""
    if torch.compiler.is_compiling():
        return x.abs()
    return _AbsoluteValue.apply(x) if torch.is_grad_enabled() else x.abs_()


def max_pool(x: Tensor, kernel: Shape) -> Tensor:
    """Max-pooling of kernel = stride that keeps no indices (eight bytes each) for the backward pass."""
    return F.max_pool3d(x, kernel) if torch.compiler.is_compiling() else _MaxPool.apply(x, kernel)


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`function(*inputs)`, keeping nothing but the inputs for the backward pass; the compiler decides by itself.

    The last operation is not computed again where it saves its own inputs alone, as convolutions do.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return function(*inputs)
    result: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return result


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
