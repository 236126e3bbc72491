#!/usr/bin/env bash
# A NIfTI header with scl_slope 0, which says that nothing is scaled, and scl_inter 5. Guessed: readers leave the voxels as
# they are stored. Seen: nibabel 5.4.2 does, SimpleITK 2.5.7 adds the 5 all the same.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q nibabel==5.4.2 SimpleITK==2.5.7 numpy
cd "$folder"
venv/bin/python - <<'PYTHON'
import struct
import nibabel, numpy as np, SimpleITK as sitk

for slope, inter, told in ((0, 0, 1), (0, 5, 6), (1, 5, 6)):
    content = bytearray(nibabel.Nifti1Image(np.ones((3, 1, 1), np.int16), np.eye(4)).to_bytes())
    struct.pack_into("<ff", content, 112, slope, inter)
    open("a.nii", "wb").write(content)
    simple = sitk.GetArrayFromImage(sitk.ReadImage("a.nii")).ravel().tolist()
    nibabels = nibabel.load("a.nii").get_fdata().ravel().tolist()
    print(f"scl_slope {slope}, scl_inter {inter}: SimpleITK {simple}, nibabel {nibabels}")
    assert simple == [told] * 3 and nibabels == [6 if slope else 1] * 3
PYTHON
