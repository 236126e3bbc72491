#!/usr/bin/env bash
# Evaluating a prediction that does not fit its reference. Guessed: the command refuses it, or numpy does.
# Seen with nnUNetv2_evaluate_simple of nnunetv2 2.8.1, each time with status 0 and without a word: a prediction of one
# slice is compared with each of four; one of two volumes counts every voxel twice; a spacing and an origin of its own
# are not looked at. And a label that no file holds makes foreground_mean NaN, however good the others are.
# PyTorch and other large packages, which the command imports and does not use for this, are replaced by nothing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-deps nnunetv2==2.8.1 batchgenerators==0.25.5
"$folder/venv/bin/pip" install -q SimpleITK==2.5.7 nibabel scikit-image tifffile numpy 2>/dev/null
cd "$folder"
cat >evaluate.py <<'PYTHON'
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from unittest.mock import MagicMock

class Absent(MetaPathFinder, Loader):
    NAMES = {"torch", "acvl_utils", "dynamic_network_architectures", "batchgeneratorsv2", "blosc2"}
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in self.NAMES else None
    def create_module(self, spec):
        return MagicMock(name=spec.name, device=type("device", (), {}), Tensor=type("Tensor", (), {}))
    def exec_module(self, module):
        pass

sys.meta_path.append(Absent())
from nnunetv2.evaluation.evaluate_predictions import evaluate_simple_entry_point

if __name__ == "__main__":
    evaluate_simple_entry_point()
PYTHON
venv/bin/python - <<'PYTHON'
import json, math, pathlib, subprocess, numpy as np, SimpleITK as sitk

def image(mask, spacing=(0.8, 0.8, 5.0), origin=(0.0, 0.0, 0.0)):
    made = sitk.GetImageFromArray(mask)
    made.SetSpacing(spacing)
    made.SetOrigin(origin)
    return made

def evaluated(name, prediction, labels=("1",)):
    for part, volume in ("reference", image(mask)), ("prediction", prediction):
        pathlib.Path(name, part).mkdir(parents=True)
        sitk.WriteImage(volume, f"{name}/{part}/a.nii.gz")
    command = ["venv/bin/python", "evaluate.py", f"{name}/reference", f"{name}/prediction", "-l", *labels, "-np", "1"]
    assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0
    mean = json.loads(pathlib.Path(name, "prediction", "summary.json").read_text())["foreground_mean"]
    print(f"{name}: Dice {mean['Dice']:.3f}, voxels of the reference {mean['n_ref']}")
    return mean["Dice"], mean["n_ref"]

mask = np.zeros((4, 6, 6), np.uint8)
mask[1:3, 1:4, 1:4] = 1  # 18 voxels
assert evaluated("one slice", image(mask[1:2])) == (2 / 3, 18)
assert evaluated("two volumes", sitk.JoinSeries([image(mask), image(mask)])) == (1, 36)
assert evaluated("another place", image(mask, (1.0, 1.0, 1.0), (9.0, 9.0, 9.0))) == (1, 18)
assert math.isnan(evaluated("an absent label", image(mask), ("1", "2"))[0])
PYTHON
