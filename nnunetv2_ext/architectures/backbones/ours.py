"""Networks written here that can be backbones. Their papers, and what they do otherwise, stand in their files."""

from collections.abc import Callable, Sequence
from typing import Any

from nnunetv2_ext.architectures.backbones.record import (
    Backbone,
    Kwargs,
    Shape,
    cumulative,
    fixed,
    halvings_by_spacing,
    strides_argument,
    triple,
)
from nnunetv2_ext.errors import InputError, is_whole


def _strides_by_spacing(levels: int) -> Callable[[Sequence[float]], dict[str, Any]]:
    """The argument `strides` of a network with so many of them, as plans hold it."""
    return lambda spacing: {"strides": [list(stride) for stride in halvings_by_spacing(spacing, levels)]}


def _transbts_positions(kwargs: Kwargs, patch: Shape) -> dict[str, Shape]:
    divisor = cumulative(strides_argument(kwargs))[-1]
    z, y, x = (size // step for size, step in zip(patch, divisor, strict=True))
    return {"position_encoding.position_embeddings": (z, y, x)}


def _nnformer_levels(kwargs: Kwargs) -> list[Shape]:
    """The voxels of a token, then the strides between the levels."""
    try:
        between = kwargs.get("strides") or [2] * (len(kwargs["depths"]) - 1)
        steps = [triple(step) for step in (kwargs["patch_size"], *between)]
    except (TypeError, ValueError):
        steps = []
    if not steps or min(map(min, steps)) < 1:
        given = ", ".join(f"{name} = {kwargs.get(name)!r}" for name in ("depths", "patch_size", "strides"))
        raise InputError(
            given,
            "a number per level, three (z, y, x) of 1, 2 or 4, and such a stride per level less one",
            "correct them",
        )
    return steps


def _nnformer_strides(kwargs: Kwargs) -> list[Shape]:
    """How far each level shrinks the image; with windows per axis levels of odd numbers of tokens will do."""
    levels = _nnformer_levels(kwargs)
    return levels[:1] if kwargs.get("window_rule") == "per_axis" else levels


def _nnformer_by_spacing(spacing: Sequence[float]) -> dict[str, Any]:
    """Tokens of fewer voxels along coarser axes; where one voxel is a token the first level keeps the axis too."""
    ratios = [mm / min(spacing) for mm in spacing]
    tokens = [4 if ratio < 2 else 2 if ratio < 5 else 1 for ratio in ratios]
    return {"patch_size": tokens, "strides": [[1 if size == 1 else 2 for size in tokens], [2, 2, 2], [2, 2, 2]]}


def patch_stride_argument(kwargs: Kwargs) -> Shape:
    """SegFormer3D's stride of the first level.

    Raises:
        InputError: another one than 1, 2 or 4.
    """
    stride = kwargs["patch_stride"]
    steps = stride if isinstance(stride, list | tuple) else [stride] * 3
    if len(steps) != 3 or not all(is_whole(step) and step in (1, 2, 4) for step in steps):
        raise InputError(f"patch_stride={stride!r}", "1, 2 or 4, one number or three (z, y, x)", "correct it")
    return triple(steps)


def _segformer_by_spacing(spacing: Sequence[float]) -> dict[str, Any]:
    """Tokens of about the same length in mm along every axis: 4 voxels, 2 from twice, 1 from four times the finest."""
    ratios = [mm / min(spacing) for mm in spacing]
    return {"patch_stride": [4 if ratio < 2 else 2 if ratio < 4 else 1 for ratio in ratios]}


def _segformer_minimum(kwargs: Kwargs) -> Shape:
    """What leaves two tokens at the bottleneck, and a whole reduction of the first level's keys."""
    z, y, x = patch_stride_argument(kwargs)
    return 4 * z, 4 * y, 9 * x


_SLIM_STRIDES = [triple(stride) for stride in (4, 2, 2, 2)]


def _mixture(kwargs: Kwargs, patch: Shape) -> tuple[int, int]:
    from nnunetv2_ext.architectures.swinsmt import mixed_tokens  # records are there without PyTorch

    return mixed_tokens(kwargs, patch)


def _slim_positions(kwargs: Kwargs, patch: Shape) -> dict[str, Shape]:
    grid = [size // divisor for size, divisor in zip(patch, cumulative(_SLIM_STRIDES)[-1], strict=True)]
    return {"Encoder.position_embeddings": triple(grid)}


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
        "nnFormer",
        "nnunetv2_ext.architectures.NNFormer",
        "U-shaped transformer of shifted windows (TIP 2023)",
        strides=_nnformer_strides,
        minimum=lambda kwargs: cumulative(_nnformer_levels(kwargs))[-1],
        defaults={"depths": (2, 2, 2, 2), "patch_size": (2, 4, 4)},
        one_voxel=True,
        fixed_size=True,
        outputs=lambda strides: [(1, 1, 1), *cumulative(strides[1:-1])],
        switch="do_ds",
        heads=("final.",),
        planned_by_spacing=_nnformer_by_spacing,
        stages=("model_down.patch_embed", "model_down.layers.*.blocks.*", "decoder.layers.*.blocks.*"),
        small={"embedding_dim": 8, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": [2, 2, 2, 2]},
        patches=((16, 32, 32), (32, 32, 64)),
        random=True,
        paper="Zhou et al., TIP 2023",
        source="282857341/nnFormer",
        licence="MIT",
        parameters="149.58 M",
        parameters_patch=(64, 128, 128),
        arguments="planned: `patch_size` (4, 2, 1 for spacings below 2, below 5, from 5 times the finest), `strides`; "
        "`embedding_dim` 192, `window_size` 4, 4, 8, 4",
    ),
    Backbone(
        "UXNet",
        "nnunetv2_ext.architectures.UXNet",
        "encoder of large depthwise kernels (ICLR 2023)",
        extra="monai",
        rounded_gradients=False,  # as MONAI's own networks
        strides=strides_argument,
        defaults={"strides": (2, 2, 2, 2)},
        planned_by_spacing=_strides_by_spacing(4),
        stages=("uxnet_3d.stages.?", "encoder?", "decoder?"),
        heads=("out.",),
        small={
            "feat_size": [4, 6, 8, 10],
            "hidden_size": 12,
            "depths": [1, 2, 1, 1],
            "strides": [[1, 2, 2], [2, 2, 2], [1, 1, 2], [1, 1, 1]],
        },
        patches=((4, 12, 16), (2, 8, 24)),
        paper="Lee et al., ICLR 2023",
        source="MASILab/3DUX-Net",
        licence="MIT (README, no file)",
        parameters="53.01 M",
        arguments="planned: `strides`, from the spacing; `feat_size` 48, 96, 192, 384, `hidden_size` 768, `depths` 2",
    ),
    Backbone(
        "SegFormer3D",
        "nnunetv2_ext.architectures.SegFormer3D",
        "light hierarchical transformer (CVPR workshops 2024)",
        strides=lambda kwargs: [patch_stride_argument(kwargs)],
        defaults={"patch_stride": 4},
        minimum=_segformer_minimum,
        one_voxel=True,  # of the first level; of the bottleneck the network knows itself
        planned_by_spacing=_segformer_by_spacing,
        stages=("segformer_encoder.tf_block?.*",),
        heads=("segformer_decoder.linear_pred.",),
        small={
            "embed_dims": [4, 8, 8, 12],
            "num_heads": [1, 2, 2, 3],
            "depths": [1, 2, 1, 1],
            "decoder_head_embedding_dim": 8,
            "patch_stride": [1, 2, 4],
        },
        patches=((5, 22, 36), (11, 8, 40), (2, 18, 8)),
        random=True,
        rounded_gradients=False,  # oneDNN's of a depthwise kernel on a smaller map are wrong
        paper="Perera et al., CVPR workshops 2024",
        source="OSUPCVLab/SegFormer3D",
        licence="GPL-3.0",
        parameters="4.49 M",
        arguments="planned: `patch_stride`, from the spacing; `embed_dims` 32, 64, 160, 256, `sr_ratios` 4, 2, 1, 1",
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
            "transformer.net.*",
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
    Backbone(
        "SwinSMT",
        "nnunetv2_ext.architectures.SwinSMT",
        "Swin UNETR with soft mixtures of experts (MICCAI 2024)",
        extra="monai",
        rounded_gradients=False,
        strides=fixed(2, levels=5),
        mixture=_mixture,
        computed="relative_position_index",
        stages=("swinViT.layers?.0", "encoder[0-9]", "encoder10", "decoder?"),
        heads=("out.",),
        small={
            "feature_size": 4,
            "depths": [1, 2, 1, 1],
            "num_heads": [1, 2, 2, 4],
            "window_size": [2, 4, 4],
            "num_experts": 3,
        },
        patches=((32, 32, 64), (64, 32, 32)),
        paper="Plotka et al., MICCAI 2024",
        source="MI2DataLab/SwinSMT",
        licence="none",
        parameters="72.53 M",
        arguments="`feature_size` 48, `window_size` 7, 4 experts in the last 2 stages; `merging` published",
    ),
    Backbone(
        "SlimUNETR",
        "nnunetv2_ext.architectures.SlimUNETR",
        "light blocks with attention to every r-th voxel (IEEE TMI 2024)",
        strides=lambda kwargs: _SLIM_STRIDES,
        fixed_size=True,
        positions=_slim_positions,
        stages=("Encoder.block?", "Decoder.block?"),
        heads=("Decoder.SegHead.",),
        small={"embed_dim": 12, "channels": [4, 8, 10], "blocks": [1, 1, 2, 1], "heads": [1, 2, 2, 4]},
        patches=((32, 32, 64), (64, 32, 32)),
        random=True,
        paper="Pang et al., IEEE TMI 2024",
        source="aigzhusmart/Slim-UNETR",
        licence="MIT",
        parameters="1.78 M",
        parameters_patch=(96, 96, 96),
        arguments="planned: `spatial_shape`, the patch; `embed_dim` 96, `channels` 24, 48, 60",
    ),
)
