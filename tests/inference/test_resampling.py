"""Across thick slices: what the network was shown, and what is interpolated in between."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from nnunetv2_ext.inference.export import labels_of
from tests.inference.logits import DATA, RESAMPLING, labels, made, stock, written

# preprocessed and stored slices, the stored slice that each preprocessed one shows, and where each stored one is found
BETWEEN = {
    "every slice shown once": (4, 4, [0, 1, 2, 3], [0, 1, 2, 3]),
    "every slice shown": (10, 6, [0, 0, 1, 2, 2, 3, 3, 4, 5, 5], [0, 2, 4, 5, 7, 9]),
    "two of three shown": (4, 6, [0, 2, 3, 5], [0, 0.5, 1, 2, 2.5, 3]),
    "one of three shown": (2, 6, [1, 4], [0, 0, 1 / 3, 2 / 3, 1, 1]),
    "one": (1, 3, [1], [0, 0, 0]),
}


def along(values: Any, axis: int) -> np.ndarray:
    """Values that vary along one of three axes."""
    return np.asarray(values, np.float64).reshape([-1 if number == axis else 1 for number in range(3)])


@pytest.mark.parametrize(("count", "stored", "shown", "places"), BETWEEN.values(), ids=BETWEEN)
@pytest.mark.parametrize(("axis", "order"), [(0, (0, 1, 2)), (1, (0, 1, 2)), (2, (0, 1, 2)), (0, (2, 0, 1))], ids=str)
def test_slices_that_were_not_shown(
    count: int, stored: int, shown: list[int], places: list[float], axis: int, order: tuple[int, ...], tmp_path: Path
) -> None:
    grid, image, spacing, plans_spacing = [7, 8, 9], [7, 8, 9], [0.7] * 3, [0.7] * 3
    grid[axis], image[axis], spacing[axis], plans_spacing[axis] = count, stored, 4.0, 4.0 * stored / count
    turned = [spacing[place] for place in np.argsort(order)]
    prediction = made(grid, image, spacing=turned, plans_spacing=plans_spacing, order=order, dtype=torch.float32)

    # what nnU-Net's own preprocessing shows
    numbered = np.broadcast_to(along(range(stored), axis), image)[None]
    resampled = prediction.configuration_manager.resampling_fn_data(numbered, grid, spacing, plans_spacing)
    np.testing.assert_array_equal(resampled[0], np.broadcast_to(along(shown, axis), grid))

    lower, weight = np.floor(places).astype(int), along(places - np.floor(places), axis)
    logits = prediction.logits.double().numpy()
    exact = logits.take(lower, axis + 1) * (1 - weight) + logits.take(np.ceil(places).astype(int), axis + 1) * weight
    exact = exact.transpose(0, *(1 + np.argsort(order)))
    np.testing.assert_array_equal(labels_of([prediction], labels(3), linear_z=True), exact.argmax(0))
    probabilities = written([prediction], labels(3), tmp_path, linear_z=True)
    np.testing.assert_allclose(probabilities, torch.from_numpy(exact).softmax(0), rtol=0, atol=1e-6)

    # those that were shown keep nnU-Net's labels
    slices = np.moveaxis(stock(prediction, labels(3)).transpose(order), axis, 0)[shown]
    result = np.moveaxis(labels_of([prediction], labels(3), linear_z=True).transpose(order), axis, 0)[shown]
    np.testing.assert_array_equal(result, slices)


LINEAR: dict[str, dict[str, Any]] = {
    "the images were interpolated": {"data_options": {**DATA, "order_z": 1}},
    "the images were resampled by another function": {"data_function": "resample_torch_fornnunet"},
    "the logits are interpolated": {"options": {**RESAMPLING, "order_z": 1}},
    "thick slices are not told apart": {"options": {**RESAMPLING, "force_separate_z": False}},
    "no thick slices": {"spacing": (1, 0.7, 0.7), "plans_spacing": (1, 1, 1)},
}


@pytest.mark.parametrize("options", LINEAR.values(), ids=LINEAR)
def test_linear_where_no_slice_was_taken_for_another(options: dict[str, Any]) -> None:
    thick: dict[str, Any] = {"plans_spacing": (5, 1, 1), "spacing": (3, 0.7, 0.7)}
    prediction = made((6, 16, 14), (10, 21, 23), dtype=torch.float32, **{**thick, **options})
    exact = functional.interpolate(prediction.logits[None].double(), (10, 21, 23), mode="trilinear")[0]
    np.testing.assert_array_equal(labels_of([prediction], labels(3), linear_z=True), exact.argmax(0))
