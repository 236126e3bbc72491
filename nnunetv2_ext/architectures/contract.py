"""The contract of a network, as types: what planners, trainers and the doctor ask of it.

mypy checks every network of ours against `Network`; `nnunetv2_ext.testing.check_network` runs any network through it.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from nnunetv2_ext.architectures.backbones.record import Shape, at_least, triple
from nnunetv2_ext.errors import InputError


def three_axes(patch_size: Sequence[int]) -> Shape:
    """A patch (z, y, x) as whole numbers.

    Raises:
        InputError: it has not three axes.
    """
    sizes = tuple(int(size) for size in patch_size)
    if len(sizes) != 3:
        raise InputError(f"a patch of {len(sizes)} axes {sizes}", "three axes (z, y, x)", "use a 3D configuration")
    return sizes


def check_patch(
    name: str, patch: Sequence[int], divisor: Shape, *, one_voxel: bool = False, least: Shape = (1, 1, 1)
) -> Shape:
    """The patch (z, y, x) as whole numbers, if it is a multiple of the divisor along every axis.

    Args:
        name: of the network, for the message.
        one_voxel: whether a single voxel at the bottleneck will do.
        least: no smaller size is proposed.

    Raises:
        InputError: it is not, with the nearest sizes that would do.
    """
    sizes = three_axes(patch)
    pairs = list(zip(sizes, divisor, strict=True))
    whole = all(size >= 1 and size % step == 0 for size, step in pairs)
    if whole and (one_voxel or sizes != divisor):
        return sizes
    down = triple([max(size // step, 1) * step for size, step in pairs])
    up = triple([max(-(-size // step), 1) * step for size, step in pairs])
    fitting = {at_least(triple(list(map(max, near, least))), divisor, one_voxel): None for near in (down, up)}
    more = "" if one_voxel else ", more than one voxel of these multiples"
    raise InputError(
        f"a patch of {sizes} for {name}",
        f"multiples of {divisor}{more}",
        f"choose patch_size {' or '.join(str(list(near)) for near in fitting)}",
    )


def check_planned(name: str, patch: Sequence[int], planned: Sequence[int]) -> None:
    """Refuse another patch (z, y, x) than that which a network was built for.

    Raises:
        InputError: it is another.
    """
    if tuple(patch) != tuple(planned):
        raise InputError(
            f"a patch of {tuple(patch)} for {name}",
            f"the size {tuple(planned)} that it was built for",
            f"choose patch_size {list(planned)}, or plan again for another",
        )


@runtime_checkable
class Supervised(Protocol):
    """A network whose outputs have sizes of their own."""

    def deep_supervision_shapes(self, patch_size: Sequence[int]) -> list[Shape]:
        """The true size (z, y, x) of every output for a patch of that size, rounding included.

        Raises:
            InputError: a patch that the network cannot take.
        """


@runtime_checkable
class Measured(Protocol):
    """A network that tells its memory in training, as nnU-Net's own do."""

    def compute_conv_feature_map_size(self, patch_size: Sequence[int]) -> float:
        """Elements of feature maps per sample, which nnU-Net's planner compares with its reference.

        560 million of them at batch 2 fill 8 GB; see `nnunetv2_ext.memory`.

        Raises:
            InputError: a patch that the network cannot take.
        """


class Network(Supervised, Measured, Protocol):
    """A network that plans may name and our trainers train.

    Built as `cls(input_channels, num_classes, *, deep_supervision=..., **arch_kwargs)`, with arguments that JSON can
    hold. `forward` takes (B, input_channels, z, y, x) and returns logits (B, num_classes, z, y, x), or, with deep
    supervision, a list of them, the first at full resolution; it raises InputError on a size that cannot work.
    """

    deep_supervision: bool
    """Whether `forward` returns a list; may change at any time, over the same weights."""

    @property
    def head(self) -> nn.Module:
        """The layer that makes the finest logits; its input is the last feature map."""

    def __call__(self, x: Any) -> Any: ...


@runtime_checkable
class Initialised(Protocol):
    """A network with an initialisation of its own, as nnU-Net's have."""

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """What is applied to every module after the network is built."""


@runtime_checkable
class Freezable(Protocol):
    """A network that refines the output of another one, which may be kept as it is."""

    def freeze_backbone(self) -> None:
        """Train what refines alone: no gradients in the backbone, its dropout and statistics as in inference."""


@runtime_checkable
class Auxiliary(Protocol):
    """A network with more outputs than logits, which its method's own loss reads, and nothing else may reach."""

    @property
    def auxiliary_outputs(self) -> Sequence[Tensor]:
        """Of the last forward pass in training."""


@runtime_checkable
class Tokenized(Protocol):
    """A network that cuts its input into tokens; the input of its head is (B, tokens, features)."""

    @property
    def token_size(self) -> Sequence[int]:
        """Voxels of a token along (z, y, x)."""


@runtime_checkable
class Entered(Protocol):
    """A network that takes smaller inputs than its patch by leaving out its first stages."""

    @property
    def entry_shapes(self) -> Sequence[Shape]:
        """Sizes (z, y, x) of the entries' inputs in voxels, the patch first."""


def fixed(x: Tensor) -> Tensor:
    """An input (B, channels, z, y, x) of a network with entries, which torch.compile compiles for its size alone.

    From the second size on, it would compile for any size, which the choice of the entry makes endless.
    """
    torch._dynamo.mark_static(x, [2, 3, 4])  # type: ignore[no-untyped-call]
    return x
