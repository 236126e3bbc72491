"""The shared test of every registered trainer: plan, preprocess, train, kill, resume, validate, predict, refuse."""

import json
import os
import signal
import time

import pytest

from nnunetv2_ext.registry import PLANNERS, TRAINERS
from nnunetv2_ext.testing import check_trainer
from nnunetv2_ext.testing.trainer import SHORT
from tests.pipeline.conftest import Pipeline, processes_of_group, survivors

pytestmark = pytest.mark.usefixtures("environment")
THICK = "Dataset104_HippocampusThick4"
NARROW = """--backbone-kwargs '{"features_per_stage": [4, 8, 16, 32]}'"""


@pytest.mark.parametrize("trainer", [entry.name for entry in TRAINERS])
def test_trainer_from_plan_to_prediction(pipeline: Pipeline, trainer: str) -> None:
    planner = next(entry.load() for entry in PLANNERS if entry.load().trainer == trainer)
    options = NARROW if trainer in ("BackboneTrainer", "ThinThickTrainer") else ""
    of_slabs = trainer == "ThinThickTrainer"
    dataset = pipeline.thin_thick() if of_slabs else THICK
    check_trainer(
        trainer,
        planner=planner.__name__,
        options=options,
        dataset=dataset,
        commands=pipeline,
    )
    planned = json.loads((pipeline.preprocessed(dataset) / f"{trainer}CheckPlans.json").read_text())
    assert "2d" not in planned["configurations"]


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
