"""The folder of a container: what is in it, and what is refused before it is made."""

import gzip
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from nnunetv2_ext.cli import main
from nnunetv2_ext.container import make as making
from nnunetv2_ext.inference.models import load_model
from tests.container.conftest import Make, validated
from tests.tiny_models import DESCRIPTION, NAME, NUMBER, plans, write_model

MODEL = "nnUNetTrainer:nnUNetPlans:3d_fullres"


def container(output: Path, *more: str, model: str = MODEL) -> int:
    return main(["container", "-d", str(NUMBER), "-o", str(output), "-m", model, *more])


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_is_in_the_folder(make: Make) -> None:
    folder = make(2)
    there = files(folder)
    assert {path for path in there if "/" not in path} == {
        ".dockerignore", "Dockerfile", "README.md", "requirements.txt", "save.sh", "test_run.sh"
    }  # fmt: skip
    assert {"app/nnunetv2_ext/trainers/mnet.py", "app/nnunetv2_ext/plans/mnet.py", "app/LICENSE"} <= there
    assert not [path for path in there if "__pycache__" in path or path.endswith(".pth")]
    name = MODEL.replace(":", "__")
    of_model = {path.removeprefix(f"model/{name}/") for path in there if path.startswith(f"model/{name}/")}
    folds = {f"fold_{fold}/{file}" for fold in (0, 1) for file in ("weights.safetensors", "training.json")}
    assert of_model == {"model.json", "plans.json", "dataset.json", *folds}
    assert list(load_model(folder / "model" / name).trained.weights) == ["0", "1"]
    told = json.loads((folder / "test" / "input" / "inputs.json").read_text())
    assert [socket["socket"]["slug"] for socket in told] == ["mr-liver", "mr-contrast"]
    pins = [line.partition("==")[0] for line in (folder / "requirements.txt").read_text().splitlines()[1:]]
    assert {"torch", "nnunetv2", "simpleitk", "safetensors"} <= set(pins) and pins == sorted(pins)
    assert not {"nnunetv2-ext", "pytest", "ruff", "monai"} & set(pins)
    for path in folder.rglob("*"):
        mode = path.stat().st_mode
        assert mode & stat.S_IROTH
        assert bool(mode & stat.S_IXOTH) == (path.is_dir() or path.suffix == ".sh")
    readme = (folder / "README.md").read_text()
    assert "| nnunetv2 | " in readme and "0.500, 0.500" in readme and "{{" not in readme


DOCKER = """#!/bin/sh
echo "$@" >>"$(dirname "$0")/asked"
[ "$1" = save ] && echo of the image
exit 0
"""
"""In its place: tells what it was asked for."""


@pytest.mark.parametrize("more", [{}, {"interface": "folder", "inputs": (), "output": ""}])
def test_the_scripts_ask_docker_for_a_closed_container(make: Make, tmp_path: Path, more: dict[str, Any]) -> None:
    folder, docker = tmp_path / "made", tmp_path / "docker"
    shutil.copytree(make(**more), folder)
    docker.write_text(DOCKER)
    docker.chmod(0o755)
    environment = {**os.environ, "DOCKER": str(docker)}
    for script in ("./test_run.sh", "./save.sh"):
        ran = subprocess.run([script], cwd=folder, env=environment, capture_output=True, text=True)
        assert (ran.returncode, ran.stderr) == (0, "")
    build, *runs, save = (tmp_path / "asked").read_text().splitlines()
    platform = "" if more else "--platform linux/amd64 "  # whatever machine builds it
    assert (build, save) == (f"build {platform}--tag made .", "save made")
    for run in runs:
        assert run.startswith(f"run --rm {platform}--network ")
        assert "--network none --read-only --tmpfs /tmp " in run and "/test/input:/input:ro " in run
        assert f"{folder}/model:/opt/ml/model:ro" in run
    assert [run.partition(" made")[2] for run in runs] == (["" if not more else " --once --every 1", " --check"])
    with gzip.open(folder / "made.tar.gz", "rt") as image, tarfile.open(folder / "model.tar.gz") as models:
        assert image.read() == "of the image\n"
        assert {"./container.json", f"./{MODEL.replace(':', '__')}/plans.json"} <= set(models.getnames())


@pytest.mark.parametrize("more", [{}, {"interface": "folder", "inputs": (), "output": ""}])
def test_pages_have_no_holes(make: Make, more: dict[str, Any]) -> None:
    for text in (path.read_text() for path in make(**more).iterdir() if path.is_file()):
        assert "\n\n\n" not in text and " \n" not in text and text.endswith("\n") and not text.endswith("\n\n")


