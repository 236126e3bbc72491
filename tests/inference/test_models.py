"""Trained models by name and by folder, read and built."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.inference.models import Model, chosen, load_model, model_folder, parse_models, trainer_class
from nnunetv2_ext.weights.safe import write_safe_model
from tests.tiny_models import NAME, NUMBER, write_model


def test_the_folder_of_a_model(nnunet_folders: Path) -> None:
    model = write_model(nnunet_folders)
    named = "nnUNetTrainer:nnUNetPlans:3d_fullres"
    assert model_folder(model) == model
    assert model_folder(named, NUMBER) == model_folder(f"{NAME}:{named}") == model_folder(f"{NUMBER}:{named}") == model


@pytest.mark.parametrize(
    ("name", "dataset", "told"),
    [
        ("nnUNetTrainer:nnUNetPlans:2d", NUMBER, "choose one of nnUNetTrainer:nnUNetPlans:3d_fullres"),
        ("nnUNetTrainer:nnUNetPlans:2d", None, "without a data set"),
        ("nnUNetTrainer:nnUNetPlans", NUMBER, "TRAINER:PLANS:CONFIG"),
        ("nowhere", NUMBER, "no folder nowhere"),
        ("a:b:c", 3, "no data set 3"),
    ],
)
def test_no_such_model(nnunet_folders: Path, name: str, dataset: int | None, told: str) -> None:
    write_model(nnunet_folders)
    with pytest.raises(InputError, match=told):
        model_folder(name, dataset)


def test_the_file_of_find_best(nnunet_folders: Path, tmp_path: Path) -> None:
    model, named = write_model(nnunet_folders), "nnUNetTrainer:nnUNetPlans:3d_fullres"
    file = tmp_path / "best.json"
    file.write_text(json.dumps({"dataset": NAME, "models": [named], "folds": ["0", "1"]}))
    assert chosen([str(file)], None, None) == chosen([str(file)], str(NUMBER), None) == ([model], ["0", "1"])
    assert chosen([str(file)], None, ["1"]) == ([model], ["1"])
    assert chosen([named], NAME, None) == ([model], None)


@pytest.mark.parametrize(
    ("content", "dataset", "told"),
    [
        (None, None, "no file"),
        ("{", None, "a damaged file"),
        ("[]", None, "a list in"),
        ('{"dataset": "Dataset710_Small", "models": [], "folds": ["0"]}', None, "no data set, models or folds in"),
        ('{"dataset": "Dataset710_Small", "models": ["a:b:c"], "folds": [0]}', None, "no data set, models or folds in"),
        ('{"dataset": "Dataset710_Small", "models": ["a:b:c"], "folds": ["0"]}', None, "no trained model a:b:c"),
        ('{"dataset": "Dataset711_Other", "models": ["a:b:c"], "folds": ["0"]}', "710", "one data set; leave -d out"),
    ],
)
def test_no_file_of_find_best(nnunet_folders: Path, content: str | None, dataset: str | None, told: str) -> None:
    write_model(nnunet_folders)
    file = nnunet_folders / "best.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=told):
        chosen([str(file)], dataset, None)


def test_a_model_and_its_safe_copy(tmp_path: Path) -> None:
    folder = write_model(tmp_path, folds=(0, 1))
    write_safe_model(folder, tmp_path / "safe")
    models = load_model(folder), load_model(tmp_path / "safe")
    assert [list(model.trained.weights) for model in models] == [["0", "1"]] * 2
    assert list(load_model(folder, ["1"]).trained.weights) == ["1"]
    assert all(model.trained.mirroring_axes == (0, 1, 2) for model in models)
    outputs = []
    for model in models:
        network = model.network()
        assert not network.training
        outputs.append(network(torch.ones(1, 1, *model.configuration_manager.patch_size)))
    assert torch.equal(*outputs)
    digests = models[0].digests()
    assert digests.keys() == {"plans.json", "dataset.json", *(f"fold_{f}/checkpoint_final.pth" for f in range(2))}
    (folder / "dataset.json").write_text((folder / "dataset.json").read_text() + " ")
    changed = load_model(folder).digests()
    assert [name for name in digests if digests[name] != changed[name]] == ["dataset.json"]


def without_checkpoint(folder: Path) -> None:
    (folder / "fold_1" / "checkpoint_final.pth").unlink()


def damaged(folder: Path) -> None:
    path = folder / "fold_1" / "checkpoint_final.pth"
    path.write_bytes(path.read_bytes()[:-100])


def changed(key: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "fold_1" / "checkpoint_final.pth"
        content = torch.load(path, weights_only=False)
        content[key] = value
        torch.save(content, path)

    return change


def without_configuration(folder: Path) -> None:
    plans = json.loads((folder / "plans.json").read_text())
    del plans["configurations"]["3d_fullres"], plans["configurations"]["3d_cascade_fullres"]
    (folder / "plans.json").write_text(json.dumps(plans))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (without_checkpoint, r"no checkpoint_final.pth in fold_1 .*choose -f from 0"),
        (damaged, "checkpoint_final.pth"),
        (changed("trainer_name", "MNetTrainer"), "folds of one model"),
        (changed("inference_allowed_mirroring_axes", None), "folds of one model"),
        (without_configuration, "without the configuration 3d_fullres"),
        (lambda folder: (folder / "plans.json").unlink(), "no file .*plans.json"),
        (lambda folder: (folder / "dataset.json").write_text("{}"), "which nnU-Net refuses"),
    ],
)
def test_a_broken_model(tmp_path: Path, change: Callable[[Path], object], told: str) -> None:
    folder = write_model(tmp_path, folds=(0, 1))
    change(folder)
    with pytest.raises(InputError, match=told):
        load_model(folder, ["0", "1"])


def test_weights_of_another_network(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    plans = json.loads((folder / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 6, 9]
    (folder / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(InputError, match="weights of another network in fold 0"):
        load_model(folder).network()


def test_trainers() -> None:
    names = ("MNetTrainer", "nnUNetTrainer", "nnUNetTrainerNoMirroring")
    assert [trainer_class(name).__name__ for name in names] == list(names)
    with pytest.raises(InputError, match="no trainer NoSuchTrainer"):
        trainer_class("NoSuchTrainer")


@pytest.mark.parametrize("triple", ["", "a", "a:b", "a:b:c:d", "a::c", ":b:c", "a:b:", "a__b:c:d", "a:b/c:d", "_a:b:c"])
def test_a_triple_that_is_none(triple):
    with pytest.raises(InputError, match="TRAINER:PLANS:CONFIG"):
        parse_models([triple])


def test_repeated_models_count_once():
    assert parse_models(["a:b:c", "d:e:f", "a:b:c"]) == [Model("a", "b", "c"), Model("d", "e", "f")]
