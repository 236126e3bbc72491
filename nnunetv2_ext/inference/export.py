"""From a network's logits to labels and probabilities on the image's grid, block by block.

The result is that of nnU-Net 2.8's `convert_predicted_logits_to_segmentation_with_correct_shape`, and for several
members that of its `average_probabilities`, without ever holding every class on the whole grid:

* Linear interpolation is separable, so that a block of the image needs a block of logits, an axis at a time.
* Interpolated values lie between those that they come from. So a class that is below another in a whole block of
  logits wins nowhere in it, and most blocks of most images are left with one class or two.
* Where nnU-Net takes the nearest slice, neighbours that took the same one are computed once.

See `nnunetv2_ext.inference.resampling` for what happens across thick slices.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.inference.resampling import along, resampling
from nnunetv2_ext.inference.saved import writing

BLOCK = 2**16
"""Voxels of the image in a block, for which one class fits into a processor's cache."""
VALUES = 8 * BLOCK
"""Values in a block of all classes, which has fewer voxels where there are many: 2 MiB."""

Block = tuple[slice, slice, slice]


class Prediction(NamedTuple):
    """What one member of an ensemble predicts for one case."""

    logits: torch.Tensor
    """(heads, *grid of the preprocessed image), float16 or float32, in the axes' order of the plans."""
    properties: dict[str, Any]
    """nnU-Net's, from this member's preprocessing."""
    plans_manager: PlansManager
    configuration_manager: ConfigurationManager
    weight: float = 1.0


def labels_of(predictions: Sequence[Prediction], label_manager: LabelManager, *, linear_z: bool = False) -> np.ndarray:
    """The labels of one case on the grid of its image.

    Args:
        predictions: of every member. One alone is decided by its logits, several by the mean of their probabilities.
        label_manager: of the data set.
        linear_z: interpolate slices that the network was not shown, where nnU-Net takes the nearest one.

    Returns:
        uint8, or uint16 from 255 foreground labels on, (*image) in the order of axes of nnU-Net's reader.

    Raises:
        InputError: members that differ in heads, image or crop, or logits that are not finite.
    """
    grid = _Grid(predictions, label_manager, linear_z=linear_z)
    wide = len(label_manager.foreground_labels) >= 255 or max(label_manager.regions_class_order or [0]) > 255
    dtype = np.dtype(np.uint16 if wide else np.uint8)
    labels = np.zeros(grid.image, dtype)
    decide = _regions if label_manager.has_regions else _labels
    several = len(grid.members) > 1
    for block in grid.blocks(_voxels(grid.heads) if several else BLOCK):
        grid.put(labels, block, decide(grid, block, label_manager, dtype))
    return labels


def write_probabilities(
    predictions: Sequence[Prediction], label_manager: LabelManager, path: Path, *, linear_z: bool = False
) -> None:
    """Write the probabilities of one case on the grid of its image as nnU-Net's `.npz`, class by class.

    The file holds `probabilities`, float32 (heads, *image). Outside the crop the background has 1, every region 0.
    Memory holds every member's largest logit of each voxel and its probability, whatever the number of classes.

    Args:
        predictions: of every member, whose probabilities are averaged.
        label_manager: of the data set.
        path: of the file, which is overwritten.
        linear_z: interpolate slices that the network was not shown, where nnU-Net takes the nearest one.

    Raises:
        InputError: as `labels_of`.
    """
    grid = _Grid(predictions, label_manager, linear_z=linear_z)
    winners = [] if label_manager.has_regions else [_winners(grid, member, label_manager) for member in grid.members]
    rows, columns = grid.crop[1:]
    with writing(path, (grid.heads, *grid.image)) as stream:
        for head in range(grid.heads):
            outside = float(head == 0 and not label_manager.has_regions)
            plane = np.full(grid.image[1:], outside, "<f4")
            above, below = grid.crop[0].start, grid.image[0] - grid.crop[0].stop
            empty = plane.tobytes() if above or below else b""
            for _ in range(above):
                stream.write(empty)
            for number, repeat in enumerate(grid.repeats[0]):
                block = (slice(number, number + 1), slice(0, grid.size[1]), slice(0, grid.size[2]))
                values = _head_probability(grid, head, block, winners)
                plane[rows, columns] = values[0].repeat(grid.repeats[1], 0).repeat(grid.repeats[2], 1)
                for _ in range(repeat):
                    stream.write(plane.data)
            for _ in range(below):
                stream.write(empty)


