"""Prediction inside boxes: of one preprocessed image by one model, as nnU-Net's predictor would, but only there.

After Kim et al., "Multi-Stage Hierarchical Feature Extraction for Efficient 3D Medical Image Segmentation", CMC 2025:
first where, then what. They resize each box to a cube; here the model's own spacing, windows and folds stay.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_ext.data.volumes import read_grid, refuse_differences
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.geometry.boxes import Box, Preprocessing, around, component_boxes, margin_in_voxels, merged
from nnunetv2_ext.inference.windows import SURE, Progress, SlidingWindow
from nnunetv2_ext.text import listed

GRIDS = ("box", "image")
EMPTY = ("whole", "background")


@dataclass(frozen=True)
class ROI:
    """How a region of interest is taken from a mask, and how its boxes are predicted.

    Raises:
        InputError: a negative margin or one that is no number, an unknown grid or an unknown answer to an empty mask.
    """

    labels: Sequence[int] | None = None
    """Values of the mask that count; None: all but 0."""
    grid: str = "box"
    """`box`: a box and a quarter of the patch around it is predicted as if it were the image. `image`: of the windows
    of the whole image those that meet a box, so that its logits are those of the whole prediction, bit for bit."""
    margin: float = 0.0
    """mm around each component."""
    growth: bool = True
    """Whether a face of a box that predicted foreground touches moves out."""
    empty: str = "whole"
    """What is predicted where a mask is empty: the `whole` image, or `background` without a forward pass."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.margin) and self.margin >= 0):
            raise InputError(f"--roi-margin {self.margin:g}", "mm, 0 or more", "correct it")
        for flag, value, known in (("--roi-grid", self.grid, GRIDS), ("--roi-empty", self.empty, EMPTY)):
            if value not in known:
                raise InputError(f"{flag} {value}", " or ".join(known), "correct it")
        if self.labels is not None and not len(self.labels):
            raise InputError("no value for --roi-labels", "one label or more", "name some, or drop the flag")
        if self.labels is not None and min(self.labels) < 1:
            told = f"--roi-labels {listed(self.labels, separator=' ')}"
            raise InputError(told, "labels of foreground, 1 or more", "correct it")


class Inside(NamedTuple):
    """What a model predicted inside a region of interest."""

    logits: torch.Tensor
    """(heads, *shape) of the preprocessed image, on the CPU; background wherever nothing was predicted."""
    boxes: list[Box]
    """What was predicted, in voxels of the preprocessed image."""
    computed: int
    """Windows, without their mirrored copies and other folds."""
    of_all: int
    """Windows of the whole image."""
    rounds: int
    """How often boxes grew."""
    fallback: str | None
    """Why it is not what the mask asks for, in words."""


def boxes_in_image(mask: np.ndarray, spacing: Sequence[float], roi: ROI) -> list[Box]:
    """The boxes of a mask: one per connected component, with the margin around it, those that overlap merged.

    Args:
        mask: labels (Z, Y, X) on the image's grid, in the reader's order of axes.
        spacing: mm along its axes.

    Returns:
        boxes in the image; none of an empty mask.
    """
    chosen = mask > 0 if roi.labels is None else np.isin(mask, np.asarray(roi.labels))
    voxels = margin_in_voxels(roi.margin, spacing)
    grown = (box.grown(voxels).clipped(mask.shape) for box in component_boxes(chosen))
    return merged(box for box in grown if box is not None)


def check_mask(case: str, mask: Path, image: Path) -> None:
    """Refuse a mask that does not lie on the grid of its image; reads headers alone.

    Args:
        image: a file of the case's.

    Raises:
        InputError: no mask of this case, an unreadable one, or one of another shape, spacing, origin or direction.
    """
    if not mask.is_file():
        raise InputError(
            f"no mask {mask} of the case {case}",
            "one mask per case, named as the case",
            "put it there, or take the case out of the images",
        )
    refuse_differences(read_grid(image), read_grid(mask), of=f"the mask {mask} of the case {case}", beside=image.name)


