#!/usr/bin/env bash
# Resampling the one-hot images of all slices with cubic splines gives the weights of the slices in each new one. Guessed:
# for each new slice they sum to 1, as those of linear interpolation do.
# Seen with scikit-image 0.26.0: resize() cuts results to the range of its input unless told clip=False, the negative
# lobes of the splines are lost, and the weights sum to up to 1.275. nnU-Net resamples so (order 3, clip left alone).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q scikit-image==0.26.0 numpy
cd "$folder"
venv/bin/python - <<'PYTHON'
import numpy as np
from skimage.transform import resize

sums = {}
for order, clip in ((1, True), (3, True), (3, False)):
    options = {"order": order, "clip": clip, "mode": "edge", "anti_aliasing": False}
    images = (np.repeat(row[:, None], 4, axis=1) for row in np.eye(24))
    sums[order, clip] = sum(resize(image, (30, 4), **options)[:, 0] for image in images)
    print(f"order {order}, clip={clip}: sums from {sums[order, clip].min():.3f} to {sums[order, clip].max():.3f}")
assert np.allclose(sums[1, True], 1) and np.allclose(sums[3, False], 1)
assert sums[3, True].max().round(3) == 1.275
PYTHON
