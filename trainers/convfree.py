"""ConvFreeTrainer: trains the convolution-free transformer.

Papers: Karimi et al., "Convolution-Free Medical Image Segmentation Using Transformers", MICCAI 2021, and Gang, "A Novel
Convolutional-Free Method for 3D Medical Imaging Segmentation", 2025.
"""

from typing import Any, ClassVar

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunetv2_ext.architectures.convfree import ConvFreeTransformer
from nnunetv2_ext.geometry.tokens import token_size_for
from nnunetv2_ext.training.trainer import ExtTrainer


class ConvFreeTrainer(ExtTrainer):
    """Trains the transformer on ConvFreePlans, or on any 3D plans in size S with tokens that divide their patch."""

    network_class = ConvFreeTransformer
    # ours, for pre-norm layers: the papers' post-norm does not learn at this rate, and its plans say 1e-4
    published_block: ClassVar[dict[str, Any]] = {
        "optimizer": {"name": "AdamW", "lr": 3e-4},
        "scheduler": {"name": "warmup_poly"},
        "grad_clip": 1.0,
    }

    @classmethod
    def network_kwargs(cls, configuration: ConfigurationManager) -> dict[str, Any]:
        patch_size = configuration.patch_size
        return {"spatial_shape": patch_size, "token_size": token_size_for(configuration.spacing, patch_size)}
