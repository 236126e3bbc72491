#!/usr/bin/env bash
# A NIfTI file without a spacing: pixdim of 0 along every axis and no sform, as tools write that never knew it.
# Guessed: an error, or a spacing of 0.
# Seen with SimpleITK 2.5.7 and nibabel 5.4.2: both tell 1 mm along every axis without an error; nibabel writes a line
# to its log. Volumes and distances in mm are then those of voxels.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q nibabel==5.4.2 SimpleITK==2.5.7 numpy
cd "$folder"
venv/bin/python - <<'PYTHON'
import pathlib, nibabel, numpy as np, SimpleITK as sitk

nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.diag([0.7, 0.7, 5.0, 1.0])), "image.nii")
content = bytearray(pathlib.Path("image.nii").read_bytes())
content[80:92] = bytes(12)  # pixdim[1] to pixdim[3]
content[252:256] = bytes(4)  # qform_code and sform_code
pathlib.Path("image.nii").write_bytes(content)
spacings = {
    "SimpleITK": sitk.ReadImage("image.nii").GetSpacing(),
    "nibabel": tuple(map(float, nibabel.load("image.nii").header.get_zooms())),
    "nibabel, from the affine": tuple(map(float, nibabel.affines.voxel_sizes(nibabel.load("image.nii").affine))),
}
print(spacings)
assert all(spacing == (1.0, 1.0, 1.0) for spacing in spacings.values())
PYTHON
