"""PaR: the post-axial refiner, on the logits of any network.

Paper: Huang et al., "Volumetric Axial Disentanglement Enabling Advancing in Medical Image Segmentation", IJCAI 2025.
Original code: https://github.com/IMOP-lab/PaR-Pytorch; written anew here from the paper's description.

Departures from the original, none of which changes an output of `variant="published_code"`: any axis and size instead
of 96 slices; attention never holds its matrix; on the CPU it is computed in pieces, and convolutions as 2D ones.
`variant="paper"` follows the paper where the code does otherwise (groups along the axis, no second residual).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnunetv2_ext.architectures.backbones.network import BackboneNetwork
from nnunetv2_ext.architectures.contract import Shape
from nnunetv2_ext.architectures.layers import few_features
from nnunetv2_ext.architectures.layers.attention import padded_elements
from nnunetv2_ext.architectures.layers.few_channels import convolved, pointwise
from nnunetv2_ext.architectures.layers.heads import rename_in_state_dict
from nnunetv2_ext.architectures.measure import kept_elements
from nnunetv2_ext.errors import InputError, check_whole, is_whole

VARIANTS = ("paper", "published_code")
FUSIONS = ("add", "multiply", "concat")
GATE_KERNEL = 7


def resolve_heads(length: int, heads: int) -> int:
    """The number of attention heads for features of `length`: its largest divisor not above `heads`."""
    return max(divisor for divisor in range(1, min(heads, length) + 1) if length % divisor == 0)


def resolve_groups(length: int, groups: int) -> int:
    """The number of groups that an axis of `length` slices is cut into.

    From half of `groups` to `groups`, at most one group per two slices, the number that needs the least padding to a
    multiple of two slices per group, the larger on ties.
    """
    most = min(groups, -(-length // 2))
    least = min(-(-groups // 2), most)
    return min(range(most, least - 1, -1), key=lambda number: -length % (2 * number))


def resolved_sizes(length: int, heads: int, groups: int) -> dict[str, int]:
    """What a refiner of that length makes of the asked heads and groups, for plans to tell."""
    resolved = resolve_groups(length, groups)
    return {"heads": resolve_heads(length, heads), "groups": resolved, "padding": -length % (2 * resolved)}


class PDI(nn.Module):
    """Permutative dimensional intensification: attention along each of the other dimensions, vectors along the axis.

    Shapes: (B, C, W, H, D) -> (B, C, W, H, D), W the refined axis.
    """

    # tokens along C, H and D; feature vectors along W
    _ORDERS = ("b w h d c", "b w c d h", "b w c h d")

    def __init__(self, length: int, heads: int):
        super().__init__()
        self.attentions = nn.ModuleList(few_features.SelfAttention(length, heads, order) for order in self._ORDERS)

    def forward(self, y: Tensor) -> Tensor:
        along_c, along_h, along_d = self.attentions
        return along_c(y).add_(along_h(y)).add_(along_d(y))


class SAI(nn.Module):
    """Sequential axial intensification: features, gates on the halves of every group of slices, redistribution.

    Shapes: (B, C, W, H, D) -> (B, C, W, H, D), W the refined axis.
    """

    def __init__(self, channels: int, shape: Sequence[int], groups: int, kernel_size: int, variant: str):
        super().__init__()
        length, height, depth = shape
        self.groups, self.variant = groups, variant
        self.padding = -length % (2 * groups)
        half = (length + self.padding) // (2 * groups)
        inside = max(1, channels // 2)
        self.conv1, self.norm1 = nn.Conv3d(channels, inside, 1), nn.GroupNorm(inside, inside)
        self.conv2 = nn.Conv3d(inside, inside, kernel_size, padding=kernel_size // 2)
        self.norm2 = nn.GroupNorm(inside, inside)
        self.conv3, self.norm3 = nn.Conv3d(inside, channels, 1), nn.GroupNorm(channels, channels)
        self.channel_weight, self.channel_bias = (
            nn.Parameter(torch.ones(1)),
            nn.Parameter(torch.zeros(channels, 1, 1, 1)),
        )
        self.spatial_weight = nn.Parameter(torch.ones(1))
        self.spatial_bias = nn.Parameter(torch.zeros(half, height, depth))
        self.spatial_conv = nn.Conv3d(channels, 1, GATE_KERNEL, padding=GATE_KERNEL // 2, bias=False)

    def forward(self, y: Tensor) -> Tensor:
        features = self._features(y)
        length = features.shape[2]
        padded = features
        if self.padding:
            last = repeat(features[:, :, -1], "b c h d -> b c p h d", p=self.padding)
            padded = torch.cat([features, last], dim=2)
        gated = self._from_groups(self._gated(self._to_groups(padded)), padded.shape[1])
        # W as (groups, slices of a group), swapped
        redistributed = rearrange(gated, "b c (g w) h d -> b c (w g) h d", g=self.groups) + gated
        redistributed = redistributed[:, :, :length]
        return redistributed + features if self.variant == "published_code" else redistributed

    def _features(self, y: Tensor) -> Tensor:
        x = F.relu(self.norm1(pointwise(self.conv1, y)))
        x = F.relu(self.norm2(convolved(self.conv2, x) + x))
        return self.norm3(pointwise(self.conv3, x))

    def _to_groups(self, x: Tensor) -> Tensor:
        """(B, C, W, H, D) -> (B G, C, W / G, H, D)."""
        if self.variant == "paper":
            return rearrange(x, "b c (g w) h d -> (b g) c w h d", g=self.groups)
        batch, channels, length, height, depth = x.shape
        return x.reshape(batch * self.groups, channels, length // self.groups, height, depth)

    def _from_groups(self, x: Tensor, channels: int) -> Tensor:
        """(B G, C, W / G, H, D) -> (B, C, W, H, D)."""
        if self.variant == "paper":
            return rearrange(x, "(b g) c w h d -> b c (g w) h d", g=self.groups)
        batch, length = x.shape[0] // self.groups, x.shape[2] * self.groups
        return x.reshape(batch, channels, length, *x.shape[3:])

    def _gated(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=2)
        pooled = first.amax((2, 3, 4), keepdim=True) + first.mean((2, 3, 4), keepdim=True)
        channel_gate = torch.sigmoid(self.channel_weight * pooled + self.channel_bias)
        spatial_gate = torch.sigmoid(self.spatial_weight * self._spatial(second) + self.spatial_bias)
        return torch.cat([first * channel_gate, second * spatial_gate], dim=2)

    def _spatial(self, x: Tensor) -> Tensor:
        """The convolution of the spatial gate, (B G, C, s, H, D) -> (B G, 1, s, H, D)."""
        return convolved(self.spatial_conv, x)


class PaR(nn.Module):
    """The post-axial refiner of Huang et al. (IJCAI 2025, section 3): y * sigmoid(PDI(y) + SAI(y)) + y.

    Args:
        num_classes: channels of the logits.
        spatial_shape: their size (Z, Y, X); it is part of the weights.
        axis: the refined one, 0, 1 or 2 of the spatial axes; nnU-Net's axis 0 is the coarsest.
        heads: of the attention; the largest divisor of the axis' size not above it is taken.
        groups: of slices along the axis; see `resolve_groups`.
        kernel_size: of the features that the gates see (3 in the paper's figures of cost, odd).
        variant: "paper", or "published_code" where the authors' code does otherwise.
        fusion: of PDI and SAI: "add" (the paper's choice), "multiply", or "concat" with a 1x1x1 convolution.

    Shapes: (B, num_classes, *spatial_shape) -> the same.

    Raises:
        InputError: an argument out of range; in `forward`, logits of another shape.
    """

    def __init__(
        self,
        num_classes: int,
        spatial_shape: Sequence[int],
        *,
        axis: int = 0,
        heads: int = 8,
        groups: int = 8,
        kernel_size: int = 3,
        variant: str = "published_code",
        fusion: str = "add",
    ):
        super().__init__()
        _check_arguments(num_classes, spatial_shape, axis, heads, groups, kernel_size)
        for what, given, known in (("variant", variant, VARIANTS), ("fusion", fusion, FUSIONS)):
            if given not in known:
                raise InputError(f"{what}={given!r}", f"one of {', '.join(known)}", "correct it")
        self.num_classes, self.spatial_shape = num_classes, tuple(int(size) for size in spatial_shape)
        self.axis, self.fusion, self.variant = axis, fusion, variant
        shape = (self.spatial_shape[axis], *self.spatial_shape[:axis], *self.spatial_shape[axis + 1 :])
        self.heads, self.groups = resolve_heads(shape[0], heads), resolve_groups(shape[0], groups)
        self.pdi = PDI(shape[0], self.heads)
        self.sai = SAI(num_classes, shape, self.groups, kernel_size, variant)
        if fusion == "concat":
            self.fusion_conv = nn.Conv3d(2 * num_classes, num_classes, 1)
        self.register_load_state_dict_pre_hook(_check_shapes)

    def feature_map_size(self) -> float:
        """Elements per sample in nnU-Net's measure, half of what is kept for the backward pass on CUDA."""
        logits = (1, self.num_classes, *self.spatial_shape)
        width = self.spatial_shape[self.axis] // self.heads
        # queries, keys, values and results of the three attentions, filled up for CUDA's kernels
        filling = padded_elements(3 * 4 * math.prod(logits), width)
        return (kept_elements(self, logits) + filling) / 2

    def forward(self, y: Tensor) -> Tensor:
        expected = (self.num_classes, *self.spatial_shape)
        if tuple(y.shape[1:]) != expected:
            raise InputError(
                f"logits of {tuple(y.shape[1:])} (channels, z, y, x)",
                f"{expected}, which the refiner was built for",
                "use the patch that was planned, or build the refiner for this one",
            )
        coarse = y.movedim(2 + self.axis, 2)
        # SAI first, since it is then the last in the backward pass, when what PDI keeps is free
        sai = self._intensified(coarse)
        intensity = self._fused(self.pdi(coarse), sai).movedim(2, 2 + self.axis)
        return torch.addcmul(y, y, torch.sigmoid(intensity).to(y.dtype))  # half precision stays half

    def _intensified(self, y: Tensor) -> Tensor:
        """SAI, on the CPU computed again in the backward pass."""
        recompute = few_features.is_meant_for(y) and torch.is_grad_enabled()
        return checkpoint(self.sai, y, use_reentrant=False, preserve_rng_state=False) if recompute else self.sai(y)

    def _fused(self, pdi: Tensor, sai: Tensor) -> Tensor:
        if self.fusion == "concat":
            return pointwise(self.fusion_conv, torch.cat([pdi, sai], dim=1))
        return pdi + sai if self.fusion == "add" else pdi * sai


def _check_shapes(module: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    """Say which weights belong to a refiner of another shape before PyTorch lists them all."""
    for key, own in module.state_dict().items():
        given = state_dict.get(prefix + key)
        if given is not None and given.shape != own.shape:
            raise InputError(
                f"weights of a refiner of another shape ({prefix}{key} is {tuple(given.shape)})",
                f"{tuple(own.shape)}",
                "build the refiner with the classes, size, axis and groups of the weights",
            )


def _check_arguments(
    num_classes: int, spatial_shape: Sequence[int], axis: int, heads: int, groups: int, kernel_size: int
) -> None:
    sizes = tuple(spatial_shape) if isinstance(spatial_shape, Iterable) else (spatial_shape,)
    if len(sizes) != 3 or not all(map(is_whole, sizes)):
        raise InputError(f"spatial_shape={spatial_shape!r}", "three positive whole numbers (z, y, x)", "correct it")
    if isinstance(axis, bool) or axis not in (0, 1, 2):
        raise InputError(f"axis={axis!r}", "0, 1 or 2, one of the spatial axes (z, y, x)", "correct it")
    check_whole(num_classes=num_classes, heads=heads, groups=groups)
    if not is_whole(kernel_size) or kernel_size % 2 == 0:
        raise InputError(f"kernel_size={kernel_size!r}", "an odd number (3 as published)", "correct it")


class PaRNetwork(nn.Module):
    """A backbone and the refiner on its finest logits; other deep-supervision outputs pass as they are.

    Its state dict names the heads so that nnU-Net's `-pretrained_weights`, which leaves out keys with `.seg_layers.`,
    takes them too: what a trained backbone puts in then refines from the first step on.

    Args:
        input_channels: channels of the image.
        num_classes: channels of the logits.
        backbone, spatial_shape, backbone_kwargs, activation_checkpointing, deep_supervision: see `BackboneNetwork`.
        axis, heads, groups, kernel_size, variant, fusion: see `PaR`.

    Shapes: (B, input_channels, *spatial_shape) -> (B, num_classes, *spatial_shape), or a list with deep supervision.

    Raises:
        InputError: what backbone or refiner refuse; in `forward`, a patch of another shape.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        backbone: str,
        spatial_shape: Sequence[int],
        backbone_kwargs: Mapping[str, Any] | None = None,
        axis: int = 0,
        heads: int = 8,
        groups: int = 8,
        kernel_size: int = 3,
        variant: str = "published_code",
        fusion: str = "add",
        activation_checkpointing: bool = False,
        deep_supervision: bool = True,
    ):
        super().__init__()
        self.backbone = BackboneNetwork(
            input_channels,
            num_classes,
            backbone=backbone,
            spatial_shape=spatial_shape,
            backbone_kwargs=backbone_kwargs,
            activation_checkpointing=activation_checkpointing,
            deep_supervision=deep_supervision,
        )
        self.refiner = PaR(
            num_classes,
            spatial_shape,
            axis=axis,
            heads=heads,
            groups=groups,
            kernel_size=kernel_size,
            variant=variant,
            fusion=fusion,
        )
        self.frozen = False
        rename_in_state_dict(self, [(_HEADS, _REFINED_HEADS)])

    @property
    def deep_supervision(self) -> bool:
        return self.backbone.deep_supervision

    @deep_supervision.setter
    def deep_supervision(self, enabled: bool) -> None:
        self.backbone.deep_supervision = enabled

    @property
    def head(self) -> nn.Module:
        """The backbone's, see `BackboneNetwork`."""
        return self.backbone.head

    def freeze_backbone(self) -> None:
        """Train the refiner alone: no gradients in the backbone, and its dropout and statistics as in inference."""
        self.frozen = True
        self.backbone.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "PaRNetwork":
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def deep_supervision_shapes(self, patch_size: Sequence[int]) -> list[Shape]:
        """The true size (Z, Y, X) of every output of the backbone; the first is the refined one.

        Raises:
            InputError: another patch than the network was built for.
        """
        self._check_patch(patch_size)
        return self.backbone.deep_supervision_shapes(patch_size)

    def compute_conv_feature_map_size(self, patch_size: Sequence[int]) -> float:
        """What nnU-Net's planner compares with its reference: the backbone's elements, and those of the refiner."""
        self._check_patch(patch_size)
        return self.backbone.compute_conv_feature_map_size(patch_size) + self.refiner.feature_map_size()

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        self._check_patch(x.shape[2:])
        outputs = self.backbone(x)
        if isinstance(outputs, Tensor):
            return self.refiner(outputs)
        return [self.refiner(outputs[0]), *outputs[1:]]

    def _check_patch(self, patch_size: Sequence[int]) -> None:
        got, expected = tuple(int(size) for size in patch_size), self.refiner.spatial_shape
        if got != expected:
            raise InputError(
                f"a patch of {got}",
                f"{expected}, which the refiner was built for",
                "use the planned patch, or plan with this one",
            )


_HEADS, _REFINED_HEADS = ".seg_layers.", ".refined_layers."


def backbone_state_dict(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A trained backbone's state dict under the keys that it has in a `PaRNetwork`'s.

    Args:
        state_dict: of the network itself, as nnU-Net's checkpoints hold it, or of a `BackboneNetwork` around it.
    """
    renamed = {}
    for key, value in state_dict.items():
        inner = key if key.startswith("network.") else f"network.{key}"
        renamed[f"backbone.{inner}".replace(_HEADS, _REFINED_HEADS)] = value
    return renamed
