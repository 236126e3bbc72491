"""Preprocessed cases as blocks of one shape about their labels, small enough to be kept in memory together.

All blocks have one shape and one zoom, whatever the size of a case's label: a block that fitted its own label would
tell the network how large a half finished one is.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from torch import Tensor
from tqdm import tqdm

from nnunetv2_ext.audit import FEWEST
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.geometry.boxes import Box, bounding_box

ROOM = 1.3
"""Of a block, times the box of a label."""
FITTED = 95
"""Percentile of the labels' boxes that fit with all their room; those of a few strays are not to shrink all blocks."""
STRAYS = 0.02
"""Of the labelled voxels, on either side, do not move a block."""
SMALLEST = 4
"""Voxels along an axis of the U-Net's deepest map."""
MOST_LEVELS = 3
_LARGEST = 3e4
"""Of an image's values, which half precision holds."""
AGAIN = "preprocess the data set again"


class Frame(NamedTuple):
    """What is cut out of every preprocessed case, and the block that it becomes."""

    crop: tuple[int, ...]
    """Voxels of the preprocessed image along each axis."""
    shape: tuple[int, ...]
    """Voxels of the block."""
    levels: int
    """How often the block can be halved."""

    def place(self, centre: Sequence[float], image: Sequence[int]) -> Box:
        """The crop about a place of the image, moved into the image; it reaches out of a smaller one on both sides."""
        low = []
        for middle, side, length in zip(centre, self.crop, image, strict=True):
            beyond = length - side
            low.append(min(max(round(middle - side / 2), 0), beyond) if beyond >= 0 else beyond // 2)
        return Box(tuple(low), tuple(first + side for first, side in zip(low, self.crop, strict=True)))


class Block(NamedTuple):
    """One case."""

    case: str
    image: Tensor
    """(channels, *shape), half precision; 0 beyond the image."""
    label: Tensor
    """(*shape), the values of the label file by majority, uint8 or int16."""
    outside: Mapping[int, float]
    """By value, what of the label lies beyond the block, in voxels of the block."""
    box: Box
    """Of the crop in the preprocessed image."""
    grid: tuple[int, ...]
    """Shape of the preprocessed image."""
    properties: Mapping[str, Any]
    """nnU-Net's."""

    @property
    def digest(self) -> str:
        """Of image and label."""
        content = blake2b(self.image.numpy().tobytes(), digest_size=16)
        content.update(self.label.numpy().tobytes())
        return content.hexdigest()


@dataclass(frozen=True)
class Blocks:
    """All cases."""

    frame: Frame
    of: Sequence[Block]

    @property
    def cases(self) -> tuple[str, ...]:
        return tuple(block.case for block in self.of)


def read_blocks(data: Path, spacing: Sequence[float], *, voxels: int, progress: bool = False) -> Blocks:
    """The blocks of all preprocessed cases.

    Args:
        data: folder of the configuration's data, in that of the preprocessed data set.
        spacing: of the preprocessed images in mm, in the order of their axes.
        voxels: the most that a block may have.

    Raises:
        InputError: fewer than ten cases, images with values that are no finite numbers, or a file that cannot be read.
    """
    there = data.is_dir() and any(data.glob("*.pkl"))  # nnU-Net's look-up fails in an empty folder
    dataset: Any = infer_dataset_class(str(data))(str(data)) if there else None
    names = sorted(dataset.identifiers) if there else []
    if len(names) < FEWEST:
        remedy = "take a larger data set, or preprocess the rest of this one"
        raise InputError(f"{len(names)} preprocessed cases in {data}", f"at least {FEWEST}", remedy)
    boxes: dict[str, Box | None] = {}
    centres: dict[str, tuple[float, ...]] = {}
    shapes = []
    for name in tqdm(names, desc="labels", disable=not progress):
        _, label, _ = _read_case(dataset, name, data)
        shapes.append(label.shape)
        boxes[name] = bounding_box(label > 0)
        centres[name] = _centre(label, boxes[name])
    sides = [box.shape for box in boxes.values() if box is not None]
    frame = choose_frame(sides, spacing, voxels=voxels, largest=np.max(shapes, axis=0).tolist())
    return Blocks(frame, [_read_block(dataset, name, data, frame, centres[name]) for name in names])


def choose_frame(
    boxes: Sequence[Sequence[int]], spacing: Sequence[float], *, voxels: int, largest: Sequence[int]
) -> Frame:
    """The crop that holds the labels with room around them, and the block of at most `voxels` that it becomes.

    Axes are resampled to one spacing, those that are coarser stay as they are.

    Args:
        boxes: sides of the labels' boxes in voxels.
        spacing: of the images in mm.
        largest: sides of the largest image.
    """
    least = np.percentile(boxes, FITTED, axis=0) if len(boxes) else np.array(largest, float)
    wanted = np.minimum(least * ROOM, largest)
    spacings = np.array(spacing, float)
    coarsest = float(spacings.min())
    while True:
        factors = np.maximum(coarsest / spacings, 1)
        frame = _frame(wanted / factors, least / factors, factors)
        if math.prod(frame.shape) <= voxels or max(frame.shape) <= SMALLEST * 2**frame.levels:
            return frame
        coarsest *= 1.01


def _frame(wanted: np.ndarray, least: np.ndarray, factors: np.ndarray) -> Frame:
    """Of blocks as near to the `wanted` voxels as halving allows, each axis made smaller by a factor."""
    for levels in range(MOST_LEVELS, 0, -1):
        step = 2**levels
        sides = np.maximum(np.round(wanted / step), np.ceil(np.round(least / step, 6))) * step
        if sides.min() >= SMALLEST * step:
            break
    sides = np.maximum(sides, SMALLEST * step)
    crop = np.maximum(np.round(sides * factors), sides)
    return Frame(tuple(map(int, crop)), tuple(map(int, sides)), levels)


def _read_case(dataset: Any, name: str, data: Path) -> tuple[Any, np.ndarray, Mapping[str, Any]]:
    """The image of a preprocessed case, of which slices are read, its label map, and nnU-Net's properties.

    What nnU-Net left out as empty, -1 in the label map, is background.
    """
    try:
        image, labels, _, properties = dataset.load_case(name)
        label = np.asarray(labels[0])
    except Exception as error:  # of a damaged file anything
        raise InputError(f"the unreadable case {name} in {data} ({error})", "a preprocessed case", AGAIN) from None
    return image, np.maximum(label, 0), properties


def _centre(label: np.ndarray, box: Box | None) -> tuple[float, ...]:
    """The middle of where all labelled voxels but few lie along each axis; where there are none, of the image."""
    if box is None:
        return tuple(side / 2 for side in label.shape)
    middle = []
    labelled = label[box.slices] > 0
    for axis in range(label.ndim):
        along = labelled.sum(axis=tuple(other for other in range(label.ndim) if other != axis))
        share = np.cumsum(along) / along.sum()
        ends = [np.searchsorted(share, part) + box.low[axis] for part in (STRAYS, 1 - STRAYS)]
        middle.append((float(ends[0]) + float(ends[1]) + 1) / 2)
    return tuple(middle)


def _read_block(dataset: Any, name: str, data: Path, frame: Frame, centre: Sequence[float]) -> Block:
    image, label, properties = _read_case(dataset, name, data)
    box = frame.place(centre, label.shape)
    inside = box.clipped(label.shape)
    assert inside is not None
    slices = inside.slices
    voxels = np.asarray(image[:, slices[0], slices[1], slices[2]], np.float32)
    if not np.isfinite(voxels).all():
        raise InputError(f"an image of case {name} in {data} with NaN or infinity", "finite numbers", AGAIN)
    padding = [(inside.low[axis] - box.low[axis], box.high[axis] - inside.high[axis]) for axis in range(3)]
    image_crop = np.pad(np.clip(voxels, -_LARGEST, _LARGEST), [(0, 0), *padding])
    label_crop = np.pad(label[inside.slices], padding)
    pooled = _pooled(image_crop, frame.shape).half()
    scale = math.prod(frame.shape) / math.prod(frame.crop)
    whole, held = _counts(label), _counts(label_crop)
    outside = {value: (count - held.get(value, 0)) * scale for value, count in whole.items() if value}
    return Block(
        name,
        pooled,
        by_majority(label_crop, frame.shape),
        {value: count for value, count in outside.items() if count > 0},
        box,
        label.shape,
        properties,
    )


def _counts(label: np.ndarray) -> dict[int, int]:
    values, counts = np.unique(label, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def by_majority(label: np.ndarray, shape: Sequence[int]) -> Tensor:
    """A label map on a coarser grid: the value that fills most of each voxel, the lowest of those that fill as much."""
    values = np.unique(label)
    result = torch.full(tuple(shape), int(values[0]), dtype=torch.uint8 if values[-1] <= 255 else torch.int16)
    most = torch.zeros(tuple(shape))
    for value in values:
        share = _pooled((label == value).astype(np.float32)[None], shape)[0]
        result[share > most] = int(value)
        most = torch.maximum(most, share)
    return result


def _pooled(values: np.ndarray, shape: Sequence[int]) -> Tensor:
    """Means over the voxels of a coarser grid: (C, Z, Y, X) -> (C, *shape)."""
    return F.adaptive_avg_pool3d(torch.from_numpy(values), (shape[0], shape[1], shape[2]))
