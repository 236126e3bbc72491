"""`plan_and_preprocess`: what reaches the planner, what is kept, and what is told."""

import json
from pathlib import Path
from typing import Any

import pytest
from nnunetv2.experiment_planning import plan_and_preprocess_api

from nnunetv2_ext.cli import main
from nnunetv2_ext.cli.plan_and_preprocess import EXAMPLE
from nnunetv2_ext.planning.summary import replaced, summary
from tests.planning.conftest import Described


@pytest.fixture
def described(nnunet_folders: Path) -> Described:
    return Described(nnunet_folders).write()


def run(*arguments: str) -> int:
    return main(["plan_and_preprocess", "--no_pbar", *arguments])


PAR = ["-d", "901", "--no_pp", "-pl", "PaRPlanner"]
CONVFREE = ["-d", "901", "--no_pp", "-pl", "ConvFreePlanner"]


def test_flags_reach_the_plans(described: Described) -> None:
    flags = "--no_pp -overwrite_target_spacing 5 2 2 -overwrite_plans_name Coarse -gpu_memory_target 4"
    assert run("-d", "901", *flags.split(), "--epochs", "3", "--lr", "0.5") == 0
    configuration = described.configuration("Coarse")
    assert configuration["spacing"] == [5, 2, 2]
    assert configuration["training"]["epochs"] == 3
    assert configuration["training"]["optimizer"]["lr"] == 0.5
    assert not (described.preprocessed / "MNetPlans.json").exists()


def test_stock_plans_keep_their_name(described: Described) -> None:
    flags = "--no_pp -pl ExperimentPlanner -overwrite_plans_name nnUNetPlans"
    assert run("-d", "901", *flags.split()) == run("-d", "901", *flags.split()) == 0
    assert described.plans("nnUNetPlans")["experiment_planner_used"] == "ExperimentPlanner"


def test_flags_of_backbone_and_refiner_reach_the_plans(described: Described) -> None:
    flags = (
        "--backbone SegResNet --axis 1 --heads 4 --groups 2 --kernel-size 5 --variant published_code --fusion concat"
    )
    patch = "--patch-size 16 48 64 --epochs 3 --freeze-backbone"
    arguments = '{"init_filters": 8}'
    assert run(*PAR, *flags.split(), *patch.split(), "--backbone-kwargs", arguments) == 0
    configuration = described.configuration("PaRSegResNetPlans")
    assert configuration["architecture"]["arch_kwargs"] == {
        "backbone": "SegResNet",
        "spatial_shape": [16, 48, 64],
        "backbone_kwargs": {"init_filters": 8},
        "axis": 1,
        "heads": 4,
        "groups": 2,
        "kernel_size": 5,
        "variant": "published_code",
        "fusion": "concat",
    }
    assert configuration["patch_size"] == [16, 48, 64]
    assert configuration["refiner"] == {"heads": 4, "groups": 2, "padding": 0}
    assert (configuration["training"]["epochs"], configuration["training"]["freeze_backbone"]) == (3, True)


