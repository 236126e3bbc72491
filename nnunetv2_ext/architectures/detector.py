"""ROIDetector: boxes of organs from three 2D views of a volume, written as logits of the volume.

Paper: Kim et al., "Multi-Stage Hierarchical Feature Extraction for Efficient 3D Medical Image Segmentation", CMC 2025,
section 3.1: a detector finds a box on the three central slices, in which a segmentor works. No code was published; the
backbone, the number of stages, widths and how three boxes become one are not given. Written from the paper's words.

From the paper: a module per plane with weights of its own, a residual backbone, encoder and decoder stages of
deformable attention (`layers/deformable.py`), the pooled head (`head="pooled"`), central slices (`view="central"`).

Ours: slabs as view (an organ need not meet the central slice), group norm (a batch of 2), the head of extents, one box
of the volume by the union of the planes', masks as an output of training (the paper feeds in a mask, which does not
exist at prediction), logits of the volume. The backbone is torchvision's, without weights.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from nnunetv2_ext.architectures.contract import Shape, check_patch
from nnunetv2_ext.architectures.layers.deformable import DeformableAttention, pixel_places
from nnunetv2_ext.architectures.layers.position import axial_code
from nnunetv2_ext.architectures.measure import kept_elements
from nnunetv2_ext.errors import InputError, check_whole

SLABS = 8
VIEWS = {"slabs": 2 * SLABS, "central": 1}
"""Channels of a view per channel of the image."""
LIMIT = 10.0
"""Logits lie within plus and minus this."""
AXES = (0, 1, 2)
_BACKBONE_WIDTH, _BACKBONE_STRIDE, _GROUPS = 64, 4, 16


class PlaneDetection(NamedTuple):
    """What the module of one plane found."""

    axis: int
    """The normal axis of the view: 0 z, 1 y, 2 x."""
    boxes: Tensor
    """(B, organs, 2, 2): along the plane's two axes, in their order, low and high border in shares [0, 1] of the input.
    An untrained network may have them the wrong way round, the pooled head may place them a little outside."""
    presence: Tensor
    """(B, organs), logits."""
    masks: list[Tensor]
    """In training (B, organs, h, w), logits, one per decoder stage, fine to coarse; else none."""


class ROIDetector(nn.Module):
    """One box per foreground class (or region) from three planes, as logits of the volume.

    Each plane's view, resized to `size` x `size`, runs through F_0 = the backbone (stride 4), stages i = 1..M

        F_i = attend(down(F_{i-1}) -> F_0..F_{i-1}, itself),

    their mirror image F'_M = attend(F_M -> itself, F_M), F'_j = attend(merge(up(F'_{j+1}), F_j) -> itself, F_j), and a
    head on F'_0. Along each axis of the volume the box is the union of the two planes that show it; presence is the
    mean of the three. The logit of a class is

        min(distance to the box, presence) within +-10;

    the distance, in voxels, is that of a voxel's centre to the nearest face inside the box, and minus the largest
    distance along an axis outside. Background is minus the largest of the others; with regions there is none. Organs
    of one class share one box.

    Args:
        view: "slabs": the normal axis in 8 slabs, mean and maximum of each; "central": the slice in the middle.
        head: "extent": a softmax along each axis places every border; "pooled": centre and size from the mean of F'_0.
        regions: every head is a region, none the background.
        size: of the views in pixels, a multiple of 4 x 2^stages.
        stages: M.
        heads: of the attention.
        points: per head and level at which attention looks.
        deep_supervision: return a list of the one output.

    Raises:
        InputError: arguments that do not fit each other.
    """

    detected: tuple[PlaneDetection, ...]
    """Of the last forward pass, one per plane."""

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        view: str = "slabs",
        head: str = "extent",
        regions: bool = False,
        deep_supervision: bool = False,
        size: int = 128,
        features: int = 128,
        stages: int = 3,
        heads: int = 8,
        points: int = 4,
    ):
        super().__init__()
        check_whole(size=size, features=features, stages=stages, heads=heads, points=points)
        _check_arguments(num_classes, view, head, regions, size, features, stages, heads)
        self.input_channels = input_channels
        self.view, self.size, self.regions = view, size, regions
        self.deep_supervision = deep_supervision
        organs = num_classes - (not regions)
        self.planes = nn.ModuleList(
            _Plane(VIEWS[view] * input_channels, organs, features, stages, heads, points) for _ in AXES
        )
        self.boxes = _Boxes(HEADS[head], features, organs)
        self.detected = ()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"detected": ()}  # tensors of a graph can be neither copied nor sent

    @property
    def head(self) -> nn.Module:
        """The layers whose input, (B, planes, features, h, w), is the last feature map of every plane."""
        return self.boxes

    @property
    def auxiliary_outputs(self) -> list[Tensor]:
        """All that the last forward pass detected, which a loss may read beside the logits."""
        return [tensor for plane in self.detected for tensor in (plane.boxes, plane.presence, *plane.masks)]

    def forward(self, x: Tensor) -> Any:
        """Logits (B, num_classes, Z, Y, X) of images (B, input_channels, Z, Y, X) of any size.

        Raises:
            InputError: an image of another number of axes, or an empty one.
        """
        patch = self._patch(x.shape[2:])
        planes = [plane(self._seen(x, axis)) for axis, plane in enumerate(self.planes)]
        features, masks = zip(*planes, strict=True)
        boxes, presence = self.boxes(torch.stack(features, 1))
        self.detected = tuple(PlaneDetection(axis, boxes[:, axis], presence[:, axis], masks[axis]) for axis in AXES)
        logits = box_logits(_union(boxes), presence.mean(1), patch)
        if not self.regions:
            logits = torch.cat([-logits.amax(1, keepdim=True), logits], 1)
        return [logits] if self.deep_supervision else logits

    def _seen(self, x: Tensor, axis: int) -> Tensor:
        """The view along an axis: (B, C, Z, Y, X) -> (B, channels, size, size)."""
        volume = x.movedim(2 + axis, 2)
        image = slabs_of(volume) if self.view == "slabs" else volume[:, :, volume.shape[2] // 2]
        return F.interpolate(image, (self.size, self.size), mode="bilinear", align_corners=False)

    def _patch(self, patch_size: Sequence[int]) -> Shape:
        return check_patch(type(self).__name__, patch_size, (1, 1, 1), one_voxel=True)

    def deep_supervision_shapes(self, patch_size: Sequence[int]) -> list[Shape]:
        """The size of the one output, that of the patch.

        Raises:
            InputError: a patch of another number of axes, or an empty one.
        """
        return [self._patch(patch_size)]

    def compute_conv_feature_map_size(self, patch_size: Sequence[int]) -> float:
        """Half of what training keeps per sample, see `kept_elements`; most of it does not depend on the patch.

        Raises:
            InputError: a patch of another number of axes, or an empty one.
        """
        return kept_elements(self, (1, self.input_channels, *self._patch(patch_size))) / 2


def slabs_of(volume: Tensor) -> Tensor:
    """Mean and maximum of 8 slabs, nearly as thick as each other: (B, C, N, h, w) -> (B, 16 C, h, w).

    Of fewer than 8 slices some are slabs more than once.
    """
    slices = volume.shape[2]
    starts = [number * slices // SLABS for number in range(SLABS + 1)]
    slabs = [volume[:, :, start : max(end, start + 1)] for start, end in pairwise(starts)]
    return torch.cat([slab.mean(2) for slab in slabs] + [slab.amax(2) for slab in slabs], 1)


def _union(boxes: Tensor) -> Tensor:
    """The box of the volume that holds those of the three planes: (B, 3, organs, 2, 2) -> (B, organs, 3, 2)."""
    borders = []
    for axis in AXES:
        # an axis is that of the other two planes; of a plane's axes it is the first or the second
        seen = [boxes[:, plane, :, axis - (axis > plane)] for plane in AXES if plane != axis]
        one, other = (border.unbind(-1) for border in seen)
        borders.append(torch.stack([torch.minimum(one[0], other[0]), torch.maximum(one[1], other[1])], -1))
    return torch.stack(borders, 2)


def box_logits(boxes: Tensor, presence: Tensor, patch_size: Sequence[int]) -> Tensor:
    """Logits (B, organs, Z, Y, X) of boxes (B, organs, 3, 2) in shares and presence (B, organs), see `ROIDetector`."""
    distances = []
    for axis, length in enumerate(patch_size):
        centres = torch.arange(length, device=boxes.device, dtype=boxes.dtype) + 0.5
        low, high = (length * boxes[:, :, axis]).unsqueeze(-1).unbind(-2)
        distances.append(torch.minimum(centres - low, high - centres).clamp(-LIMIT, LIMIT))
    along_z, along_y, along_x = distances
    along_z = torch.minimum(along_z, presence.clamp(-LIMIT, LIMIT)[..., None])
    in_slice = torch.minimum(along_y[..., :, None], along_x[..., None, :])
    return torch.minimum(along_z[..., None, None], in_slice[:, :, None])


class _Plane(nn.Module):
    """The module of one plane: backbone, encoder, decoder, and masks of every stage; without the boxes."""

    def __init__(self, channels: int, organs: int, features: int, stages: int, heads: int, points: int):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(channels, _BACKBONE_WIDTH, 7, stride=2, padding=3, bias=False),
            _group_norm(_BACKBONE_WIDTH),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
            *(BasicBlock(_BACKBONE_WIDTH, _BACKBONE_WIDTH, norm_layer=_group_norm) for _ in range(2)),
            nn.Conv2d(_BACKBONE_WIDTH, features, 1),
        )
        self.downs = nn.ModuleList(_down(features) for _ in range(stages))
        self.encoders = nn.ModuleList(_Layer(features, heads, points, [1 + i]) for i in range(1, stages + 1))
        self.merges = nn.ModuleList(nn.Conv2d(2 * features, features, 1) for _ in range(stages))
        self.decoders = nn.ModuleList(_Layer(features, heads, points, [1, 1]) for _ in range(stages + 1))
        self.seg_layers = nn.ModuleList(nn.Conv2d(features, organs, 1) for _ in range(stages + 1))

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, channels, size, size) -> F'_0, (B, features, size / 4, size / 4), and the masks, in training only."""
        levels = [self.backbone(image)]
        for down, encoder in zip(self.downs, self.encoders, strict=True):
            x = down(levels[-1])
            levels.append(encoder(x, [*levels, x]))
        x = levels[-1]
        decoded = [self.decoders[-1](x, [x], [x])]
        for level, merge, decoder in list(zip(levels[:-1], self.merges, self.decoders[:-1], strict=True))[::-1]:
            above = F.interpolate(decoded[0], level.shape[2:], mode="bilinear", align_corners=False)
            x = merge(torch.cat([above, level], 1))
            decoded.insert(0, decoder(x, [x], [level]))
        masks = [layer(x) for layer, x in zip(self.seg_layers, decoded, strict=True)] if self.training else []
        return decoded[0], masks


class _Layer(nn.Module):
    """A map's pixels attend to groups of maps, one after the other, then a feed-forward network; norms after each."""

    def __init__(self, features: int, heads: int, points: int, levels: Sequence[int]):
        super().__init__()
        self.code = nn.Parameter(torch.zeros(features))  # tells the stage, beside the places' own code
        self.attentions = nn.ModuleList(
            DeformableAttention(features, levels=number, heads=heads, points=points) for number in levels
        )
        self.norms = nn.ModuleList(nn.LayerNorm(features) for _ in levels)
        self.feed_forward = nn.Sequential(
            nn.Linear(features, 4 * features), nn.ReLU(inplace=True), nn.Linear(4 * features, features)
        )
        self.last_norm = nn.LayerNorm(features)

    def forward(self, x: Tensor, *groups: Sequence[Tensor]) -> Tensor:
        """(B, D, h, w) -> (B, D, h, w); a group of maps for each attention."""
        height, width = x.shape[2:]
        places = pixel_places(height, width, self.code)
        code = axial_code((height, width), self.code) + self.code
        x = x.flatten(2).mT
        for attention, norm, maps in zip(self.attentions, self.norms, groups, strict=True):
            x = norm(x + attention(x + code, places, maps))
        x = self.last_norm(x + self.feed_forward(x))
        # in the layout of the weights: gradients of the next depth-wise kernel have that of its input
        return x.mT.unflatten(2, (height, width)).contiguous()


class _Boxes(nn.Module):
    """The head of every plane; `seg_layers` is the name that nnU-Net's -pretrained_weights leaves out."""

    def __init__(self, of_plane: type[nn.Module], features: int, organs: int):
        super().__init__()
        self.seg_layers = nn.ModuleList(of_plane(features, organs) for _ in AXES)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, planes, D, h, w) -> boxes (B, planes, organs, 2, 2), presence (B, planes, organs)."""
        found = [layer(of_plane) for layer, of_plane in zip(self.seg_layers, features.unbind(1), strict=True)]
        boxes, presence = (torch.stack(tensors, 1) for tensors in zip(*found, strict=True))
        return boxes, presence


class _ExtentHead(nn.Module):
    """Borders as expectations: along each axis, a softmax of the maximum over the other one."""

    def __init__(self, features: int, organs: int):
        super().__init__()
        self.maps = nn.Conv2d(features, 4 * organs, 1)
        self.presence = nn.Linear(features, organs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D, h, w) -> boxes (B, organs, 2, 2), presence (B, organs)."""
        maps = _full(rearrange(self.maps(x), "b (o a side) h w -> a b o side h w", a=2, side=2))
        borders = [_expected(maps[0].amax(-1)), _expected(maps[1].amax(-2))]
        return torch.stack(borders, 2), _full(self.presence(x.mean((2, 3))))


class _PooledHead(nn.Module):
    """The paper's: a feed-forward network on the mean of the map gives centre and size."""

    def __init__(self, features: int, organs: int):
        super().__init__()
        self.box = nn.Sequential(nn.Linear(features, features), nn.ReLU(inplace=True), nn.Linear(features, 4 * organs))
        self.presence = nn.Linear(features, organs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D, h, w) -> boxes (B, organs, 2, 2), presence (B, organs)."""
        pooled = x.mean((2, 3))
        shares = _full(self.box(pooled)).sigmoid()
        centre, size = rearrange(shares, "b (o a value) -> value b o a", a=2, value=2)
        return torch.stack([centre - size / 2, centre + size / 2], -1), _full(self.presence(pooled))


HEADS: dict[str, type[nn.Module]] = {"extent": _ExtentHead, "pooled": _PooledHead}


def _expected(lines: Tensor) -> Tensor:
    """The expected low border of a pixel and high border of another: (B, organs, 2, n) -> (B, organs, 2)."""
    pixels = lines.shape[-1]
    low = torch.arange(pixels, device=lines.device, dtype=lines.dtype) / pixels
    borders = torch.stack([low, low + 1 / pixels])
    return (lines.softmax(-1) * borders).sum(-1)


def _full(x: Tensor) -> Tensor:
    """At least float32, also under autocast: a box is a place."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _group_norm(width: int) -> nn.Module:
    return nn.GroupNorm(_GROUPS, width)


def _down(features: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(features, features, 3, stride=2, padding=1, groups=features),
        nn.Conv2d(features, features, 1),
        nn.GroupNorm(1, features),
    )


def _check_arguments(
    num_classes: int, view: str, head: str, regions: bool, size: int, features: int, stages: int, heads: int
) -> None:
    for name, value, known in (("view", view, VIEWS), ("head", head, HEADS)):
        if value not in known:
            raise InputError(f"{name}={value!r}", f"one of {', '.join(known)}", "correct it")
    if num_classes - (not regions) < 1:
        raise InputError(f"{num_classes} classes", "background and one class or more", "set regions, or add a class")
    if features % heads:
        raise InputError(f"features={features} with heads={heads}", "a multiple of the heads", "correct either")
    divisor = _BACKBONE_STRIDE * 2**stages
    if size % divisor:
        nearest = " or ".join(str(near) for near in (size // divisor * divisor, -(-size // divisor) * divisor) if near)
        raise InputError(f"size={size} with {stages} stages", f"a multiple of {divisor}", f"choose {nearest}")
