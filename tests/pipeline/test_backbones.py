"""PaRTrainer on every backbone: two folds, an ensemble with MNetTrainer, and a start from a trained network.

Real commands cost about two minutes a backbone. NNUNETV2_EXT_BACKBONES names those that go through them, separated by
commas ("all": every one); the others are planned, trained and applied in this process.
"""

import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnunetv2_ext.architectures.par import backbone_state_dict
from nnunetv2_ext.cli import main
from nnunetv2_ext.planning.api import plan_and_preprocess
from nnunetv2_ext.testing.trainer import kill_at_first_checkpoint
from nnunetv2_ext.training.run import train_fold
from tests.architectures.test_contract import distinct_backbones
from tests.pipeline.conftest import Pipeline, check_predictions, predict

SMALL = {record.name: dict(record.small) for record in distinct_backbones()}
ASKED = os.environ.get("NNUNETV2_EXT_BACKBONES", "nnFormer,TransBTS").split(",")
assert {*ASKED} <= {*SMALL, "all"}, f"got NNUNETV2_EXT_BACKBONES={','.join(ASKED)}; expected all or some of {[*SMALL]}"
REAL = [name for name in SMALL if name in ASKED or "all" in ASKED]
# test_trainers.py takes the default backbone through the commands
BRIEFLY = [name for name in SMALL if name not in REAL and name != "PlainConvUNet"]
pytestmark = pytest.mark.usefixtures("environment")
DATASET = "Dataset104_HippocampusThick4"
BRIEF = {"epochs": 1, "iterations_per_epoch": 1, "val_iterations_per_epoch": 1, "batch_size": 2}
FLAGS = ("--iterations", "1", "--val-iterations", "1", "--batch-size", "2")


def plan(planner: str, **more: Any) -> str:
    """What `nnunetv2_ext plan_and_preprocess` does, in this process."""
    return plan_and_preprocess(104, planner=planner, progress=False, **more)


@pytest.fixture(scope="module")
def images(pipeline: Pipeline) -> Path:
    """Two images to predict; the data set is preprocessed."""
    pipeline.run("nnunetv2_ext plan_and_preprocess -d 104 -pl ExperimentPlanner -c 3d_fullres --no_pbar")
    pipeline.narrow("nnUNetPlans")
    return pipeline.images_of(DATASET)


@pytest.fixture(scope="module")
def mnet_prediction(pipeline: Pipeline, images: Path) -> Path:
    plan("MNetPlanner")
    pipeline.narrow("MNetPlans")
    fold = train_fold(104, "3d_fullres", 0, trainer="MNetTrainer", plans="MNetPlans", training=BRIEF)
    return predict(fold, images, pipeline.folder / "mnet")


def plans_of(backbone: str) -> str:
    return "PaRPlans" if backbone == "PlainConvUNet" else f"PaR{backbone}Plans"


@pytest.mark.parametrize("backbone", REAL)
def test_backbone_through_the_commands(pipeline: Pipeline, images: Path, mnet_prediction: Path, backbone: str) -> None:
    plans, folder = plans_of(backbone), pipeline.folder / f"par_{backbone}"
    kwargs = shlex.quote(json.dumps(SMALL[backbone]))
    pipeline.run(
        f"nnunetv2_ext plan_and_preprocess -d 104 -pl PaRPlanner --backbone {backbone} --backbone-kwargs {kwargs}"
        f" --no_pbar --epochs 2 {' '.join(FLAGS)}"
    )
    model = pipeline.results("PaRTrainer", plans)
    train = f"nnUNetv2_train 104 3d_fullres %d -tr PaRTrainer -p {plans} -device cpu"
    kill_at_first_checkpoint(pipeline, train % 0, model / "fold_0")
    assert "next epoch 1" in pipeline.run(f"{train % 0} --c")
    pipeline.run(train % 1)
    for fold in ("fold_0", "fold_1"):
        final = torch.load(model / fold / "checkpoint_final.pth", weights_only=False)
        assert final["current_epoch"] == 2
        assert (model / fold / "validation" / "summary.json").is_file()

    pipeline.run(
        f"nnUNetv2_predict -i {images} -o {folder} -d 104 -c 3d_fullres -tr PaRTrainer -p {plans} -f 0 1"
        " --save_probabilities --disable_tta -device cpu -npp 1 -nps 1"
    )
    check_predictions(folder, images)
    ensemble = pipeline.folder / f"ensemble_{backbone}"
    pipeline.run(f"nnUNetv2_ensemble -i {folder} {mnet_prediction} -o {ensemble} -np 1 --save_npz")
    check_predictions(ensemble, images)
    for path in ensemble.glob("*.npz"):
        members = [np.load(member / path.name)["probabilities"] for member in (folder, mnet_prediction)]
        assert np.allclose(np.load(path)["probabilities"], np.mean(members, axis=0), atol=1e-3)
    shutil.rmtree(model)


@pytest.mark.filterwarnings("ignore:the patch .* is rounded up from")
@pytest.mark.parametrize("backbone", BRIEFLY)
def test_backbone_in_this_process(pipeline: Pipeline, images: Path, backbone: str) -> None:
    options = {"backbone": backbone, "backbone_kwargs": SMALL[backbone]}
    plans = plan("PaRPlanner", options=options)
    assert plans == plans_of(backbone)
    fold = train_fold(104, "3d_fullres", 0, trainer="PaRTrainer", plans=plans, training=BRIEF)
    assert (fold / "validation" / "summary.json").is_file()
    check_predictions(predict(fold, images, pipeline.folder / f"par_{backbone}"), images)
    shutil.rmtree(fold.parent)


def test_refiner_alone_on_a_trained_network(pipeline: Pipeline, images: Path) -> None:
    trained = train_fold(104, "3d_fullres", 0, trainer="nnUNetTrainer", plans="nnUNetPlans", training=BRIEF)
    source, start = trained / "checkpoint_final.pth", pipeline.folder / "start.pth"
    assert main(["import_weights", "par", str(source), "-o", str(start)]) == 0
    short = ["--epochs", "1", *FLAGS, "--iterations", "3"]  # one may by chance leave a weight as it is
    assert main(["schedule", "-d", "104", "-p", "nnUNetPlans", "--freeze-backbone", *short]) == 0
    train = "nnUNetv2_train 104 3d_fullres 0 -tr PaRTrainer -p nnUNetPlans -device cpu"
    pipeline.run(f"{train} -pretrained_weights {start}")

    def weights(file: Path) -> dict[str, torch.Tensor]:
        return torch.load(file, weights_only=False)["network_weights"]

    final = weights(pipeline.results("PaRTrainer", "nnUNetPlans") / "fold_0" / "checkpoint_final.pth")
    backbone = {key: value for key, value in final.items() if key.startswith("backbone.")}
    expected = backbone_state_dict(weights(source))
    assert backbone.keys() == expected.keys()
    assert all(torch.equal(backbone[key], expected[key]) for key in expected)
    before = weights(start)
    unchanged = [key for key, value in final.items() if "refiner." in key and torch.equal(value, before[key])]
    assert not unchanged
