"""What a network costs, module by module: parameters, multiply-adds and memory kept, counted without computing.

Everything here runs on torch's meta device, where tensors have sizes but no values, so that any patch is counted at
once. `step` measures the rest.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nnunetv2_ext.architectures.measure import watch_kept, without_values
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.text import one_line

WHOLE = ""
"""The name of the row that holds the whole network."""


@dataclass(frozen=True)
class Row:
    """The cost of one module with all that lies below it, for one sample (batch 1).

    Attributes:
        name: dotted, as in `named_modules`; `WHOLE` for the network itself.
        parameters: number of values, frozen ones included; one that several modules share counts once.
        multiply_adds: of the forward pass, in convolutions and products with weights (mm, addmm).
        attention_multiply_adds: those in products of features with features (bmm, fused attention).
        kept_bytes: of tensors that autograd saves in the forward pass for the backward pass.
    """

    name: str
    parameters: int
    multiply_adds: int
    attention_multiply_adds: int
    kept_bytes: int


class Watch:
    """Follows a forward pass from one tabulated module to the next.

    A module deeper than `depth` belongs to the tabulated one above it.

    Args:
        network: its modules get hooks while the context lasts.
        depth: components of the names to tabulate; 0 for the network alone.
        charge: called with a module's name whenever the pass leaves it or goes on below it; what has happened since
            the last call happened in that module.
    """

    def __init__(self, network: nn.Module, depth: int, charge: Callable[[str], None]):
        self.network, self.depth, self.charge = network, depth, charge
        self._stack = [WHOLE]
        self._hooks: list[Any] = []

    @property
    def current(self) -> str:
        """The innermost tabulated module that runs."""
        return self._stack[-1]

    def __enter__(self) -> "Watch":
        for name, module in self.network.named_modules():
            if name:
                tabulated = tabulated_name(name, self.depth)
                self._hooks.append(module.register_forward_pre_hook(lambda *_, name=tabulated: self._go(name)))
                self._hooks.append(module.register_forward_hook(lambda *_: self._return()))
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for hook in self._hooks:
            hook.remove()
        if kind is None:
            self.charge(self.current)

    def _go(self, name: str) -> None:
        if name != self.current:
            self.charge(self.current)
        self._stack.append(name)

    def _return(self) -> None:
        left = self._stack.pop()
        if left != self.current:
            self.charge(left)


def tabulated_name(name: str, depth: int) -> str:
    """The first `depth` components of a module's name."""
    return ".".join(name.split(".")[:depth])


def tabulated_names(network: nn.Module, depth: int) -> list[str]:
    """Every module down to a depth, the whole network first."""
    return list(dict.fromkeys(tabulated_name(name, depth) for name, _ in network.named_modules()))


def with_those_below(values: Mapping[str, Any], name: str) -> Any:
    """The sum over a module and all modules below it."""
    return sum(value for key, value in values.items() if name == WHOLE or key == name or key.startswith(f"{name}."))


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """The network that `build` makes, on the meta device."""
    with without_values():
        return build()


def count(network: nn.Module, shape: Sequence[int], *, depth: int = 2) -> list[Row]:
    """Parameters, multiply-adds and memory kept of a network and its modules.

    Half of what PyTorch's flop counter finds; element-wise operations, norms and pooling are not counted. Memory kept:
    the storages that autograd saves, each once, at the module that saves it first, without parameters and buffers; what
    a function recomputes or holds by other ways than `save_for_backward` is not seen.

    Args:
        network: on the meta device, see `on_meta`; run in training mode, with gradients.
        shape: of one sample, (channels, *patch).
        depth: how deep to tabulate; 0 for the network alone.

    Returns:
        The whole network first, then its modules in their order, those that cost nothing left out.

    Raises:
        InputError: the network fails on such a patch.
    """
    flops: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    counted: Counter[bool] = Counter()
    # what FusedAttention calls; PyTorch 2.14 has no formula of its own for it
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(display=False, custom_mapping={fused: _attention_flops})

    def charge(name: str) -> None:
        found: Counter[bool] = Counter()
        for operation, number in counter.get_flop_counts().get("Global", {}).items():
            found[_is_attention(str(operation))] += number
        for kind, number in found.items():
            flops[kind][name] += number - counted[kind]
        counted.update(found - counted)

    kept: Counter[str] = Counter()

    def keep(size: int) -> None:
        kept[watch.current] += size

    network.train()
    watch = Watch(network, depth, charge)
    x = torch.empty(1, *shape, device="meta")
    with torch.enable_grad(), counter, watch, watch_kept(network, keep):
        run_forward(network, x)

    parameters: Counter[str] = Counter()
    for name, parameter in network.named_parameters():
        parameters[tabulated_name(name.rpartition(".")[0], depth)] += parameter.numel()
    costs: tuple[Counter[str], ...] = (parameters, flops[False], flops[True], kept)
    rows = []
    for name in tabulated_names(network, depth):
        numbers = [with_those_below(cost, name) for cost in costs]
        parameter_number, weight_flops, attention_flops, kept_bytes = numbers
        if any(numbers):
            rows.append(Row(name, parameter_number, weight_flops // 2, attention_flops // 2, kept_bytes))
    return rows


def run_forward(network: nn.Module, x: Tensor) -> Any:
    """`network(x)`.

    Raises:
        InputError: the network's own, or one that tells on which size it failed.
    """
    try:
        return network(x)
    except (InputError, NotImplementedError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        raise InputError(
            f"a patch of {tuple(x.shape[2:])} with {x.shape[1]} channels, on which {type(network).__name__} fails "
            f"({one_line(error)})",
            "a size that suits the network",
            "choose another patch, often a multiple of 32 along each axis",
        ) from error


def _attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """Of the two products, from the shapes (batch, heads, tokens, features)."""
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _is_attention(operation: str) -> bool:
    return "bmm" in operation or "attention" in operation
