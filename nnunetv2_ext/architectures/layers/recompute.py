"""Operations that keep less for the backward pass than PyTorch's: they compute it again."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nnunetv2_ext.architectures.contract import Shape


def absolute(x: Tensor) -> Tensor:
    """|x|, in place where the compiler does not see to it, keeping a byte per element for the backward pass."""
    if torch.compiler.is_compiling():
        return x.abs()
    return _AbsoluteValue.apply(x) if torch.is_grad_enabled() else x.abs_()


def max_pool(x: Tensor, kernel: Shape) -> Tensor:
    """Max-pooling of kernel = stride that keeps no indices (eight bytes each) for the backward pass."""
    return F.max_pool3d(x, kernel) if torch.compiler.is_compiling() else _MaxPool.apply(x, kernel)


def layer_of(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    layer: nn.Linear | nn.Conv3d | nn.ConvTranspose3d,
    *norms: nn.Module,
) -> Tensor:
    """`layer(function(x))`, keeping x for the backward pass, which computes the function again.

    Args:
        function: cheap beside the layer; no chance plays a part.
        norms: the modules whose parameters the function uses.
    """
    parameters = [parameter for norm in norms for parameter in norm.parameters()]
    if torch.compiler.is_compiling():
        out: Tensor = layer(function(x))
        return out
    out = _LayerOf.apply(function, layer, x, layer.weight, layer.bias, *parameters)
    return out


class _LayerOf(torch.autograd.Function):
    """A layer of a cheap function, whose result is not kept."""

    @staticmethod
    def forward(
        ctx: Any, function: Callable[[Tensor], Tensor], layer: nn.Module, x: Tensor, *parameters: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, *parameters)
        ctx.function, ctx.layer = function, layer
        device = x.device.type
        ctx.autocast = device != "meta" and torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        out: Tensor = layer(function(x))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, *others = ctx.saved_tensors
        needed = [ctx.needs_input_grad[2], *ctx.needs_input_grad[5:]]
        x = x.detach().requires_grad_(needed[0])
        with torch.enable_grad(), _autocast(x.device.type, ctx.autocast):
            between = ctx.function(x)
        given = between.detach().to(gradient.dtype)
        of_between, of_weight, of_bias = _gradients(ctx.layer, given, weight.to(gradient.dtype), gradient)
        sources = [tensor for tensor, wanted in zip([x, *others], needed, strict=True) if wanted]
        found = iter(torch.autograd.grad(between, sources, of_between.to(between.dtype)) if sources else ())
        of_x, *of_others = [next(found) if wanted else None for wanted in needed]
        return None, None, of_x, of_weight.to(weight.dtype), of_bias.to(bias.dtype), *of_others


def _autocast(device: str, dtype: torch.dtype | bool) -> AbstractContextManager[Any]:
    """The precision of the forward pass, in its backward pass."""
    return torch.autocast(device, dtype) if isinstance(dtype, torch.dtype) else nullcontext()


def _gradients(layer: Any, x: Tensor, weight: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of a layer's input, weight and bias."""
    if isinstance(layer, nn.Linear):
        rows = gradient.flatten(0, -2)
        return gradient @ weight, rows.T @ x.flatten(0, -2), rows.sum(0)
    transposed = isinstance(layer, nn.ConvTranspose3d)
    steps = (layer.stride, layer.padding, layer.dilation, transposed, layer.output_padding, layer.groups)
    of_x, of_weight, of_bias = torch.ops.aten.convolution_backward(
        gradient, x, weight, [layer.out_channels], *steps, [True, True, True]
    )
    return of_x, of_weight, of_bias


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
