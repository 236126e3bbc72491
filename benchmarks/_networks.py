"""The networks that benchmarks.step runs, and the one step that it times."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2_ext import registry
from nnunetv2_ext.errors import InputError

REFERENCE = "PlainConvUNet"
ORACLE = "plain MNet"
REFINED = "PaR"
PRIMUS = "Primus"
CONVFREE = "ConvFreeTransformer"
IN_BLOCKS = f"{CONVFREE}:block"
TOKEN_SIZE = (8, 8, 8)
REFERENCE_STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]
# nnU-Net's PlainConvUNet as it plans it for thick slices
REFERENCE_KWARGS: dict[str, Any] = {
    "n_stages": 5,
    "features_per_stage": [32, 64, 128, 256, 320],
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
    "strides": REFERENCE_STRIDES,
    "n_conv_per_stage": 2,
    "n_conv_per_stage_decoder": 2,
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
_PRIMUS = registry.Entry(PRIMUS, "benchmarks._primus_network.PrimusNetwork", "Primus S")
CHECKPOINTING = ":checkpointing"
Build = Callable[[int, int, Sequence[int]], nn.Module]
"""Makes a network of (input channels, classes, patch), deep supervision on."""


def builder(name: str, token_size: Sequence[int] = TOKEN_SIZE) -> Build:
    """What builds the network called `name`: the oracle, `Primus` in size S, or a network of the grammar, see
    `nnunetv2_ext.registry.find_network`; with `:checkpointing` behind it, with activation checkpointing.

    Args:
        token_size: (z, y, x) in voxels, of the networks that have tokens.

    Raises:
        InputError: none of them.
    """
    if name == ORACLE:
        from tests.architectures.plain_mnet import PlainMNet

        return lambda channels, classes, patch: PlainMNet(channels, classes)
    options = {"activation_checkpointing": True} if name.endswith(CHECKPOINTING) else {}
    name = name.removesuffix(CHECKPOINTING)
    if has_tokens(name):
        return _of_tokens(name, token_size, options)
    named = registry.find_network(name)
    network_class = registry.find("architecture", named.architecture).load()
    if "backbone" in named.kwargs:
        return _around(network_class, named.kwargs["backbone"], options)
    if "backbone" in inspect.signature(network_class).parameters:
        raise InputError(f"the network {name}", f"a backbone, {REFINED} or {REFINED}:BACKBONE", "name what to build")
    return lambda channels, classes, patch: network_class(channels, classes, **options)


def has_tokens(name: str) -> bool:
    """Whether the network cuts its input into tokens, whose size is then to be chosen."""
    return name.removesuffix(CHECKPOINTING) in (CONVFREE, IN_BLOCKS, PRIMUS)


def _of_tokens(name: str, token_size: Sequence[int], options: dict[str, Any]) -> Build:
    options = {"token_size": tuple(token_size), "deep_supervision": True, **options}
    if name == PRIMUS:
        network_class = _PRIMUS.load()
    else:
        named = registry.find_network(name)
        network_class = registry.find("architecture", named.architecture).load()
        options |= named.kwargs
    return lambda channels, classes, patch: network_class(channels, classes, spatial_shape=patch, **options)


def _around(network_class: Any, backbone: str, options: dict[str, Any]) -> Build:
    registry.find("backbone", backbone).load()
    kwargs = REFERENCE_KWARGS if backbone == REFERENCE else {}
    return lambda channels, classes, patch: network_class(
        channels, classes, backbone=backbone, spatial_shape=patch, backbone_kwargs=kwargs, **options
    )


def build(name: str, shape: Sequence[int], classes: int, token_size: Sequence[int] = TOKEN_SIZE) -> nn.Module:
    """The network called `name` in training mode, with weights from a fixed seed."""
    torch.manual_seed(0)
    return builder(name, token_size)(shape[1], classes, shape[2:]).train()


def check_shape(shape: Sequence[int], names: Sequence[str]) -> None:
    """Refuse an input shape (batch, channels, z, y, x) that is not positive, or that PlainConvUNet cannot take if it is
    among the networks, alone or refined.

    Raises:
        InputError: see above.
    """
    divisors = [1, 1, 1]
    rule = "all positive"
    if {REFERENCE, REFINED, f"{REFINED}:{REFERENCE}"} & {name.removesuffix(CHECKPOINTING) for name in names}:
        divisors = torch.tensor(REFERENCE_STRIDES).prod(0).tolist()
        rule += f", z, y, x multiples of {', '.join(map(str, divisors))}, which {REFERENCE} needs"
    if min(shape) < 1 or any(size % divisor for size, divisor in zip(shape[2:], divisors, strict=True)):
        raise InputError(f"--shape {' '.join(map(str, shape))}", f"batch, channels, z, y, x, {rule}", "round the patch")


def step(network: nn.Module, x: Tensor) -> None:
    """Forward and backward with fresh gradients; the loss is the sum over all outputs of their mean square."""
    network.zero_grad(set_to_none=True)
    outputs = network(x)
    sum(output.float().square().mean() for output in outputs).backward()
