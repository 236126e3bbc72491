"""Any backbone of the list, or of a user, with the contract of a network.

What this file adds to a network: one constructor, deep supervision as a switch, refusal of sizes that cannot work,
nnU-Net's memory count, and heads under the name that nnU-Net's -pretrained_weights leaves out.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from pydoc import ErrorDuringImport, locate
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nnunetv2_ext.architectures.backbones import BACKBONES, DEFAULT_BACKBONE, find_backbone
from nnunetv2_ext.architectures.backbones.record import (
    PLAIN_ELEMENTS,
    Backbone,
    Kwargs,
    Shape,
    cumulative,
    size_rule,
    triple,
)
from nnunetv2_ext.architectures.contract import (
    Initialised,
    Measured,
    Supervised,
    check_patch,
    check_planned,
    three_axes,
)
from nnunetv2_ext.architectures.layers.checkpointing import make_stages
from nnunetv2_ext.architectures.layers.heads import rename_in_state_dict
from nnunetv2_ext.architectures.measure import kept_elements
from nnunetv2_ext.errors import InputError

# arguments that plans give as dotted names, as in nnU-Net's own plans
LOCATED = ("conv_op", "norm_op", "dropout_op", "nonlin", "block")
# what constructors raise on values of which they can build nothing: RuntimeError on sizes below 0, ImportError where
# a value asks for a package that is not there
_REFUSALS = (
    ValueError,
    TypeError,
    AssertionError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    ImportError,
)
# arguments that a constructor of any arguments is given
_ALWAYS = ("input_channels", "num_classes", "deep_supervision", "activation_checkpointing")


def record_of(backbone: str) -> Backbone:
    """The record of a name in the list or of a dotted path.

    Raises:
        InputError: unknown backbone, or no network.
    """
    for known in BACKBONES:
        if backbone in (known.name, known.path, *known.aliases):
            return known
    if "." not in backbone:
        return find_backbone(backbone)
    try:
        network_class = locate(backbone)
    except ErrorDuringImport as error:
        raise InputError(f"the backbone '{backbone}'", "a module that can be imported", f"mend it ({error})") from error
    if not (isinstance(network_class, type) and issubclass(network_class, nn.Module)):
        known_names = ", ".join(known.name for known in BACKBONES)
        raise InputError(
            f"the backbone '{backbone}'", f"one of {known_names}, or the dotted path of a network", "correct it"
        )
    keeps_contract = issubclass(network_class, Supervised)
    like = Backbone("", "", "", switch="deep_supervision") if keeps_contract else find_backbone(DEFAULT_BACKBONE)
    return replace(like, name=backbone, path=backbone, summary="a network of the user")


class BackboneNetwork(nn.Module):
    """Any backbone, with the contract of a network.

    Args:
        input_channels: channels of the image.
        num_classes: channels of the logits.
        backbone: a name in `nnunetv2_ext.architectures.backbones.BACKBONES`, or the dotted path of a class that takes
            nnU-Net's `(input_channels, num_classes, ..., deep_supervision)` and keeps our contract or has the layout
            of nnU-Net's U-Nets (`decoder.deep_supervision`, `decoder.seg_layers`, an argument `strides`).
        spatial_shape: the planned patch (z, y, x) in voxels.
        backbone_kwargs: its own arguments, as JSON holds them: classes as dotted names. They go over the published
            ones. nnU-Net's U-Nets need all of theirs.
        activation_checkpointing: in training compute the backbone's stages again in the backward pass, see
            `layers.checkpointing`; of a network of the user those that its own argument of this name means.
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
        activation_checkpointing: bool = False,
        deep_supervision: bool = True,
    ):
        super().__init__()
        found = record_of(backbone)
        self.backbone = found.name
        self.input_channels, self.num_classes = input_channels, num_classes
        self.spatial_shape = tuple(int(size) for size in spatial_shape)
        network_class = found.load()
        by_itself = "activation_checkpointing" in inspect.signature(network_class).parameters
        arguments = _arguments(
            network_class,
            found.name,
            found.withheld,
            {**found.defaults, **(backbone_kwargs or {})},
            {
                **({"activation_checkpointing": True} if activation_checkpointing and by_itself else {}),
                "input_channels": input_channels,
                "in_channels": input_channels,
                "num_classes": num_classes,
                "out_channels": num_classes,
                "spatial_dims": 3,
                "img_size": self.spatial_shape,
                "spatial_shape": self.spatial_shape,
                "deep_supervision": True,
            },
        )
        strides = found.strides(arguments) if found.strides else []
        self.divisor: Shape = cumulative(strides)[-1] if strides else (1, 1, 1)
        self._output_divisors = found.outputs(strides) if strides else []
        if strides and not self._output_divisors:
            raise InputError(
                f"{found.name} with {len(strides)} stage",
                "two or more, since a U-Net makes its logits on the way up",
                "plan for a larger patch, or correct the architecture in the plans",
            )
        self._one_voxel, self._fixed_size = found.one_voxel, found.fixed_size
        # what is said to do instead of a patch that is refused
        self._least = size_rule(found, arguments)[1] if found.minimum != (1, 1, 1) else (1, 1, 1)
        self._full_memory = found.full_memory
        self._only_in_training, self._heads = found.only_in_training, found.heads
        self._holder, _, self._switch = (found.switch or "").rpartition(".")
        self._counts: dict[tuple[Shape, bool], int] = {}
        if strides:
            self._divided(self.spatial_shape)
        self.network = _built(network_class, arguments, found.name)
        if self._holder and self._holder not in dict(self.network.named_children()):
            raise InputError(
                f"the backbone {found.name} without deep_supervision_shapes or a {self._holder}",
                "our contract of a network, or nnU-Net's layout of a U-Net",
                "see docs/how-to-add-an-architecture.md",
            )
        self._checked(self.spatial_shape)
        for name, parameter in self.network.named_parameters():
            if found.never_used and found.never_used in name:
                parameter.requires_grad_(False)
        self.activation_checkpointing = activation_checkpointing
        self._by_stages = activation_checkpointing and not by_itself
        if self._by_stages and not make_stages(self.network, found.stages):
            raise InputError(
                f"activation_checkpointing for the backbone {found.name}, of which no stages are known",
                "a backbone of the list, or a network with an argument of that name",
                "leave it out, or let the network take that argument",
            )
        if self._heads:
            rename_in_state_dict(self, [(f"network.{head}", f"network.seg_layers.{head}") for head in self._heads])
        self.deep_supervision = deep_supervision

    @property
    def head(self) -> nn.Module:
        """The layer that makes the finest logits, whose input is the last feature map.

        Where the network ends with more than one layer after its last feature map, the last one.
        """
        own = getattr(self.network, "head", None)
        if isinstance(own, nn.Module):
            return own
        if self._heads:
            finest = self.network.get_submodule(self._heads[0].removesuffix("."))
            return [module for module in finest.modules() if isinstance(module, nn.Conv3d | nn.ConvTranspose3d)][-1]
        head: nn.Module = self.network.decoder.seg_layers[-1]
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
        if isinstance(self.network, Supervised):
            return self.network.deep_supervision_shapes(sizes)
        return [triple([s // d for s, d in zip(sizes, divisor, strict=True)]) for divisor in self._output_divisors]

    def compute_conv_feature_map_size(self, patch_size: Sequence[int]) -> int:
        """What nnU-Net's planner compares with its reference: elements per sample.

        The network's own count where it has one, in units of PlainConvUNet's where nnU-Net has another reference for
        it; else, and where stages are computed again, half of `kept_elements`, which is the same measure.

        Raises:
            InputError: a patch that the backbone cannot take.
        """
        sizes = self._checked(patch_size)
        if isinstance(self.network, Measured) and not self._by_stages:
            return int(self.network.compute_conv_feature_map_size(sizes) * PLAIN_ELEMENTS / self._full_memory)
        key = sizes, self.deep_supervision
        if key not in self._counts:
            self._counts[key] = round(kept_elements(self.network, (1, self.input_channels, *sizes)) / 2)
        return self._counts[key]

    def _checked(self, patch_size: Sequence[int]) -> Shape:
        """The patch as integers.

        Raises:
            InputError: a patch that the backbone cannot take, with the nearest sizes that would do.
        """
        sizes = self._divided(patch_size) if self._output_divisors else three_axes(patch_size)
        if isinstance(self.network, Supervised):
            self.network.deep_supervision_shapes(sizes)
        return sizes

    def _divided(self, patch_size: Sequence[int]) -> Shape:
        """The patch as integers, if its levels can be halved as the strides tell.

        Raises:
            InputError: they cannot, with the nearest sizes that would do, or the network is built for another patch.
        """
        sizes = check_patch(self.backbone, patch_size, self.divisor, one_voxel=self._one_voxel, least=self._least)
        if self._fixed_size:
            check_planned(self.backbone, sizes, self.spatial_shape)
        return sizes


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
        filled = {key: filled[key] for key in _ALWAYS if key in filled}
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
        # here and not by nnU-Net, which would apply it to what is built around the backbone too
        initialise = network.initialize if isinstance(network, Initialised) else None
        if initialise is not None:
            network.apply(initialise)
    except InputError:
        raise
    except _REFUSALS as error:
        values = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise InputError(f"{name}({values})", "arguments that it takes", f"correct them: {error}") from error
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
