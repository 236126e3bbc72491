#!/usr/bin/env bash
# SimpleITK writes a volume that is turned by 0.3 rad into any format without an error. Guessed: those that nnU-Net lists
# for 3D images (.nii.gz, .nrrd, .mha, .gipl) keep spacing, origin and axes.
# Seen with SimpleITK 2.5.7: .gipl loses the axes (as .vtk and .mrc do), so that a prediction in it lies turned against
# its image; .tif also loses the origin and calls the distance of its slices 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q SimpleITK==2.5.7 numpy
cd "$folder"
venv/bin/python - <<'PYTHON'
import numpy as np, SimpleITK as sitk

image = sitk.GetImageFromArray(np.arange(24, dtype=np.int16).reshape(2, 3, 4))
image.SetSpacing((0.7, 0.8, 5.0)), image.SetOrigin((1.0, -2.0, 300.0))
c, s = np.cos(0.3), np.sin(0.3)
image.SetDirection((c, -s, 0, s, c, 0, 0, 0, 1))
lost = {}
for ending in ("nii.gz", "nrrd", "mha", "gipl", "vtk", "mrc", "tif"):
    sitk.WriteImage(image, f"a.{ending}")
    read = sitk.ReadImage(f"a.{ending}")
    facts = {"spacing": "GetSpacing", "origin": "GetOrigin", "axes": "GetDirection"}
    lost[ending] = [name for name, get in facts.items() if not np.allclose(getattr(read, get)(), getattr(image, get)(), atol=1e-4)]
    print(f".{ending}: lost {lost[ending] or 'nothing'}")
assert lost == {"nii.gz": [], "nrrd": [], "mha": [], "gipl": ["axes"], "vtk": ["axes"], "mrc": ["axes"],
                "tif": ["spacing", "origin", "axes"]}
PYTHON
