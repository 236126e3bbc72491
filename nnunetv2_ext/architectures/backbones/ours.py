"""Our own networks that can be backbones; each keeps the contract by itself. Their papers stand in their files."""

from collections.abc import Sequence
from typing import Any

from nnunetv2_ext.architectures.backbones.record import Backbone, Kwargs, Shape, cumulative, triple
from nnunetv2_ext.errors import InputError


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
        heads=("final.0.", "final.1.", "final.2."),
        planned_by_spacing=_nnformer_by_spacing,
        stages=("model_down.patch_embed", "model_down.layers.?.blocks.?", "decoder.layers.?.blocks.?"),
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
)
