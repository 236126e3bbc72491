"""What label values mean, as nnU-Net takes them, and the counts of masks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nnunetv2.evaluation.evaluate_predictions import label_or_region_to_key
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_ext.evaluation.metrics import Settings, measure
from nnunetv2_ext.evaluation.segmentations import Label, Labels, Masks, Voxels, count, labels_of, masks, measure_pair


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        ({"background": 0, "left": 1, "right": 2}, None),
        ({"background": 0, "left": [1], "right": 2}, None),
        ({"background": 0, "right": 2, "left": 1, "ignore": 3}, None),
        ({"background": 0, "whole": [1, 2], "right": [2]}, [1, 2]),
        ({"background": 0, "whole": [1, 2, 3], "core": 2, "rim": [3], "ignore": 4}, [1, 2, 3]),
    ],
)
def test_labels_and_regions_are_those_of_nnunet(labels: dict[str, Any], order: list[int] | None) -> None:
    content = {"labels": labels, "file_ending": ".nii.gz", "regions_class_order": order}
    found = labels_of(content, Path("dataset.json"))
    theirs = LabelManager(labels, order)
    expected = theirs.foreground_regions if theirs.has_regions else theirs.foreground_labels
    keys = {label_or_region_to_key(one) for one in expected}
    assert set(found.keys.values()) == keys
    assert found.ignore == theirs.ignore_label
    assert list(found.of) == [name for name in labels if name not in ("background", "ignore")]


def test_masks_leave_out_what_the_reference_ignores() -> None:
    reference, prediction = np.array([[[0, 1, 2, 3, 3]]]), np.array([[[1, 1, 1, 1, 0]]])
    ((name, of),) = masks(reference, prediction, {"both": (1, 2)}, 3)
    assert name == "both"
    assert of.reference.tolist() == [[[False, True, True, False]]]
    assert of.prediction.tolist() == [[[True, True, True, False]]]
    assert count(of) == {"Dice": 0.8, "IoU": 2 / 3, "TP": 2, "FP": 1, "FN": 0, "TN": 0, "n_pred": 3, "n_ref": 2}


def test_two_empty_masks_have_no_dice() -> None:
    nothing = np.zeros((1, 2, 2), bool)
    counts = count(Masks(nothing, nothing, 4))
    assert np.isnan([counts["Dice"], counts["IoU"]]).all()
    assert counts["TN"] == 4


@pytest.mark.parametrize("ignore", [None, 5])
def test_labels_cut_out_are_measured_as_in_the_whole_image(ignore: int | None) -> None:
    """Boxes spare time alone: as whole masks, with the diagonal of the image where one of both is empty."""
    random = np.random.default_rng(0)
    reference = np.kron(random.choice([0, 0, 1, 2, 3, 5], (3, 4, 4)), np.ones((2, 3, 4), int)).astype(np.uint8)
    prediction = np.roll(reference, (1, 1), (1, 2))
    prediction[prediction == 3] = 0
    prediction[0, 0, 0] = 4
    regions: dict[str, Label] = {
        "both": (1, 2),
        "all": (0, 1, 2, 3, 4),
        "one": 1,
        "missed": 3,
        "invented": 4,
        "nowhere": 6,
        "no": (0,),
    }
    spacing = (3.0, 0.7, 1.1)
    found = measure_pair(Voxels(reference, spacing), Voxels(prediction, spacing), Labels(regions, ignore), Settings())
    kept = np.ones(reference.shape, bool) if ignore is None else reference != ignore
    assert list(found) == list(regions)
    for name, values in regions.items():
        one, other = (np.isin(voxels, values) & kept for voxels in (reference, prediction))
        np.testing.assert_equal(found[name].metrics, measure(one, other, spacing))
        counts = {"TP": one & other, "FP": ~one & other, "FN": one & ~other, "TN": ~one & ~other & kept}
        counts |= {"n_pred": other, "n_ref": one}
        assert {key: found[name].counts[key] for key in counts} == {key: int(of.sum()) for key, of in counts.items()}
