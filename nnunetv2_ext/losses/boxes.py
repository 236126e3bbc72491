"""The loss of boxes that are found on three planes: presence, the four sides of each box, masks of the planes.

After Kim et al., "Multi-Stage Hierarchical Feature Extraction for Efficient 3D Medical Image Segmentation", CMC 2025,
who give no loss for their detector. Ours is the quantile regression of the sides: an organ that a box cuts off is lost,
while a box that is a little too large costs a little time, so a side is the 90 % quantile of where the organ may end.
The other choice is that of DETR (Carion et al., ECCV 2020), 5 L1 + 2 GIoU, with the L1 distance of the sides, where
theirs is that of centre and size.

Where voxels are ignored, an organ may go on in them. What is known of it is compared with what it may be at most, and
only that counts in which both agree; a side that both do not share is still drawn outwards to the known foreground.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.losses.thin_thick import full_precision
from nnunetv2_ext.schema import L1_GIOU, PINBALL

TERMS = ("presence", "box", "masks")
_PINBALL_WEIGHT, _L1_WEIGHT, _GIOU_WEIGHT = 10.0, 5.0, 2.0


class Detection(Protocol):
    """What a network finds on one plane, see `nnunetv2_ext.architectures.detector.PlaneDetection`."""

    @property
    def axis(self) -> int: ...
    @property
    def boxes(self) -> Tensor: ...
    @property
    def presence(self) -> Tensor: ...
    @property
    def masks(self) -> Sequence[Tensor]: ...


def sides(organs: Tensor) -> Tensor:
    """The smallest box around each organ: (B, organs, Z, Y, X) bool -> (B, organs, 3, 2), low and high side per axis.

    In shares of the patch: voxel i of n lies between i / n and (i + 1) / n. 0 and 1 where there is no organ.
    """
    found = []
    for axis in (2, 3, 4):
        others = [other for other in (2, 3, 4) if other != axis]
        line = organs.any(others[1]).any(others[0]).byte()  # (B, organs, n); argmax takes the first of equals
        size = line.shape[-1]
        low, high = line.argmax(-1), size - line.flip(-1).argmax(-1)
        found.append(torch.stack([low, high], -1) / size)
    return torch.stack(found, dim=2)


def pinball(predicted: Tensor, target: Tensor, quantile: float) -> Tensor:
    """Quantile loss of sides (..., 2), low and high, outwards: its minimum is that quantile of the targets.

    A side too far inwards costs `quantile` of the distance, one too far outwards the rest of it.
    """
    shortfall = torch.stack([predicted[..., 0] - target[..., 0], target[..., 1] - predicted[..., 1]], dim=-1)
    return torch.maximum(quantile * shortfall, (quantile - 1) * shortfall)


def l1_giou(predicted: Tensor, target: Tensor) -> Tensor:
    """DETR's 5 L1 + 2 GIoU of boxes (N, 2, 2), axes and their low and high sides: (N,)."""
    from torchvision.ops import generalized_box_iou_loss

    # torchvision's order is that of the corners, low ones first; it counts on low <= high
    corners = [boxes.sort(dim=-1).values.mT.flatten(1) for boxes in (predicted, target)]
    distance = (predicted - target).abs().sum((1, 2))
    return _L1_WEIGHT * distance + _GIOU_WEIGHT * generalized_box_iou_loss(*corners)


def mean_of(values: Tensor, counted: Tensor) -> Tensor:
    """The mean of the values that count, 0 where none does; all keep their place in the graph."""
    return (values * counted).sum() / counted.sum().clamp_min(1)


