"""A network with entries by the real commands on tiny volumes: small windows inside masks, an ensemble with MNet."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from nnunetv2_ext.cli import main
from nnunetv2_ext.training.run import train_fold
from tests.pipeline.test_roi import BRIEF, CASES, NAME, folder, write  # noqa: F401 (a fixture)

MODEL, MNET = "HierarchicalTrainer:HierarchicalPlans:3d_fullres", "MNetTrainer:MNetPlans:3d_fullres"
ENTRIES = [[8, 32, 32], [8, 16, 16], [8, 8, 8]]
MASKS = {"case_00": ((3, 10, 10), (6, 16, 17)), "case_01": ((4, 20, 20), (6, 23, 24))}
"""The first in a window of 16 voxels in plane, the second in one of 8."""


def narrow(plans: Path, **arguments: object) -> None:
    content = json.loads(plans.read_text())
    content["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"].update(arguments)
    plans.write_text(json.dumps(content))


def test_windows_by_the_box_and_an_ensemble(
    folder: Path,  # noqa: F811 (the fixture)
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    preprocessed = folder / "nnUNet_preprocessed" / NAME
    planned = ["plan_and_preprocess", "-d", "708", "-c", "3d_fullres", "--no_pbar", "--patch-size", "8", "32", "32"]
    assert main([*planned, "-pl", "HierarchicalPlanner"]) == 0
    assert main([*planned, "-pl", "MNetPlanner"]) == 0
    narrow(preprocessed / "HierarchicalPlans.json", features=4, max_features=8)
    narrow(preprocessed / "MNetPlans.json", features_per_stage=[2, 3, 4, 5, 6])
    names = [f"case_{number:02d}" for number in range(CASES)]
    (preprocessed / "splits_final.json").write_text(json.dumps([{"train": names[1:], "val": names[:1]}]))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    for model in (MODEL, MNET):
        trainer, plans, _ = model.split(":")
        train_fold(708, "3d_fullres", 0, trainer=trainer, plans=plans, training=BRIEF)
    network = json.loads((preprocessed / "HierarchicalPlans.json").read_text())["configurations"]["3d_fullres"]
    strides = network["architecture"]["arch_kwargs"]["strides"][:3]
    assert [(np.array([8, 32, 32]) // stride).tolist() for stride in np.cumprod(strides, axis=0)] == ENTRIES

    images, masks = folder / "images", folder / "masks"
    images.mkdir(exist_ok=True)
    for name, (low, high) in MASKS.items():
        shutil.copy(folder / "nnUNet_raw" / NAME / "imagesTr" / f"{name}_0000.nii.gz", images)
        voxels = np.zeros((10, 40, 40), np.uint8)
        voxels[tuple(map(slice, low, high))] = 1
        write(masks / f"{name}.nii.gz", voxels)
    predict = ["predict", "-i", str(images), "-d", "708", "-device", "cpu", "--disable_tta", "--save_probabilities"]
    inside = ["--roi", str(masks), "--no-roi-growth"]
    outputs = [folder / "of_segmentor", folder / "of_mnet", folder / "ensemble"]
    assert main([*predict, "-m", MODEL, "-o", str(outputs[0]), *inside]) == 0
    assert main([*predict, "-m", MNET, "-o", str(outputs[1]), *inside]) == 0
    told = [json.loads((output / "roi.json").read_text()) for output in outputs[:2]]
    for (name, (low, high)), size in zip(MASKS.items(), ENTRIES[1:], strict=True):
        (ours,), (theirs,) = (of_model[name].values() for of_model in told)
        assert ours["boxes_voxels"] == theirs["boxes_voxels"] == [[list(low), list(high)]]
        assert ours["window_voxels"] == [size] and "window_voxels" not in theirs
        assert ours["windows_by_size"] == {" x ".join(map(str, size)): 1}
        assert ours["windows_computed"] == 1 < theirs["windows_of_all"] == ours["windows_of_all"]
        assert ours["fallback"] is None
    assert main(["ensemble", "-i", *map(str, outputs[:2]), "-o", str(outputs[2]), "-np", "1"]) == 0
    for name, (low, high) in MASKS.items():
        labels = np.asarray(nibabel.load(outputs[2] / f"{name}.nii.gz").dataobj).T
        assert labels.shape == (10, 40, 40)
        labels = labels.copy()
        labels[tuple(map(slice, low, high))] = 0
        assert not labels.any()
