"""Our own networks that can be backbones; each keeps the contract by itself. Their papers stand in their files."""

from nnunetv2_ext.architectures.backbones.record import Backbone

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
)
