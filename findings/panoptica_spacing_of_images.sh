#!/usr/bin/env bash
# Two boxes, one slice of 5 mm apart, given to panoptica as SimpleITK images. Guessed: it takes their spacing, and HD95
# is 5 mm, as for arrays with voxelspacing=(5, 0.8, 0.8).
# Seen with panoptica 2.1.7: it takes the spacing as SimpleITK tells it, (x, y, z), for an array of (z, y, x): 0.8 mm.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q panoptica==2.1.7 SimpleITK==2.5.7
cd "$folder"
NO_CITATION_REMINDER=true venv/bin/python - <<'PYTHON'
import numpy as np, SimpleITK as sitk
from panoptica import ConnectedComponentsInstanceApproximator, InputType, NaiveThresholdMatching, Panoptica_Evaluator
from panoptica.metrics import Metric

reference = np.zeros((24, 48, 48), np.uint8)
reference[8:14, 10:30, 10:30] = 1
prediction = np.roll(reference, 1, axis=0)

def image(mask):
    made = sitk.GetImageFromArray(mask)
    made.SetSpacing((0.8, 0.8, 5.0))
    return made

evaluator = Panoptica_Evaluator(
    expected_input=InputType.SEMANTIC,
    instance_approximator=ConnectedComponentsInstanceApproximator(),
    instance_matcher=NaiveThresholdMatching(),
    instance_metrics=[Metric.DSC, Metric.HD95],
)
of_images = evaluator.evaluate(image(prediction), image(reference))["ungrouped"].sq_hd95
of_arrays = evaluator.evaluate(prediction, reference, voxelspacing=(5.0, 0.8, 0.8))["ungrouped"].sq_hd95
print("HD95 of images", of_images, "of arrays", of_arrays)
assert np.isclose(of_images, 0.8) and np.isclose(of_arrays, 5.0)
PYTHON
