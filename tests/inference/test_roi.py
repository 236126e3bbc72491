"""Prediction inside boxes: of the whole image or of the crop alone, bit for bit, and against nnU-Net's predictor."""

from collections.abc import Sequence
from copy import deepcopy
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunetv2_ext.geometry.boxes import Box, around
from nnunetv2_ext.inference.roi import (
    ROI,
    Inside,
    boxes_in_image,
    predict_inside,
    report,
)
from nnunetv2_ext.inference.windows import SlidingWindow

LABELS = {"background": 0, "a": 1, "b": 2}
REGIONS = {"background": 0, "whole": [1, 2], "core": 2}
IGNORE = {**LABELS, "ignore": 3}


class Counted(nn.Module):
    """Two convolutions; counts the windows that it sees."""

    def __init__(self, channels: int, heads: int, dimensions: int):
        super().__init__()
        convolution = nn.Conv3d if dimensions == 3 else nn.Conv2d
        self.layers = nn.Sequential(
            convolution(channels, 4, 3, padding=1), nn.LeakyReLU(), convolution(4, heads, 3, padding=1)
        )
        self.seen: list[int] = []  # appended to from several threads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(x))
        return self.layers(x)


class Threshold(nn.Module):
    """Foreground where the image is above 0.5; of regions the first."""

    def __init__(self, heads: int, regions: bool):
        super().__init__()
        self.heads, self.regions = heads, regions
        self.seen: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(x))
        logits = torch.full((len(x), self.heads, *x.shape[2:]), -1.0)
        logits[:, 0 if self.regions else 1] = x[:, 0] - 0.5
        if not self.regions:
            logits[:, 0] = 0
        return logits


class Watched(SlidingWindow):
    """Notes the shapes of the images that it moves to the device."""

    shapes: list[tuple[int, ...]]

    def _internal_predict_sliding_window_return_logits(self, data: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.shapes.append(tuple(data.shape[1:]))
        return super()._internal_predict_sliding_window_return_logits(data, *args, **kwargs)


def predictor(
    patch: Sequence[int],
    *,
    channels: int = 1,
    labels: dict[str, Any] = LABELS,
    folds: int = 1,
    mirrored: bool = False,
    transpose: Sequence[int] = (0, 1, 2),
    threshold: bool = False,
) -> Watched:
    plans = PlansManager(
        {
            "configurations": {"made": {"patch_size": list(patch), "architecture": {}}},
            "transpose_forward": list(transpose),
            "transpose_backward": np.argsort(transpose).tolist(),
            "label_manager": "LabelManager",
        }
    )
    description: dict[str, Any] = {"channel_names": {}, "labels": labels}
    regions = any(isinstance(value, list) for value in labels.values())
    if regions:
        description["regions_class_order"] = [1, 2]
    heads = plans.get_label_manager(description).num_segmentation_heads
    torch.manual_seed(0)
    networks = [Counted(channels, heads, len(patch)) for _ in range(folds)]
    network = Threshold(heads, regions) if threshold else networks[0]
    made = Watched(
        network,
        plans,
        plans.get_configuration("made"),
        description,
        "nnUNetTrainer",
        tuple(range(len(patch))) if mirrored else None,
        [{}] if threshold else [deepcopy(one.state_dict()) for one in networks],
        device=torch.device("cpu"),
    )
    made.shapes = []
    return made


def properties(shape: Sequence[int], crop: Sequence[Sequence[int]] | None = None) -> dict[str, Any]:
    return {
        "spacing": [5.0, 1.0, 0.5],
        "bbox_used_for_cropping": [[0, size] for size in shape] if crop is None else crop,
    }


def image(shape: Sequence[int], channels: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).normal(size=(channels, *shape)).astype(np.float32))


def predicted(window: Watched, data: torch.Tensor, boxes: Sequence[Box], roi: ROI) -> Inside:
    window.network.seen.clear()
    return predict_inside(window, data, boxes, properties(data.shape[1:]), window.plans_manager, roi)


def cut(box: Box) -> tuple[slice, ...]:
    """Out of all channels."""
    return (slice(None), *box.slices)


def background(logits: torch.Tensor, regions: bool) -> torch.Tensor:
    expected = torch.full_like(logits, -10)
    if not regions:
        expected[0] = 10
    return expected


def even(copies: int) -> int:
    """A copy alone goes through the network with itself."""
    return copies + copies % 2


def starts(length: int, patch: int) -> list[int]:
    """Where nnU-Net's windows begin along an axis, written anew; those of a 2D model in every slice."""
    if patch == 1:
        return list(range(length))
    steps = int(np.ceil((length - patch) / (patch / 2))) + 1
    return [0] if steps == 1 else [int(np.round((length - patch) / (steps - 1) * step)) for step in range(steps)]


