"""nnU-Net's own networks, as its planners plan them.

Isensee et al., "nnU-Net", Nature Methods 18, 2021, and "nnU-Net Revisited", MICCAI 2024. Code:
https://github.com/MIC-DKFZ/dynamic-network-architectures (Apache-2.0).
"""

from dataclasses import replace
from typing import Any

from nnunetv2_ext.architectures.backbones.record import Backbone, cumulative, strides_argument

_UNETS = "dynamic_network_architectures.architectures.unet"
# nnU-Net's numbers of blocks per stage, from the first on, the last one repeated
_RESIDUAL_BLOCKS, _PLAIN_CONVOLUTIONS = (1, 3, 4, 6), (2,)


def _repeated(numbers: tuple[int, ...], stages: int) -> list[int]:
    return [numbers[min(stage, len(numbers) - 1)] for stage in range(stages)]


def _unet(strides: list[list[int]], kernel_sizes: list[list[int]], features: list[int]) -> dict[str, Any]:
    """The arguments that nnU-Net's two U-Nets share, as its plans hold them."""
    return {
        "n_stages": len(strides),
        "features_per_stage": features,
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": kernel_sizes,
        "strides": strides,
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def _plain(strides: list[list[int]], kernel_sizes: list[list[int]], features: list[int]) -> dict[str, Any]:
    return {
        **_unet(strides, kernel_sizes, features),
        "n_conv_per_stage": _repeated(_PLAIN_CONVOLUTIONS, len(strides)),
        "n_conv_per_stage_decoder": _repeated(_PLAIN_CONVOLUTIONS, len(strides) - 1),
    }


def _residual(strides: list[list[int]], kernel_sizes: list[list[int]], features: list[int]) -> dict[str, Any]:
    return {
        **_unet(strides, kernel_sizes, features),
        "n_blocks_per_stage": _repeated(_RESIDUAL_BLOCKS, len(strides)),
        "n_conv_per_stage_decoder": [1] * (len(strides) - 1),
    }


_SMALL: dict[str, Any] = {
    **_unet([[1, 1, 1], [1, 2, 2], [2, 2, 2]], [[1, 3, 3], [3, 3, 3], [3, 3, 3]], [4, 6, 8]),
    "n_conv_per_stage_decoder": [1, 1],
    "dropout_op": None,
    "dropout_op_kwargs": None,
}
_PLAIN = Backbone(
    "PlainConvUNet",
    f"{_UNETS}.PlainConvUNet",
    "nnU-Net's own U-Net (Nature Methods 2021)",
    strides=strides_argument,
    outputs=lambda strides: cumulative(strides)[:-1],
    switch="decoder.deep_supervision",
    stages=("encoder.stem", "encoder.stages.*", "decoder.stages.*"),
    planned=_plain,
    small={**_SMALL, "n_conv_per_stage": [1, 1, 1]},
    patches=((6, 20, 16), (2, 12, 28)),
    paper="Isensee et al., Nature Methods 2021",
    source="MIC-DKFZ/dynamic-network-architectures",
    licence="Apache-2.0",
    arguments="planned: stages, features (32 to 320), kernels, strides; 2 convolutions per stage, instance norm, "
    "leaky ReLU",
)
_RESIDUAL = replace(
    _PLAIN,
    name="ResidualEncoderUNet",
    path=f"{_UNETS}.ResidualEncoderUNet",
    summary="nnU-Net's residual encoder, planned for 8 GB",
    full_memory=680e6,
    planned=_residual,
    small={**_SMALL, "n_blocks_per_stage": [1, 1, 1]},
    patches=((6, 20, 16), (10, 4, 20)),
    paper="Isensee et al., MICCAI 2024",
    arguments="planned: the same; 1, 3, 4, 6, 6, ... blocks per stage, 1 convolution per stage of the decoder",
)


def _preset(size: str, summary: str, gigabytes: float, full_memory: float) -> Backbone:
    return replace(
        _RESIDUAL,
        name=f"{_RESIDUAL.name}{size}",
        summary=summary,
        full_memory=full_memory,
        preset_gb=gigabytes,
        arguments="the same",
    )


BACKBONES = (
    _PLAIN,
    _RESIDUAL,
    _preset("M", "the same, nnU-Net's preset M of 8 GB", 8.0, 680e6),
    _preset("L", "nnU-Net's preset L of 24 GB (MICCAI 2024)", 24.0, 2100e6 * 8 / 24),
    _preset("XL", "nnU-Net's preset XL of 40 GB (MICCAI 2024)", 40.0, 3600e6 * 8 / 40),
)
