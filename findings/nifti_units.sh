#!/usr/bin/env bash
# NIfTI names its unit of length (xyzt_units). Guessed: readers ignore it, as NRRD's "space units".
# Seen with SimpleITK 2.5.7: spacing and origin are turned into millimetres; nibabel 5.4.2 hands out the numbers as they
# are. A file in micrometres is 1000 times larger in nibabel. SimpleITK ignores the units of NRRD (pynrrd 1.1.3 wrote it).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q SimpleITK==2.5.7 nibabel==5.4.2 pynrrd==1.1.3 numpy
cd "$folder"
venv/bin/python - <<'PYTHON'
import nibabel, nrrd, numpy as np, SimpleITK as sitk

voxels, affine = np.zeros((4, 3, 2), np.int16), np.diag([800.0, 800.0, 5000.0, 1.0])
affine[:3, 3] = 1000
seen = {}
for code, factor in ((0, 1), (1, 1000), (2, 1), (3, 0.001)):
    image = nibabel.Nifti1Image(voxels, affine)
    image.header["xyzt_units"] = code
    image.to_filename("a.nii")
    read = sitk.ReadImage("a.nii")
    unit = nibabel.load("a.nii").header.get_xyzt_units()[0]
    zooms = [float(zoom) for zoom in nibabel.load("a.nii").header.get_zooms()]
    print(f"NIfTI in {unit}: SimpleITK {read.GetSpacing()} from {read.GetOrigin()[2]}, nibabel {zooms}")
    assert np.allclose(read.GetSpacing(), np.array([800, 800, 5000]) * factor)
    assert np.isclose(read.GetOrigin()[2], 1000 * factor) and zooms == [800, 800, 5000]
for unit in ("mm", "m"):
    space = {"space": "left-posterior-superior", "space directions": np.eye(3), "space units": [unit] * 3}
    nrrd.write("a.nrrd", voxels, space)
    print(f"NRRD in {unit}: SimpleITK {sitk.ReadImage('a.nrrd').GetSpacing()}")
    assert sitk.ReadImage("a.nrrd").GetSpacing() == (1, 1, 1)
PYTHON
