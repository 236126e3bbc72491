#!/usr/bin/env bash
# SimpleITK writes a DICOM file that tells its position, in a process whose locale is UTF-8. Guessed: the process's locale is nobody's business but
# its own; ITK takes care to parse numbers in the locale C, and puts the former one back.
# Seen with SimpleITK 2.5.7: afterwards the whole locale of the process is C, so that Python's open() without an encoding
# reads and writes ASCII, and ends in UnicodeDecodeError at the first letter beyond. Writing NIfTI leaves it alone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q SimpleITK==2.5.7
cd "$folder"
LC_ALL=C.UTF-8 PYTHONUTF8=0 venv/bin/python - <<'PYTHON'
import locale
from pathlib import Path

import SimpleITK as sitk

def encoding():
    return locale.nl_langinfo(locale.CODESET)

Path("note.txt").write_text("Länge", encoding="utf-8")
image = sitk.Image([4, 4], sitk.sitkInt16)
image.SetMetaData("0020|0032", "0\\0\\5")
writer = sitk.ImageFileWriter()
writer.KeepOriginalImageUIDOn()
told = [encoding()]
for name in ("a.nii.gz", "a.dcm"):
    writer.SetFileName(name)
    writer.Execute(image)
    told.append(encoding())
print("encoding at first, after NIfTI, after DICOM:", told, "locale:", locale.setlocale(locale.LC_ALL))
try:
    Path("note.txt").read_text()
    read = "read"
except UnicodeDecodeError as error:
    read = "UnicodeDecodeError"
print("a text of UTF-8 afterwards:", read)
assert told[:2] == ["UTF-8", "UTF-8"] and told[2] != "UTF-8" and read == "UnicodeDecodeError"
PYTHON
