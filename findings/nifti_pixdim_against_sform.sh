#!/usr/bin/env bash
# A NIfTI file tells its voxel size twice: in pixdim and by the lengths of the sform's columns. Guessed: a reader that
# takes the axes from the sform takes the lengths from there too.
# Seen with SimpleITK 2.5.7: the axes and the origin are the sform's, the spacing is pixdim's, with a note on stderr alone;
# nibabel 5.4.2 has both, get_zooms() from pixdim and affine from the sform.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q SimpleITK==2.5.7 nibabel==5.4.2 numpy
cd "$folder"
venv/bin/python - <<'PYTHON'
import nibabel, numpy as np, SimpleITK as sitk

affine = np.diag([1.0, 1.0, 5.0, 1.0])
affine[:3, 3] = 10, 20, 30
image = nibabel.Nifti1Image(np.zeros((4, 3, 2), np.int16), affine)
image.to_filename("a.nii")
content = bytearray(open("a.nii", "rb").read())
content[88:92] = np.float32(2.5).tobytes()  # pixdim[3]
open("a.nii", "wb").write(content)
read, loaded = sitk.ReadImage("a.nii"), nibabel.load("a.nii")
print("SimpleITK:", read.GetSpacing(), "from", read.GetOrigin())
print("nibabel: zooms", loaded.header.get_zooms(), "affine", np.diag(loaded.affine))
assert read.GetSpacing() == (1, 1, 2.5) and read.GetOrigin() == (-10, -20, 30)
assert loaded.header.get_zooms()[2] == 2.5 and loaded.affine[2, 2] == 5
PYTHON
