"""What a region of interest may be: labels of its model, masks beside their images."""

from typing import Any

import nibabel
import numpy as np
import pytest

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.inference.region import check_labels
from nnunetv2_ext.inference.roi import ROI, check_mask

LABELS: dict[str, Any] = {"background": 0, "a": 1, "b": 2}
REGIONS: dict[str, Any] = {"background": 0, "whole": [1, 2], "core": 2}


@pytest.mark.parametrize(
    ("labels", "known", "message"),
    [
        ([1, 2], LABELS, None),
        ([2], REGIONS, None),
        ([3], LABELS, "--roi-labels 3; expected labels of Coarse: 1, 2"),
        ([0, 1], REGIONS, "--roi-labels 0"),
    ],
)
def test_labels_of_the_roi_model(labels, known, message):
    if message is None:
        check_labels(labels, known, of="Coarse")
        return
    with pytest.raises(InputError, match=message):
        check_labels(labels, known, of="Coarse")


@pytest.mark.parametrize(
    ("shape", "affine", "message"),
    [
        ((10, 12, 6), np.diag([1.0, 1, 5, 1]), None),
        ((10, 12, 7), np.diag([1.0, 1, 5, 1]), r"size \(10, 12, 7\) instead of \(10, 12, 6\)"),
        ((10, 12, 6), np.diag([1.0, 1, 4, 1]), r"spacing \(1, 1, 4\) instead of \(1, 1, 5\)"),
        ((10, 12, 6), np.diag([1.0, 1, 5, 1]) + np.eye(4, k=3) * 3, r"origin \(-3, .* instead of"),
        (None, None, "no mask .*case.nii.gz of the case case"),
    ],
)
def test_mask_beside_its_image(tmp_path, shape, affine, message):
    image, mask = tmp_path / "case_0000.nii.gz", tmp_path / "case.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((10, 12, 6), np.float32), np.diag([1.0, 1, 5, 1])), image)
    if shape is not None:
        nibabel.save(nibabel.Nifti1Image(np.zeros(shape, np.uint8), affine), mask)
    if message is None:
        check_mask("case", mask, image)
        return
    with pytest.raises(InputError, match=message):
        check_mask("case", mask, image)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": -1.0}, "--roi-margin -1"),
        ({"margin": float("nan")}, "--roi-margin nan"),
        ({"grid": "boxes"}, "--roi-grid boxes"),
        ({"empty": "none"}, "--roi-empty none"),
        ({"labels": ()}, "no value for --roi-labels"),
        ({"labels": (0, 1)}, "--roi-labels 0 1; expected labels of foreground"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(InputError, match=message):
        ROI(**options)
