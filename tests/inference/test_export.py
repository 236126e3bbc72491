"""Labels and probabilities on the image's grid, beside those of nnU-Net's own export."""

import re
import tracemalloc
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.ensembling.ensemble import average_probabilities
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.inference import export
from nnunetv2_ext.inference.export import Prediction, labels_of, write_probabilities
from tests.inference.logits import RESAMPLING, labels, made, stock, written

REGIONS = LabelManager({"background": 0, "whole": [1, 2, 3], "core": [2, 3], "middle": 3}, [1, 2, 3])
MIXED = LabelManager({"background": 0, "inner": 2, "whole": [1, 2]}, [1, 2])
IGNORED = labels(3, ignore=3)


TORCH = {"is_seg": False, "force_separate_z": None, "num_threads": 1}
THICK: dict[str, Any] = {"plans_spacing": (5, 1, 1), "spacing": (3, 0.7, 0.7)}
CASES: dict[str, tuple[Prediction, LabelManager]] = {
    "isotropic": (made((9, 16, 14), (14, 21, 23)), labels(3)),
    "float32": (made((9, 16, 14), (14, 21, 23), dtype=torch.float32), labels(3)),
    "no resampling": (made((9, 16, 14), (9, 16, 14)), labels(3)),
    "one axis": (made((9, 16, 14), (9, 16, 17)), labels(3)),
    "to coarser": (made((20, 31, 30), (9, 16, 14)), labels(3)),
    "one to finer, one to coarser": (made((9, 31, 14), (20, 16, 14)), labels(3)),
    "separate along 0": (made((6, 16, 14), (10, 21, 23), **THICK), labels(3)),
    "separate along 1": (made((16, 6, 14), (21, 10, 23), plans_spacing=(1, 5, 1), spacing=(0.7, 3, 0.7)), labels(3)),
    "separate along 2": (made((16, 14, 6), (21, 23, 10), plans_spacing=(1, 1, 5), spacing=(0.7, 0.7, 3)), labels(3)),
    "separate to coarser": (made((11, 16, 14), (6, 21, 23), **THICK), labels(3)),
    "separate by half": (made((6, 16, 14), (12, 21, 23), **THICK), labels(3)),  # centres between two slices
    "separate by two": (made((12, 16, 14), (6, 16, 14), **THICK), labels(3)),
    "separate by the image's spacing": (made((8, 16, 14), (6, 21, 23), spacing=(4, 1, 1)), labels(3)),
    "separate, slices kept": (made((6, 16, 14), (6, 21, 23), **THICK), labels(3)),
    "two thick axes": (made((6, 7, 14), (10, 9, 23), plans_spacing=(5, 5, 1)), labels(3)),
    "forced": (
        made((6, 9, 14), (9, 7, 20), spacing=(1, 2, 1), options={**RESAMPLING, "force_separate_z": True}),
        labels(3),
    ),
    "forbidden": (
        made((6, 16, 14), (10, 21, 23), **THICK, options={**RESAMPLING, "force_separate_z": False}),
        labels(3),
    ),
    "linear across slices": (made((6, 16, 14), (10, 21, 23), **THICK, options={**RESAMPLING, "order_z": 1}), labels(3)),
    "one slice": (made((1, 16, 14), (1, 21, 23), **THICK), labels(3)),
    "one slice from three": (made((3, 16, 14), (1, 21, 23)), labels(3)),
    "three slices from one": (made((1, 16, 14), (3, 21, 23)), labels(3)),
    "2D": (made((5, 16, 14), (5, 21, 23), plans_spacing=(1.3, 1.4), spacing=(5, 1, 0.9)), labels(3)),
    "2D, far from square": (made((5, 8, 14), (5, 16, 23), plans_spacing=(8, 1), spacing=(1, 4, 0.9)), labels(3)),
    "other order of axes": (made((9, 16, 14), (14, 21, 23), order=(2, 0, 1)), labels(3)),
    "other order, separate": (
        made((6, 16, 14), (10, 21, 23), order=(1, 2, 0), plans_spacing=(5, 1, 1), spacing=(0.7, 3, 0.7)),
        labels(3),
    ),
    "cropped": (made((9, 16, 14), (14, 21, 23), around=((2, 1), (0, 3), (4, 0))), labels(3)),
    "cropped, other order": (
        made((9, 16, 14), (14, 21, 23), around=((2, 1), (0, 3), (4, 0)), order=(2, 0, 1)),
        labels(3),
    ),
    "regions": (made((9, 16, 14), (14, 21, 23), around=((2, 1), (0, 3), (4, 0))), REGIONS),
    "regions and labels": (made((6, 16, 14), (10, 21, 23), **THICK, heads=2), MIXED),
    "regions, float32": (made((9, 16, 14), (14, 21, 23), dtype=torch.float32), REGIONS),
    "an ignore label": (made((9, 16, 14), (14, 21, 23)), IGNORED),
    "254 labels": (made((4, 8, 7), (6, 9, 9), heads=255, noise=2), labels(255)),
    "255 labels": (made((4, 8, 7), (6, 9, 9), heads=256, noise=2), labels(256)),
    "300 labels": (made((4, 8, 7), (6, 9, 9), heads=300, noise=2), labels(300)),
    "ties": (made((9, 16, 14), (14, 21, 23), noise=0), labels(3)),
    "PyTorch's resampling": (
        made((9, 16, 14), (14, 21, 23), order=(2, 0, 1), function="resample_torch_fornnunet", options=TORCH),
        labels(3),
    ),
    "cubic": (made((9, 16, 14), (14, 21, 23), options={**RESAMPLING, "order": 3}), labels(3)),
}
each_case = pytest.mark.parametrize(("prediction", "manager"), CASES.values(), ids=CASES)