def preprocessing_of(properties: Mapping[str, Any], plans_manager: PlansManager, shape: Sequence[int]) -> Preprocessing:
    """How nnU-Net preprocessed a case.

    Args:
        properties: as nnU-Net's preprocessor completed them.
        shape: of the preprocessed image.
    """
    low, high = zip(*properties["bbox_used_for_cropping"], strict=True)
    crop = Box(tuple(map(int, low)), tuple(map(int, high)))
    return Preprocessing(tuple(plans_manager.transpose_forward), crop, tuple(shape))


@torch.inference_mode()
def predict_inside(
    window: SlidingWindow,
    data: torch.Tensor,
    boxes_image: Sequence[Box],
    properties: Mapping[str, Any],
    plans_manager: PlansManager,
    roi: ROI,
    *,
    progress: Progress | None = None,
) -> Inside:
    """The logits of one preprocessed case inside boxes, all folds, background elsewhere.

    The whole image is predicted where there is no box and `roi.empty` says so, and where the boxes of a round cost as
    many windows as it, or all rounds together more than twice as many.

    Args:
        window: initialised with the model.
        data: (channels, *shape) as `window` takes it, with the previous stage's channels in a cascade.
        boxes_image: see `boxes_in_image`.
        properties: as nnU-Net's preprocessor completed them.
        progress: as of `SlidingWindow.logits`, anew for each box.
    """
    way = preprocessing_of(properties, plans_manager, data.shape[1:])
    moved = [box for box in map(way.forward, boxes_image) if box is not None]
    of_all = _count(window, way.shape)
    if not moved:
        where = "the mask is empty" if not boxes_image else "the mask lies where the image is 0"
        if roi.empty == "background":
            return Inside(_background(window, way.shape), [], 0, of_all, 0, f"{where}; all is background")
        return _whole(window, data, progress, 0, of_all, 0, f"{where}; the whole image was predicted")
    prediction = (_BoxGrid if roi.grid == "box" else _ImageGrid)(window, data, progress)
    boxes = prediction.joined(merged(moved))
    fresh, rounds = boxes, 0
    while True:
        cost = prediction.cost(fresh)
        # of the image's own windows, all of them still leave out what is far
        whole = roi.grid == "image" or fresh == [Box((0,) * len(way.shape), way.shape)]
        too_many = of_all + whole
        if cost >= too_many or prediction.computed + cost > 2 * of_all:
            told = f"the boxes cost {cost} windows" if cost >= too_many else "the boxes grew too often"
            why = f"{told}, the whole image {of_all}; it was predicted instead"
            return _whole(window, data, progress, prediction.computed, of_all, rounds, why)
        prediction.predict(fresh)
        grown = prediction.joined(merged(prediction.grown(box) for box in boxes)) if roi.growth else boxes
        if grown == boxes:
            return Inside(prediction.logits, boxes, prediction.computed, of_all, rounds, None)
        fresh = [part for box in grown for part in _new_in(box, boxes, prediction)]
        boxes, rounds = grown, rounds + 1


def report(
    inside: Inside,
    properties: Mapping[str, Any],
    plans_manager: PlansManager,
    roi: ROI,
    *,
    seconds: float,
    roi_seconds: float | None,
) -> dict[str, Any]:
    """One case's entry of roi.json; boxes are on the image's grid, rounded outwards.

    Args:
        seconds: of the model inside the region.
        roi_seconds: of the ROI model; None where the masks were there.
    """
    way = preprocessing_of(properties, plans_manager, inside.logits.shape[1:])
    boxes = [way.backward(box) for box in inside.boxes]
    return {
        "boxes_voxels": [[list(box.low), list(box.high)] for box in boxes],
        "boxes_mm": [list(box.millimetres(properties["spacing"])) for box in boxes],
        "grid": roi.grid,
        "margin_mm": roi.margin,
        "windows_computed": inside.computed,
        "windows_of_all": inside.of_all,
        "rounds_of_growth": inside.rounds,
        "fallback": inside.fallback,
        "seconds_roi_model": None if roi_seconds is None else round(roi_seconds, 3),
        "seconds": round(seconds, 3),
    }


