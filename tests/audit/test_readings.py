"""What the values of labels ask of a network, what its outputs decide, and how far both are apart."""

from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_ext.audit.blocks import Block
from nnunetv2_ext.audit.map import task_of
from nnunetv2_ext.audit.readings import Reading, Task
from nnunetv2_ext.evaluation.segmentations import labels_of
from nnunetv2_ext.geometry.boxes import Box
from tests.audit.preprocessed import IGNORED, LABELS, REGIONS

NAN = float("nan")


def task(of: dict[str, Any]) -> Task:
    content = {"file_ending": ".nii.gz", **of}
    manager = LabelManager(of["labels"], of.get("regions_class_order"))
    return task_of(labels_of(content, "dataset.json"), manager)  # type: ignore[arg-type]


def block(label: list[int], outside: dict[int, float] | None = None) -> Block:
    """A line of voxels."""
    values = torch.tensor(label, dtype=torch.uint8)[:, None, None]
    box = Box((0, 0, 0), tuple(values.shape))
    return Block("case", torch.zeros(1, *values.shape), values, outside or {}, box, tuple(values.shape), {})


@pytest.mark.parametrize(
    ("of", "label", "target", "valid"),
    [
        (LABELS, [0, 1, 2], [0, 1, 2], None),
        (IGNORED, [0, 3, 2], [0, 0, 2], [True, False, True]),
        (REGIONS, [0, 1, 2], [[False, True, True], [False, False, True]], None),
    ],
    ids=["labels", "ignore", "regions"],
)
def test_target(of: dict[str, Any], label: list[int], target: list[Any], valid: list[bool] | None) -> None:
    found = task(of).target(torch.tensor(label, dtype=torch.uint8))
    assert found[0].tolist() == target
    assert (None if found[1] is None else found[1].tolist()) == valid


@pytest.mark.parametrize(
    ("of", "logits", "decided"),
    [
        (LABELS, [[3, 0, 0], [1, 2, 0], [0, 0, 1]], [0, 1, 2]),
        (REGIONS, [[-1, 2, 3, -1], [-1, -2, 1, 1]], [0, 1, 2, 2]),
    ],
    ids=["labels", "regions"],
)
def test_decided(of: dict[str, Any], logits: list[list[float]], decided: list[int]) -> None:
    assert task(of).decided(torch.tensor(logits)).tolist() == decided


@pytest.mark.parametrize(
    ("of", "label", "outside", "decided", "expected"),
    [
        (LABELS, [0, 1, 1, 2], {}, [0, 1, 1, 2], [0, 0]),
        (LABELS, [0, 1, 1, 2], {}, [1, 1, 0, 0], [0.5, 1]),
        (LABELS, [0, 1, 1, 0], {}, [0, 1, 1, 0], [0, NAN]),
        (LABELS, [0, 1, 1, 0], {1: 4.0}, [0, 1, 1, 0], [0.5, NAN]),
        (IGNORED, [3, 1, 3, 2], {3: 9.0}, [1, 1, 2, 2], [0, 0]),
        (REGIONS, [0, 1, 1, 2], {}, [0, 2, 2, 2], [0, 0.5]),
    ],
    ids=["same", "others", "absent", "outside", "ignore", "regions"],
)
def test_overlaps(
    of: dict[str, Any], label: list[int], outside: dict[int, float], decided: list[int], expected: list[float]
) -> None:
    found = task(of).overlaps(block(label, outside), torch.tensor(decided)[:, None, None])
    np.testing.assert_allclose(found, expected)


def test_a_reading_comes_back_from_a_checkpoint() -> None:
    random = np.random.default_rng(0)
    content = {
        "epoch": 5,
        "dice": 0.8,
        "latents": torch.from_numpy(random.normal(size=(12, 2))),
        "disagreement": torch.from_numpy(random.random((12, 3))),
    }
    reading = Reading.from_tensors(content)
    again = Reading.from_tensors(reading.to_tensors())
    assert (again.epoch, again.dice) == (5, 0.8)
    for name in ("latents", "rarity", "disagreement"):
        np.testing.assert_array_equal(getattr(again, name), getattr(reading, name))