class BoxLoss(nn.Module):
    """Presence + box + masks, the mean over the planes of each.

    - presence: binary cross-entropy, an organ is present where the patch holds a voxel of it.
    - box: of organs that are present, 10 times the pinball loss, summed over the four sides; or 5 L1 + 2 GIoU.
    - masks: Dice of organs that the plane shows and binary cross-entropy, the mean over the decoder's stages; 0 where
      there are none, as in validation. A mask is the label's projection along the plane's axis (view "slabs") or its
      central slice ("central"), pooled to the stage's size by the maximum, so that small organs stay.

    Args:
        box: "pinball" or "l1_giou".
        quantile: of the pinball loss.
        view: how the network sees a plane.
        dice, bce: weights within `masks`.
    """

    def __init__(
        self,
        *,
        box: str = PINBALL,
        quantile: float = 0.9,
        view: str = "slabs",
        dice: float = 1.0,
        bce: float = 1.0,
    ):
        super().__init__()
        if box not in (PINBALL, L1_GIOU):
            raise InputError(f"the loss of boxes '{box}'", f"{PINBALL} or {L1_GIOU}", "correct it")
        self.box, self.quantile, self.central = box, quantile, view == "central"
        self.weights = (dice, bce)

    def forward(
        self, detected: Sequence[Detection], organs: Tensor, ignored: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and its terms, detached.

        Args:
            detected: on the planes; boxes (B, organs, 2, 2), presence (B, organs), masks (B, organs, h, w).
            organs: (B, organs, Z, Y, X) bool, the voxels known to be of each.
            ignored: (B, 1, Z, Y, X) bool, the voxels of which nothing is known.
        """
        possible = organs if ignored is None else (organs | ignored)
        known, most = sides(organs), sides(possible)
        present, maybe = (voxels.flatten(2).any(-1) for voxels in (organs, possible))
        with torch.autocast(organs.device.type, enabled=False):
            terms: dict[str, list[Tensor]] = {term: [] for term in TERMS}
            for plane in detected:
                shown = [axis for axis in range(3) if axis != plane.axis]
                presence = full_precision(plane.presence)
                entropy = F.binary_cross_entropy_with_logits(presence, present.to(presence), reduction="none")
                terms["presence"].append(mean_of(entropy, present == maybe))
                of_boxes = self._of_boxes(full_precision(plane.boxes), known[:, :, shown], most[:, :, shown])
                terms["box"].append(mean_of(of_boxes, present))
                terms["masks"].append(self._of_masks(plane, organs, possible))
            means = {term: torch.stack(of_planes).mean() for term, of_planes in terms.items()}
            total = torch.stack(list(means.values())).sum()
        return total, {term: mean.detach() for term, mean in means.items()}

    def _of_boxes(self, predicted: Tensor, known: Tensor, most: Tensor) -> Tensor:
        """Of each box: (B, organs, 2, 2) -> (B, organs)."""
        known = known.to(predicted)
        too_small = torch.stack([predicted[..., 0] > known[..., 0], predicted[..., 1] < known[..., 1]], dim=-1)
        counts = (known == most.to(known)) | too_small
        # a side that does not count is its own target, without a gradient
        target = torch.where(counts, known, predicted.detach())
        predicted = torch.where(counts, predicted, predicted.detach())
        if self.box == L1_GIOU:
            return l1_giou(predicted.flatten(0, 1), target.flatten(0, 1)).view(predicted.shape[:2])
        return _PINBALL_WEIGHT * pinball(predicted, target, self.quantile).sum((2, 3))

    def _of_masks(self, plane: Detection, organs: Tensor, possible: Tensor) -> Tensor:
        if not plane.masks:
            return plane.boxes.new_zeros((), dtype=full_precision(plane.boxes).dtype)
        shown, perhaps = (self._shown(voxels, plane.axis) for voxels in (organs, possible))
        of_stages = []
        for logits in map(full_precision, plane.masks):
            size = (logits.shape[2], logits.shape[3])
            target, most = (F.adaptive_max_pool2d(image.to(logits), size) for image in (shown, perhaps))
            known = target == most
            entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
            inside = logits.sigmoid() * known
            overlap, area = (inside * target).sum((2, 3)), (target * known).sum((2, 3))
            dice = 1 - 2 * overlap / (inside.sum((2, 3)) + area).clamp_min(1e-5)
            of_dice, of_bce = self.weights
            of_stages.append(of_dice * mean_of(dice, area > 0) + of_bce * mean_of(entropy, known))
        return torch.stack(of_stages).mean()

    def _shown(self, voxels: Tensor, axis: int) -> Tensor:
        """What a plane shows of them: (B, organs, Z, Y, X) -> (B, organs, h, w)."""
        if self.central:
            return voxels.select(2 + axis, voxels.shape[2 + axis] // 2)
        return voxels.any(2 + axis)
