"""Every metric of two masks."""

import math
from typing import Any

import numpy as np
import pytest

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation.metrics import METRICS, Measured, Settings, measure
from nnunetv2_ext.testing.shapes import box

SHAPE, SPACING = (10, 30, 40), (5.0, 0.8, 0.5)
DIAGONAL = math.sqrt(50**2 + 24**2 + 20**2)
NONE = np.zeros(SHAPE, bool)
SOME = box(SHAPE, (2, 3, 4), (2, 5, 10))
NAN = math.nan


def values(found: dict[str, Measured]) -> dict[str, float]:
    return {metric: one.value for metric, one in found.items()}


def test_all_of_two_boxes() -> None:
    moved = box(SHAPE, (2, 3, 6), (2, 5, 10))
    found = measure(SOME, moved, SPACING)
    assert list(found) == list(METRICS)
    assert {metric: one.value for metric, one in found.items() if metric not in ("ASSD", "NSD")} == pytest.approx(
        {
            "Dice": 80 / 100,
            "IoU": 80 / 120,
            "volume": 0.2,
            "reference volume": 0.2,
            "volume error": 0.0,
            "HD": 1.0,
            "HD95": 1.0,
            "lesion recall": 1.0,
            "lesion precision": 1.0,
            "lesion F1": 1.0,
        }
    )
    assert found["NSD"].value == 1.0
    assert not any(one.note for one in found.values())


def test_what_was_cut_away_does_not_count() -> None:
    """The box of both masks is cut out; where in the image they lie is nothing to a metric."""
    moved = box(SHAPE, (3, 3, 6), (2, 5, 10))
    shifted, moved_too = (np.roll(mask, (5, 20, 20), (0, 1, 2)) for mask in (SOME, moved))
    assert values(measure(shifted, moved_too, SPACING)) == pytest.approx(values(measure(SOME, moved, SPACING)))


def test_equal_masks() -> None:
    found = measure(SOME, SOME, SPACING)
    perfect = {metric: one.value for metric, one in found.items() if "volume" not in metric}
    assert perfect == {metric: 0.0 if METRICS[metric].unit == "mm" else 1.0 for metric in perfect}


def test_volume_error_has_a_sign() -> None:
    found = measure(SOME, box(SHAPE, (2, 3, 4), (1, 5, 10)), SPACING)
    assert values(found)["volume error"] == pytest.approx(-0.1)
    assert values(found)["volume"] == pytest.approx(0.1)


def test_lesions() -> None:
    one, two = box(SHAPE, (0, 0, 0), (2, 4, 4)), box(SHAPE, (5, 20, 20), (2, 4, 4))
    found = measure(one | two, one | box(SHAPE, (0, 20, 30), (1, 2, 2)) | box(SHAPE, (9, 0, 0), (1, 1, 1)), SPACING)
    recall, precision, f1 = (found[f"lesion {name}"].value for name in ("recall", "precision", "F1"))
    assert (recall, precision, f1) == pytest.approx((1 / 2, 1 / 3, 2 / 5))


@pytest.mark.parametrize(
    ("reference", "prediction", "empty", "note", "expected"),
    [
        (NONE, NONE, None, "both empty", dict.fromkeys(METRICS, NAN)),
        (NONE, SOME, None, "no reference", {"HD": DIAGONAL, "lesion recall": NAN, "lesion precision": 0.0}),
        (SOME, NONE, None, "no prediction", {"HD": DIAGONAL, "lesion recall": 0.0, "lesion precision": NAN}),
        (SOME, NONE, 50, "no prediction", {"HD": 50.0, "lesion precision": NAN}),
        (NONE, SOME, 0.0, "no reference", {"HD": 0.0, "lesion recall": NAN}),
    ],
)
def test_empty_masks(
    reference: np.ndarray, prediction: np.ndarray, empty: float | None, note: str, expected: dict[str, float]
) -> None:
    found = measure(reference, prediction, SPACING, settings=Settings(empty=empty))
    expected = {**expected, "HD95": expected["HD"], "ASSD": expected["HD"]}
    for metric in METRICS.keys() - {"volume", "reference volume", "volume error"}:
        assert found[metric].note == note
        assert found[metric].value == pytest.approx(expected.get(metric, 0.0), nan_ok=True)
    first, second = (0.2 if mask.any() else 0.0 for mask in (reference, prediction))
    volumes = {"volume": second, "reference volume": first, "volume error": second - first}
    assert {metric: found[metric].value for metric in volumes} == pytest.approx(volumes)
    assert not any(found[metric].note for metric in volumes)


