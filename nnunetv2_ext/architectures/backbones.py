"""Backbones by name: nnU-Net's U-Nets, our networks and MONAI's, all with the contract of a network.

The list is `nnunetv2_ext.registry.BACKBONES`; MONAI (Apache-2.0, https://github.com/Project-MONAI/MONAI) is imported
only for its own networks. What this file adds to a network: one constructor, deep supervision as a switch, refusal of
sizes that cannot work, nnU-Net's memory count, and heads under the name that nnU-Net's -pretrained_weights leaves out.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from math import prod
from pydoc import ErrorDuringImport, locate
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nnunetv2_ext.architectures.measure import kept_elements
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.registry import BACKBONES, Entry, find

Shape = tuple[int, int, int]
Kwargs = Mapping[str, Any]

# arguments that plans give as dotted names, as in nnU-Net's own plans
LOCATED = ("conv_op", "norm_op", "dropout_op", "nonlin", "block")


# nnU-Net's reference: so many elements of PlainConvUNet fill 8 GB at batch 2
PLAIN_ELEMENTS = 560e6


@dataclass(frozen=True)
class _Family:
    """What the wrapper has to know of a network."""

    strides: Callable[[Kwargs], list[Shape]] | None
    """How far each level shrinks the image, from its arguments; None: the network keeps our contract by itself."""
    defaults: Kwargs = field(default_factory=dict)
    """Arguments as published, under those of the user."""
    withheld: tuple[str, ...] = ()
    """Arguments with which it would be no network of our contract."""
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
    one_voxel: bool = False
    """Whether a single voxel at the bottleneck will do; instance normalisation needs two."""
    fixed_size: bool = False
    """Whether the network takes the planned patch only."""
    full_memory: float = PLAIN_ELEMENTS
    """How many elements of its own count nnU-Net lets fill 8 GB at batch 2."""


def _triple(stride: int | Sequence[int]) -> Shape:
    z, y, x = [stride] * 3 if isinstance(stride, int) else [int(s) for s in stride]
    return z, y, x


def _strides_argument(kwargs: Kwargs) -> list[Shape]:
    try:
        strides = kwargs["strides"]
        return [_triple(stride) for stride in ([strides] * kwargs["n_stages"] if isinstance(strides, int) else strides)]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"strides={kwargs.get('strides')!r} in backbone_kwargs",
            "one stride of three axes (z, y, x) per stage",
            "take the arguments of a 3D configuration from plans",
        ) from error


def _fixed(stride: int, levels: int) -> Callable[[Kwargs], list[Shape]]:
    return lambda kwargs: [_triple(stride)] * levels


def _halvings(argument: str, less: int = 0) -> Callable[[Kwargs], list[Shape]]:
    """Strides of two, one per entry of the argument."""

    def strides(kwargs: Kwargs) -> list[Shape]:
        blocks = kwargs[argument]
        if not isinstance(blocks, list | tuple) or len(blocks) <= less:
            raise InputError(f"{argument}={blocks!r} in backbone_kwargs", "a list of blocks per level", "correct it")
        return [_triple(2)] * (len(blocks) - less)

    return strides


def _cumulative(strides: list[Shape]) -> list[Shape]:
    return list(accumulate(strides, lambda above, stride: _triple([a * s for a, s in zip(above, stride, strict=True)])))


_NNUNET = _Family(
    strides=_strides_argument,
    outputs=lambda strides: _cumulative(strides)[:-1],
    switch="decoder.deep_supervision",
)
_RESIDUAL = replace(_NNUNET, full_memory=680e6)
_OURS = _Family(strides=None, switch="deep_supervision")
_FAMILIES = {
    "PlainConvUNet": _NNUNET,
    "ResidualEncoderUNet": _RESIDUAL,
    "ResidualEncoderUNetM": _RESIDUAL,
    "ResidualEncoderUNetL": replace(_RESIDUAL, full_memory=2100e6 * 8 / 24),
    "ResidualEncoderUNetXL": replace(_RESIDUAL, full_memory=3600e6 * 8 / 40),
    "MNet": _OURS,
    "UNet": _Family(
        strides=_strides_argument,
        defaults={"channels": (32, 64, 128, 256, 512), "strides": (2, 2, 2, 2), "num_res_units": 2},
        heads=("model.2.",),
    ),
    "VNet": _Family(strides=_fixed(2, levels=4), heads=("out_tr.",)),
    "SegResNet": _Family(
        strides=_halvings("blocks_down", less=1),
        defaults={"init_filters": 32, "blocks_down": (1, 2, 2, 4), "blocks_up": (1, 1, 1)},
        withheld=("use_conv_final",),  # without it there are no logits
        heads=("conv_final.2.",),
    ),
    "UNETR": _Family(
        strides=_fixed(16, levels=1),
        heads=("out.",),
        never_used="cross_attn",
        one_voxel=True,
        fixed_size=True,
    ),
    "SwinUNETR": _Family(
        strides=_fixed(2, levels=5),
        defaults={"feature_size": 48},
        withheld=("patch_size",),  # its decoder up-samples five times by two, whatever it says
        heads=("out.",),
    ),
    "MedNeXt": _Family(
        strides=_halvings("blocks_down"),
        defaults={"kernel_size": 3, "use_residual_connection": True, "blocks_down": (2, 2, 2, 2)},
        outputs=lambda strides: [(1, 1, 1), *_cumulative(strides)],
        switch="do_ds",
        only_in_training=True,
        heads=("out_0.", "out_blocks."),
    ),
}
# where our own networks can do with less than the planner's search should go down to
_OUR_MINIMUM: dict[str, Shape] = {"MNet": (1, 16, 32)}


def size_rule(backbone: str, backbone_kwargs: Kwargs | None = None) -> tuple[Shape, Shape]:
    """What the patch of a backbone has to be, without building it and without MONAI.

    Args:
        backbone, backbone_kwargs: as of `BackboneNetwork`.

    Returns:
        divisor: every axis (z, y, x) of a patch is a multiple of it.
        minimum: from this size on every such multiple works (voxels).

    Raises:
        InputError: unknown backbone, or arguments without the strides that decide.
    """
    entry, family = _resolve(backbone)
    if family.strides is None:
        return (1, 1, 1), _OUR_MINIMUM.get(entry.name, (1, 1, 1))
    divisor = _cumulative(family.strides({**family.defaults, **(backbone_kwargs or {})}))[-1]
    return divisor, _at_least(divisor, divisor, family.one_voxel)


def _at_least(sizes: Shape, divisor: Shape, one_voxel: bool) -> Shape:
    """The sizes, doubled along the last axis where they leave a single voxel at the bottleneck."""
    return sizes if one_voxel or sizes != divisor else (*sizes[:2], 2 * sizes[2])


def _resolve(backbone: str) -> tuple[Entry, _Family]:
    """The entry and the family of a name in the registry or of a dotted path."""
    for entry in BACKBONES:
        if backbone in (entry.name, entry.path):
            return entry, _FAMILIES[entry.name]
    if "." not in backbone:
        find("backbone", backbone)
    try:
        network_class = locate(backbone)
    except ErrorDuringImport as error:
        raise InputError(f"the backbone '{backbone}'", "a module that can be imported", f"mend it ({error})") from error
    if not (isinstance(network_class, type) and issubclass(network_class, nn.Module)):
        known = ", ".join(entry.name for entry in BACKBONES)
        raise InputError(f"the backbone '{backbone}'", f"one of {known}, or the dotted path of a network", "correct it")
    ours = hasattr(network_class, "deep_supervision_shapes")
    return Entry(backbone, backbone, "a network of the user"), _OURS if ours else _NNUNET


class BackboneNetwork(nn.Module):
    """Any backbone, with the contract of a network.

    Args:
        input_channels: channels of the image.
        num_classes: channels of the logits.
        backbone: a name in `nnunetv2_ext.registry.BACKBONES`, or the dotted path of a class that takes nnU-Net's
            `(input_channels, num_classes, ..., deep_supervision)` and keeps our contract or has the layout of
            nnU-Net's U-Nets (`decoder.deep_supervision`, `decoder.seg_layers`, an argument `strides`).
        spatial_shape: the planned patch (z, y, x) in voxels.
        backbone_kwargs: its own arguments, as JSON holds them: classes as dotted names. They go over the published
            ones. nnU-Net's U-Nets need all of theirs.
        deep_supervision: return a list of logits, the first at full resolution, or only these. The list holds one
            tensor where the backbone has no side outputs.

    Attributes:
        network: the wrapped network.
        divisor: every axis of a patch is a multiple of it.

    Shapes: (B, input_channels, Z, Y, X) -> (B, num_classes, Z, Y, X), or a list, see `deep_supervision_shapes`.

    Raises:
        InputError: unknown backbone or argument, values that it refuses, MONAI missing, a spatial_shape that cannot
            work; in `forward`, a size that cannot work.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        backbone: str,
        spatial_shape: Sequence[int],
        backbone_kwargs: Kwargs | None = None,
        deep_supervision: bool = True,
    ):
        super().__init__()
        entry, family = _resolve(backbone)
        self.backbone = entry.name
        self.input_channels, self.num_classes = input_channels, num_classes
        self.spatial_shape = tuple(int(size) for size in spatial_shape)
        network_class = entry.load()
        arguments = _arguments(
            network_class,
            entry.name,
            family.withheld,
            {**family.defaults, **(backbone_kwargs or {})},
            {
                "input_channels": input_channels,
                "in_channels": input_channels,
                "num_classes": num_classes,
                "out_channels": num_classes,
                "spatial_dims": 3,
                "img_size": self.spatial_shape,
                "deep_supervision": True,
            },
        )
        strides = family.strides(arguments) if family.strides else []
        self.divisor: Shape = _cumulative(strides)[-1] if strides else (1, 1, 1)
        self._output_divisors = family.outputs(strides) if strides else []
        self._one_voxel, self._fixed_size = family.one_voxel, family.fixed_size
        self._full_memory = family.full_memory
        self._only_in_training, self._heads = family.only_in_training, family.heads
        self._holder, _, self._switch = (family.switch or "").rpartition(".")
        self._counts: dict[tuple[Shape, bool], int] = {}
        if strides:
            self._checked(self.spatial_shape)
        self.network = _built(network_class, arguments, entry.name)
        if self._holder and not hasattr(self.network, self._holder):
            raise InputError(
                f"the backbone {entry.name} without deep_supervision_shapes or a {self._holder}",
                "our contract of a network, or nnU-Net's layout of a U-Net",
                "see docs/how-to-add-an-architecture.md",
            )
        if not strides:
            self._checked(self.spatial_shape)
        for name, parameter in self.network.named_parameters():
            if family.never_used and family.never_used in name:
                parameter.requires_grad_(False)
        if self._heads:
            self.register_state_dict_post_hook(_mark_heads)
            self.register_load_state_dict_pre_hook(_unmark_heads)
        self.deep_supervision = deep_supervision

    @property
    def head(self) -> nn.Module:
        """The layer that makes the finest logits, whose input is the last feature map.

        Where the network ends with more than one layer after its last feature map, the last one.
        """
        if self._heads:
            finest = self.network.get_submodule(self._heads[0].removesuffix("."))
            return [module for module in finest.modules() if isinstance(module, nn.Conv3d | nn.ConvTranspose3d)][-1]
        head: nn.Module = self.network.decoder.seg_layers[-1] if self._holder else self.network.head
        return head

    @property
    def deep_supervision(self) -> bool:
        """Whether `forward` returns a list; may change at any time."""
        return self._deep_supervision

    @deep_supervision.setter
    def deep_supervision(self, enabled: bool) -> None:
        self._deep_supervision = bool(enabled)
        if self._switch:
            setattr(self.network.get_submodule(self._holder), self._switch, self._deep_supervision)

    def train(self, mode: bool = True) -> "BackboneNetwork":
        super().train(mode)
        if self._only_in_training:  # its own flag decides on nothing but the side outputs; its modules have theirs
            self.network.training = True
        return self

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        self._checked(x.shape[2:])
        logits = self.network(x)
        if not self.deep_supervision:
            return logits
        return list(logits) if isinstance(logits, list | tuple) else [logits]

    def deep_supervision_shapes(self, patch_size: Sequence[int]) -> list[Shape]:
        """The true size (Z, Y, X) of each output for a patch of that size.

        Raises:
            InputError: a patch that the backbone cannot take.
        """
        sizes = self._checked(patch_size)
        if not self._output_divisors:
            return self.network.deep_supervision_shapes(sizes)
        return [_triple([s // d for s, d in zip(sizes, divisor, strict=True)]) for divisor in self._output_divisors]

    def compute_conv_feature_map_size(self, patch_size: Sequence[int]) -> int:
        """What nnU-Net's planner compares with its reference: elements per sample.

        The network's own count where it has one, in units of PlainConvUNet's where nnU-Net has another reference for
        it; else half of `kept_elements`, which is the same measure.

        Raises:
            InputError: a patch that the backbone cannot take.
        """
        sizes = self._checked(patch_size)
        count = getattr(self.network, "compute_conv_feature_map_size", None)
        if count is not None:
            return int(count(sizes) * PLAIN_ELEMENTS / self._full_memory)
        key = sizes, self.deep_supervision
        if key not in self._counts:
            self._counts[key] = round(kept_elements(self.network, (1, self.input_channels, *sizes)) / 2)
        return self._counts[key]

    def _checked(self, patch_size: Sequence[int]) -> Shape:
        """The patch as integers.

        Raises:
            InputError: a patch that the backbone cannot take, with the nearest sizes that would do.
        """
        sizes = tuple(int(size) for size in patch_size)
        if len(sizes) != 3:
            raise InputError(f"a patch of {len(sizes)} axes {sizes}", "three axes (z, y, x)", "use a 3D configuration")
        if not self._output_divisors:
            self.network.deep_supervision_shapes(sizes)
            return sizes
        voxels = prod([size // divisor for size, divisor in zip(sizes, self.divisor, strict=True)])
        divisible = all(size % divisor == 0 for size, divisor in zip(sizes, self.divisor, strict=True))
        if min(sizes) < 1 or not divisible or (voxels == 1 and not self._one_voxel):
            raise self._refusal(sizes)
        if self._fixed_size and sizes != self.spatial_shape:
            raise InputError(
                f"a patch of {sizes} for {self.backbone}",
                f"the size {self.spatial_shape} that it was built for",
                f"choose patch_size {list(self.spatial_shape)}, or plan again for another",
            )
        return sizes

    def _refusal(self, sizes: Shape) -> InputError:
        pairs = list(zip(sizes, self.divisor, strict=True))
        down = _triple([max(size // divisor, 1) * divisor for size, divisor in pairs])
        up = _triple([max(-(-size // divisor), 1) * divisor for size, divisor in pairs])
        fitting = {_at_least(near, self.divisor, self._one_voxel): None for near in (down, up)}
        more = "" if self._one_voxel else ", more than one voxel of these multiples"
        return InputError(
            f"a patch of {sizes} for {self.backbone}",
            f"multiples of {self.divisor}{more}",
            f"choose patch_size {' or '.join(str(list(near)) for near in fitting)}",
        )


def _arguments(
    network_class: type[nn.Module], name: str, withheld: Sequence[str], given: Kwargs, filled: Kwargs
) -> dict[str, Any]:
    """All arguments of a network's constructor: the given ones, and those of the filled ones that it has.

    Raises:
        InputError: unknown or missing arguments, a class that cannot be located.
    """
    parameters = inspect.signature(network_class).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if takes_any:
        filled = {key: filled[key] for key in ("input_channels", "num_classes", "deep_supervision")}
    filled = {key: value for key, value in filled.items() if key in parameters or takes_any}
    free = [key for key in parameters if key not in filled and key not in withheld]
    unknown = [key for key in given if key not in free and not (takes_any and key not in filled)]
    if unknown:
        raise InputError(
            f"the arguments {', '.join(unknown)} in backbone_kwargs of {name}",
            f"some of {', '.join(free)}",
            "correct or remove them",
        )
    missing = [key for key in free if parameters[key].default is inspect.Parameter.empty and key not in given]
    if missing and not takes_any:
        raise InputError(
            f"no {', '.join(missing)} in backbone_kwargs of {name}",
            "the arguments that plans hold for it",
            "plan for it, or copy arch_kwargs from plans",
        )
    return {key: _located(key, value) if key in LOCATED else value for key, value in given.items()} | filled


def _located(key: str, value: Any) -> Any:
    found = locate(value) if isinstance(value, str) else value
    if value is not None and found is None:
        raise InputError(f"{key}={value!r} in backbone_kwargs", "the dotted name of a class", "correct it")
    return found


def _built(network_class: type[nn.Module], arguments: Kwargs, name: str) -> Any:
    """The network, initialised as it asks to be.

    Raises:
        InputError: values that the constructor refuses.
    """
    try:
        with _ValuesOnCpu():
            network: Any = network_class(**arguments)
    except InputError:
        raise
    except (ValueError, TypeError, AssertionError, KeyError, IndexError) as error:
        values = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise InputError(f"{name}({values})", "arguments that it takes", f"correct them: {error}") from error
    # here and not by nnU-Net, which would apply it to what is built around the backbone too
    if hasattr(network, "initialize"):
        network.apply(network.initialize)
    for module in network.modules():  # nnU-Net's residual blocks hold a lambda, which cannot be pickled
        if inspect.isfunction(vars(module).get("skip")):
            module.skip = _identity
    return network


def _identity(x: Tensor) -> Tensor:
    return x


class _ValuesOnCpu(TorchFunctionMode):
    """Lets MONAI read the rates of stochastic depth off a tensor when a network is built on the meta device."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Kwargs | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.linspace and torch.empty(0).is_meta:
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


def _mark_heads(module: BackboneNetwork, state_dict: dict[str, Any], prefix: str, _: Any) -> None:
    """network.out.conv.weight -> network.seg_layers.out.conv.weight"""
    _move(state_dict, [(f"{prefix}network.{head}", f"{prefix}network.seg_layers.{head}") for head in module._heads])


def _unmark_heads(module: BackboneNetwork, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    _move(state_dict, [(f"{prefix}network.seg_layers.{head}", f"{prefix}network.{head}") for head in module._heads])


def _move(state_dict: dict[str, Any], prefixes: Sequence[tuple[str, str]]) -> None:
    """Rename keys by their beginning, in place."""
    for old, new in prefixes:
        for key in [key for key in state_dict if key.startswith(old)]:
            state_dict[new + key.removeprefix(old)] = state_dict.pop(key)
