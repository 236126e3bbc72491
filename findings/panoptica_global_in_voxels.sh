#!/usr/bin/env bash
# One result of panoptica tells distances of instances (sq_hd95) and of the whole mask (global_bin_hd95).
# Guessed: with voxelspacing both are in mm, and with one instance the same.
# Seen with panoptica 2.1.7: two boxes one slice of 5 mm apart have sq_hd95 5.0, in mm, and global_bin_hd95 1.0, in
# voxels; so are volumes: instance_volume_ref 7680 mm3, global_bin_volume_ref 2400.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q panoptica==2.1.7
cd "$folder"
NO_CITATION_REMINDER=true venv/bin/python - <<'PYTHON'
import numpy as np
from panoptica import ConnectedComponentsInstanceApproximator, InputType, NaiveThresholdMatching, Panoptica_Evaluator
from panoptica.metrics import Metric

reference = np.zeros((24, 48, 48), np.uint8)
reference[8:14, 10:30, 10:30] = 1
evaluator = Panoptica_Evaluator(
    expected_input=InputType.SEMANTIC,
    instance_approximator=ConnectedComponentsInstanceApproximator(),
    instance_matcher=NaiveThresholdMatching(),
    instance_metrics=[Metric.DSC, Metric.HD95],
    global_metrics=[Metric.HD95],
)
result = evaluator.evaluate(np.roll(reference, 1, axis=0), reference, voxelspacing=(5.0, 0.8, 0.8))["ungrouped"]
values = result.to_dict()
names = "sq_hd95", "global_bin_hd95", "instance_volume_ref", "global_bin_volume_ref"
print(*(f"{name} {values[name]}" for name in names))
assert [round(float(values[name]), 3) for name in names] == [5, 1, 7680, 2400]
PYTHON
