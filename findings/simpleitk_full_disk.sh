#!/usr/bin/env bash
# Writing a volume where there is no room, here through a link to /dev/full (Linux). Guessed: SimpleITK raises, as nibabel
# and numpy do.
# Seen with SimpleITK 2.5.7: NIfTI and GIPL never raise. NRRD and MetaImage raise for large volumes; for small ones, whose
# bytes wait in a buffer until the file is closed, they do not either, and the file is empty. nibabel 5.4.2 raises each
# time. What was written of a NIfTI file before the room ran out, SimpleITK reads back without an error.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q nibabel==5.4.2 SimpleITK==2.5.7 numpy
cd "$folder"
venv/bin/python - <<'PYTHON'
import os, pathlib, nibabel, numpy as np, SimpleITK as sitk

large = np.random.default_rng(0).integers(0, 250, (16, 256, 256)).astype(np.uint8)
volumes = {"small": np.ones((4, 24, 24), np.uint8), "large": large}

def raises(write, voxels, ending):
    os.symlink("/dev/full", "full" + ending)
    try:
        write(voxels, "full" + ending)
    except (RuntimeError, OSError):
        return True
    finally:
        os.unlink("full" + ending)
    return False

writers = {
    "SimpleITK": lambda voxels, name: sitk.WriteImage(sitk.GetImageFromArray(voxels), name, True),
    "nibabel": lambda voxels, name: nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), name),
}
told = {}
for library, endings in {"SimpleITK": [".nii.gz", ".nii", ".gipl", ".nrrd", ".mha"], "nibabel": [".nii.gz", ".nii"]}.items():
    for ending in endings:
        told[library, ending] = [raises(writers[library], voxels, ending) for voxels in volumes.values()]
        print(library, ending, dict(zip(volumes, ("raises" if one else "no error" for one in told[library, ending]))))
sitk.WriteImage(sitk.GetImageFromArray(large), "whole.nii.gz", True)
whole = pathlib.Path("whole.nii.gz").read_bytes()
pathlib.Path("half.nii.gz").write_bytes(whole[: len(whole) // 2])
half = sitk.GetArrayFromImage(sitk.ReadImage("half.nii.gz"))
print("half of a .nii.gz is read as", half.shape, "with", f"{np.mean(half == large):.0%} of the voxels right")
assert half.shape == large.shape and not np.array_equal(half, large)
assert not any(sum((told["SimpleITK", ending] for ending in (".nii.gz", ".nii", ".gipl")), []))
assert told["SimpleITK", ".nrrd"] == told["SimpleITK", ".mha"] == [False, True]
assert all(told["nibabel", ".nii.gz"] + told["nibabel", ".nii"])
PYTHON
