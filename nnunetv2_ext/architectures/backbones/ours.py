"""Our own networks that can be backbones; each keeps the contract by itself. Their papers stand in their files."""

from nnunetv2_ext.architectures.backbones.record import Backbone, Kwargs, Shape, cumulative, fixed, triple

_SLIM_STRIDES = [triple(stride) for stride in (4, 2, 2, 2)]


def _mixture(kwargs: Kwargs, patch: Shape) -> tuple[int, float]:
    from nnunetv2_ext.architectures.swinsmt import mixture_memory  # records are there without PyTorch

    return mixture_memory(kwargs, patch)


def _slim_positions(kwargs: Kwargs, patch: Shape) -> dict[str, Shape]:
    grid = [size // divisor for size, divisor in zip(patch, cumulative(_SLIM_STRIDES)[-1], strict=True)]
    return {"Encoder.position_embeddings": triple(grid)}


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
        "SwinSMT",
        "nnunetv2_ext.architectures.SwinSMT",
        "Swin UNETR with soft mixtures of experts (MICCAI 2024)",
        extra="monai",
        rounded_gradients=False,
        strides=fixed(2, levels=5),
        mixture=_mixture,
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
