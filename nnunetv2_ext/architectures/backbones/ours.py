"""Our own networks that can be backbones. Their papers stand in their files."""

from collections.abc import Callable, Sequence
from typing import Any

from nnunetv2_ext.architectures.backbones.record import (
    Backbone,
    Kwargs,
    Shape,
    cumulative,
    halvings_by_spacing,
    strides_argument,
)


def _strides_by_spacing(levels: int) -> Callable[[Sequence[float]], dict[str, Any]]:
    """The argument `strides` of a network with so many of them, as plans hold it."""
    return lambda spacing: {"strides": [list(stride) for stride in halvings_by_spacing(spacing, levels)]}


def _transbts_positions(kwargs: Kwargs, patch: Shape) -> dict[str, Shape]:
    divisor = cumulative(strides_argument(kwargs))[-1]
    z, y, x = (size // step for size, step in zip(patch, divisor, strict=True))
    return {"position_encoding.position_embeddings": (z, y, x)}


# gradients of convolutions in bfloat16 on the CPU, unwritten in places by oneDNN, cannot be looked at: monai.py
BACKBONES = (
    Backbone(
        "MNet",
        "nnunetv2_ext.architectures.MNet",
        "2D and 3D streams fused in a 5 x 5 mesh (IJCAI 2022)",
        switch="deep_supervision",
        minimum=(1, 16, 32),
        trainer="MNetTrainer",
        small={"features_per_stage": [4, 6, 8, 10, 12]},
        patches=((5, 33, 32), (3, 37, 32), (17, 32, 35)),
        paper="Dong et al., IJCAI 2022",
        parameters="8.78 M",
    ),
    Backbone(
        "TransBTS",
        "nnunetv2_ext.architectures.TransBTS",
        "residual U-Net with a transformer at the bottom (MICCAI 2021)",
        defaults={"strides": ((2, 2, 2),) * 3},
        strides=strides_argument,
        fixed_size=True,
        heads=("endconv.",),
        planned_by_spacing=_strides_by_spacing(3),
        stages=(
            "Unet.EnBlock?",
            "Unet.EnBlock?_?",
            "transformer.net.?",
            "transformer.net.??",
            "Enblock8_?",
            "DeBlock?",
        ),
        unused=("linear_encoding.", "pre_head_ln."),
        positions=_transbts_positions,
        small={
            "base_channels": 2,
            "groups": 2,
            "hidden_dim": 24,
            "num_heads": 4,
            "num_layers": 1,
            "initial_dropout": 0.0,
            "dropout": 0.0,
            "strides": [[1, 2, 2], [2, 2, 2], [2, 2, 2]],
        },
        patches=((8, 16, 24), (4, 8, 24)),
        random=True,
        rounded_gradients=False,
        paper="Wang et al., MICCAI 2021",
        source="Rubics-Xuan/TransBTS",
        licence="Apache-2.0",
        parameters="31.51 M",
        parameters_patch=(96, 96, 96),
        arguments="planned: `strides`, `spatial_shape`; `base_channels` 16, `hidden_dim` 4096, 4 layers of 8 heads",
    ),
    Backbone(
        "MultiResUNet",
        "nnunetv2_ext.architectures.MultiResUNet",
        "U-Net of multi-resolution blocks and residual paths (Neural Networks 2020)",
        defaults={"strides": ((2, 2, 2),) * 4},
        strides=strides_argument,
        heads=("conv_final.",),
        planned_by_spacing=_strides_by_spacing(4),
        stages=("multiresblock?", "respath?"),
        small={"base": 4, "strides": [[1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2]]},
        patches=((4, 16, 32), (8, 32, 16)),
        random=True,
        rounded_gradients=False,
        paper="Ibtehaz and Rahman, Neural Networks 2020",
        source="nibtehaz/MultiResUNet",
        licence="MIT",
        parameters="18.65 M",
        arguments="planned: `strides`; `base` 32, `alpha` 1.67",
    ),
)
