#!/usr/bin/env bash
# A .tif of five slices, as SimpleITK writes labels, through panimg, which takes images into Grand Challenge. Guessed:
# five slices, or a refusal, since the file cannot tell their distance.
# Seen with panimg 0.18.2: it is taken, as one picture (no depth), while the file, copied as it is, holds all five;
# a .tif without a resolution is refused ("Voxel width could not be determined").
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q panimg==0.18.2 SimpleITK==2.5.7 tifffile==2026.3.3
cd "$folder"
mkdir volume plain out
venv/bin/python - <<'PYTHON'
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import tifffile
from panimg import convert

voxels = np.arange(5 * 6 * 7, dtype=np.uint8).reshape(5, 6, 7)
image = sitk.GetImageFromArray(voxels)
image.SetSpacing((0.8, 0.8, 5))
sitk.WriteImage(image, "volume/a.tif")
tifffile.imwrite("plain/a.tif", voxels[0], photometric="minisblack")
made = {name: convert(input_directory=Path(name), output_directory=Path("out", name)) for name in ("volume", "plain")}
(told,) = made["volume"].new_images
held = sitk.ReadImage([str(one.file) for one in made["volume"].new_image_files if one.file.suffix == ".tif"][0])
said = [words for words in next(iter(made["plain"].file_errors.values())) if "Voxel width" in words]
print("told:", told.width, told.height, told.depth, "held:", held.GetSize(), "plain:", len(made["plain"].new_images), said)
assert (told.width, told.height, told.depth) == (7, 6, 1) and held.GetSize() == (7, 6, 5)
assert not made["plain"].new_images and said
PYTHON
