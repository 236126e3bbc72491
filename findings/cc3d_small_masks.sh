#!/usr/bin/env bash
# The components of a boolean mask of two voxels with one between, in one line. Guessed: cc3d counts two. Seen with
# connected-components-3d 4.1.1 at 26 neighbours: RuntimeError "maximum length exception"; with 6 and 18 neighbours, or
# of the same mask as bytes, it counts two. So for four corners of 3 x 3 voxels and other small masks.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q connected-components-3d==4.1.1 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import cc3d
import numpy as np

def count(mask, connectivity):
    try:
        return cc3d.connected_components(mask, connectivity=connectivity, return_N=True)[1]
    except RuntimeError as error:
        return str(error)

for rows, components in (([[1, 0, 1]], 2), ([[1, 0, 1], [0, 0, 0], [1, 0, 1]], 4)):
    mask = np.array([rows], bool)
    seen = [count(mask, 6), count(mask, 18), count(mask, 26), count(mask.astype(np.uint8), 26)]
    print(rows, seen)
    assert seen == [components, components, "maximum length exception", components]
PYTHON