CASES: dict[str, dict[str, Any]] = {
    "3D": {"patch": (4, 8, 8), "shape": (11, 23, 30), "boxes": [((2, 3, 4), (4, 9, 11))]},
    "two boxes": {
        "patch": (4, 8, 8),
        "shape": (11, 33, 40),
        "boxes": [((2, 3, 4), (4, 9, 11)), ((8, 25, 33), (11, 33, 40))],
    },
    "padded": {"patch": (8, 16, 12), "shape": (5, 11, 40), "boxes": [((1, 2, 3), (3, 9, 12))]},
    "one slice": {"patch": (4, 8, 8), "shape": (1, 23, 30), "boxes": [((0, 3, 4), (1, 9, 11))]},
    "2D": {"patch": (8, 8), "shape": (5, 23, 30), "boxes": [((1, 3, 4), (3, 9, 11))]},
    "2D, padded": {"patch": (16, 8), "shape": (5, 11, 30), "boxes": [((1, 3, 4), (3, 9, 11))]},
    "mirrored": {"patch": (4, 8, 8), "shape": (7, 19, 21), "boxes": [((2, 3, 4), (4, 9, 11))], "mirrored": True},
    "folds": {"patch": (4, 8, 8), "shape": (7, 19, 21), "boxes": [((2, 3, 4), (4, 9, 11))], "folds": 3},
    "channels": {"patch": (4, 8, 8), "shape": (7, 19, 21), "boxes": [((2, 3, 4), (4, 9, 11))], "channels": 4},
    "regions": {"patch": (4, 8, 8), "shape": (7, 19, 21), "boxes": [((2, 3, 4), (4, 9, 11))], "labels": REGIONS},
    "ignore": {"patch": (4, 8, 8), "shape": (7, 19, 21), "boxes": [((2, 3, 4), (4, 9, 11))], "labels": IGNORE},
}


def made(case: dict[str, Any]) -> tuple[Watched, torch.Tensor, list[Box], bool]:
    case = dict(case)
    shape, boxes = case.pop("shape"), [Box(*box) for box in case.pop("boxes")]
    regions = case.get("labels") is REGIONS
    return predictor(**case), image(shape, case.get("channels", 1)), boxes, regions


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_grid_image_equals_the_whole_prediction_where_all_windows_were_computed(case):
    window, data, boxes, regions = made(case)
    whole = window.logits(data)
    inside = predicted(window, data, boxes, ROI(grid="image", growth=False))
    patch, shape = (1, *case["patch"])[-3:], data.shape[1:]
    padded = np.maximum(patch, shape)
    offset = (padded - shape) // 2
    complete = np.ones(padded, bool)
    windows = list(product(*map(starts, padded, patch)))
    meeting = 0
    for start in windows:
        stop = np.add(start, patch)
        meets = [np.less(start, box.high + offset) & np.less(box.low + offset, stop) for box in boxes]
        if any(along.all() for along in meets):
            meeting += 1
        else:
            complete[tuple(map(slice, start, stop))] = False
    complete = complete[tuple(slice(first, first + size) for first, size in zip(offset, shape, strict=True))]
    assert complete.any() and not complete.all()
    assert all(complete[box.slices].all() for box in boxes)
    expected = torch.where(torch.from_numpy(complete), whole, background(whole, regions))
    assert torch.equal(inside.logits, expected)
    assert (inside.computed, inside.of_all) == (meeting, len(windows))
    assert inside.boxes == boxes and inside.fallback is None
    copies = 2 ** len(case["patch"]) if case.get("mirrored") else 1
    assert sum(window.network.seen) == even(meeting * copies) * case.get("folds", 1)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_grid_box_equals_the_prediction_of_the_crop(case):
    window, data, boxes, regions = made(case)
    patch = (1, *case["patch"])[-3:]
    expected = background(torch.empty_like(window.logits(data)), regions)
    copies = 2 ** len(case["patch"]) if case.get("mirrored") else 1
    windows = each = 0
    for box in boxes:
        crop = around(box, patch, data.shape[1:])
        alone = window.logits(data[cut(crop)].clone())
        expected[cut(box)] = alone[cut(box.seen_from(crop.low))]
        torch.testing.assert_close(
            alone, window.predict_logits_from_preprocessed_data(data[cut(crop)])
        )  # nnU-Net's own
        of_box = int(np.prod([len(starts(max(size, one), one)) for size, one in zip(crop.shape, patch, strict=True)]))
        windows, each = windows + of_box, each + even(of_box * copies)
    window.shapes.clear()
    inside = predicted(window, data, boxes, ROI(growth=False))
    assert torch.equal(inside.logits, expected)
    assert (inside.computed, inside.boxes) == (windows, boxes)
    assert sum(window.network.seen) == each * case.get("folds", 1)
    # nothing but the padded crop goes to the device
    assert max(map(np.prod, window.shapes)) < np.prod(np.maximum(data.shape[1:], patch))


