#!/usr/bin/env bash
# Masks of bytes whose label is 128. Guessed: what a label's number is does not matter.
# Seen with panoptica 2.1.7: it crops to where the sum of both arrays is not 0, and 128 + 128 is 0 in bytes. Of two
# lesions, found but for one voxel each is told only where they differ: one remains, and TP, FN and Dice are others.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q panoptica==2.1.7
cd "$folder"
NO_CITATION_REMINDER=true venv/bin/python - <<'PYTHON'
import numpy as np
from panoptica import ConnectedComponentsInstanceApproximator, InputType, NaiveThresholdMatching, Panoptica_Evaluator

reference = np.zeros((40, 40, 40), np.uint8)
reference[4:14, 4:14, 4:14] = reference[30:33, 30:33, 30:33] = 1
prediction = reference.copy()
prediction[30:33, 30:33, 30:33] = 0  # the small one is missed
evaluator = Panoptica_Evaluator(
    expected_input=InputType.SEMANTIC,
    instance_approximator=ConnectedComponentsInstanceApproximator(),
    instance_matcher=NaiveThresholdMatching(),
)
for label, seen in (1, (2, 1, 0.987)), (128, (1, 0, 0.0)):
    result = evaluator.evaluate(prediction * np.uint8(label), reference * np.uint8(label))["ungrouped"]
    told = result.n_ref_instances, result.tp, round(float(result.global_bin_dsc), 3)
    print("label", label, "lesions", told[0], "found", told[1], "Dice", told[2])
    assert told == seen
PYTHON