@each_case
def test_labels_are_those_of_nnunet(prediction: Prediction, manager: LabelManager) -> None:
    expected = stock(prediction, manager)
    result = labels_of([prediction], manager)
    assert result.dtype == expected.dtype
    np.testing.assert_array_equal(result, expected)
    assert len(np.unique(result)) > 1


@each_case
def test_probabilities_are_those_of_nnunet(prediction: Prediction, manager: LabelManager, tmp_path: Path) -> None:
    # half precision rounds values between two of its numbers, where the last bit before rounding decides
    for logits, tolerance in ((prediction.logits.float(), 1e-6), (prediction.logits, 1e-2)):
        prediction = prediction._replace(logits=logits)
        _, expected = stock(prediction, manager, probabilities=True)
        result = written([prediction], manager, tmp_path)
        assert result.dtype == expected.dtype == np.float32
        np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance)


ISOTROPIC = made((9, 16, 14), (14, 21, 23), around=((2, 1), (0, 3), (4, 0)), dtype=torch.float32, seed=1)
COARSE = made((7, 12, 14), (14, 21, 23), around=((2, 1), (0, 3), (4, 0)), dtype=torch.float32, seed=2)
TURNED = made(
    (19, 7, 16),
    (23, 14, 21),
    around=((4, 0), (2, 1), (0, 3)),
    order=(2, 0, 1),
    plans_spacing=(1, 5, 1),
    seed=3,
    dtype=torch.float32,
)
FLAT = made(
    (14, 24, 24), (14, 21, 23), around=((2, 1), (0, 3), (4, 0)), plans_spacing=(1, 1), seed=4, dtype=torch.float32
)
ENSEMBLES: dict[str, tuple[list[Prediction], LabelManager]] = {
    "one": ([ISOTROPIC], labels(3)),
    "other grids": ([ISOTROPIC, COARSE], labels(3)),
    "another order of axes": ([ISOTROPIC, TURNED], labels(3)),
    "three": ([TURNED, FLAT, COARSE], labels(3)),
    "weights": ([ISOTROPIC._replace(weight=0.5), TURNED._replace(weight=3.0)], labels(3)),
    "regions": ([ISOTROPIC, TURNED, COARSE], REGIONS),
    "regions, weights": ([ISOTROPIC, COARSE._replace(weight=0.2)], REGIONS),
}


