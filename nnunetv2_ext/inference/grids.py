"""How boxes of one image are predicted: each as if it were the image, or in the windows of the whole one."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window

from nnunetv2_ext.geometry.boxes import Box, around, merged
from nnunetv2_ext.inference.windows import SURE, Progress, SlidingWindow

Size = tuple[int, ...]
"""Voxels along z, y, x."""


def sizes_of(window: SlidingWindow) -> list[Size]:
    """Sizes of windows, the patch first, then ever smaller ones; a 2D model takes one slice after the other."""
    return [(1,) * (3 - len(size)) + size for size in window.sizes]


def size_for(box: Box, sizes: Sequence[Size], shape: Sequence[int]) -> Size:
    """The smallest size of a window that holds the box with a quarter of the window around it, else the patch.

    Along an axis on which it is as long as the patch there may be several windows, as there would be of the patch.

    Args:
        box: in the image.
        sizes: see `sizes_of`.
        shape: of the image, beyond which there is nothing to hold.
    """

    def holds(size: Size) -> bool:
        needed = around(box, size, shape).shape
        return all(want <= one or one == most for want, one, most in zip(needed, size, sizes[0], strict=True))

    return next(size for size in reversed(sizes) if holds(size))


def count(window: SlidingWindow, shape: Sequence[int], size: Size) -> int:
    """So many windows of that size has an image."""
    steps = compute_steps_for_sliding_window(tuple(np.maximum(shape, size)), size, window.tile_step_size)
    if len(window.configuration_manager.patch_size) == 2:
        return shape[0] * math.prod(map(len, steps[1:]))
    return math.prod(map(len, steps))


def background(window: SlidingWindow, shape: Sequence[int]) -> torch.Tensor:
    """Logits of an image of background: of labels for the first head, of regions against all."""
    manager = window.label_manager
    logits = torch.full((manager.num_segmentation_heads, *shape), -SURE, dtype=torch.half)
    if not manager.has_regions:
        logits[0] = SURE
    return logits


def _box_of(window: Sequence[Any]) -> Box:
    """A window as a box."""
    borders = [(axis.start, axis.stop) if isinstance(axis, slice) else (axis, axis + 1) for axis in window[1:]]
    return Box(tuple(low for low, _ in borders), tuple(high for _, high in borders))


def _all_of(box: Box) -> tuple[slice, ...]:
    """What cuts the box out of all channels or heads."""
    return (slice(None), *box.slices)


class BoxGrid:
    """Boxes that are predicted with a quarter of a window around them, each as if that were the image.

    The window is the patch, or the smallest that holds it all, see `size_for`.

    Attributes:
        logits: (heads, *shape) of the image, background where nothing was predicted.
        sizes: of windows, see `sizes_of`.
        windows: how many were computed, by their size.
    """

    def __init__(self, window: SlidingWindow, data: torch.Tensor, progress: Progress | None):
        self.window, self.data, self.progress = window, data, progress
        self.shape, self.sizes = tuple(data.shape[1:]), sizes_of(window)
        self.patch = self.sizes[0]
        self.logits = background(window, self.shape)
        self.windows: Counter[Size] = Counter()

    @property
    def computed(self) -> int:
        """Windows of any size."""
        return self.windows.total()

    def size_of(self, box: Box) -> Size:
        """That of the windows which predict the box."""
        return size_for(box, self.sizes, self.shape)

    def cost(self, boxes: Sequence[Box]) -> int:
        """So many windows would predict the boxes; one that is smaller than the patch counts as a whole one."""
        sizes = [self.size_of(box) for box in boxes]
        return sum(
            count(self.window, around(box, size, self.shape).shape, size)
            for box, size in zip(boxes, sizes, strict=True)
        )

    def joined(self, boxes: Sequence[Box]) -> list[Box]:
        """Boxes beside each other as one, where that costs fewer windows: each has its own surroundings of a patch.

        Boxes in small windows do not become one in a larger window, which costs more than both.
        """
        left = list(boxes)
        while len(left) > 1:
            pairs = [(pair, merged(pair, most=1)) for pair in combinations(left, 2)]
            saved = [self.cost(pair) - self.cost(whole) if self._within(pair, whole) else 0 for pair, whole in pairs]
            best = int(np.argmax(saved))
            if saved[best] <= 0:
                break
            pair, whole = pairs[best]
            left = merged([*(box for box in left if box not in pair), *whole])
        return left

    def _within(self, pair: Sequence[Box], whole: Sequence[Box]) -> bool:
        """Whether no window of one box around others is larger than the largest of theirs."""
        return max(map(math.prod, map(self.size_of, whole))) <= max(map(math.prod, map(self.size_of, pair)))

    def predict(self, boxes: Sequence[Box]) -> None:
        for box in boxes:
            size = self.size_of(box)
            crop = around(box, size, self.shape)
            smaller = None if size == self.patch else size
            predicted = self.window.logits(self.data[_all_of(crop)], size=smaller, progress=self.progress)
            self.windows[size] += count(self.window, crop.shape, size)
            self.logits[_all_of(box)] = predicted[_all_of(box.seen_from(crop.low))]

    def grown(self, box: Box) -> Box:
        """The box, each face that foreground touches and the image goes on at moved out by a quarter of its window.

        A patch of a 2D model has no slices: there a quarter of the box.
        """
        low, high, size = list(box.low), list(box.high), self.size_of(box)
        for axis, length in enumerate(self.shape):
            across = size[axis] if size[axis] > 1 else box.shape[axis]
            step = -(-across // 4)
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


class ImageGrid(BoxGrid):
    """Boxes in the windows of the whole image; logits are kept where all windows of a voxel were computed."""

    def __init__(self, window: SlidingWindow, data: torch.Tensor, progress: Progress | None):
        super().__init__(window, data, progress)
        self.sizes = [self.patch]
        self.padded = tuple(np.maximum(self.shape, self.patch).tolist())
        padding = [(after - before) // 2 for before, after in zip(self.shape, self.padded, strict=True)]
        self.image = Box(tuple(padding), tuple(np.add(padding, self.shape).tolist()))
        """The image in the padded one, in whose voxels the windows are."""
        slicers = window._internal_get_sliding_window_slicers(self.padded)
        self.all_windows = [_box_of(one) for one in slicers]
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
        return [bool(wanted[window.slices].any()) for window in self.all_windows]

    def cost(self, boxes: Sequence[Box]) -> int:
        return sum(self._needed(boxes))

    def predict(self, boxes: Sequence[Box]) -> None:
        needed = self._needed(boxes)
        chosen = [window for window, is_needed in zip(self.all_windows, needed, strict=True) if is_needed]
        if not chosen:
            return
        complete = torch.zeros(self.padded, dtype=torch.bool)
        for window in chosen:
            complete[window.slices] = True
        for window, is_needed in zip(self.all_windows, needed, strict=True):
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
        self.windows[self.patch] += len(chosen)
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