def _patch(window: SlidingWindow) -> tuple[int, ...]:
    """Voxels of a window along z, y, x; a 2D model takes one slice after the other."""
    patch = tuple(int(size) for size in window.configuration_manager.patch_size)
    return (1,) * (3 - len(patch)) + patch


def _windows(window: SlidingWindow, shape: Sequence[int]) -> Sequence[Any]:
    """nnU-Net's windows of an image, padded to a patch where it is smaller: what cuts them out of all channels."""
    return window._internal_get_sliding_window_slicers(tuple(np.maximum(shape, _patch(window)).tolist()))


def _count(window: SlidingWindow, shape: Sequence[int]) -> int:
    """So many windows has an image."""
    patch = _patch(window)
    steps = compute_steps_for_sliding_window(tuple(np.maximum(shape, patch)), patch, window.tile_step_size)
    if len(window.configuration_manager.patch_size) == 2:
        return shape[0] * math.prod(map(len, steps[1:]))
    return math.prod(map(len, steps))


def _background(window: SlidingWindow, shape: Sequence[int]) -> torch.Tensor:
    """Logits of an image of background: of labels for the first head, of regions against all."""
    manager = window.label_manager
    logits = torch.full((manager.num_segmentation_heads, *shape), -SURE, dtype=torch.half)
    if not manager.has_regions:
        logits[0] = SURE
    return logits


def _whole(
    window: SlidingWindow,
    data: torch.Tensor,
    progress: Progress | None,
    computed: int,
    of_all: int,
    rounds: int,
    fallback: str,
) -> Inside:
    logits = window.logits(data, progress=progress)
    shape = tuple(data.shape[1:])
    return Inside(logits, [Box((0,) * len(shape), shape)], computed + of_all, of_all, rounds, fallback)


def _box_of(window: Sequence[Any]) -> Box:
    """A window as a box."""
    borders = [(axis.start, axis.stop) if isinstance(axis, slice) else (axis, axis + 1) for axis in window[1:]]
    return Box(tuple(low for low, _ in borders), tuple(high for _, high in borders))


def _all_of(box: Box) -> tuple[slice, ...]:
    """What cuts the box out of all channels or heads."""
    return (slice(None), *box.slices)


def _new_in(box: Box, before: Sequence[Box], prediction: "_BoxGrid") -> list[Box]:
    """What of a box is to be predicted: what it has grown by, or all of it where that costs no more."""
    held = [one for one in before if box.holds(one)]
    if len(held) != 1:
        return [box]
    parts = box.without(held[0])
    return parts if prediction.cost(parts) < prediction.cost([box]) else [box] * bool(parts)


