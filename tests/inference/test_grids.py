"""Windows by the size of a box, with a network that has entries: which is chosen, what is computed, what is told."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import nn
from torch._dynamo import OptimizedModule
from torch._dynamo.testing import CompileCounterWithBackend

from nnunetv2_ext.geometry.boxes import Box
from nnunetv2_ext.inference.grids import size_for
from nnunetv2_ext.inference.roi import ROI, predict_inside, report
from nnunetv2_ext.inference.windows import SlidingWindow
from tests.inference.test_roi import background, cut, image, predictor, properties

SIZES: list[tuple[int, ...]] = [(8, 32, 32), (8, 16, 16), (4, 8, 8)]
LARGE = (40, 200, 200)
MIDDLE = (18, 90, 90)


class WithEntries(nn.Module):
    """A convolution and a number for each entry, so that their outputs differ; counts what it sees by size."""

    entry_shapes = SIZES

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv3d(1, 3, 3, padding=1)
        self.numbers = nn.Parameter(torch.tensor([0.0, 1.0, 2.0]))
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = tuple(x.shape[2:])
        self.seen += [shape] * len(x)
        return self.layer(x) + self.numbers[SIZES.index(shape)]


class Foreground(WithEntries):
    """Label 1 where the image is above 0.5."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(x), x - 0.5, torch.full_like(x, -1)], 1) + 0 * self.numbers[0]


def window_of(network: nn.Module, *, mirrored: bool = False, folds: int = 1) -> SlidingWindow:
    made = predictor(SIZES[0], mirrored=mirrored)
    weights = []
    for fold in range(folds):
        torch.manual_seed(fold)
        weights.append({name: torch.randn_like(value) for name, value in network.state_dict().items()})
    axes = (0, 1, 2) if mirrored else None
    return SlidingWindow(
        network,
        made.plans_manager,
        made.configuration_manager,
        made.dataset_json,
        "nnUNetTrainer",
        axes,
        weights,
        device=torch.device("cpu"),
    )


def of_nnunet(window: SlidingWindow, size: Sequence[int], mirrored: bool) -> nnUNetPredictor:
    """nnU-Net's own predictor of a model whose patch is that."""
    stock = nnUNetPredictor(use_mirroring=mirrored, device=torch.device("cpu"), allow_tqdm=False)
    stock.manual_initialization(
        window.bare_network,
        window.plans_manager,
        ConfigurationManager({**window.configuration_manager.configuration, "patch_size": list(size)}),
        window.list_of_parameters,
        window.dataset_json,
        "nnUNetTrainer",
        (0, 1, 2),
    )
    return stock


def around_middle(shape: Sequence[int]) -> Box:
    low = tuple(middle - size // 2 for middle, size in zip(MIDDLE, shape, strict=True))
    return Box(low, tuple(first + size for first, size in zip(low, shape, strict=True)))


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((1, 1, 1), SIZES[2]),
        # box + half of the window along every axis, to the voxel
        ((2, 4, 4), SIZES[2]),
        ((2, 4, 5), SIZES[1]),
        ((3, 4, 4), SIZES[1]),
        ((4, 8, 8), SIZES[1]),
        ((4, 9, 8), SIZES[0]),
        # slices of the second entry are those of the patch: several windows, of either
        ((30, 8, 8), SIZES[1]),
        # larger than all
        ((4, 16, 16), SIZES[0]),
        ((30, 100, 100), SIZES[0]),
    ],
)
def test_the_smallest_window_that_holds_a_box(shape: Sequence[int], size: Sequence[int]) -> None:
    box = around_middle(shape)
    assert size_for(box, SIZES, LARGE) == size
    assert size_for(box, SIZES[:1], LARGE) == SIZES[0]


def test_beyond_the_image_nothing_is_to_be_held() -> None:
    corner = Box((0, 0, 0), (3, 6, 6))
    assert size_for(corner, SIZES, LARGE) == SIZES[2]
    assert size_for(around_middle((3, 6, 6)), SIZES, LARGE) == SIZES[1]
    assert size_for(Box((0, 0, 0), (4, 8, 8)), SIZES, (4, 8, 8)) == SIZES[2]


