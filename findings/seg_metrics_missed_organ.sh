#!/usr/bin/env bash
# Distances where the prediction is empty and the reference is not. Guessed: NaN, infinite or an exception.
# Seen with seg-metrics 1.2.8: HD, HD95 and the mean distance are 0, as if the organ were found to the voxel.
# pandas and other packages, which it imports and does not use for this, are replaced by nothing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-deps seg-metrics==1.2.8 medutils==0.1.21
"$folder/venv/bin/pip" install -q SimpleITK==2.5.7 numpy scipy tqdm 2>/dev/null
cd "$folder"
venv/bin/python - 2>/dev/null <<'PYTHON'
import sys
from unittest.mock import MagicMock

sys.modules.update({name: MagicMock() for name in ("pandas", "pingouin", "matplotlib", "matplotlib.pyplot")})
import numpy as np
from seg_metrics.seg_metrics import write_metrics

reference = np.zeros((24, 48, 48), np.uint8)
reference[8:14, 10:30, 10:30] = 1
told = write_metrics(labels=[1], gdth_img=reference, pred_img=reference * 0, spacing=(5.0, 0.8, 0.8))
told = told[0] if isinstance(told, list) else told
values = {name: float(told[name][0]) for name in ("dice", "hd", "hd95", "msd")}
print(values)
assert values == {"dice": 0, "hd": 0, "hd95": 0, "msd": 0}
PYTHON