def test_flags_of_the_transformer_reach_the_plans(described: Described) -> None:
    flags = "--size B --token-size 3 8 8 --context block --block-tokens 5 --post-norm --activation-checkpointing"
    assert run(*CONVFREE, *flags.split(), "--epochs", "3") == 0
    configuration = described.configuration("ConvFreeBBlockPostNormPlans")
    arguments = configuration["architecture"]["arch_kwargs"]
    assert (arguments["embed_dim"], arguments["depth"], arguments["token_size"]) == (768, 12, [3, 8, 8])
    assert (arguments["context"], arguments["block_tokens"]) == ("block", 5)
    assert (arguments["pre_norm"], arguments["activation_checkpointing"]) == (False, True)
    assert configuration["training"]["epochs"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbone-kwargs", "feature_size=24"], "expected a JSON object; correct it (Expecting value"),
        (["--backbone-kwargs", "[24]"], "expected a JSON object; correct it (put it into braces)"),
        (["--backbone-kwargs", "{'feature_size': 24}"], "expected a JSON object; correct it (Expecting"),
        (["--axis", "z"], "--axis z; expected a whole number; correct it"),
        (["--patch-size", "8", "32", "z"], "--patch-size 8 32 z; expected 3 whole numbers; correct it"),
    ],
)
def test_text_that_makes_no_value(
    described: Described, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(*PAR, "--backbone", "SwinUNETR", *arguments) == 2
    assert message in capsys.readouterr().err


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Our own lines, below nnU-Net's."""
    printed = capsys.readouterr().out.rstrip().splitlines()
    last_blank = len(printed) - printed[::-1].index("")
    return printed[last_blank:]


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (
            ["--epochs", "3"],
            [
                "MNetPlans 3d_fullres of Dataset901_Boxes",
                "  spacing         5 x 1 x 1 mm, slices first",
                "  patch           12 x 40 x 40 voxels",
                "  batch           ",
                "  training block  3 epochs x 250 iterations",
                "  memory          about ",
                "next: nnunetv2_ext doctor -d 901 -c 3d_fullres -tr MNetTrainer -p MNetPlans",
            ],
        ),
        (
            ["-pl", "ROIPlanner", "--grid", "16"],
            [
                "ROIPlans 3d_roi of Dataset901_Boxes",
                "  spacing         5 x 3.75 x 3.75 mm, slices first",
                "  patch           12 x 12 x 12 voxels",
                "  batch           ",
                "  training block  250 epochs x 250 iterations",
                "  memory          about ",
                "next: nnunetv2_ext doctor -d 901 -c 3d_roi -tr BackboneTrainer -p ROIPlans",
            ],
        ),
        (
            ["-pl", "ROIPlanner", "--grid", "16", "--network", "detector"],
            [
                "DetectorPlans 3d_roi of Dataset901_Boxes",
                "  spacing         5 x 3.75 x 3.75 mm, slices first",
                "  patch           12 x 12 x 12 voxels",
                "  batch           ",
                "  training block  250 epochs x 250 iterations",
                "  memory          about ",
                "next: nnunetv2_ext doctor -d 901 -c 3d_roi -tr DetectorTrainer -p DetectorPlans",
            ],
        ),
        (
            ["-pl", "ConvFreePlanner", "-overwrite_plans_name", "Mine"],
            [
                "Mine 3d_fullres of Dataset901_Boxes",
                "  spacing         5 x 1 x 1 mm, slices first",
                "  patch           12 x 40 x 40 voxels",
                "  batch           ",
                "  training block  1000 epochs x 250 iterations",
                "  memory          about ",
                "next: nnunetv2_ext doctor -d 901 -c 3d_fullres -tr ConvFreeTrainer -p Mine",
            ],
        ),
        (
            ["-pl", "ExperimentPlanner", "-c", "2d"],
            [
                "nnUNetPlans 2d of Dataset901_Boxes",
                "  spacing         1 x 1 mm",
                "  patch           ",
                "  batch           ",
                "  training block  none: the trainer's own numbers",
                "  memory          about ",
                "next: nnunetv2_ext doctor -d 901 -c 2d -tr nnUNetTrainer -p nnUNetPlans",
            ],
        ),
        (["-c", "3d_lowres"], ["MNetPlans has none of 3d_lowres, but 3d_fullres: choose -c from these"]),
    ],
    ids=["MNet", "region of interest", "detector", "transformer", "stock", "no such configuration"],
)
def test_what_was_planned_is_told(
    described: Described, capsys: pytest.CaptureFixture[str], arguments: list[str], lines: list[str]
) -> None:
    assert run("-d", "901", "--no_pp", *arguments) == 0
    found = told(capsys)[-len(lines) :]
    for line, expected in zip(found, lines, strict=True):
        assert line.startswith(expected)