@pytest.mark.parametrize(
    ("shape", "size", "windows"),
    [((2, 4, 4), SIZES[2], 1), ((4, 8, 8), SIZES[1], 1), ((12, 8, 8), SIZES[1], 3), ((4, 20, 20), SIZES[0], 4)],
)
@pytest.mark.parametrize(("mirrored", "folds"), [(False, 1), (True, 2)], ids=["plain", "mirrored, two folds"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_box_is_predicted_as_nnunet_predicts_the_crop_in_windows_of_that_size(
    shape: Sequence[int], size: Sequence[int], windows: int, mirrored: bool, folds: int, compiled: bool
) -> None:
    network = WithEntries()
    window = window_of(network, mirrored=mirrored, folds=folds)
    if compiled:
        wrapper: Any = OptimizedModule
        window.network = wrapper(network, lambda model: model)
    data, box, roi = image((36, 100, 120)), around_middle(shape), ROI(growth=False)
    box = box.seen_from((9, 45, 45))
    inside = predict_inside(window, data, [box], properties(data.shape[1:]), window.plans_manager, roi)
    copies = 8 if mirrored else 1
    assert {*network.seen} == {size}
    assert len(network.seen) == folds * (windows * copies + windows * copies % 2)
    assert inside.computed == windows and inside.computed_of == {size: windows} and inside.sizes == [size]

    margin = [-(-one // 4) for one in size]
    grown = box.grown(margin)
    assert np.less_equal(grown.shape, np.maximum(size, grown.shape)).all()
    lacking = np.maximum(np.subtract(size, grown.shape), 0)
    crop = Box(
        tuple((np.array(grown.low) - lacking // 2).tolist()),
        tuple((np.array(grown.high) + lacking - lacking // 2).tolist()),
    )
    expected = of_nnunet(window, size, mirrored).predict_logits_from_preprocessed_data(data[cut(crop)])
    whole = background(torch.empty_like(inside.logits), False)
    whole[cut(box)] = expected[cut(box.seen_from(crop.low))].half()
    torch.testing.assert_close(inside.logits, whole)
    # the patch is the window again
    assert list(window.configuration_manager.patch_size) == list(SIZES[0])
    told = report(inside, properties(data.shape[1:]), window.plans_manager, roi, seconds=1, roi_seconds=None)
    assert told["window_voxels"] == [list(size)]
    assert told["windows_by_size"] == {" x ".join(map(str, size)): windows}


def test_a_compiled_network_is_compiled_for_each_size() -> None:
    counter, network = CompileCounterWithBackend("eager"), Foreground()
    window = window_of(network)
    window.network = torch.compile(window.network, backend=counter)
    data = image((36, 100, 120))
    for shape in ((2, 4, 4), (4, 8, 8), (4, 16, 16), (2, 4, 4)):
        box = around_middle(shape).seen_from((9, 45, 45))
        predict_inside(window, data, [box], properties(data.shape[1:]), window.plans_manager, ROI(growth=False))
    assert counter.frame_count == 3


def test_growth_changes_the_window() -> None:
    window = window_of(Foreground())
    data = torch.zeros((1, 36, 100, 120))
    organ = Box((9, 40, 40), (13, 52, 46))
    data[cut(organ)] = 1
    box = Box((10, 40, 42), (12, 44, 46))
    inside = predict_inside(window, data, [box], properties(data.shape[1:]), window.plans_manager, ROI())
    assert ((inside.logits.argmax(0) > 0) == (data[0] > 0)).all()
    assert inside.computed_of is not None and {*inside.computed_of} >= {SIZES[2], SIZES[0]}
    assert inside.sizes == [SIZES[0]] and inside.rounds > 1 and inside.fallback is None
    assert inside.computed == sum(inside.computed_of.values())


def test_small_boxes_stay_in_small_windows() -> None:
    window = window_of(WithEntries())
    data, told = image((36, 100, 120)), properties((36, 100, 120))
    apart = [Box((10, 40, 40), (12, 44, 44)), Box((10, 40, 52), (12, 44, 56))]
    inside = predict_inside(window, data, apart, told, window.plans_manager, ROI(growth=False))
    assert inside.boxes == apart and inside.computed_of == {SIZES[2]: 2}
    near = [Box((10, 40, 40), (12, 44, 41)), Box((10, 40, 42), (12, 44, 44))]
    inside = predict_inside(window, data, near, told, window.plans_manager, ROI(growth=False))
    assert inside.boxes == [Box((10, 40, 40), (12, 44, 44))] and inside.computed_of == {SIZES[2]: 1}


@pytest.mark.parametrize(("boxes", "roi"), [([], ROI()), ([Box((0, 0, 0), (9, 60, 64))], ROI(growth=False))])
def test_the_whole_image_is_predicted_in_patches(boxes: list[Box], roi: ROI) -> None:
    network = WithEntries()
    window = window_of(network)
    data = image((9, 60, 64))
    inside = predict_inside(window, data, boxes, properties(data.shape[1:]), window.plans_manager, roi)
    assert {*network.seen} == {SIZES[0]} and inside.sizes == [SIZES[0]]
    assert inside.computed_of == {SIZES[0]: inside.of_all}


def test_windows_of_the_whole_image_are_patches() -> None:
    network = WithEntries()
    window = window_of(network)
    data = image((36, 100, 120))
    told: Any = properties(data.shape[1:])
    roi = ROI(grid="image", growth=False)
    inside = predict_inside(
        window, data, [around_middle((2, 4, 4)).seen_from((9, 45, 45))], told, window.plans_manager, roi
    )
    assert {*network.seen} == {SIZES[0]} and inside.sizes == [SIZES[0]]
