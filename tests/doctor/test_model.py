"""Each fault of a trained model's folder is told in a line, with what to do about it."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunetv2_ext.cli import main
from nnunetv2_ext.doctor.examination import FAIL, OK, WARN
from tests.doctor.conftest import DATASET_JSON, Diagnose, Prepared, assert_told, checkpoint_of, truncate
from tests.training.test_checkpoints import Marker

FINAL = "fold_0/checkpoint_final.pth"


def write_model(prepared: Prepared, trainer: str = "MNetTrainer", plans_name: str = "MNetPlans") -> Path:
    """A model of two folds."""
    content, model = checkpoint_of(prepared, trainer, plans_name), prepared.model(trainer, plans_name)
    for fold in ("fold_0", "fold_1"):
        (model / fold).mkdir(parents=True)
        for name in ("final", "best"):
            torch.save(content, model / fold / f"checkpoint_{name}.pth")
    prepared.write(model / "plans.json", content["init_args"]["plans"])
    prepared.write(model / "dataset.json", DATASET_JSON)
    return model


@pytest.mark.parametrize(("trainer", "plans"), [("MNetTrainer", "MNetPlans"), ("nnUNetTrainer", "nnUNetPlans")])
def test_a_whole_model(prepared: Prepared, diagnose: Diagnose, capsys: Any, trainer: str, plans: str) -> None:
    model = write_model(prepared, trainer, plans)
    status, checks = diagnose(str(model))
    assert status == 0
    assert {found for found, _ in checks} == {OK}
    assert_told(checks, OK, "folder", ("2 finished of 2 folds (fold_0, fold_1)",))
    assert_told(checks, OK, "contents", (f"{FINAL}: tensors and numbers alone, all finite, epoch 3",))
    assert_told(checks, OK, "weights", ("those of fold_0, fold_1 fit",))


def in_checkpoint(*path: Any, value: Any, name: str = FINAL) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        content = held = torch.load(model / name, weights_only=False)
        for key in path[:-1]:
            held = held[key]
        held[path[-1]] = value
        torch.save(content, model / name)

    return change


def in_every_checkpoint(key: str, value: Any) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        for fold in (0, 1):
            in_checkpoint(key, value=value, name=f"fold_{fold}/checkpoint_final.pth")(model)

    return change


def in_json(name: str, *path: str, value: Any) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        content = held = json.loads((model / name).read_text())
        for key in path[:-1]:
            held = held[key]
        held[path[-1]] = value
        (model / name).write_text(json.dumps(content))

    return change


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda model: (model / name).write_text(text)


def no_finished_fold(model: Path) -> None:
    for fold in (0, 1):
        (model / f"fold_{fold}" / "checkpoint_final.pth").unlink()


ARCHITECTURE = ("configurations", "3d_fullres", "architecture")
WIDER = [3, 3, 4, 5, 6]
# what is changed in a whole model, the status and the name of the line, texts in it and in its remedy
FAULTS: dict[str, tuple[Callable[[Path], object], str, str, tuple[str, ...]]] = {
    "nothing there": (shutil.rmtree, FAIL, "folder", ("no folder", "check the path")),
    "no folds": (
        lambda model: list(map(shutil.rmtree, model.glob("fold_*"))), FAIL, "folder",
        ("holds no fold_*", "export or copy the model again"),
    ),
    "no finished fold": (no_finished_fold, FAIL, "folder", ("no checkpoint_final.pth in", "--c")),
    "one unfinished fold": (
        lambda model: (model / FINAL).unlink(), WARN, "folder", ("fold_0 has no checkpoint_final", "-f 1"),
    ),
    "what nnU-Net takes for a fold": (
        lambda model: shutil.copytree(model / "fold_0", model / "fold_0.old"), WARN, "folder",
        ("fold_0.old is no fold", "rename it"),
    ),
    "no plans": (lambda model: (model / "plans.json").unlink(), FAIL, "description", ("no file", "again")),
    "truncated plans": (lambda model: truncate(model / "plans.json"), FAIL, "description", ("damaged file", "again")),
    "plans are a list": (write("plans.json", "[]"), FAIL, "description", ("a list in", "again")),
    "plans are empty": (write("plans.json", "{}"), FAIL, "description", ("without configurations", "again")),
    "truncated dataset.json": (
        lambda model: truncate(model / "dataset.json"), FAIL, "description", ("damaged file", "again"),
    ),
    "no labels": (in_json("dataset.json", "labels", value=None), FAIL, "description", ("nnU-Net refuses", "again")),
    "no channels": (
        in_json("dataset.json", "channel_names", value=None), FAIL, "description", ("nnU-Net refuses", "again"),
    ),
    "a truncated checkpoint": (
        lambda model: truncate(model / FINAL), FAIL, "contents", ("damaged checkpoint", FINAL, "again"),
    ),
    "a truncated checkpoint that prediction needs not": (
        lambda model: truncate(model / "fold_0" / "checkpoint_best.pth"), WARN, "contents",
        ("damaged checkpoint", "checkpoint_best.pth", "remove it"),
    ),
    "NaN": (
        in_checkpoint("network_weights", "bias", value=torch.tensor([torch.nan])), FAIL, "contents",
        ("no finite numbers: 1 tensor (bias)", "again"),
    ),
    "an object": (
        in_checkpoint("more", value=Path("x")), FAIL, "contents",
        ("pickled Python objects (pathlib", "predict and train nothing with it"),
    ),
    "an object beside": (
        in_checkpoint("more", value=Path("x"), name="fold_0/checkpoint_best.pth"), FAIL, "contents",
        ("checkpoint_best.pth, which holds pickled Python objects", "predict and train nothing with it"),
    ),
    "not for going on": (
        in_checkpoint("logging", value={}), OK, "contents", ("good for prediction, not for going on",),
    ),
    "no init_args": (in_checkpoint("init_args", value={}), FAIL, "contents", ("init_args without plans", "again")),
    "folds of two trainers": (
        in_checkpoint("trainer_name", value="PaRTrainer"), FAIL, "model",
        ("fold_0 of PaRTrainer 3d_fullres, fold_1 of MNetTrainer 3d_fullres", "keep those of one model"),
    ),
    "an unknown trainer": (
        in_every_checkpoint("trainer_name", "GoneTrainer"), FAIL, "trainer",
        ("no trainer GoneTrainer", "install what brings it"),
    ),
    "plans without the configuration": (
        in_json("plans.json", "configurations", value={"2d": {}}), FAIL, "model", ("no 3d_fullres", "restore it"),
    ),
    "plans without an architecture": (
        in_json("plans.json", *ARCHITECTURE, value=None), FAIL, "model", ("3d_fullres of plans.json is damaged",),
    ),
    "a network of plans that would run what it names": (
        in_json("plans.json", *ARCHITECTURE, "network_class_name", value="subprocess.Popen"), FAIL, "model",
        ("names subprocess.Popen, which building the network would run",),
    ),
    "an argument that would run what it names": (
        in_json("plans.json", *ARCHITECTURE, "arch_kwargs", "norm", value=["os.path.join"]), FAIL, "model",
        ("names os.path.join",),
    ),
    "an argument that the network does not know": (
        in_json("plans.json", *ARCHITECTURE, "arch_kwargs", "depth", value=3), FAIL, "network", ("restore plans.json",),
    ),
    "plans of a wider network": (
        in_json("plans.json", *ARCHITECTURE, "arch_kwargs", "features_per_stage", value=WIDER), FAIL, "weights",
        ("weights of another network", "instead of", "arch_kwargs.features_per_stage", "restore plans.json"),
    ),
    "other labels": (
        in_json("dataset.json", "labels", value={"background": 0, "organ": 1}), FAIL, "weights",
        ("weights of another network", "instead of (2", "restore plans.json, dataset.json"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "status", "name", "texts"), FAULTS.values(), ids=FAULTS)
def test_faults(
    prepared: Prepared,
    diagnose: Diagnose,
    change: Callable[[Path], object],
    status: str,
    name: str,
    texts: tuple[str, ...],
) -> None:
    model = write_model(prepared)
    change(model)
    exit_status, checks = diagnose(str(model))
    assert_told(checks, status, name, texts)
    assert exit_status == (1 if status == FAIL else 0)
    assert {what.partition(":")[0] for found, what in checks if found == FAIL} <= {name}


def test_nothing_is_run(prepared: Prepared, diagnose: Diagnose, tmp_path: Path) -> None:
    model, ran = write_model(prepared), tmp_path / "ran"
    in_checkpoint("more", value=Marker(ran))(model)
    (model / "fold_0" / "validation").mkdir()
    shutil.copy(model / FINAL, model / "fold_0" / "validation" / "case.pkl")
    assert diagnose(str(model))[0] == 1
    assert not ran.exists()


def test_the_properties_of_a_validation(prepared: Prepared, diagnose: Diagnose, tmp_path: Path) -> None:
    model, ran = write_model(prepared), tmp_path / "ran"
    folder = model / "fold_0" / "validation"
    folder.mkdir()
    (folder / "a.pkl").write_bytes(pickle.dumps({"spacing": [1.0, 2.0]}))
    assert_told(diagnose(str(model))[1], OK, "contents", ("1 pickle (a.pkl) of data alone",))
    (folder / "b.pkl").write_bytes(pickle.dumps(Marker(ran)))
    status, checks = diagnose(str(model))
    assert status == 1
    assert_told(checks, FAIL, "contents", ("b.pkl", "could run code", "remove it"))
    assert not ran.exists()


@pytest.mark.parametrize(
    ("asked", "told"),
    [("fold_0", "give {model}"), ("..", "give {model}"), (FINAL, "give {model}"), ("plans.json", "is a file")],
)
def test_another_folder(prepared: Prepared, diagnose: Diagnose, asked: str, told: str) -> None:
    model = write_model(prepared)
    status, checks = diagnose(str((model / asked).resolve()))
    assert status == 1
    assert_told(checks, FAIL, "folder", (told.format(model=model),))


def test_one_fold(prepared: Prepared, diagnose: Diagnose) -> None:
    model = write_model(prepared)
    truncate(model / FINAL)
    assert diagnose(str(model), "-f", "1")[0] == 0
    status, checks = diagnose(str(model), "-f", "3")
    assert status == 1
    assert_told(checks, FAIL, "folder", ("no fold_3 with a checkpoint", "choose -f from 0 1"))


def test_one_question_at_a_time(prepared: Prepared, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(prepared.results), "-d", "901"]) == 2
    assert "ask for one at a time" in capsys.readouterr().err


def test_a_safe_model(prepared: Prepared, diagnose: Diagnose, tmp_path: Path) -> None:
    model, safe = write_model(prepared), tmp_path / "safe"
    assert main(["safe_export", str(model), str(safe)]) == 0
    status, checks = diagnose(str(safe))
    assert status == 0
    assert {found for found, _ in checks} == {OK}
    assert_told(checks, OK, "contents", ("safetensors and JSON of fold 0, 1",))
    assert_told(checks, OK, "weights", ("those of fold_0, fold_1 fit",))
    truncate(safe / "fold_1" / "weights.safetensors")
    status, checks = diagnose(str(safe))
    assert status == 1
    assert_told(checks, FAIL, "contents", ("another digest", "export the model again"))
