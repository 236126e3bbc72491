#!/usr/bin/env bash
# Hausdorff distances of MISeval ("AHD", "HD"). Guessed: a mean, and the distance of the masks' pixels in voxels.
# Seen with miseval 1.3.0: AverageHausdorffDistance is the largest distance, no mean. SimpleHausdorffDistance takes the
# rows of the image as points, whatever the label: a square that moves down by 10 rows has moved by 0.
# numba and dictances, which it needs for speed and for another metric, are replaced by nothing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-deps miseval==1.3.0 hausdorff==0.2.6
"$folder/venv/bin/pip" install -q numpy scipy 2>/dev/null
cd "$folder"
venv/bin/python - <<'PYTHON'
import sys, types
from unittest.mock import MagicMock

plain = MagicMock()
plain.jit = lambda *args, **options: lambda function: function
plain.core.registry.CPUDispatcher = types.FunctionType
sys.modules.update({"numba": plain, "dictances": MagicMock()})
for name in "skimage", "skimage.measure", "sklearn", "sklearn.metrics", "sklearn.preprocessing":
    sys.modules[name] = MagicMock()
import numpy as np
from miseval.hausdorff import calc_AverageHausdorffDistance, calc_SimpleHausdorffDistance

truth = np.zeros((48, 48), int)
truth[10:30, 10:30] = 1
for name, moved, seen in (
    ("by 10 rows", np.roll(truth, 10, axis=0), (0.0, 10.0)),
    ("by 10 columns", np.roll(truth, 10, axis=1), (4.472, 10.0)),
):
    told = [round(float(f(truth, moved)), 3) for f in (calc_SimpleHausdorffDistance, calc_AverageHausdorffDistance)]
    print(name, "simple", told[0], "average", told[1])
    assert tuple(told) == seen
PYTHON
