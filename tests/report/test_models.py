import json
import shutil

import numpy as np
import pytest
import torch

from nnunetv2_ext.evaluation.summary import Summary
from nnunetv2_ext.files import write_json
from nnunetv2_ext.report.models import describe_model, model_folders
from nnunetv2_ext.weights.safe import write_safe_model
from tests.tiny_models import plans, write_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two folds of two and three epochs, with nnU-Net's log."""
    model = write_model(tmp_path_factory.mktemp("models"), folds=(0, 1))
    for fold, epochs in ((0, 2), (1, 3)):
        path = model / f"fold_{fold}" / "checkpoint_final.pth"
        content = torch.load(path, weights_only=False)
        numbers = [np.float32(0.1 * epoch) for epoch in range(epochs)]
        starts = [1_700_000_000.0 + 60 * epoch for epoch in range(epochs)]
        content["logging"] = {
            **dict.fromkeys(("train_losses", "val_losses", "mean_fg_dice", "ema_fg_dice"), numbers),
            "epoch_start_timestamps": starts,
            "epoch_end_timestamps": [start + 50 for start in starts],
        }
        content["current_epoch"] = epochs
        torch.save(content, path)
    return model


def weights_of(model) -> int:
    weights = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)["network_weights"]
    return sum(tensor.numel() for tensor in {tensor.data_ptr(): tensor for tensor in weights.values()}.values())


def test_plans_and_checkpoints_are_told(trained):
    told = describe_model(trained)
    assert told.name == "nnUNetTrainer:nnUNetPlans:3d_fullres"
    assert told.faults == ()
    expected = {
        "trainer": "nnUNetTrainer",
        "patch": "6 x 24 x 20 voxels",
        "spacing": "3 x 1 x 1 mm",
        "batch": "2",
        "network": "PlainConvUNet",
        "folds": "0, 1",
        "epochs trained": "2, 3",
        "training time": "100 s, 2 min",
        "trained on": "2023-11-14",
        "parameters": f"{weights_of(trained) / 1e6:.3g} million",
    }
    assert expected.items() <= told.settings.items()
    assert [fold.name for fold in told.folds] == ["0", "1"]
    assert told.folds[1].curves["ema_fg_dice"] == pytest.approx([0, 0.1, 0.2])


def test_folds_that_are_asked_for(trained):
    assert [fold.name for fold in describe_model(trained, ("1",)).folds] == ["1"]


def test_an_exported_model_tells_the_same(trained, tmp_path):
    write_safe_model(trained, tmp_path / trained.name)
    ours, theirs = describe_model(trained), describe_model(tmp_path / trained.name)
    assert theirs.folds == ours.folds
    assert theirs.settings == {key: value for key, value in ours.settings.items() if key != "parameters"}


def test_the_training_block_of_our_trainers(tmp_path):
    training = {"epochs": 7, "optimizer": {"name": "AdamW"}}
    content = plans()
    content["configurations"]["3d_fullres"]["training"] = training
    told = describe_model(write_model(tmp_path, trainer="BackboneTrainer", of_plans=content))
    assert told.settings["epochs"] == "7"
    assert told.settings["optimizer"].startswith("AdamW, lr ")


def lose_folder(model):
    shutil.rmtree(model)


def lose_checkpoint(model):
    (model / "fold_0" / "checkpoint_final.pth").unlink()


def cut_checkpoint(model):
    path = model / "fold_0" / "checkpoint_final.pth"
    path.write_bytes(path.read_bytes()[:1000])


def foreign_checkpoint(model):
    torch.save({"a": 1}, model / "fold_0" / "checkpoint_final.pth")


def odd_log(model):
    path = model / "fold_0" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    torch.save({**content, "logging": {"train_losses": "none", "ema_fg_dice": []}, "current_epoch": "x"}, path)


def unfinished(model):
    path = model / "fold_0" / "checkpoint_final.pth"
    path.rename(path.with_name("checkpoint_latest.pth"))


@pytest.mark.parametrize(
    ("damage", "known", "fault"),
    [
        (lose_folder, 0, "is not there, which"),
        (lose_checkpoint, 1, "Fold 0: got no checkpoint_final.pth"),
        (cut_checkpoint, 1, "Fold 0: got "),
        (foreign_checkpoint, 1, "Fold 0: got "),
        (odd_log, 2, None),
        (unfinished, 2, None),
    ],
)
def test_what_is_not_known_is_told(trained, tmp_path, damage, known, fault):
    model = shutil.copytree(trained, tmp_path / trained.name)
    damage(model)
    told = describe_model(model)
    assert len(told.folds) == known
    assert bool(told.faults) == (fault is not None)
    assert fault is None or fault in told.faults[0]
    assert (damage is unfinished) == ("not finished" in told.settings)


def summary(folder, **told) -> Summary:
    return Summary("ours", {"c0": (folder / "labels" / "c0.nii.gz", folder / "c0.nii.gz")}, {"organ": (1,)}, **told)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"models": [{"model": "nnUNetTrainer:nnUNetPlans:3d_fullres", "folds": ["1"]}]}, ("1",)),
        ({"models": [{"model": "nnUNetTrainer:nnUNetPlans:3d_fullres"}]}, None),
        ({"models": 3}, None),
        ({}, None),
    ],
)
def test_the_model_behind_predictions(trained, tmp_path, monkeypatch, record, expected):
    monkeypatch.setenv("nnUNet_results", str(trained.parents[1]))
    (tmp_path / "ensemble").mkdir()
    write_json(tmp_path / "predict.json", record)
    shutil.copy(trained / "plans.json", tmp_path)
    assert model_folders(summary(tmp_path)) == ({trained: expected} if expected else {})
    write_json(tmp_path / "ensemble" / "predict.json", {"models": [[str(tmp_path), 1.0]]})
    assert model_folders(summary(tmp_path / "ensemble")) == model_folders(summary(tmp_path))
    told = summary(tmp_path, model_folders=(tmp_path,), folds=("0",))
    assert model_folders(told) == {tmp_path: ("0",)}


def test_a_damaged_export(trained, tmp_path):
    write_safe_model(trained, tmp_path / "model")
    (tmp_path / "model" / "fold_0" / "training.json").write_text(json.dumps({"init_args": {}}))
    told = describe_model(tmp_path / "model")
    assert [fold.name for fold in told.folds] == ["1"]
    assert "a damaged" in told.faults[0]
