"""The shared test of every registered trainer: plan, preprocess, train, kill, resume, validate, predict, refuse."""

import json
import os
import signal
import time

import pytest
import torch

from nnunetv2_ext.cli import main
from nnunetv2_ext.registry import PLANNERS, TRAINERS
from tests.pipeline.conftest import SHORT, Pipeline, processes_of_group, survivors

pytestmark = pytest.mark.usefixtures("environment")


def planner_of(trainer: str) -> str:
    return next(entry.name for entry in PLANNERS if entry.load().trainer == trainer)


@pytest.mark.parametrize("trainer", [entry.name for entry in TRAINERS])
def test_trainer_from_plan_to_prediction(pipeline: Pipeline, trainer: str, capsys: pytest.CaptureFixture[str]) -> None:
    planner = planner_of(trainer)
    plans = planner.replace("Planner", "Plans")
    dataset, options = "Dataset104_HippocampusThick4", " ".join(SHORT)
    if trainer == "ThinThickTrainer":  # whole thin volumes: a narrow network will do
        dataset = pipeline.thin_thick()
        options += ' --backbone-kwargs {"features_per_stage":[4,8,16,32]}'
    number = dataset[7:10]
    pipeline.run(f"nnunetv2_ext plan_and_preprocess -d {number} -pl {planner} --verify_dataset_integrity {options}")
    planned = json.loads((pipeline.preprocessed(dataset) / f"{plans}.json").read_text())
    assert "2d" not in planned["configurations"]
    assert main(["doctor", "-d", number, "-c", "3d_fullres", "-tr", trainer, "-p", plans, "-device", "cpu"]) == 0
    assert "ok" in capsys.readouterr().out

    images = pipeline.images_of(dataset)
    fold = pipeline.results(trainer, plans, dataset) / "fold_0"
    command = f"nnUNetv2_train {number} 3d_fullres 0 -tr {trainer} -p {plans} --npz -device cpu"
    pipeline.kill_at_first_checkpoint(command, fold)

    assert "next epoch 1" in pipeline.run(f"{command} --c")
    final = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    assert final["current_epoch"] == 2
    assert [len(final["logging"][key]) for key in ("train_losses", "val_losses", "lrs")] == [2, 2, 2]
    assert not [
        path.name for path in fold.glob("checkpoint_*") if path.name.split("_")[1] in ("latest.pth", "previous.pth")
    ]
    assert list((fold / "validation").glob("*.npz"))

    (fold / "validation" / "summary.json").unlink()
    pipeline.run(f"{command} --val")
    assert (fold / "validation" / "summary.json").is_file()

    predictions = pipeline.folder / f"predictions_{trainer}"
    pipeline.run(
        f"nnUNetv2_predict -i {images} -o {predictions} -d {number} -c 3d_fullres -tr {trainer} -p {plans} -f 0"
        " -device cpu -npp 1 -nps 1 --disable_tta"
    )
    assert len(list(predictions.glob("*.nii.gz"))) == 2

    assert main(["schedule", "-d", number, "-p", plans, "--epochs", "3"]) == 0
    assert "training.epochs: 2 and 3" in pipeline.run(f"{command} --c", status=1)
    path = fold / "checkpoint_final.pth"
    path.write_bytes(path.read_bytes()[:100_000])
    assert "damaged checkpoint" in pipeline.run(f"{command} --val", status=1)


def test_no_data_worker_outlives_a_killed_training(pipeline: Pipeline) -> None:
    pipeline.run(f"nnunetv2_ext plan_and_preprocess -d 104 -pl MNetPlanner {' '.join(SHORT)} --epochs 50")
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
