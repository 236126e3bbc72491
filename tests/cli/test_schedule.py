"""`schedule`: the `training` block in existing plans."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from nnunetv2_ext.block import PRESETS, resolve_block
from nnunetv2_ext.cli import main

FULL = {"patch_size": [8, 32, 32], "batch_size": 2}
CONFIGURATIONS: dict[str, Any] = {
    "2d": {"patch_size": [32, 32]},
    "3d_fullres": FULL,
    "3d_lowres": {**FULL, "training": {"epochs": 9, "optimizer": {"lr": 0.1, "momentum": 0.9}}},
    "3d_cascade_fullres": {"inherits_from": "3d_lowres"},
}


@pytest.fixture
def plans(nnunet_folders: Path) -> Path:
    path = nnunet_folders / "nnUNet_preprocessed" / "Dataset901_Boxes" / "nnUNetPlans.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"plans_name": "nnUNetPlans", "configurations": CONFIGURATIONS}))
    return path


def blocks(path: Path) -> dict[str, Any]:
    configurations = json.loads(path.read_text())["configurations"]
    return {name: held["training"] for name, held in configurations.items() if "training" in held}


LOW = CONFIGURATIONS["3d_lowres"]["training"]
PAPER = PRESETS["par_paper"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--epochs 5", {"3d_fullres": {"epochs": 5}, "3d_lowres": {**LOW, "epochs": 5}}),
        ("-c 3d_fullres --epochs 5", {"3d_fullres": {"epochs": 5}, "3d_lowres": LOW}),
        (
            "-c 3d_lowres --lr 0.5 --weight-decay 0",
            {"3d_lowres": {"epochs": 9, "optimizer": {"lr": 0.5, "momentum": 0.9, "weight_decay": 0.0}}},
        ),
        (
            "-c 3d_fullres --iterations 3 --val-iterations 2 --batch-size 4 --grad-clip 1",
            {
                "3d_fullres": {
                    "iterations_per_epoch": 3,
                    "val_iterations_per_epoch": 2,
                    "batch_size": 4,
                    "grad_clip": 1.0,
                },
                "3d_lowres": LOW,
            },
        ),
        ("-c 3d_fullres --freeze-backbone", {"3d_fullres": {"freeze_backbone": True}, "3d_lowres": LOW}),
        ("-c 3d_fullres --preset par_paper", {"3d_fullres": PAPER, "3d_lowres": LOW}),
        # nothing is left of the optimizer that was planned
        ("-c 3d_lowres --preset par_paper", {"3d_lowres": PAPER}),
        (
            "-c 3d_lowres --preset par_paper --lr 0.5 --epochs 7 --batch-size 3 --grad-clip 1",
            {
                "3d_lowres": {
                    **PAPER,
                    "epochs": 7,
                    "batch_size": 3,
                    "optimizer": {**PAPER["optimizer"], "lr": 0.5},
                    "grad_clip": 1.0,
                }
            },
        ),
        # a block of its own replaces the inherited one whole, so it starts from that
        (
            "-c 3d_cascade_fullres --batch-size 4",
            {"3d_lowres": LOW, "3d_cascade_fullres": {**LOW, "batch_size": 4}},
        ),
    ],
)
def test_written(plans: Path, capsys: pytest.CaptureFixture[str], flags: str, expected: dict[str, Any]) -> None:
    assert main(["schedule", "-d", "901", "-p", "nnUNetPlans", *flags.split()]) == 0
    assert blocks(plans) == expected
    assert "nnUNetPlans 3d_" in capsys.readouterr().out
    assert [path.name for path in plans.parent.iterdir()] == ["nnUNetPlans.json"]


def test_what_has_changed_is_told_and_which_folds_it_leaves(
    plans: Path, nnunet_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = nnunet_folders / "nnUNet_results" / "Dataset901_Boxes" / "BackboneTrainer__nnUNetPlans__3d_lowres"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "fold_0" / "checkpoint_latest.pth").touch()
    command = ["schedule", "-d", "901", "-p", "nnUNetPlans", "-c", "3d_lowres", "--epochs", "5", "--batch-size", "4"]
    assert main(command) == 0
    changes, warning = capsys.readouterr().out.splitlines()
    assert changes == "nnUNetPlans 3d_lowres: epochs 9 -> 5, batch_size as published -> 4"
    assert warning.startswith(f"{folder} was trained otherwise")
    assert main(command) == 0
    assert capsys.readouterr().out == "nnUNetPlans 3d_lowres: nothing has changed\n"


def test_presets_and_flags_one_after_the_other(plans: Path) -> None:
    command = ["schedule", "-d", "901", "-p", "nnUNetPlans", "-c", "3d_fullres"]
    assert main([*command, "--preset", "par_paper"]) == 0
    assert main([*command, "--lr", "0.5"]) == 0
    assert blocks(plans)["3d_fullres"] == {**PAPER, "optimizer": {**PAPER["optimizer"], "lr": 0.5}}
    assert main([*command, "--preset", "nnunet"]) == 0
    assert resolve_block(blocks(plans)["3d_fullres"]) == resolve_block({})


def test_a_planned_block_of_another_optimizer(plans: Path) -> None:
    content = json.loads(plans.read_text())
    content["configurations"]["3d_fullres"]["training"] = {"optimizer": {"betas": [0.5, 0.5]}}
    plans.write_text(json.dumps(content))
    assert main(["schedule", "-d", "901", "-p", "nnUNetPlans", "-c", "3d_fullres", "--lr", "0.5"]) == 0
    assert blocks(plans)["3d_fullres"] == {"optimizer": {"betas": [0.5, 0.5], "lr": 0.5}}


def test_an_unknown_preset(plans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["schedule", "-d", "901", "--preset", "paper"])
    error = capsys.readouterr().err
    assert "invalid choice: 'paper'" in error
    assert "par_paper" in error


def test_a_null_block_is_filled(plans: Path) -> None:
    content = json.loads(plans.read_text())
    content["configurations"]["3d_fullres"]["training"] = None
    plans.write_text(json.dumps(content))
    assert main(["schedule", "-d", "901", "-p", "nnUNetPlans", "-c", "3d_fullres", "--epochs", "5"]) == 0
    assert blocks(plans)["3d_fullres"] == {"epochs": 5}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "no flag of the training block; expected at least one"),
        ("--epochs 0", "training.epochs = 0; expected a whole number from 1"),
        ("--lr -1", "training.optimizer.lr = -1.0"),
        ("--grad-clip 20", "training.grad_clip = 20.0; expected a number above 0, at most 12"),
        ("--beta 2 --quantile 0.8", "'training.thin_thick' and 'training.detector' together; expected those of one"),
        ("-c 3d --epochs 5", "the configuration '3d'; expected one that our trainers train: 3d_fullres"),
        (
            "-c 2d --epochs 5",
            "the configuration '2d', which is not 3D; expected one that our trainers train: 3d_fullres",
        ),
        ("-c 3d_fullres 2d --epochs 5", "the configuration '2d', which is not 3D"),
        ("-p ../x --epochs 5", "the plans identifier '../x'; expected a name"),
        ("-p OtherPlans --epochs 5", "no file"),
        ("-d 902 --epochs 5", "no data set 902"),
    ],
)
def test_refused(plans: Path, capsys: pytest.CaptureFixture[str], flags: str, message: str) -> None:
    before = plans.read_bytes()
    assert main(["schedule", "-d", "901", "-p", "nnUNetPlans", *flags.split()]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert not printed.out
    assert plans.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps({"configurations": CONFIGURATIONS})[:-20], "a damaged file"),
        (json.dumps({"configurations": {"2d": CONFIGURATIONS["2d"]}}), "without a 3D configuration"),
        (json.dumps({"configurations": {"3d": {**FULL, "training": {"epoch": 5}}}}), "unknown key 'training.epoch'"),
        (json.dumps({"configurations": {"3d": {**FULL, "training": {"epochs": 5, "loss": 1}}}}), "training.loss = 1"),
        ("[]", "a list in "),
        ("{}", "no configurations in "),
        ('{"configurations": []}', "no configurations in "),
        ('{"configurations": {"3d_fullres": 5}}', "no object as configuration 3d_fullres in "),
        (
            json.dumps({"configurations": {"3d": {**FULL, "training": [1]}}}),
            "no object as training of configuration 3d",
        ),
        (json.dumps({"configurations": {"3d": {"patch_size": 8}}}), "without a 3D configuration"),
        ('{"configurations": {"3d": {"inherits_from": "3d"}}}', "configuration 3d of "),
        ('{"configurations": {"3d": {"inherits_from": ["3d"]}}}', "that inherits from ['3d']"),
    ],
)
def test_damaged_plans(plans: Path, capsys: pytest.CaptureFixture[str], content: str, message: str) -> None:
    plans.write_text(content)
    assert main(["schedule", "-d", "901", "-p", "nnUNetPlans", "--epochs", "5"]) == 2
    assert message in capsys.readouterr().err
    assert plans.read_text() == content


def test_unset_variable(plans: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("nnUNet_preprocessed")
    assert main(["schedule", "-d", "901", "--epochs", "5"]) == 2
    assert "no value of nnUNet_preprocessed" in capsys.readouterr().err


def test_the_age_of_the_plans_stays(plans: Path) -> None:
    """Preprocessed data are judged by it, and would be made anew."""
    os.utime(plans, ns=(10**18, 10**18))
    assert main(["schedule", "-d", "901", "-p", "nnUNetPlans", "--epochs", "5"]) == 0
    assert blocks(plans)["3d_fullres"] == {"epochs": 5}
    assert plans.stat().st_mtime_ns == 10**18
