#!/usr/bin/env bash
# Voxels that are NaN ("not annotated") or infinite in a NIfTI file of floats. Guessed: readers hand them out as they are.
# Seen with SimpleITK 2.5.7: from NIfTI they come as 0, without a word, from NRRD as they are; nibabel 5.4.2 keeps them.
# In a label file that makes background of them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q nibabel==5.4.2 SimpleITK==2.5.7 numpy
cd "$folder"
venv/bin/python - <<'PYTHON'
import nibabel, numpy as np, SimpleITK as sitk

voxels = np.array([np.nan, np.inf, 2], np.float32).reshape(3, 1, 1)
nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), "a.nii")
sitk.WriteImage(sitk.GetImageFromArray(voxels), "a.nrrd")
nifti, nrrd = (sitk.GetArrayFromImage(sitk.ReadImage(name)).ravel() for name in ("a.nii", "a.nrrd"))
loaded = nibabel.load("a.nii").get_fdata().ravel()
print("SimpleITK from NIfTI:", nifti, "from NRRD:", nrrd, "nibabel:", loaded)
assert nifti.tolist() == [0, 0, 2]
assert np.isnan(nrrd[0]) and np.isinf(nrrd[1]) and np.isnan(loaded[0]) and np.isinf(loaded[1])
PYTHON