def stock_mean(predictions: Sequence[Prediction], manager: LabelManager, folder: Path) -> np.ndarray:
    """The mean of the members' saved probabilities, nnU-Net's own where they have the same weight."""
    files = []
    for number, prediction in enumerate(predictions):
        files.append(str(folder / f"{number}.npz"))
        np.savez(files[-1], probabilities=stock(prediction, manager, probabilities=True)[1])
    weights = [prediction.weight for prediction in predictions]
    if len(set(weights)) == 1:
        return average_probabilities(files)
    every = [np.load(file)["probabilities"] for file in files]
    return np.average(every, axis=0, weights=weights).astype(np.float32)


@pytest.mark.parametrize(("predictions", "manager"), ENSEMBLES.values(), ids=ENSEMBLES)
def test_members_are_averaged_as_by_nnunet(
    predictions: list[Prediction], manager: LabelManager, tmp_path: Path
) -> None:
    expected = stock_mean(predictions, manager, tmp_path)
    result = written(predictions, manager, tmp_path)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(
        labels_of(predictions, manager), manager.convert_probabilities_to_segmentation(expected)
    )


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_grid(data: st.DataObject) -> None:
    sizes, lengths = st.integers(1, 12), st.sampled_from([0.5, 0.8, 1.0, 2.0, 3.0, 5.0])
    three = lambda values: data.draw(st.tuples(values, values, values))  # noqa: E731
    prediction = made(
        three(sizes),
        three(sizes),
        plans_spacing=three(lengths),
        spacing=three(lengths),
        order=data.draw(st.permutations(range(3))),
        around=three(st.tuples(st.integers(0, 2), st.integers(0, 2))),
        dtype=data.draw(st.sampled_from([torch.half, torch.float32])),
        seed=data.draw(st.integers(0, 99)),
    )
    manager = data.draw(st.sampled_from([labels(3), REGIONS]))
    expected, probabilities = stock(prediction, manager, probabilities=True)
    # half precision rounds values between two of its numbers, where the last bit before rounding decides
    differing = probabilities[:, labels_of([prediction], manager) != expected]
    best = np.sort(differing, axis=0)
    margins = np.abs(best - 0.5).min(axis=0) if manager.has_regions else best[-1] - best[-2]
    assert (margins < 1e-2).all()
    assert margins.size <= 1 + expected.size // 1000


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("name", ["isotropic", "separate along 1", "other order, separate", "cropped", "regions"])
def test_blocks_leave_no_seam(name: str, many: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prediction, manager = CASES[name]
    predictions = [prediction, prediction] if many else [prediction]
    whole = labels_of(predictions, manager), written(predictions, manager, tmp_path)
    monkeypatch.setattr(export, "BLOCK", 100)
    monkeypatch.setattr(export, "VALUES", 200)
    np.testing.assert_array_equal(labels_of(predictions, manager), whole[0])
    np.testing.assert_allclose(written(predictions, manager, tmp_path), whole[1], rtol=0, atol=3e-7)


def test_on_average_another_head_may_win_than_any_members() -> None:
    predictions = [made((4, 4, 4), (4, 4, 4)), made((4, 4, 4), (4, 4, 4))]
    for prediction, values in zip(predictions, ([4.9, 5, -9], [4.9, -9, 5]), strict=True):
        prediction.logits[:] = torch.tensor(values).reshape(-1, 1, 1, 1)
    assert not labels_of(predictions, labels(3)).any()


def test_regions_of_labels_above_255() -> None:
    # nnU-Net keeps 8 bits of them
    manager = LabelManager({"background": 0, "whole": [1, 300], "core": 300}, [1, 300])
    prediction = made((9, 16, 14), (14, 21, 23), heads=2)
    result = labels_of([prediction], manager)
    assert set(np.unique(result)) == {0, 1, 300}
    np.testing.assert_array_equal(result.astype(np.uint8), stock(prediction, manager))


def test_nearest_slices_are_repeated() -> None:
    prediction, manager = CASES["separate along 0"]
    once = export._Grid([prediction], manager, linear_z=False)
    assert once.size == (6, 21, 23)
    assert once.repeats[0].tolist() == [2, 1, 2, 2, 1, 2]


def test_a_class_that_wins_nowhere_in_a_block_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    prediction = made((9, 16, 14), (14, 21, 23), heads=20, noise=0.1)
    prediction.logits[3:] -= 40
    expected, head = stock(prediction, labels(20)), export._Part.head
    taken = set()

    def noting(part: Any, number: int) -> np.ndarray:
        taken.add(number)
        return head(part, number)

    monkeypatch.setattr(export._Part, "head", noting)
    np.testing.assert_array_equal(labels_of([prediction], labels(20)), expected)
    assert taken == {0, 1, 2}


def peak(run: Any) -> int:
    """The most bytes that numpy holds while `run` does."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("regions", [False, True])
def test_memory_does_not_grow_with_the_classes(regions: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(export, "BLOCK", 2**9)
    monkeypatch.setattr(export, "VALUES", 2**12)
    peaks = []
    for classes in (8, 24):
        prediction, manager = made((4, 6, 6), (8, 16, 16), heads=classes), labels(classes)
        if regions:
            names = {f"region {k}": [k, k + 1] for k in range(1, classes + 1)}
            manager = LabelManager({"background": 0, **names}, list(range(1, classes + 1)))
        several = [prediction, prediction._replace(logits=-prediction.logits)]
        peaks.append(peak(lambda: labels_of([prediction], manager)))  # noqa: B023
        peaks.append(peak(lambda: labels_of(several, manager)))  # noqa: B023
        peaks.append(peak(lambda: write_probabilities(several, manager, tmp_path / "case.npz")))  # noqa: B023
    one, two, file, one_of_many, two_of_many, file_of_many = peaks
    assert one_of_many < 1.2 * one
    assert two_of_many < 1.2 * two
    assert file_of_many < 1.2 * file
    assert two_of_many < 24 * 8 * 16 * 16 * 4 / 2  # half of the classes in float32


def test_threads_do_not_disturb_each_other() -> None:
    names = ["isotropic", "separate along 1", "cropped, other order", "regions"] * 4
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda name: labels_of([CASES[name][0]], CASES[name][1]), names))
    for name, result in zip(names, results, strict=True):
        np.testing.assert_array_equal(result, labels_of([CASES[name][0]], CASES[name][1]))


def spoilt(value: float) -> Prediction:
    prediction = made((9, 16, 14), (14, 21, 23))
    prediction.logits[1, 3, 4, 5] = value
    return prediction


REFUSED: dict[str, tuple[list[Prediction], str]] = {
    "NaN": ([spoilt(float("nan"))], "got logits that are not finite"),
    "infinity": ([spoilt(float("inf"))], "got logits that are not finite"),
    "NaN in the second": ([spoilt(1), spoilt(float("nan"))], "got logits that are not finite"),
    "heads": ([made((9, 16, 14), (14, 21, 23), heads=4)], "got logits of 4 heads"),
    "another crop": (
        [ISOTROPIC, made((9, 9, 9), (14, 21, 23))],
        "for an image of (14, 21, 23) voxels, cropped to [0:14, 0:21, 0:23]; expected",
    ),
    "another image": (
        [ISOTROPIC, made((9, 16, 14), (14, 21, 22))],
        "expected logits of 3 heads for an image of (17, 24, 27) voxels",
    ),
}


@pytest.mark.parametrize(("predictions", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(predictions: list[Prediction], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        labels_of(predictions, labels(3))
    with pytest.raises(InputError, match=re.escape(message)):
        write_probabilities(predictions, labels(3), tmp_path / "case.npz")
