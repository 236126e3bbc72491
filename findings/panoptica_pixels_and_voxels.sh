#!/usr/bin/env bash
# Two pixels that touch by a corner, as a picture (Y, X) and as a volume of one slice (1, Y, X).
# Guessed: one lesion in both, or two in both.
# Seen with panoptica 2.1.7: two lesions in the picture, one in the volume. Left to itself it counts pictures with scipy,
# where corners do not join, and volumes with cc3d, where they do. No result says so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q panoptica==2.1.7
cd "$folder"
NO_CITATION_REMINDER=true venv/bin/python - <<'PYTHON'
import numpy as np
from panoptica import ConnectedComponentsInstanceApproximator, InputType, NaiveThresholdMatching, Panoptica_Evaluator

evaluator = Panoptica_Evaluator(
    expected_input=InputType.SEMANTIC,
    instance_approximator=ConnectedComponentsInstanceApproximator(),
    instance_matcher=NaiveThresholdMatching(),
)
picture = np.zeros((8, 8), np.uint8)
picture[2, 2] = picture[3, 3] = 1
counts = [evaluator.evaluate(mask, mask)["ungrouped"].n_ref_instances for mask in (picture, picture[None])]
print("lesions of the picture", counts[0], "of the volume", counts[1])
assert counts == [2, 1]
PYTHON