class _BoxGrid:
    """Boxes that are predicted with a quarter of the patch around them, each as if that were the image."""

    def __init__(self, window: SlidingWindow, data: torch.Tensor, progress: Progress | None):
        self.window, self.data, self.progress = window, data, progress
        self.shape, self.patch = tuple(data.shape[1:]), _patch(window)
        self.logits = _background(window, self.shape)
        self.computed = 0

    def cost(self, boxes: Sequence[Box]) -> int:
        """So many windows would predict the boxes."""
        return sum(_count(self.window, self._surroundings(box).shape) for box in boxes)

    def joined(self, boxes: Sequence[Box]) -> list[Box]:
        """Boxes beside each other as one, where that costs fewer windows: each has its own surroundings of a patch."""
        left = list(boxes)
        while len(left) > 1:
            pairs = [(pair, merged(pair, most=1)) for pair in combinations(left, 2)]
            saved = [self.cost(pair) - self.cost(whole) for pair, whole in pairs]
            best = int(np.argmax(saved))
            if saved[best] <= 0:
                break
            pair, whole = pairs[best]
            left = merged([*(box for box in left if box not in pair), *whole])
        return left

    def predict(self, boxes: Sequence[Box]) -> None:
        for box in boxes:
            crop = self._surroundings(box)
            predicted = self.window.logits(self.data[_all_of(crop)], progress=self.progress)
            self.computed += _count(self.window, crop.shape)
            self.logits[_all_of(box)] = predicted[_all_of(box.seen_from(crop.low))]

    def _surroundings(self, box: Box) -> Box:
        return around(box, self.patch, self.shape)

    def grown(self, box: Box) -> Box:
        """The box, with each face moved out by a quarter of the patch that foreground touches and the image goes on at.

        A patch of a 2D model has no slices: there a quarter of the box.
        """
        low, high = list(box.low), list(box.high)
        for axis, length in enumerate(self.shape):
            patch = self.patch[axis] if self.patch[axis] > 1 else box.shape[axis]
            step = -(-patch // 4)
            if low[axis] > 0 and self._touched(box, axis, box.low[axis]):
                low[axis] = max(0, low[axis] - step)
            if high[axis] < length and self._touched(box, axis, box.high[axis] - 1):
                high[axis] = min(length, high[axis] + step)
        return Box(tuple(low), tuple(high))

    def _touched(self, box: Box, axis: int, place: int) -> bool:
        """Whether foreground is predicted in the box at that place along the axis."""
        face = [slice(None), *box.slices]
        face[1 + axis] = slice(place, place + 1)
        logits = self.logits[tuple(face)]
        # a region is where its logit is above 0, a label where it is the largest
        found = logits > 0 if self.window.label_manager.has_regions else logits.argmax(0) > 0
        return bool(found.any())


class _ImageGrid(_BoxGrid):
    """Boxes in the windows of the whole image; logits are kept where all windows of a voxel were computed."""

    def __init__(self, window: SlidingWindow, data: torch.Tensor, progress: Progress | None):
        super().__init__(window, data, progress)
        self.padded = tuple(np.maximum(self.shape, self.patch).tolist())
        padding = [(after - before) // 2 for before, after in zip(self.shape, self.padded, strict=True)]
        self.image = Box(tuple(padding), tuple(np.add(padding, self.shape).tolist()))
        """The image in the padded one, in whose voxels the windows are."""
        self.windows = [_box_of(one) for one in _windows(window, self.shape)]
        self.complete = torch.zeros(self.padded, dtype=torch.bool)
        """Where the logits of the whole prediction are known."""

    def joined(self, boxes: Sequence[Box]) -> list[Box]:
        """As they are: windows that several meet are computed once."""
        return list(boxes)

    def _needed(self, boxes: Sequence[Box]) -> list[bool]:
        """Which windows see a voxel of the boxes that is not complete."""
        wanted = torch.zeros(self.padded, dtype=torch.bool)
        for box in boxes:
            wanted[self.image.slices][box.slices] = True
        wanted &= ~self.complete
        return [bool(wanted[window.slices].any()) for window in self.windows]

    def cost(self, boxes: Sequence[Box]) -> int:
        return sum(self._needed(boxes))

    def predict(self, boxes: Sequence[Box]) -> None:
        needed = self._needed(boxes)
        chosen = [window for window, is_needed in zip(self.windows, needed, strict=True) if is_needed]
        if not chosen:
            return
        complete = torch.zeros(self.padded, dtype=torch.bool)
        for window in chosen:
            complete[window.slices] = True
        for window, is_needed in zip(self.windows, needed, strict=True):
            if not is_needed:
                complete[window.slices] = False
        # what the windows cover; along an axis that is padded, that is all of it
        covered = Box(
            tuple(np.min([window.low for window in chosen], axis=0).tolist()),
            tuple(np.max([window.high for window in chosen], axis=0).tolist()),
        )
        crop = covered.seen_from(self.image.low).clipped(self.shape)
        assert crop is not None
        predicted = self._predict_windows(crop, covered, chosen)
        self.computed += len(chosen)
        part = self.logits[_all_of(crop)]
        part.copy_(torch.where(complete[self.image.slices][crop.slices], predicted, part))
        self.complete |= complete

    def _predict_windows(self, crop: Box, covered: Box, chosen: Sequence[Box]) -> torch.Tensor:
        """The logits of these windows alone, in a crop of the image."""
        moved = []
        for one in chosen:
            here = one.seen_from(covered.low)
            slices: list[Any] = list(_all_of(here))
            if len(self.window.configuration_manager.patch_size) == 2:
                slices[1] = here.low[0]
            moved.append(tuple(slices))
        return self.window.logits(self.data[_all_of(crop)], windows=moved, progress=self.progress)
