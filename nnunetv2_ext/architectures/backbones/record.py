"""What is to be known of a backbone, in one record: derived from it are list, planner, wrapper, tests and docs.

Records hold no network but its dotted name, so that they are there without PyTorch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from nnunetv2_ext.entry import Entry
from nnunetv2_ext.errors import InputError, is_whole

Shape = tuple[int, int, int]
Kwargs = Mapping[str, Any]
Planned = Callable[[list[list[int]], list[list[int]], list[int]], dict[str, Any]]

PLAIN_ELEMENTS = 560e6
"""nnU-Net's reference: so many elements of PlainConvUNet fill 8 GB at batch 2."""


@dataclass(frozen=True)
class Backbone(Entry):
    """A backbone that planners take by name.

    Add one in the file of its origin (`nnunet.py`, `ours.py`, `monai.py`), and run `python docs/tables.py`.
    """

    # --- how it is built ---
    defaults: Kwargs = field(default_factory=dict)
    """Arguments as published, under those of the user; JSON can hold them."""
    aliases: tuple[str, ...] = ()
    """Dotted names under which older plans may know it."""
    withheld: tuple[str, ...] = ()
    """Arguments with which it would be no network of our contract."""
    # --- the sizes that it takes ---
    strides: Callable[[Kwargs], list[Shape]] | None = None
    """How far each level shrinks the image, from its arguments; None: the network keeps our contract by itself."""
    minimum: Shape | Callable[[Kwargs], Shape] = (1, 1, 1)
    """The smallest patch, where it does not follow from the strides, perhaps from its arguments; the network refuses
    others by its `deep_supervision_shapes`."""
    one_voxel: bool = False
    """Whether a single voxel at the bottleneck will do; instance normalisation needs two."""
    fixed_size: bool = False
    """Whether the network takes the planned patch only."""
    # --- its outputs ---
    outputs: Callable[[list[Shape]], list[Shape]] = lambda strides: [(1, 1, 1)]
    """By how much each output is smaller than the image, from the strides."""
    switch: str | None = None
    """The attribute that turns side outputs on."""
    only_in_training: bool = False
    """Whether the network drops its side outputs in evaluation mode."""
    heads: tuple[str, ...] = ()
    """What the state-dict keys of the segmentation heads begin with, unless it is `.seg_layers.` already."""
    never_used: str | None = None
    """In the names of parameters that no forward pass uses."""
    # --- how it is planned ---
    planned: Planned | None = None
    """Its arguments from nnU-Net's strides, kernel sizes and features, where they follow from spacing and patch."""
    planned_by_spacing: Callable[[Sequence[float]], dict[str, Any]] | None = None
    """Its arguments from the spacing (z, y, x) in mm alone."""
    stages: tuple[str, ...] = ()
    """Names of the modules, as patterns of `fnmatch`, that activation checkpointing computes again, each as a whole."""
    mixture: Callable[[Kwargs, Shape], tuple[int, int]] | None = None
    """Tokens of its largest mixture of experts, and multiply-adds per sample of all mixtures' products of tokens and
    slots, from arguments and patch: they grow with the square of the tokens, which planners tell."""
    full_memory: float = PLAIN_ELEMENTS
    """How many elements of its own count nnU-Net lets fill 8 GB at batch 2."""
    preset_gb: float | None = None
    """GPU memory (GB) of the preset of that name, whose batches may see the whole data set."""
    trainer: str | None = None
    """The trainer of its own, whose weights of the outputs hold here too."""
    # --- published weights ---
    unused: tuple[str, ...] = ()
    """What the names of published tensors begin with that no forward pass uses; they are left out."""
    computed: str | None = None
    """In the names of published tensors that follow from the arguments, so that a file may lack them."""
    positions: Callable[[Kwargs, Shape], dict[str, Shape]] | None = None
    """The tensors with a vector per token, (1, tokens, features), from arguments and patch: name and grid (z, y, x)."""
    # --- what the tests take ---
    small: Kwargs = field(default_factory=dict)
    """Arguments, as plans hold them, that make it small."""
    patches: tuple[Shape, ...] = ()
    """Patches for those arguments, the planned one first; then odd ones, few slices."""
    random: bool = False
    """Whether samples of a batch and chance play a part in training: batch normalisation, dropout."""
    rounded_gradients: bool = True
    """Whether gradients in bfloat16 on the CPU can be looked at."""
    # --- its row in the docs ---
    paper: str = ""
    source: str = ""
    """Where the authors' code lies: owner and name on GitHub."""
    licence: str = ""
    """Of the authors' code."""
    parameters: str = "by the plans"
    """Of the defaults, with 1 input channel and 3 classes."""
    parameters_patch: Shape | None = None
    """The patch of that figure, where it depends on it."""
    arguments: str = "-"
    """What is planned, and the defaults that are not the network's own, in words."""


