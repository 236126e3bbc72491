#!/usr/bin/env bash
# Reading a folder whose name ends as that of a volume, such as scanners' exports and half unpacked archives leave.
# Guessed: SimpleITK raises one exception, as for a missing file.
# Seen with SimpleITK 2.5.7: it raises, but for the folder x.nii.gz the HDF5 library, asked whether it is one of its
# files, writes a trace of 20 lines and more to the process's standard error first, which no Python redirection holds.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q SimpleITK==2.5.7
cd "$folder"
mkdir x.nii.gz
venv/bin/python - 2>errors.txt <<'PYTHON'
import contextlib, io, SimpleITK as sitk

with contextlib.redirect_stderr(io.StringIO()):
    try:
        sitk.ReadImage("x.nii.gz")
    except RuntimeError:
        print("RuntimeError")
    else:
        raise SystemExit("no error")
PYTHON
lines=$(grep -c "HDF5-DIAG\|#0" errors.txt || true)
echo "$(wc -l <errors.txt) lines on standard error, of which $lines of HDF5"
grep -q "HDF5-DIAG" errors.txt && [ "$(wc -l <errors.txt)" -ge 20 ]
