"""The shared test of every registered trainer: plan, preprocess, train, kill, resume, validate, predict, refuse."""

import json
import os
import signal
import time

import nibabel
import numpy as np
import pytest

from nnunetv2_ext.registry import PLANNERS, TRAINERS
from nnunetv2_ext.testing import check_trainer
from nnunetv2_ext.testing.trainer import SHORT
from tests.pipeline.conftest import Pipeline, check_predictions, processes_of_group, survivors

pytestmark = pytest.mark.usefixtures("environment")
THICK = "Dataset104_HippocampusThick4"
NARROW = """--backbone-kwargs '{"features_per_stage": [4, 8, 16, 32]}'"""


@pytest.mark.parametrize("trainer", [entry.name for entry in TRAINERS])
def test_trainer_from_plan_to_prediction(pipeline: Pipeline, trainer: str) -> None:
    if trainer == "DetectorTrainer":
        planner, options, configuration = "ROIPlanner", "--network detector --grid 32", "3d_roi"
    else:
        planner = next(entry.name for entry in PLANNERS if entry.load().trainer == trainer)
        options = NARROW if trainer in ("BackboneTrainer", "ThinThickTrainer") else ""
        configuration = "3d_fullres"
    of_slabs = trainer == "ThinThickTrainer"
    dataset = pipeline.thin_thick() if of_slabs else THICK
    check_trainer(
        trainer,
        planner=planner,
        options=options,
        configuration=configuration,
        dataset=dataset,
        commands=pipeline,
    )
    planned = json.loads((pipeline.preprocessed(dataset) / f"{trainer}CheckPlans.json").read_text())
    assert "2d" not in planned["configurations"]


@pytest.mark.parametrize(("number", "slices"), [(351, 1), (352, 2)])
def test_volumes_of_few_slices(pipeline: Pipeline, number: int, slices: int) -> None:
    name = f"Dataset{number}_Slices{slices}"
    raw = pipeline.folder / "nnUNet_raw" / name
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    for case in range(5):
        labels = np.zeros((32, 32, slices), np.uint8)
        labels[8:24, 8:24] = 1
        image = np.random.default_rng(case).normal(100 * labels, 10).astype(np.float32)
        for voxels, file in ((image, f"imagesTr/c{case}_0000.nii.gz"), (labels, f"labelsTr/c{case}.nii.gz")):
            nibabel.save(nibabel.Nifti1Image(voxels, np.diag([0.5, 0.5, 10, 1])), raw / file)
    described = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "box": 1}}
    (raw / "dataset.json").write_text(json.dumps({**described, "numTraining": 5, "file_ending": ".nii.gz"}))
    # nnU-Net's blur would raise in one of nine samples
    pipeline.run(f"nnunetv2_ext plan_and_preprocess -d {number} --epochs 1 --iterations 25 --val-iterations 1")
    planned = json.loads((pipeline.preprocessed(name) / "MNetPlans.json").read_text())
    assert planned["configurations"]["3d_fullres"]["patch_size"] == [slices, 32, 32]
    pipeline.narrow("MNetPlans", name)
    training = f"{number} 3d_fullres 0 -tr MNetTrainer -p MNetPlans -device cpu"
    pipeline.run(f"nnUNetv2_train {training}")
    images = pipeline.images_of(name)
    output = pipeline.folder / f"predicted_{number}"
    pipeline.run(
        f"nnUNetv2_predict -i {images} -o {output} -d {number} -c 3d_fullres -tr MNetTrainer -p MNetPlans -f 0"
        " -device cpu -npp 1 -nps 1 --save_probabilities"
    )
    check_predictions(output, images)


def test_no_data_worker_outlives_a_killed_training(pipeline: Pipeline) -> None:
    pipeline.run(f"nnunetv2_ext plan_and_preprocess -d 104 -pl MNetPlanner {SHORT} --epochs 50")
    command = "nnUNetv2_train 104 3d_fullres 1 -tr MNetTrainer -p MNetPlans -device cpu"
    training = pipeline.start(command, fresh=True)
    while not (pipeline.results("MNetTrainer", "MNetPlans") / "fold_1" / "checkpoint_latest.pth").is_file():
        assert training.poll() is None, training.communicate()[0][-6000:]
        time.sleep(0.1)
    assert processes_of_group(training.pid) - {training.pid}, "no data worker to outlive it"
    os.kill(training.pid, signal.SIGKILL)  # the training alone, not its group
    training.wait()
    assert not survivors(training.pid)
    training.communicate()
