"""What a network keeps for its backward pass, and the slices that it takes; found without computing anything."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from nnunetv2_ext.architectures.contract import Network, Tokenized
from nnunetv2_ext.architectures.layers.checkpointing import stages_of
from nnunetv2_ext.errors import InputError


def kept_elements(network: nn.Module, input_shape: Sequence[int]) -> float:
    """The memory that autograd holds between a forward and a backward pass in training.

    A copy of the network runs on PyTorch's meta device, which knows shapes but no values: the result depends neither
    on the device nor on the precision of `network`, and is there in a fraction of a second. Every storage that an
    operation saves counts once, whole; parameters and buffers do not count. Attention counts as the fused kernels of
    CUDA and CPU keep it: without its matrix, where the network calls `scaled_dot_product_attention`.

    Half of it is what nnU-Net's planner counts: in its U-Net every convolution keeps two tensors of the size of its
    output, of which nnU-Net counts one (PlainConvUNet: half of the result is 0.99 of nnU-Net's own count).

    Checkpointed parts count with their input, and as a whole in their turn: what was kept before a stage and what the
    stage keeps when it is computed again lie in memory together. What a network holds through saved-tensor hooks of its
    own (MNet's activations) is not seen, nor is the working memory of single operations.

    Args:
        input_shape: (B, channels, *spatial) of the input.

    Returns:
        float32 elements (bytes / 4) for the whole batch.
    """
    kept: list[int] = []
    calls: list[tuple[int, nn.Module, tuple[Any, ...]]] = []  # bytes kept by then, a stage, its arguments

    def note(stage: nn.Module, arguments: tuple[Any, ...], _: object) -> None:
        calls.append((sum(kept), stage, arguments))

    with torch.inference_mode(False), torch.enable_grad():
        replica = _on_meta(network).train()
        hooks = [stage.register_forward_hook(note) for stage in stages_of(replica)]
        with watch_kept(replica, kept.append):
            replica(torch.empty(*input_shape, device="meta"))
        for hook in hooks:
            hook.remove()
        highest = sum(kept)
        for before, stage, arguments in calls:
            again: list[int] = []
            with watch_kept(stage, again.append, [one for one in arguments if isinstance(one, Tensor)]):
                vars(stage)["forward"].once(*arguments)
            highest = max(highest, before + sum(again))
    return highest / 4


@contextmanager
def without_values() -> Iterator[None]:
    """Networks that are built within have shapes and no values: no memory, and no time to draw initial weights.

    On PyTorch's meta device, where drawing from a normal distribution, of which nothing is left, would take nnU-Net's
    U-Nets as long as all the rest of their construction.
    """
    with torch.device("meta"), _NothingDrawn():
        yield


class _NothingDrawn(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.normal_ and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def watch_kept(network: nn.Module, on_kept: Callable[[int], object], known: Iterable[Tensor] = ()) -> Iterator[None]:
    """Call `on_kept` with the bytes of every storage that autograd saves, each once, when it is saved first.

    Parameters and buffers do not count; attention keeps what the fused kernels keep.

    Args:
        network: on the meta device.
        known: further tensors that do not count.
    """
    own = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers(), *known)}
    kept: dict[int, torch.UntypedStorage] = {}  # held here, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own and storage._cdata not in kept:
            kept[storage._cdata] = storage
            on_kept(storage.nbytes())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor), FusedAttention():
        yield


def _on_meta(network: nn.Module) -> Any:
    """A copy of the network whose parameters and buffers have no values; nothing large is copied on the way."""
    replaced: dict[int, Any] = {}
    for tensor in (*network.parameters(), *network.buffers()):
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        empty = torch.empty(tensor.shape, dtype=dtype, device="meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        replaced[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
    return copy.deepcopy(network, replaced)


class FusedAttention(TorchFunctionMode):
    """Lets the meta device keep what CPU and CUDA keep of `scaled_dot_product_attention`: no matrix of weights.

    Without it the meta device runs the plain products, which count the same but save the attention matrix.
    """

    _ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            given = dict(zip(self._ARGUMENTS, args, strict=False)) | (kwargs or {})
            if self._can_fuse(**given):
                given.pop("enable_gqa", None)
                return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(**given)[0]
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _can_fuse(
        *,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        enable_gqa: bool = False,
        **_: Any,
    ) -> bool:
        if dropout_p or enable_gqa or (attn_mask is not None and attn_mask.requires_grad):
            return False
        return query.ndim == 4 and key.shape == value.shape and query.shape[-1] == value.shape[-1]


def thick_slices(network: Network, patch_size: Sequence[int], slabs: int) -> int | None:
    """The smallest number of slices, from `slabs` on and below the patch's, of a thick image that the network takes.

    Returns:
        None where the thick image has to be shown on the thin grid: the network is built for one patch, or its tokens,
        whose size is chosen in mm, would be of another one.
    """
    if isinstance(network, Tokenized):
        return None
    for slices in range(slabs, patch_size[0]):
        try:
            network.deep_supervision_shapes([slices, *patch_size[1:]])
        except InputError:
            continue
        return slices
    return None
