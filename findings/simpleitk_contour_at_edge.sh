#!/usr/bin/env bash
# Surface distances as SimpleITK's notebooks and seg-metrics compute them: LabelContour of one mask over the absolute
# SignedMaurerDistanceMap of the other. Guessed: a mask that is cut by the edge of its image has a surface there.
# Seen with SimpleITK 2.5.7: it has none. Two boxes, one slice of 5 mm apart, are at most 5 mm apart with a margin around
# them, and 20 mm in an image cropped to both, where only two faces are left.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q SimpleITK==2.5.7 numpy
cd "$folder"
venv/bin/python - <<'PYTHON'
import numpy as np, SimpleITK as sitk

def hausdorff(reference, prediction):
    images = [sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in (reference, prediction)]
    for image in images:
        image.SetSpacing((0.8, 0.8, 5.0))
    largest = 0.0
    for one, other in images, images[::-1]:
        surface = sitk.GetArrayFromImage(sitk.LabelContour(one, fullyConnected=True)) > 0
        distance = sitk.Abs(sitk.SignedMaurerDistanceMap(other, squaredDistance=False, useImageSpacing=True))
        largest = max(largest, sitk.GetArrayFromImage(distance)[surface].max())
    return largest

reference, prediction = np.zeros((2, 24, 48, 48), bool)
reference[8:14, 10:30, 10:30] = prediction[9:15, 10:30, 10:30] = True
crop = np.s_[8:15, 10:30, 10:30]
wide, tight = hausdorff(reference, prediction), hausdorff(reference[crop], prediction[crop])
print("with a margin", wide, "mm, cropped", tight, "mm")
assert np.isclose(wide, 5) and np.isclose(tight, 20)
PYTHON
