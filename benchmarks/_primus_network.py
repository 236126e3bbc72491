"""Primus S of dynamic_network_architectures with any token size, the transformer to compare ConvFreeTransformer with.

Paper: Wald et al., "Primus: Enforcing Attention Usage for 3D Medical Image Segmentation", 2025. It embeds tokens by a
strided convolution and decodes them by transposed ones. Arguments and initialisation are those of nnU-Net's
nnUNet_Primus_S_Trainer, whose tokens are 8 x 8 x 8 always; here they are what they are for ConvFreeTransformer.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from nnunetv2_ext.architectures.measure import kept_elements
from nnunetv2_ext.errors import InputError

# nnUNet_Primus_S_Trainer (nnunetv2 2.8); no register tokens
PRIMUS_S: dict[str, Any] = {
    "embed_dim": 396,
    "eva_depth": 12,
    "eva_numheads": 6,
    "drop_path_rate": 0.2,
    "scale_attn_inner": True,
    "init_values": 0.1,
}


class PrimusNetwork(nn.Module):
    """Primus S with the contract of our networks.

    Args:
        spatial_shape: (z, y, x) of the patch in voxels, the only one that it takes.
        token_size: voxels per axis (z, y, x), powers of two.
        deep_supervision: return a list of the one output.

    Raises:
        InputError: a token size that its decoder cannot take, or that does not divide the patch.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        spatial_shape: Sequence[int],
        token_size: Sequence[int] = (8, 8, 8),
        deep_supervision: bool = True,
    ):
        super().__init__()
        from dynamic_network_architectures.architectures.primus import Primus

        self.input_channels = input_channels
        self.spatial_shape = tuple(int(size) for size in spatial_shape)
        self.deep_supervision = deep_supervision
        if len(token_size) != 3 or any(size < 1 or size & (size - 1) for size in token_size) or max(token_size) < 2:
            raise InputError(
                f"tokens of {list(token_size)} for Primus", "powers of two, not all 1", "plan with --token-size"
            )
        if any(size % token for size, token in zip(self.spatial_shape, token_size, strict=True)):
            raise InputError(
                f"a patch of {list(spatial_shape)}", f"multiples of the token {list(token_size)}", "change one of them"
            )
        self.primus = Primus(
            input_channels,
            patch_embed_size=tuple(token_size),
            num_classes=num_classes,
            input_shape=self.spatial_shape,
            **PRIMUS_S,
        )

    def forward(self, x: Tensor) -> Any:
        """Logits (B, num_classes, Z, Y, X) of images (B, input_channels, Z, Y, X)."""
        logits = self.primus(x)
        return [logits] if self.deep_supervision else logits

    def deep_supervision_shapes(self, patch_size: Sequence[int]) -> list[tuple[int, ...]]:
        """The size of the one output, that of the patch."""
        self._check(patch_size)
        return [self.spatial_shape]

    def compute_conv_feature_map_size(self, patch_size: Sequence[int]) -> float:
        """Half of what training keeps per sample, see `kept_elements`."""
        self._check(patch_size)
        return kept_elements(self, (1, self.input_channels, *self.spatial_shape)) / 2

    def _check(self, patch_size: Sequence[int]) -> None:
        if tuple(patch_size) != self.spatial_shape:
            raise InputError(f"a patch of {list(patch_size)}", f"{list(self.spatial_shape)}", "build Primus for it")
