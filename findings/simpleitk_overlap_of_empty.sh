#!/usr/bin/env bash
# Overlap of two empty masks, and of one with an empty one. Guessed: 0, NaN or an exception, the same from every measure.
# Seen with SimpleITK 2.5.7's LabelOverlapMeasures: of two empty masks the Dice is infinite, that of label 1 is 0, and
# the Jaccard coefficient 1.8e308, the largest double; so is the false negative error if the second mask is empty. A mean
# over cases is then infinite or of that size.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q SimpleITK==2.5.7 numpy
cd "$folder"
venv/bin/python - 2>/dev/null <<'PYTHON'
import sys, numpy as np, SimpleITK as sitk

empty, full = (sitk.GetImageFromArray(np.full((4, 4, 4), value, np.uint8)) for value in (0, 1))
measures = sitk.LabelOverlapMeasuresImageFilter()
measures.Execute(empty, empty)
dice, of_label, jaccard = measures.GetDiceCoefficient(), measures.GetDiceCoefficient(1), measures.GetJaccardCoefficient()
measures.Execute(full, empty)
error = measures.GetFalseNegativeError()
print("both empty: Dice", dice, "Dice of label 1", of_label, "Jaccard", jaccard, "; second empty: false negatives", error)
assert (dice, of_label, jaccard, error) == (np.inf, 0, sys.float_info.max, sys.float_info.max)
PYTHON