class _Member:
    """The logits of one member in the image's order of axes, and where the voxels of its crop lie among them."""

    def __init__(self, prediction: Prediction, *, linear_z: bool):
        properties, plans = prediction.properties, prediction.plans_manager
        backward = plans.transpose_backward
        shape = [int(size) for size in properties["shape_after_cropping_and_before_resampling"]]
        spacing = [properties["spacing"][axis] for axis in plans.transpose_forward]
        logits, places = resampling(
            prediction.logits, shape, prediction.configuration_manager, spacing, linear_z=linear_z
        )
        self.logits = logits.permute(0, *(axis + 1 for axis in backward))
        self.weight = prediction.weight
        self.image = tuple(int(properties["shape_before_cropping"][axis]) for axis in backward)
        box = [properties["bbox_used_for_cropping"][axis] for axis in backward]
        self.crop = tuple(slice(int(first), int(last)) for first, last in box)
        # along every axis, where the voxels' centres lie among those of the logits: float64, from 0
        self.positions = [places[axis](logits.shape[1 + axis], shape[axis]) for axis in backward]


class _Part:
    """A member's logits around one block of the crop."""

    def __init__(self, member: _Member, block: Block):
        positions = [positions[part] for positions, part in zip(member.positions, block, strict=True)]
        box = [slice(int(np.floor(places[0])), int(np.ceil(places[-1])) + 1) for places in positions]
        self.shape = [len(places) for places in positions]
        self.logits = member.logits[:, box[0], box[1], box[2]]
        self.positions = [places - part.start for places, part in zip(positions, box, strict=True)]

    def source(self, head: int) -> np.ndarray:
        """One head's logits as the network has them: float32."""
        logits = self.logits[head].cpu().to(torch.float32, memory_format=torch.contiguous_format).numpy()
        if not np.isfinite(logits).all():
            raise InputError(
                "logits that are not finite",
                "finite ones from every network",
                "look for values far beyond the training images' in this one, and for NaN in the checkpoint's weights",
            )
        return logits

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The lowest and the highest logit of every head: float32 (heads,)."""
        lowest, highest = np.empty((2, len(self.logits)), np.float32)
        for head in range(len(self.logits)):
            logits = self.source(head)
            lowest[head], highest[head] = logits.min(), logits.max()
        return lowest, highest

    def head(self, head: int) -> np.ndarray:
        """One head's logits in the block, float32, rounded to the type that the network's have."""
        values = self.source(head).astype(np.float64)
        for axis in (2, 1, 0):
            values = along(values, axis, self.positions[axis])
        # by numpy, as in nnU-Net: PyTorch rounds float64 to float32 before it rounds to half
        rounded = values.astype(np.float16 if self.logits.dtype == torch.half else np.float32)
        return torch.from_numpy(rounded).float().numpy()

    def heads(self) -> torch.Tensor:
        """All heads' logits in the block, float32 (heads, *block)."""
        values = np.empty((len(self.logits), *self.shape), np.float32)
        for head, value in enumerate(values):
            value[:] = self.head(head)
        return torch.from_numpy(values)


