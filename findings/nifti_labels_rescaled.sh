#!/usr/bin/env bash
# Labels 0, 1, 2 edited as get_fdata() hands them out and saved with the header of the label file, of type uint8. Guessed:
# they come back as 0, 1, 2. Seen with nibabel 5.4.2: floats are stretched over 0 ... 255 and a slope is written, so that 1
# comes back as 0.996 (SimpleITK 2.5.7 reads it so, too), and a reader that cuts to whole numbers makes background of it.
# With the labels as whole numbers (astype(np.uint8) before saving) nothing is stretched.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q nibabel==5.4.2 SimpleITK==2.5.7 numpy
cd "$folder"
venv/bin/python - <<'PYTHON'
import nibabel, numpy as np, SimpleITK as sitk

labels = np.array([0, 1, 2], np.uint8).reshape(3, 1, 1)
drawn = nibabel.Nifti1Image(labels, np.eye(4))
drawn.to_filename("drawn.nii")
drawn = nibabel.load("drawn.nii")
nibabel.Nifti1Image(drawn.get_fdata(), drawn.affine, drawn.header).to_filename("edited.nii")
nibabel.Nifti1Image(drawn.get_fdata().astype(np.uint8), drawn.affine, drawn.header).to_filename("whole.nii")
edited, whole = (nibabel.load(name).get_fdata().ravel() for name in ("edited.nii", "whole.nii"))
simple = sitk.GetArrayFromImage(sitk.ReadImage("edited.nii")).ravel()
print("edited:", edited, "SimpleITK:", simple, "as whole numbers:", edited.astype(int), "saved as whole numbers:", whole)
assert np.allclose(edited, [0, 0.99608, 2], atol=1e-5) and np.allclose(simple, edited, atol=1e-5)
assert edited.astype(int).tolist() == [0, 0, 2] and whole.tolist() == [0, 1, 2]
PYTHON
