"""Prediction inside boxes: of one preprocessed image by one model, as nnU-Net's predictor would, but only there.

After Kim et al., "Multi-Stage Hierarchical Feature Extraction for Efficient 3D Medical Image Segmentation", CMC 2025:
first where, then what. They resize each box to a cube; here the model's own spacing, windows and folds stay.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_ext.data.volumes import read_grid, refuse_differences
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.geometry.boxes import Box, Preprocessing, component_boxes, margin_in_voxels, merged
from nnunetv2_ext.inference.grids import BoxGrid, ImageGrid, Size, background, count, sizes_of
from nnunetv2_ext.inference.windows import Progress, SlidingWindow
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
    """`box`: a box and a quarter of the patch around it is predicted as if it were the image; a network with entries
    takes the smallest window that holds it. `image`: of the windows of the whole image those that meet a box, so that
    its logits are those of the whole prediction, bit for bit."""
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
    sizes: Sequence[Size] = ()
    """Of the windows of each box, where the network takes smaller ones than its patch."""
    computed_of: Mapping[Size, int] | None = None
    """`computed` by the size of the windows, there alone."""


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
    of_all = count(window, way.shape, sizes_of(window)[0])
    nothing: Counter[Size] = Counter()
    if not moved:
        where = "the mask is empty" if not boxes_image else "the mask lies where the image is 0"
        if roi.empty == "background":
            return Inside(background(window, way.shape), [], 0, of_all, 0, f"{where}; all is background")
        return _whole(window, data, progress, nothing, of_all, 0, f"{where}; the whole image was predicted")
    prediction = (BoxGrid if roi.grid == "box" else ImageGrid)(window, data, progress)
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
            return _whole(window, data, progress, prediction.windows, of_all, rounds, why)
        prediction.predict(fresh)
        grown = prediction.joined(merged(prediction.grown(box) for box in boxes)) if roi.growth else boxes
        if grown == boxes:
            inside = Inside(prediction.logits, boxes, prediction.computed, of_all, rounds, None)
            return _with_sizes(inside, list(map(prediction.size_of, boxes)), prediction.windows, window)
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

    Of a network with entries it tells sizes of windows, too: voxels along z, y, x of the preprocessed image.

    Args:
        seconds: of the model inside the region.
        roi_seconds: of the ROI model; None where the masks were there.
    """
    way = preprocessing_of(properties, plans_manager, inside.logits.shape[1:])
    boxes = [way.backward(box) for box in inside.boxes]
    sizes: dict[str, Any] = {}
    if inside.computed_of is not None:
        by_size = {listed(size, separator=" x "): number for size, number in inside.computed_of.items()}
        sizes = {"window_voxels": [list(size) for size in inside.sizes], "windows_by_size": by_size}
    return {
        "boxes_voxels": [[list(box.low), list(box.high)] for box in boxes],
        "boxes_mm": [list(box.millimetres(properties["spacing"])) for box in boxes],
        "grid": roi.grid,
        "margin_mm": roi.margin,
        "windows_computed": inside.computed,
        "windows_of_all": inside.of_all,
        **sizes,
        "rounds_of_growth": inside.rounds,
        "fallback": inside.fallback,
        "seconds_roi_model": None if roi_seconds is None else round(roi_seconds, 3),
        "seconds": round(seconds, 3),
    }


def _whole(
    window: SlidingWindow,
    data: torch.Tensor,
    progress: Progress | None,
    before: Counter[Size],
    of_all: int,
    rounds: int,
    fallback: str,
) -> Inside:
    logits = window.logits(data, progress=progress)
    shape, patch = tuple(data.shape[1:]), sizes_of(window)[0]
    computed = before + Counter({patch: of_all})
    inside = Inside(logits, [Box((0,) * len(shape), shape)], computed.total(), of_all, rounds, fallback)
    return _with_sizes(inside, [patch], computed, window)


def _with_sizes(inside: Inside, sizes: Sequence[Size], computed: Mapping[Size, int], window: SlidingWindow) -> Inside:
    """With the sizes of its windows, where there are several."""
    return inside._replace(sizes=sizes, computed_of=computed) if len(window.sizes) > 1 else inside


def _new_in(box: Box, before: Sequence[Box], prediction: BoxGrid) -> list[Box]:
    """What of a box is to be predicted: what it has grown by, or all of it where that costs no more."""
    held = [one for one in before if box.holds(one)]
    if len(held) != 1:
        return [box]
    parts = box.without(held[0])
    return parts if prediction.cost(parts) < prediction.cost([box]) else [box] * bool(parts)