class _Grid:
    """The image's grid, the part of it that was predicted (`crop`), and what members say on it.

    Neighbours for which every member takes the same logits are one voxel of the blocks, `repeats` counts them.
    """

    def __init__(self, predictions: Sequence[Prediction], label_manager: LabelManager, *, linear_z: bool):
        self.members = [_Member(prediction, linear_z=linear_z) for prediction in predictions]
        first = self.members[0]
        self.image, self.crop, self.heads = first.image, first.crop, label_manager.num_segmentation_heads
        expected = _told(self.heads, self.image, self.crop)
        for member in self.members:
            found = _told(len(member.logits), member.image, member.crop)
            if found != expected:
                raise InputError(found, expected, "take members that were trained with the same labels and crop alike")
        self.weight = sum(member.weight for member in self.members)
        self.starts: list[np.ndarray] = []
        for axis in range(3):
            every = np.stack([member.positions[axis] for member in self.members])  # (members, voxels)
            new = np.flatnonzero(np.diff(every, axis=1).any(axis=0)) + 1
            self.starts.append(np.concatenate([[0], new, [every.shape[1]]]))
            for member in self.members:
                member.positions[axis] = member.positions[axis][self.starts[axis][:-1]]
        self.repeats = [np.diff(starts) for starts in self.starts]

    @property
    def size(self) -> tuple[int, ...]:
        """Different voxels of the crop along every axis."""
        return tuple(len(repeats) for repeats in self.repeats)

    def blocks(self, voxels: int) -> Iterator[Block]:
        """Blocks that hold at most so many voxels each, as near to cubes as the grid allows."""
        parts, left = [[0]] * 3, max(voxels, 1)
        for rank, axis in enumerate(np.argsort(self.size)):
            side = min(self.size[axis], int(left ** (1 / (3 - rank))) or 1)
            left //= side
            number = -(-self.size[axis] // side)
            parts[axis] = [self.size[axis] * part // number for part in range(number + 1)]
        for block in product(*(list(map(slice, edges[:-1], edges[1:])) for edges in parts)):
            yield block[0], block[1], block[2]

    def put(self, target: np.ndarray, block: Block, values: np.ndarray) -> None:
        """Write what a block holds to all voxels of the image, `target`, that it stands for."""
        places = []
        for axis, part in enumerate(block):
            starts, crop = self.starts[axis], self.crop[axis]
            places.append(slice(crop.start + starts[part.start], crop.start + starts[part.stop]))
            if (self.repeats[axis][part] > 1).any():
                values = values.repeat(self.repeats[axis][part], axis)
        target[tuple(places)] = values


def _told(heads: int, image: Sequence[int], crop: Sequence[slice]) -> str:
    box = ", ".join(f"{part.start}:{part.stop}" for part in crop)
    return f"logits of {heads} heads for an image of {tuple(image)} voxels, cropped to [{box}]"


def _voxels(heads: int) -> int:
    """Voxels in a block of all heads."""
    return min(BLOCK, VALUES // heads)


def _probabilities(grid: _Grid, parts: Sequence[_Part], label_manager: LabelManager) -> np.ndarray:
    """The weighted mean of the members' probabilities in a block: float32 (heads, *block)."""
    total = torch.zeros((grid.heads, *parts[0].shape))
    for member, part in zip(grid.members, parts, strict=True):
        total += label_manager.apply_inference_nonlin(part.heads()).mul_(member.weight)
    return total.div_(grid.weight).numpy()


def _labels(grid: _Grid, block: Block, label_manager: LabelManager, dtype: np.dtype) -> np.ndarray:
    """The head with the highest value in every voxel of a block, the first of those that are equal."""
    parts = [_Part(member, block) for member in grid.members]
    bounds = [part.bounds() for part in parts]
    able = np.flatnonzero(np.any([highest >= lowest.max() for lowest, highest in bounds], axis=0)).tolist()
    if len(able) == 1:
        return np.full(parts[0].shape, able[0], dtype)
    values: Iterable[tuple[int, np.ndarray]]
    if len(parts) == 1:
        values = ((head, parts[0].head(head)) for head in able)
    else:  # on average another head may win than any member's
        values = enumerate(_probabilities(grid, parts, label_manager))
    labels = np.zeros(parts[0].shape, dtype)
    best = np.full(labels.shape, -np.inf, np.float32)
    for head, value in values:
        # ascending numbers: the maximum is the last head that was above those before it
        np.maximum(labels, (value > best) * dtype.type(head), out=labels)
        np.maximum(best, value, out=best)
    return labels


def _regions(grid: _Grid, block: Block, label_manager: LabelManager, dtype: np.dtype) -> np.ndarray:
    """Regions with a probability above 0.5, those later in the order over the earlier."""
    parts = [_Part(member, block) for member in grid.members]
    labels = np.zeros(parts[0].shape, dtype)
    likely = np.flatnonzero(np.any([part.bounds()[1] > 0 for part in parts], axis=0)).tolist()
    several = _probabilities(grid, parts, label_manager) if likely and len(parts) > 1 else None
    for head in likely:
        if several is not None:
            value = several[head]
        else:
            value = label_manager.apply_inference_nonlin(parts[0].head(head)).numpy()
        labels[value > 0.5] = label_manager.regions_class_order[head]
    return labels


def _winners(grid: _Grid, member: _Member, label_manager: LabelManager) -> tuple[np.ndarray, np.ndarray]:
    """The largest of a member's logits in every voxel of the crop and its probability, both float32 (*crop).

    Any other's probability is exp(its logit - the largest) times that.
    """
    largest, probability = np.empty((2, *grid.size), np.float32)
    for block in grid.blocks(_voxels(grid.heads)):
        logits = _Part(member, block).heads()
        largest[block] = logits.amax(0)
        probability[block] = label_manager.apply_inference_nonlin(logits).amax(0)
    return largest, probability


def _head_probability(
    grid: _Grid, head: int, block: Block, winners: Sequence[tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    """The weighted mean of the members' probabilities of one head in a block; without winners of a region."""
    total: Any = 0
    for number, member in enumerate(grid.members):
        value = _Part(member, block).head(head)
        if winners:
            largest, probability = winners[number]
            value = np.exp(value - largest[block]) * probability[block]
        else:
            value = torch.sigmoid(torch.from_numpy(value)).numpy()
        total = total + member.weight * value
    return total / grid.weight