def test_a_label_has_its_own_tolerance() -> None:
    moved = box(SHAPE, (2, 3, 6), (2, 5, 10))
    settings = Settings(tolerance=0.9, tolerances={"tumour": 1})
    shares = [measure(SOME, moved, SPACING, label=name, settings=settings)["NSD"].value for name in ("liver", "tumour")]
    assert shares[0] < 1 == shares[1]


def test_a_tolerance_of_whole_voxels() -> None:
    """Three voxels of 0.8 mm are 2.4000000000000004 mm."""
    spacing = (5, 0.8, 0.8)
    found = measure(SOME, box(SHAPE, (2, 6, 4), (2, 5, 10)), spacing, settings=Settings(tolerance=2.4))
    assert found["NSD"].value == 1.0


@pytest.mark.parametrize(
    ("metric", "label", "expected"),
    [
        ("Dice", "liver", ""),
        ("volume error", "liver", ""),
        ("NSD", "liver", "tolerance 2 mm"),
        ("NSD", "tumour", "tolerance 0.5 mm"),
        ("HD", "liver", "empty = diagonal"),
        ("ASSD", "liver", "empty = diagonal"),
        ("lesion F1", "liver", "18-connected, IoU 0.1"),
    ],
)
def test_what_a_value_depends_on(metric: str, label: str, expected: str) -> None:
    assert Settings(tolerance=2.0, tolerances={"tumour": 0.5}, connectivity=18).how(metric, label) == expected
    assert Settings(empty=50.0).how("HD95", label) == "empty = 50 mm"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tolerance": 0}, "tolerance 0; expected a number of mm above 0"),
        ({"tolerance": NAN}, "tolerance nan"),
        ({"tolerance": math.inf}, "tolerance inf"),
        ({"tolerance": "1"}, "tolerance '1'"),
        ({"tolerance": True}, "tolerance True"),
        ({"tolerances": {"liver": -1}}, "tolerance -1 of liver"),
        ({"tolerance": 10**400}, "tolerance 1000"),
        ({"tolerances": [1]}, r"\[1\] as tolerances; expected a number of mm for each label"),
        ({"empty": -1}, "-1 as distance to an empty mask"),
        ({"empty": NAN}, "nan as distance"),
        ({"connectivity": 8}, r"8 as connectivity of components; expected 6 \(faces\), 18"),
        ({"connectivity": "26"}, "'26' as connectivity"),
        ({"connectivity": 26.0}, "26.0 as connectivity"),
        ({"connectivity": None}, "None as connectivity"),
        ({"lesion_iou": 1.5}, "1.5 as intersection over union"),
        ({"lesion_iou": -0.1}, "-0.1 as intersection over union"),
        ({"lesion_iou": NAN}, "nan as intersection over union"),
    ],
)
def test_settings_that_no_metric_can_follow(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Settings(**settings)


@pytest.mark.parametrize(
    ("reference", "prediction", "spacing", "message"),
    [
        (NONE, NONE[1:], SPACING, r"shapes 10 x 30 x 40 and 9 x 30 x 40; expected one shape"),
        (NONE[0], NONE[0], SPACING, r"shape 30 x 40; expected three axes"),
        (NONE.astype(np.uint8), NONE, SPACING, "a mask of uint8; expected true and false"),
        (NONE, NONE.astype(float), SPACING, "a mask of float64"),
        (NONE, NONE, (1, 1), "the spacing 1, 1; expected three numbers"),
        (NONE, NONE, (1, 1, 0), "the spacing 1, 1, 0"),
        (NONE, NONE, (1, NAN, 1), "the spacing 1, nan, 1"),
    ],
)
def test_what_is_no_pair_of_masks(reference: np.ndarray, prediction: np.ndarray, spacing: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        measure(reference, prediction, spacing)
