#!/usr/bin/env bash
# Distance between a mask and an empty one. Guessed, from the docstring ("all distances in the other list are `inf`"):
# infinite. Seen with surface-distance 0.1, the newest on PyPI, and numpy 2: AttributeError, since it writes np.Inf. Every
# case with both masks works, so that an evaluation ends at its first missed organ.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q surface-distance==0.1 numpy==2.4.6 scipy
cd "$folder"
venv/bin/python - <<'PYTHON'
import numpy as np
from surface_distance import compute_robust_hausdorff, compute_surface_distances

reference = np.zeros((8, 8, 8), bool)
reference[2:5, 2:5, 2:5] = True
for name, prediction in ("found", np.roll(reference, 1, 0)), ("missed", reference & False):
    try:
        told = compute_robust_hausdorff(compute_surface_distances(reference, prediction, (5, 1, 1)), 100)
    except AttributeError as error:
        told = str(error)
    print(name, told)
    assert told == 5 if name == "found" else "np.Inf" in told
PYTHON
