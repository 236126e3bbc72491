#!/usr/bin/env bash
# Lesions that are found, and false ones: obj_tpr(result, reference) and obj_fpr(result, reference), as their docstrings
# say. Guessed: of three lesions, one of which is missed, two thirds are found, and nothing is false.
# Seen with MedPy 0.5.2: all are found and a third is false. Both divide by the objects of the other array, so that the
# examples in their own docstrings come out only with the arguments exchanged.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q MedPy==0.5.2 scipy==1.17.1 numpy
cd "$folder"
venv/bin/python - <<'PYTHON'
import numpy as np
from medpy.metric.binary import obj_fpr, obj_tpr

reference = np.array([1, 0, 1, 0, 1])
result = np.array([1, 0, 1, 0, 0])  # one of three is missed: an example of both docstrings
print("found", obj_tpr(result, reference), "false", obj_fpr(result, reference))
assert "obj_tpr(arr1, arr2)\n    0.6666666666666666" in obj_tpr.__doc__
assert obj_tpr(result, reference) == 1 and np.isclose(obj_fpr(result, reference), 1 / 3)
PYTHON
