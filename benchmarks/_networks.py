"""The networks that benchmarks.step runs, and the one step that it times."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunetv2_ext import registry
from nnunetv2_ext.errors import InputError

REFERENCE = "PlainConvUNet"
ORACLE = "plain MNet"
REFERENCE_STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]


def reference(input_channels: int, classes: int) -> nn.Module:
    """nnU-Net's PlainConvUNet as it plans it for thick slices, deep supervision on."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    return PlainConvUNet(
        input_channels=input_channels,
        n_stages=5,
        features_per_stage=[32, 64, 128, 256, 320],
        conv_op=nn.Conv3d,
        kernel_sizes=[[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
        strides=REFERENCE_STRIDES,
        n_conv_per_stage=2,
        num_classes=classes,
        n_conv_per_stage_decoder=2,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )


def network_class(name: str):
    """What builds the network called `name`: a callable of (input channels, classes).

    Raises:
        InputError: neither the reference, the oracle nor a registered architecture.
    """
    if name == REFERENCE:
        return reference
    if name == ORACLE:
        from tests.architectures.plain_mnet import PlainMNet

        return PlainMNet
    return registry.find("architecture", name).load()


def build(name: str, shape: Sequence[int], classes: int) -> nn.Module:
    """The network called `name` in training mode, with weights from a fixed seed."""
    torch.manual_seed(0)
    return network_class(name)(shape[1], classes).train()


def check_shape(shape: Sequence[int]) -> None:
    """Refuse an input shape (batch, channels, z, y, x) that the reference cannot take.

    Raises:
        InputError: not positive, or axes that the reference's strides do not divide.
    """
    total = torch.tensor(REFERENCE_STRIDES).prod(0).tolist()
    indivisible = any(size % stride for size, stride in zip(shape[2:], total, strict=True))
    if min(shape) < 1 or indivisible:
        multiples = ", ".join(str(stride) for stride in total)
        raise InputError(
            f"--shape {' '.join(map(str, shape))}",
            f"batch, channels, z, y, x, all positive, z, y, x multiples of {multiples}, which {REFERENCE} needs",
            "round the patch",
        )


def step(network: nn.Module, x: Tensor) -> None:
    """Forward and backward with fresh gradients; the loss is the sum over all outputs of their mean square."""
    network.zero_grad(set_to_none=True)
    outputs = network(x)
    sum(output.float().square().mean() for output in outputs).backward()
