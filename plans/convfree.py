"""ConvFreePlanner: plans for the convolution-free transformer.

Papers: Karimi et al., "Convolution-Free Medical Image Segmentation Using Transformers", MICCAI 2021; Gang, "A Novel
Convolutional-Free Method for 3D Medical Imaging Segmentation", 2025.
"""

from nnunetv2_ext.planning.convfree import DEFAULT_SIZE, PlannerOfTokens
from nnunetv2_ext.planning.options import Option


class ConvFreePlanner(PlannerOfTokens):
    """Plans tokens that are nearly cubes in mm, a patch of whole tokens, and global or windowed attention."""

    architecture = "ConvFreeTransformer"
    trainer = "ConvFreeTrainer"
    plans_name = "ConvFreePlans"

    size = Option(DEFAULT_SIZE, "S, B, L or paper, which implies --post-norm")
    token_size = Option[list[int] | None](
        None,
        "voxels of a token along z, y, x; planned per configuration from its spacing, near a cube in mm",
        int,
        numbers=3,
        metavar="VOXELS",
        shown="planned",
    )
    context = Option(
        "patch",
        "what a token sees, the whole patch, or the papers' block around it, at up to block_tokens^3 times the cost",
    )
    block_tokens = Option(3, "tokens per axis of a block, odd", int)
    post_norm = Option(
        False, "the papers' norm after each sublayer, with learning rate 1e-4 instead of 3e-4", bool, shown="off"
    )
