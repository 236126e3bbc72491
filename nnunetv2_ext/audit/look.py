"""What one case is like, its image and labels read once, for comparison with the other cases."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cc3d
import nibabel
import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from scipy import ndimage

from nnunetv2_ext.audit.scores import centre, direction_of, gaps
from nnunetv2_ext.evaluation.segmentations import Labels, read_segmentation
from nnunetv2_ext.geometry.boxes import around_all, components, value_boxes

CT_AIR = -500.0
"""Hounsfield units; body and table are above."""
LOW = 0.1
"""Of the range from the 1st to the 99th percentile: below, an image that is no CT is background, or dark tissue."""
SAMPLE = 1_000_000
"""Voxels that percentiles are taken of."""
LEAST_AIR = 0.05
"""An image with a smaller share of air outside the body has none: it is cut to the inside."""
MOST_PARTS = 50
"""The largest parts of a label; one of more is scattered, and nothing is far from it."""


class Part(NamedTuple):
    """A connected component of a label."""

    voxels: int
    centre: tuple[float, ...]
    """In mm from the image's corner, along the axes of the case."""
    low: tuple[float, ...]
    """Of its box, likewise."""
    high: tuple[float, ...]


class Structure(NamedTuple):
    """A label in a case that has it."""

    voxels: int
    centre: tuple[float, ...]
    """Of all its voxels, in mm from the image's corner, along the axes of the case."""
    parts: tuple[Part, ...]
    """The largest first; none where they are too many."""
    gaps: tuple[int, ...]
    """Along each axis, empty slices between two that show the same structure."""
    slices: tuple[int, ...]
    """Along each axis, from the first labelled one to the last."""
    outside: float
    """The share of its voxels that lie in the air around the body; 0 where there is none, or no image."""


class Look(NamedTuple):
    """A case."""

    image: str
    """A hash of its voxels, of all channels; none without an image."""
    label: str
    """Likewise; none of a label map without labels."""
    placed: bool
    """Whether its axes are those of the patient: to the left, the back, and the head. Otherwise those of the file."""
    structures: dict[str, Structure]
    """By name of the label."""


def look_at_case(
    label: Path, labels: Labels, images: Sequence[Path], reader: type[BaseReaderWriter] | None, channels: Sequence[str]
) -> Look:
    """Read a case.

    Args:
        label: its label file.
        images: one per channel; none where only the labels are at hand.
        reader: nnU-Net's, for the images.
        channels: their names as `dataset.json` tells them.

    Raises:
        InputError: a label file that cannot be read.
    """
    values, spacing = read_segmentation(label, labels)
    label_hash = _hash(values.astype(np.int32)) if np.any((values != 0) & (values != labels.ignore)) else ""
    direction = direction_of(label, labels)
    air, image_hash = np.zeros(values.shape, bool), ""
    if images and reader is not None:
        image, _ = reader().read_images([str(path) for path in images])
        image_hash = _hash(image)
        if image.shape[1:] == values.shape:
            slices = 0 if direction is None else int(np.argmax(np.abs(direction[2])))
            air = air_around(image, channels, values > 0, axis=slices)
    values, air, spacing = _turned(values, air, spacing, direction)
    ignored = values == labels.ignore if labels.ignore is not None else None
    boxes, structures = value_boxes(values), {}
    for name, of_it in labels.values.items():
        if (box := around_all(boxes[value] for value in of_it if value in boxes)) is not None:
            inside = box.slices
            left_open = None if ignored is None else ignored[inside]
            mask = np.isin(values[inside], of_it)
            structures[name] = _structure(mask, air[inside], left_open, np.array(box.low), np.array(spacing))
    return Look(image_hash, label_hash, direction is not None, structures)


def _turned(
    values: np.ndarray, air: np.ndarray, spacing: Sequence[float], direction: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Two volumes (Z, Y, X) and their spacing along the axes of the patient, or X, Y, Z where the file tells none."""
    if direction is None:
        return values.T, air.T, tuple(spacing[::-1])
    affine = np.eye(4)
    affine[:3, :3] = direction
    turn = nibabel.orientations.io_orientation(affine)
    values, air = (nibabel.orientations.apply_orientation(one, turn) for one in (values, air))
    return values, air, tuple(spacing[axis] for axis in np.argsort(turn[:, 0]))


def _hash(voxels: np.ndarray) -> str:
    digest = hashlib.blake2b(repr(voxels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(voxels).data)
    return digest.hexdigest()


def air_around(image: np.ndarray, channels: Sequence[str], wanted: np.ndarray, *, axis: int) -> np.ndarray:
    """The air around the body, as far as a label may lie in it.

    Air in every channel, below -500 HU in CT, else among the lowest tenth of the intensities, that reaches the border
    of its slice: lungs and bowel do not. Where an image is cut to the inside of the body, there is none.

    Args:
        image: (channels, Z, Y, X).
        channels: their names; CT is known by its own, as by nnU-Net.
        wanted: (Z, Y, X), the voxels of all labels. Slices that have none of them in air are not looked at.
        axis: of the slices, from foot to head.

    Returns:
        (Z, Y, X) of bool.
    """
    low = np.ones(wanted.shape, bool)
    for number, channel in enumerate(image):
        level = CT_AIR
        if number >= len(channels) or channels[number].lower() != "ct":
            first, last = np.percentile(channel.ravel()[:: 1 + channel.size // SAMPLE], [1, 99])
            level = first + LOW * (last - first)
        low &= channel <= level
    around = np.zeros_like(low)
    low, wanted = (np.moveaxis(one, axis, 0) for one in (low, wanted))
    touched = np.flatnonzero((low & wanted).any(axis=(1, 2)))
    if not len(touched):
        return around
    in_slice = np.zeros((3, 3, 3), bool)
    in_slice[1, :, 1] = in_slice[1, 1, :] = True
    numbers, _ = ndimage.label(low[touched], structure=in_slice)
    faces = (numbers[:, 0], numbers[:, -1], numbers[:, :, 0], numbers[:, :, -1])
    at_border = np.unique(np.concatenate([face.ravel() for face in faces]))
    found = np.isin(numbers, at_border[at_border > 0])
    if found.mean() >= LEAST_AIR:
        np.moveaxis(around, axis, 0)[touched] = found
    return around


def _structure(
    mask: np.ndarray, air: np.ndarray, ignored: np.ndarray | None, low: np.ndarray, spacing: np.ndarray
) -> Structure:
    """A label from what its box holds, whose first voxel is `low`."""
    voxels = int(np.count_nonzero(mask))
    numbers, number = components(mask, 26)
    parts = []
    if number <= MOST_PARTS:
        found = cc3d.statistics(numbers)
        for index in range(1, number + 1):
            corners = [[getattr(axis, end) for axis in found["bounding_boxes"][index]] for end in ("start", "stop")]
            first, last = (tuple(((low + corner) * spacing).tolist()) for corner in corners)
            middle = tuple(((low + found["centroids"][index] + 0.5) * spacing).tolist())
            parts.append(Part(int(found["voxel_counts"][index]), middle, first, last))
        parts.sort(key=lambda part: (-part.voxels, part.centre))
    return Structure(
        voxels,
        tuple(((low + 0.5 + centre(mask)) * spacing).tolist()),
        tuple(parts),
        tuple(sum(map(len, gaps(mask, axis, ignored))) for axis in range(3)),
        mask.shape,
        np.count_nonzero(mask & air) / voxels,
    )