def triple(stride: int | Sequence[int]) -> Shape:
    """A stride along (z, y, x), from one number or three."""
    z, y, x = [stride] * 3 if isinstance(stride, int) else [int(s) for s in stride]
    return z, y, x


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def strides_argument(kwargs: Kwargs) -> list[Shape]:
    """The strides that the argument `strides` tells."""
    try:
        strides = kwargs["strides"]
        strides = [strides] * kwargs["n_stages"] if isinstance(strides, int) else strides
        if not all(is_whole(step) for stride in strides for step in (stride if _is_list(stride) else [stride])):
            raise ValueError("no whole numbers from 1")
        triples = [triple(stride) for stride in strides]
        if not triples:
            raise ValueError("no strides")
        return triples
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"strides={kwargs.get('strides')!r} in backbone_kwargs",
            "one stride of three axes (z, y, x) per stage",
            "take the arguments of a 3D configuration from plans",
        ) from error


def fixed(stride: int, levels: int) -> Callable[[Kwargs], list[Shape]]:
    """The same stride at every level, whatever the arguments."""
    return lambda kwargs: [triple(stride)] * levels


def halvings(argument: str, less: int = 0) -> Callable[[Kwargs], list[Shape]]:
    """Strides of two, one per entry of the argument, `less` of them."""

    def strides(kwargs: Kwargs) -> list[Shape]:
        blocks = kwargs[argument]
        if not isinstance(blocks, list | tuple) or len(blocks) <= less:
            raise InputError(f"{argument}={blocks!r} in backbone_kwargs", "a list of blocks per level", "correct it")
        return [triple(2)] * (len(blocks) - less)

    return strides


def halvings_by_spacing(spacing: Sequence[float], levels: int) -> list[Shape]:
    """The stride of each level: 2 along the axes that are less than twice as coarse as the finest one, else 1.

    nnU-Net's rule for its own poolings: thick slices wait until the planes are as coarse.

    Args:
        spacing: (z, y, x) in mm.
    """
    strides, now = [], [float(mm) for mm in spacing]
    for _ in range(levels):
        stride = triple([2 if mm < 2 * min(now) else 1 for mm in now])
        now = [mm * s for mm, s in zip(now, stride, strict=True)]
        strides.append(stride)
    return strides


def cumulative(strides: Sequence[Shape]) -> list[Shape]:
    """How far the image has shrunk after each of the strides."""
    return list(accumulate(strides, lambda above, stride: triple([a * s for a, s in zip(above, stride, strict=True)])))


def size_rule(record: Backbone, kwargs: Kwargs | None = None) -> tuple[Shape, Shape]:
    """What the patch of a backbone has to be, without building it.

    Args:
        kwargs: arguments over the defaults.

    Returns:
        divisor: every axis (z, y, x) of a patch is a multiple of it.
        minimum: from this size on every such multiple works (voxels).

    Raises:
        InputError: arguments without the strides that decide.
    """
    arguments = {**record.defaults, **(kwargs or {})}
    minimum = record.minimum(arguments) if callable(record.minimum) else record.minimum
    if record.strides is None:
        return (1, 1, 1), minimum
    divisor = cumulative(record.strides(arguments))[-1]
    least = at_least(divisor, divisor, record.one_voxel)
    pairs = zip(least, minimum, divisor, strict=True)
    return divisor, triple([max(size, -(-smallest // step) * step) for size, smallest, step in pairs])


def at_least(sizes: Shape, divisor: Shape, one_voxel: bool) -> Shape:
    """The sizes, doubled along the last axis where they leave a single voxel at the bottleneck."""
    return sizes if one_voxel or sizes != divisor else (*sizes[:2], 2 * sizes[2])
