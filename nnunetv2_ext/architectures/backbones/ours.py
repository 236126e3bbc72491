"""Our own networks that can be backbones; each keeps the contract by itself. Their papers stand in their files."""

from collections.abc import Sequence
from typing import Any

from nnunetv2_ext.architectures.backbones.record import (
    Backbone,
    Kwargs,
    Shape,
    halvings_by_spacing,
    strides_argument,
    triple,
)
from nnunetv2_ext.errors import InputError


def _patch_stride(kwargs: Kwargs) -> Shape:
    """SegFormer3D's stride of the first level."""
    try:
        stride = triple(kwargs["patch_stride"])
        if min(stride) < 1:
            raise ValueError("a stride below 1")
        return stride
    except (TypeError, ValueError) as error:
        raise InputError(
            f"patch_stride={kwargs['patch_stride']!r} in backbone_kwargs",
            "1, 2 or 4, one number or three (z, y, x)",
            "correct it",
        ) from error


def _segformer_by_spacing(spacing: Sequence[float]) -> dict[str, Any]:
    """Tokens of about the same length in mm along every axis: 4 voxels, 2 from twice, 1 from four times the finest."""
    ratios = [mm / min(spacing) for mm in spacing]
    return {"patch_stride": [4 if ratio < 2 else 2 if ratio < 4 else 1 for ratio in ratios]}


def _segformer_minimum(kwargs: Kwargs) -> Shape:
    """What leaves two tokens at the bottleneck, and a whole reduction of the first level's keys."""
    z, y, x = _patch_stride(kwargs)
    return 4 * z, 4 * y, 9 * x


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
        "UXNet",
        "nnunetv2_ext.architectures.UXNet",
        "encoder of large depthwise kernels (ICLR 2023)",
        extra="monai",
        rounded_gradients=False,  # as MONAI's own networks
        strides=strides_argument,
        defaults={"strides": (2, 2, 2, 2)},
        planned_by_spacing=lambda spacing: {"strides": [list(stride) for stride in halvings_by_spacing(spacing, 4)]},
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
        strides=lambda kwargs: [_patch_stride(kwargs)],
        defaults={"patch_stride": 4},
        minimum=_segformer_minimum,
        one_voxel=True,  # of the first level; of the bottleneck the network knows itself
        planned_by_spacing=_segformer_by_spacing,
        stages=("segformer_encoder.tf_block?.?", "segformer_encoder.tf_block?.??"),
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
)
