#!/usr/bin/env bash
# An ensemble of two folders of saved probabilities that do not fit each other. Guessed: the command refuses them, as it
# refuses folders that do not hold the same files.
# Seen with nnUNetv2_ensemble of nnunetv2 2.8.1, each time with status 0 and without a word: with labels in two orders,
# two votes for the liver become a tumour; one slice is spread over four; spacing and origin are not looked at.
# PyTorch and other large packages, which the command imports and does not use for this, are replaced by nothing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-deps nnunetv2==2.8.1 batchgenerators==0.25.5
"$folder/venv/bin/pip" install -q SimpleITK==2.5.7 nibabel scikit-image tifffile numpy 2>/dev/null
cd "$folder"
cat >ensemble.py <<'PYTHON'
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from unittest.mock import MagicMock

class Absent(MetaPathFinder, Loader):
    NAMES = {"torch", "acvl_utils", "dynamic_network_architectures", "batchgeneratorsv2", "blosc2"}
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in self.NAMES else None
    def create_module(self, spec):
        return MagicMock(name=spec.name, inference_mode=lambda: lambda function: function, Tensor=type("Tensor", (), {}))
    def exec_module(self, module):
        pass

sys.meta_path.append(Absent())
from nnunetv2.ensembling.ensemble import entry_point_ensemble_folders

if __name__ == "__main__":
    entry_point_ensemble_folders()
PYTHON
venv/bin/python - <<'PYTHON'
import json, pathlib, pickle, subprocess, numpy as np, SimpleITK as sitk

def predicted(name, labels, probabilities, shape=(4, 5, 5), spacing=(1.0, 1.0, 3.0), origin=(0.0, 0.0, 0.0)):
    """A folder with one case, in every voxel the same probabilities of background and two labels."""
    folder = pathlib.Path(name)
    folder.mkdir()
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ".nrrd", "channel_names": {"0": "CT"}}))
    (folder / "plans.json").write_text(json.dumps({"image_reader_writer": "SimpleITKIO", "label_manager": "LabelManager"}))
    values = np.broadcast_to(np.reshape(probabilities, (3, 1, 1, 1)), (3, *shape)).astype(np.float32)
    np.savez_compressed(folder / "a.npz", probabilities=values)
    place = {"spacing": spacing, "origin": origin, "direction": tuple(np.eye(3).ravel())}
    (folder / "a.pkl").write_bytes(pickle.dumps({"sitk_stuff": place, "spacing": spacing[::-1]}))

def ensemble(*members):
    done = subprocess.run(["venv/bin/python", "ensemble.py", "-i", *members, "-o", "of_" + "".join(members), "-np", "1"])
    assert done.returncode == 0
    return sitk.ReadImage(f"of_{''.join(members)}/a.nrrd")

one = {"background": 0, "liver": 1, "tumour": 2}
predicted("A", one, [0.0, 0.6, 0.4])
predicted("B", {"background": 0, "tumour": 1, "liver": 2}, [0.0, 0.1, 0.9])
predicted("C", one, [0.1, 0.9, 0.0], shape=(1, 5, 5))
predicted("D", one, [0.1, 0.9, 0.0], spacing=(2.0, 2.0, 6.0), origin=(50.0, 50.0, 50.0))
label = {value: name for name, value in one.items()}[int(sitk.GetArrayFromImage(ensemble("A", "B"))[0, 0, 0])]
spread, moved = ensemble("A", "C"), ensemble("A", "D")
print("two votes for the liver become", label)
print("four slices and one become", spread.GetSize()[2])
print("spacings 3 and 6 mm and origins 0 and 50 mm become", moved.GetSpacing()[2], "mm and", moved.GetOrigin()[2], "mm")
assert label == "tumour" and spread.GetSize()[2] == 4
assert moved.GetSpacing() == (1, 1, 3) and moved.GetOrigin() == (0, 0, 0)
PYTHON