@pytest.mark.parametrize(
    ("first", "change", "second", "line"),
    [
        ([], [], [], "training block  500 epochs x 250 iterations"),
        (["--epochs", "7"], [], [], "training block  500 epochs x 250 iterations (the plans before had 7 x 250)"),
        (
            [],
            ["--epochs", "2", "--iterations", "2"],
            [],
            "training block  500 epochs x 250 iterations (the plans before had 2 x 2)",
        ),
        (
            [],
            ["--epochs", "2", "--lr", "0.5"],
            [],
            "training block  500 epochs x 250 iterations (the plans before had 2 x 250; "
            "new and in the plans before: training.optimizer.lr: 0.01 and 0.5)",
        ),
        ([], ["--epochs", "7"], ["--epochs", "7"], "training block  7 epochs x 250 iterations"),
        (
            [],
            ["--lr", "0.5"],
            [],
            "training block  500 epochs x 250 iterations (new and in the plans before: "
            "training.optimizer.lr: 0.01 and 0.5)",
        ),
    ],
)
def test_a_training_block_that_planning_resets_is_told(
    described: Described,
    capsys: pytest.CaptureFixture[str],
    first: list[str],
    change: list[str],
    second: list[str],
    line: str,
) -> None:
    assert run("-d", "901", "--no_pp", *first) == 0
    if change:
        assert main(["schedule", "-d", "901", *change]) == 0
    assert run("-d", "901", "--no_pp", *second) == 0
    assert f"  {line}" in told(capsys)


def test_a_block_of_another_configuration_that_planning_resets_is_told() -> None:
    plans = {"configurations": {"a": {}, "b": {"training": {"epochs": 9}}, "c": {"inherits_from": "b"}}}
    before = {"a": {"epochs": 7}, "b": {"epochs": 9}, "c": {"epochs": 8}, "gone": {"epochs": 1}}
    assert replaced(plans, before, but=["a"]) == [
        "c: training block 9 epochs x the trainer's iterations (new and in the plans before: training.epochs: 9 and 8)"
    ]


@pytest.mark.parametrize(
    ("block", "line"),
    [
        ({}, "none: the trainer's own numbers"),
        ({"epochs": 7}, "7 epochs x the trainer's iterations"),
        ({"optimizer": {"lr": 0.1}}, "the trainer's epochs x the trainer's iterations"),
    ],
)
def test_a_block_that_leaves_keys_out(described: Described, block: dict[str, Any], line: str) -> None:
    assert run("-d", "901", "--no_pp", "-pl", "ExperimentPlanner") == 0
    plans = json.loads((described.preprocessed / "nnUNetPlans.json").read_text())
    plans["configurations"]["3d_fullres"]["training"] = block
    dataset_json = json.loads((described.raw / "dataset.json").read_text())
    assert f"training block  {line}" in summary(plans, "3d_fullres", dataset_json)


def test_a_block_in_stock_plans_that_planning_resets_is_told(
    described: Described, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["-d", "901", "--no_pp", "-pl", "ExperimentPlanner", "-c", "3d_fullres"]
    assert run(*command) == 0
    assert main(["schedule", "-d", "901", "-p", "nnUNetPlans", "--epochs", "7", "--iterations", "2"]) == 0
    assert run(*command) == 0
    assert "  training block  none: the trainer's own numbers (the plans before had 7 x 2)" in told(capsys)


@pytest.mark.parametrize(
    ("flags", "configurations", "processes"),
    [
        ("", ["3d_fullres"], [1]),
        ("-np 3", ["3d_fullres"], [3]),
        ("-c 3d_lowres 3d_fullres -np 2 4", ["3d_fullres"], [4]),
        ("-c 3d_lowres", [], []),
    ],
)
def test_what_is_preprocessed(
    described: Described, monkeypatch: pytest.MonkeyPatch, flags: str, configurations: list[str], processes: list[int]
) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(plan_and_preprocess_api, "preprocess_dataset", lambda *args: calls.append(args))
    assert run("-d", "901", *flags.split()) == 0
    assert [call[:4] for call in calls] == [(901, "MNetPlans", configurations, processes)]


def test_help_shows_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["plan_and_preprocess", "--help"])
    assert stop.value.code == 0
    assert EXAMPLE.strip() in capsys.readouterr().out