def test_one_case_after_another():
    window, data = predictor((4, 8, 8)), image((8, 32, 32))
    boxes = [[Box((2, 2, 2), (4, 4, 4))], [Box((2, 26, 26), (4, 30, 30))]]
    first, second, again = (predicted(window, data, of, ROI(grid="image", growth=False)) for of in (*boxes, boxes[0]))
    assert first.of_all == second.of_all == again.of_all
    assert torch.equal(first.logits, again.logits) and not torch.equal(first.logits, second.logits)


def test_grid_image_moves_no_more_than_its_windows_to_the_device():
    window, data, boxes, _ = made(CASES["3D"])
    predicted(window, data, boxes, ROI(grid="image", growth=False))
    assert window.shapes == [(6, 16, 15)]


@pytest.mark.parametrize("grid", ["box", "image"])
def test_a_box_as_large_as_the_image(grid):
    window, data, _, _ = made(CASES["padded"])
    box = Box((0, 0, 0), tuple(data.shape[1:]))
    inside = predicted(window, data, [box], ROI(grid=grid))
    assert torch.equal(inside.logits, window.logits(data))
    assert inside.computed == inside.of_all and inside.fallback is None


@pytest.mark.parametrize("labels", [LABELS, REGIONS])
def test_nothing_found(labels):
    window, data = predictor((4, 8, 8), labels=labels), image((7, 19, 21))
    whole = window.logits(data)
    inside = predicted(window, data, [], ROI())
    assert torch.equal(inside.logits, whole)
    assert (inside.computed, inside.rounds) == (inside.of_all, 0)
    assert inside.fallback == "the mask is empty; the whole image was predicted"
    inside = predicted(window, data, [], ROI(empty="background"))
    assert torch.equal(inside.logits, background(whole, labels is REGIONS))
    segmentation = window.label_manager.convert_logits_to_segmentation(inside.logits)
    assert not segmentation.any()
    assert (sum(window.network.seen), inside.computed, inside.boxes) == (0, 0, [])
    assert inside.fallback == "the mask is empty; all is background"


def test_a_mask_outside_of_what_preprocessing_kept():
    window, data = predictor((4, 8, 8)), image((6, 10, 10))
    kept = properties((6, 10, 10), [[2, 8], [0, 10], [0, 10]])
    inside = predict_inside(window, data, [Box((0, 0, 0), (2, 9, 9))], kept, window.plans_manager, ROI())
    assert inside.fallback == "the mask lies where the image is 0; the whole image was predicted"


def test_boxes_that_cost_more_than_the_image():
    window, data = predictor((4, 8, 8)), image((4, 20, 20))
    boxes = [Box((0, row, 0), (4, row + 9, 20)) for row in (0, 11)]
    inside = predicted(window, data, boxes, ROI(growth=False))
    assert torch.equal(inside.logits, window.logits(data))
    assert inside.computed == inside.of_all == 16
    assert inside.fallback == "the boxes cost 16 windows, the whole image 16; it was predicted instead"
    assert predicted(window, data, boxes, ROI(grid="image", growth=False)).fallback is None


@pytest.mark.parametrize("grid", ["box", "image"])
@pytest.mark.parametrize("labels", [LABELS, REGIONS])
@pytest.mark.parametrize(
    ("patch", "organ", "box", "rounds"),
    [
        # half of it
        ((4, 8, 8), ((4, 10, 12), (8, 22, 24)), ((4, 10, 12), (8, 16, 24)), 4),
        # a corner
        ((4, 8, 8), ((4, 10, 12), (8, 22, 24)), ((6, 18, 20), (8, 22, 24)), 5),
        # as far as the border of the image
        ((4, 8, 8), ((0, 0, 30), (4, 4, 40)), ((0, 0, 33), (4, 4, 36)), 2),
        # slices of a 2D model
        ((8, 8), ((2, 10, 12), (11, 22, 24)), ((4, 10, 12), (6, 22, 24)), 4),
    ],
)
def test_growth_finds_an_organ_whose_box_was_too_small(grid, labels, patch, organ, box, rounds):
    window = predictor(patch, labels=labels, threshold=True)
    data = torch.zeros((1, 14, 40, 40))
    data[cut(Box(*organ))] = 1
    manager = window.label_manager

    def found(roi: ROI) -> tuple[np.ndarray, Inside]:
        inside = predicted(window, data, [Box(*box)], roi)
        return manager.convert_logits_to_segmentation(inside.logits).numpy() > 0, inside

    mask, inside = found(ROI(grid=grid))
    assert (mask == (data[0].numpy() > 0.5)).all()
    assert inside.rounds == rounds and inside.fallback is None
    if grid == "image":
        assert inside.computed <= inside.of_all
        whole = window.logits(data)
        assert all(torch.equal(inside.logits[cut(box)], whole[cut(box)]) for box in inside.boxes)
    mask, inside = found(ROI(grid=grid, growth=False))
    assert mask.sum() < np.prod(Box(*organ).shape) and inside.rounds == 0