def test_a_cascade_brings_its_first_stage(nnunet_folders: Path, light: None) -> None:
    for configuration in ("3d_lowres", "3d_cascade_fullres"):
        validated(write_model(nnunet_folders, configuration))
    output = nnunet_folders / "made"
    cascade = MODEL.replace("3d_fullres", "3d_cascade_fullres")
    assert container(output, "--inputs", "mr", "--output-slug", "labels", model=cascade) == 0
    told = json.loads((output / "model" / "container.json").read_text())
    assert told["models"] == [cascade.replace(":", "__")]
    assert len([path for path in (output / "model").iterdir() if path.is_dir()]) == 2


def test_a_trainer_of_the_users_own_comes_along(nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = nnunet_folders / "my_trainers"
    folder.mkdir()
    base = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer"
    lines = [
        f"from {base} import nnUNetTrainer",
        "import colorsys, helper, hypothesis",
        "class MyTrainer(nnUNetTrainer):",
    ]
    (folder / "mine.py").write_text("\n".join([*lines, "    pass", ""]))
    (folder / "helper.py").write_text("import iniconfig\n")
    monkeypatch.setenv("nnUNet_extTrainer", str(folder))
    validated(write_model(nnunet_folders, trainer="MyTrainer"))
    output = nnunet_folders / "made"
    model = MODEL.replace("nnUNetTrainer", "MyTrainer")
    assert container(output, "--interface", "folder", "--bake", model=model) == 0
    assert files(output / "app" / "other_trainers") == {"mine.py", "helper.py"}
    pins = [line.partition("==")[0] for line in (output / "requirements.txt").read_text().splitlines()[1:]]
    assert {"hypothesis", "sortedcontainers", "iniconfig"} <= set(pins)  # the second is hypothesis's
    dockerfile = (output / "Dockerfile").read_text()
    assert "ENV nnUNet_extTrainer=/opt/app/other_trainers\n" in dockerfile
    assert "COPY model /opt/ml/model\n" in dockerfile
    assert "model" not in (output / "test_run.sh").read_text()


@pytest.fixture
def trained(nnunet_folders: Path) -> Path:
    """A model of two channels and two folds, both validated."""
    description = {**DESCRIPTION, "channel_names": {"0": "T1", "1": "T2"}}
    return validated(write_model(nnunet_folders, description=description, of_plans=plans(2), folds=(0, 1)))


SOCKETS = ("--inputs", "t1", "t2", "--output-slug", "labels")


@pytest.mark.parametrize(
    ("how", "more", "words"),
    [
        ("exists", SOCKETS, "the existing output"),
        ("no parent", SOCKETS, "expected one to write into"),
        ("no validation", SOCKETS, f"run nnUNetv2_train {NAME} 3d_fullres 1 -tr nnUNetTrainer -p nnUNetPlans --val."),
        ("", ("-f", "0", "3", *SOCKETS), "no checkpoint_final.pth in fold_3"),
        ("", ("-chk", "checkpoint_best.pth", *SOCKETS), "no checkpoint_best.pth in any fold"),
        ("", ("--inputs", "t1", "--output-slug", "labels"), "a socket for each of the 2 channels, T1, T2"),
        ("", ("--output-slug", "labels"), "got no --inputs; expected a socket for each of the 2 channels"),
        ("", ("--inputs", "t1", "t2", "t3", "--output-slug", "labels"), "name 2 slugs"),
        ("", ("--inputs", "t1", "t1", "--output-slug", "labels"), "one slug twice"),
        ("", ("--inputs", "t1", "t2"), "no --output-slug"),
        ("", ("--inputs", "t1", "T2 Flair", "--output-slug", "labels"), "the slug 'T2 Flair'"),
        ("", ("--inputs", "t1", "images/t2", "--output-slug", "labels"), "the slug 'images/t2'"),
        ("", ("--inputs", "t1", "t2", "--output-slug", "../labels"), "the slug '../labels'"),
        ("", ("--interface", "dicom", *SOCKETS), "expected grand-challenge or folder"),
        ("", ("--interface", "folder", *SOCKETS), "--inputs with --interface folder"),
        ("", ("--interface", "folder", "--output-slug", "labels"), "--output-slug with --interface folder"),
        ("", ("--tif-spacing", "5", "0", "1", *SOCKETS), "--tif-spacing 5 0 1"),
        ("empty validation", SOCKETS, "got a damaged validation of fold 1 in"),
        ("of another name", SOCKETS, f"run nnUNetv2_train {NAME} 3d_fullres 1 -tr nnUNetTrainer -p nnUNetPlans --val."),
        ("channels", SOCKETS, "got no channel_names by 0, 1, ... in"),
        ("of pictures", SOCKETS, "got a model of .png files; expected one of volumes"),
        ("", ("--tif-spacing", "5", "x", "1", *SOCKETS), "3 numbers"),
        ("", ("-step_size", "0", *SOCKETS), "a step size of 0"),
        ("", ("-w", "1", "2", *SOCKETS), "2 weights for 1 members"),
        ("damaged", SOCKETS, "the damaged checkpoint"),
        ("safe export", SOCKETS, "an export of safe_export"),
        ("two of one name", SOCKETS, "two models of one name"),
        ("full", SOCKETS, "No space left on device"),
    ],
)
def test_wrong_requests_leave_nothing(
    trained: Path,
    nnunet_folders: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: str,
    more: tuple[str, ...],
    words: str,
) -> None:
    output, models = nnunet_folders / "made", [MODEL]
    match how:
        case "exists":
            output.mkdir()
            (output / "mine").touch()
        case "no parent":
            output = nnunet_folders / "none" / "made"
        case "no validation":
            (trained / "fold_1" / "validation" / "summary.json").unlink()
        case "empty validation":
            (trained / "fold_1" / "validation" / "summary.json").write_text("{}")
        case "of another name":
            (trained / "fold_1" / "validation" / "summary.json").unlink()
            models = [str(trained.rename(trained.parent / "my model"))]
        case "channels" | "of pictures":
            told = json.loads((trained / "dataset.json").read_text())
            told |= {"channel_names": {"1": "T1", "2": "T2"}} if how == "channels" else {"file_ending": ".png"}
            (trained / "dataset.json").write_text(json.dumps(told))
        case "damaged":
            checkpoint = trained / "fold_1" / "checkpoint_final.pth"
            checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
        case "safe export":
            models = [str(nnunet_folders / "safe")]
            assert main(["safe_export", str(trained), models[0]]) == 0
        case "two of one name":
            models.append(str(nnunet_folders / "copy" / trained.name))
            shutil.copytree(trained, models[1])
        case "full":

            def full(*_: object, **__: object) -> None:
                raise OSError(28, "No space left on device", "app")

            monkeypatch.setattr(making, "copy_package", full)
    before = {path: path.stat().st_mtime_ns for path in nnunet_folders.rglob("*")}
    capsys.readouterr()
    assert main(["container", "-d", str(NUMBER), "-o", str(output), "-m", *models, *more]) == 2
    err = capsys.readouterr().err
    assert err.startswith("nnunetv2_ext container: got ") and err.count("\n") == 1 and words in err
    there = {path: path.stat().st_mtime_ns for path in nnunet_folders.rglob("*")}
    assert there == before


def test_the_remedy_of_a_model_without_validation_names_the_folds(trained: Path, capsys: Any) -> None:
    for fold in (0, 1):
        shutil.rmtree(trained / f"fold_{fold}" / "validation")
    assert container(trained.parents[2] / "made", *SOCKETS) == 2
    err = capsys.readouterr().err
    assert "no validation of fold 0, 1 in" in err and "--val, and so on." in err


def test_the_sockets_follow_the_numbers_of_the_channels(trained: Path, nnunet_folders: Path) -> None:
    told = json.loads((trained / "dataset.json").read_text())
    told["channel_names"] = {"1": "T2", "0": "T1"}
    (trained / "dataset.json").write_text(json.dumps(told))
    output = nnunet_folders / "made"
    assert container(output, *SOCKETS) == 0
    assert json.loads((output / "model" / "container.json").read_text())["channels"] == ["T1", "T2"]


@pytest.mark.parametrize(
    ("labels", "more", "line"),
    [
        ({"background": 0, "organ": 1, "ignore": 2}, {}, "- Labels: background 0, organ 1."),
        (
            {"background": 0, "whole": [1, 2], "core": 2},
            {"regions_class_order": [1, 2]},
            "- Labels: background 0, whole 1, core 2.",
        ),
    ],
)
def test_labels_are_told_as_they_are_written(
    nnunet_folders: Path, labels: dict[str, Any], more: dict[str, Any], line: str
) -> None:
    validated(write_model(nnunet_folders, description={**DESCRIPTION, "labels": labels, **more}))
    output = nnunet_folders / "made"
    assert container(output, "--interface", "folder") == 0
    assert line in (output / "README.md").read_text().splitlines()


def test_what_a_killed_run_left_is_removed(trained: Path, nnunet_folders: Path) -> None:
    code = (
        "import os, pathlib, sys\nfrom nnunetv2_ext.locks import complete_or_absent\n"
        "with complete_or_absent(pathlib.Path(sys.argv[1])):\n    os._exit(9)"
    )
    output = nnunet_folders / "made"
    assert subprocess.run([sys.executable, "-c", code, str(output)]).returncode == 9
    assert len(list(nnunet_folders.glob(".made_*"))) == 1
    assert container(output, *SOCKETS) == 0
    assert not list(nnunet_folders.glob(".made_*"))
