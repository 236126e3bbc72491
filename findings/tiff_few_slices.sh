#!/usr/bin/env bash
# Volumes (slices, rows, columns) written to TIFF by tifffile, as nnU-Net's reader and writer of 3D TIFF does. Guessed: one
# page for each slice, whatever their number.
# Seen with tifffile 2026.3.3: volumes of 3 and 4 slices become one page, a colour picture. tifffile reads them back as they
# were (and says in a DeprecationWarning that this will change); SimpleITK 2.5.7 reads one slice of 4 values per voxel.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q SimpleITK==2.5.7 tifffile==2026.3.3 numpy
cd "$folder"
venv/bin/python - <<'PYTHON'
import warnings
import numpy as np, SimpleITK as sitk, tifffile

for slices in (2, 3, 4, 5):
    volume = np.arange(slices * 32 * 20, dtype=np.uint16).reshape(slices, 32, 20)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        tifffile.imwrite("a.tif", volume)
    pages, read = len(tifffile.TiffFile("a.tif").pages), sitk.ReadImage("a.tif")
    print(slices, "slices:", pages, "pages; SimpleITK:", read.GetSize(), "with", read.GetNumberOfComponentsPerPixel(), "values")
    assert np.array_equal(tifffile.imread("a.tif"), volume)
    if slices in (3, 4):
        assert pages == 1 and read.GetDimension() == 2 and read.GetNumberOfComponentsPerPixel() == 4 and told
    else:
        assert pages == slices and np.array_equal(sitk.GetArrayFromImage(read), volume) and not told
PYTHON