@pytest.mark.parametrize("grid", ["box", "image"])
def test_boxes_that_grow_into_each_other_become_one(grid):
    window = predictor((4, 8, 8), threshold=True)
    data = torch.zeros((1, 4, 40, 60))
    data[0, :, 10:14, 10:24] = 1
    boxes = [Box((0, 10, 10), (4, 14, 14)), Box((0, 10, 20), (4, 14, 24))]
    inside = predicted(window, data, boxes, ROI(grid=grid))
    assert len(inside.boxes) == 1
    assert ((inside.logits.argmax(0) > 0) == (data[0] > 0)).all()


def test_growth_that_costs_too_much_ends_in_the_whole_image():
    window = predictor((4, 8, 8), threshold=True)
    data = torch.ones((1, 4, 40, 40))
    inside = predicted(window, data, [Box((0, 18, 18), (4, 22, 22))], ROI())
    assert inside.fallback is not None and inside.rounds > 1
    assert (inside.logits.argmax(0) > 0).all()


@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_boxes_on_the_image_are_those_of_the_preprocessed_one(transpose):
    """Transposed, cropped and resampled to another shape; the boxes come back on the image's grid in the report."""
    window = predictor((4, 8, 8), transpose=transpose)
    kept = Box((1, 2, 3), (7, 26, 23))  # of the transposed image
    data = image((6, 12, 40))  # half and twice the voxels along the last two axes
    box = Box((2, 6, 9), (4, 10, 12))
    # on the transposed image 1 + 2..4, 2 + 2 x 6..10, 3 + 9 / 2..12 / 2
    before = [(3, 5), (14, 22), (7, 9)]
    low, high = zip(*(before[transpose.index(axis)] for axis in range(3)), strict=True)
    told = properties((), [list(pair) for pair in zip(*kept, strict=True)])
    roi = ROI(growth=False)
    inside = predict_inside(window, data, [Box(low, high)], told, window.plans_manager, roi)
    assert inside.boxes == [Box((2, 6, 8), (4, 10, 12))]
    assert np.less_equal(inside.boxes[0].low, box.low).all() and np.less_equal(box.high, inside.boxes[0].high).all()
    entry = report(inside, told, window.plans_manager, roi, seconds=1.23456, roi_seconds=None)
    assert entry == {
        "boxes_voxels": [[list(low), list(high)]],
        "boxes_mm": [[np.multiply(low, told["spacing"]).tolist(), np.multiply(high, told["spacing"]).tolist()]],
        "grid": "box",
        "margin_mm": 0.0,
        "windows_computed": inside.computed,
        "windows_of_all": inside.of_all,
        "rounds_of_growth": 0,
        "fallback": None,
        "seconds_roi_model": None,
        "seconds": 1.235,
    }


@pytest.mark.parametrize(
    ("roi", "expected"),
    [
        (ROI(), [((1, 2, 3), (2, 4, 5)), ((6, 12, 15), (8, 14, 16))]),
        (ROI(labels=(2,)), [((6, 12, 15), (8, 14, 16))]),
        (ROI(labels=(5,)), []),
        # 3 mm are one slice of 5 mm and three pixels of 1 mm, clipped at the image's border
        (ROI(margin=3.0), [((0, 0, 0), (3, 7, 8)), ((5, 9, 12), (8, 16, 16))]),
        (ROI(margin=11.0), [((0, 0, 0), (8, 16, 16))]),
    ],
)
def test_boxes_in_image(roi, expected):
    mask = np.zeros((8, 16, 16), np.uint8)
    mask[1, 2:4, 3:5] = 1
    mask[6:8, 12:14, 15] = 2
    assert boxes_in_image(mask, (5.0, 1.0, 1.0), roi) == [Box(*box) for box in expected]


def test_boxes_beside_each_other_become_one_where_that_costs_less():
    window, data = predictor((4, 8, 8)), image((8, 32, 32))
    near = [Box((2, 2, 2), (4, 4, 4)), Box((2, 2, 5), (4, 4, 6))]
    far = Box((2, 26, 26), (4, 30, 30))
    both = predicted(window, data, [*near, far], ROI(growth=False))
    assert both.boxes == [Box((2, 2, 2), (4, 4, 6)), far]
    apart = sum(predicted(window, data, [box], ROI(growth=False)).computed for box in (*near, far))
    assert both.computed < apart
    assert predicted(window, data, [*near, far], ROI(grid="image", growth=False)).boxes == [*near, far]
