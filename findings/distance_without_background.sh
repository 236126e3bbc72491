#!/usr/bin/env bash
# Euclidean distance to the background in a mask that fills its image, as a cropped organ's can. Guessed: both libraries
# say infinite, or 0. Seen: edt 3.1.2 says infinite; scipy 1.17.1 hands out ordinary-looking numbers, those to a
# background that is not there, and so surface distances come out that nothing stands for.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q edt==3.1.2 scipy==1.17.1 numpy
cd "$folder"
venv/bin/python - <<'PYTHON'
import edt, numpy as np, scipy.ndimage

mask, spacing = np.ones((3, 3, 3), np.uint8), (5.0, 1.0, 1.0)
theirs, scipys = edt.edt(mask, anisotropy=spacing), scipy.ndimage.distance_transform_edt(mask, spacing)
print("edt", theirs.min(), theirs.max(), "scipy", scipys.min().round(3), scipys.max().round(3))
assert np.isinf(theirs).all() and np.isfinite(scipys).all() and np.isclose(scipys.max(), 15.264, atol=1e-3)
PYTHON
