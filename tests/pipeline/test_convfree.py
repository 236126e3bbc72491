"""The convolution-free transformer on thin and on thick slices: two folds, a resume, an ensemble with MNetTrainer."""

import json

import pytest

from nnunetv2_ext.planning.api import plan_and_preprocess
from nnunetv2_ext.testing.trainer import SHORT, kill_at_first_checkpoint
from nnunetv2_ext.training.run import train_fold
from tests.pipeline.conftest import Pipeline, check_predictions, predict

pytestmark = pytest.mark.usefixtures("environment")
THIN = "Dataset004_Hippocampus"
BRIEF = {"epochs": 1, "iterations_per_epoch": 1, "val_iterations_per_epoch": 1, "batch_size": 2}


def test_thin_slices_through_the_commands(pipeline: Pipeline) -> None:
    pipeline.run(f"nnunetv2_ext plan_and_preprocess -d 4 -pl ConvFreePlanner --no_pbar {SHORT}")
    images = pipeline.images_of(THIN)
    configuration = json.loads((pipeline.preprocessed(THIN) / "ConvFreePlans.json").read_text())["configurations"]
    assert configuration["3d_fullres"]["architecture"]["arch_kwargs"]["token_size"] == [8, 8, 8]

    model = pipeline.results("ConvFreeTrainer", "ConvFreePlans", THIN)
    train = "nnUNetv2_train 4 3d_fullres %d -tr ConvFreeTrainer -p ConvFreePlans -device cpu"
    kill_at_first_checkpoint(pipeline, train % 0, model / "fold_0")
    assert "next epoch 1" in pipeline.run(f"{train % 0} --c")
    pipeline.run(train % 1)
    folder = pipeline.folder / "convfree"
    pipeline.run(
        f"nnUNetv2_predict -i {images} -o {folder} -d 4 -c 3d_fullres -tr ConvFreeTrainer -p ConvFreePlans -f 0 1"
        " --save_probabilities --disable_tta -device cpu -npp 1 -nps 1"
    )
    check_predictions(folder, images)

    plan_and_preprocess(4, planner="MNetPlanner", progress=False)
    pipeline.narrow("MNetPlans", THIN)
    fold = train_fold(4, "3d_fullres", 0, trainer="MNetTrainer", plans="MNetPlans", training=BRIEF)
    mnet = predict(fold, images, pipeline.folder / "mnet")
    ensemble = pipeline.folder / "ensemble"
    pipeline.run(f"nnUNetv2_ensemble -i {folder} {mnet} -o {ensemble} -np 1 --save_npz")
    check_predictions(ensemble, images)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"size": "paper", "context": "block"}, "blocks"),
        ({"activation_checkpointing": True, "token_size": [3, 8, 8], "patch_size": [9, 48, 32]}, "global"),
    ],
    ids=["blocks", "checkpointing"],
)
def test_thick_slices_in_this_process(pipeline: Pipeline, options: dict[str, object], kind: str) -> None:
    name = f"ConvFree{kind.capitalize()}Plans"
    plan_and_preprocess(104, planner="ConvFreePlanner", plans_name=name, options=options, progress=False)
    configuration = json.loads((pipeline.preprocessed() / f"{name}.json").read_text())["configurations"]["3d_fullres"]
    assert configuration["attention"]["kind"] == kind
    fold = train_fold(104, "3d_fullres", 0, trainer="ConvFreeTrainer", plans=name, training=BRIEF)
    assert (fold / "validation" / "summary.json").is_file()
