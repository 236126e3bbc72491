"""Each fault of a training is told in a line, with what to do about it."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from nnunetv2_ext import DISCOVERY_FOLDER
from nnunetv2_ext.doctor import examination
from nnunetv2_ext.doctor.examination import FAIL, OK, WARN
from nnunetv2_ext.training.checkpoints import REQUIRED_KEYS
from tests.doctor.conftest import (
    CASES,
    DATASET_JSON,
    OURS,
    PAR,
    STOCK,
    Gpu,
    Prepared,
    assert_only_fault,
    assert_told,
    configuration,
    par,
    plans,
    truncate,
    unet,
)


def cascade(prepared: Prepared) -> None:
    content = json.loads((prepared.preprocessed / "nnUNetPlans.json").read_text())
    content["configurations"]["3d_lowres"] = configuration([16] * 3, unet(3)) | {"next_stage": "3d_fullres"}
    content["configurations"]["3d_fullres"]["previous_stage"] = "3d_lowres"
    prepared.write(prepared.preprocessed / "nnUNetPlans.json", content)


CHECKPOINT = {key: {"a": torch.zeros(100)} for key in REQUIRED_KEYS}


def checkpoints(*names: str, damaged: tuple[str, ...] = (), **model: str):
    def write(prepared: Prepared) -> None:
        fold = prepared.model(**model) / "fold_0"
        fold.mkdir(parents=True)
        for name in names:
            torch.save(CHECKPOINT, fold / f"checkpoint_{name}.pth")
        for name in damaged:
            torch.save(CHECKPOINT, fold / f"checkpoint_{name}.pth")
            truncate(fold / f"checkpoint_{name}.pth")

    return write


PATCH = {
    "flat": lambda p: p.change_plans("MNetPlans", patch_size=[8, 8, 32]),
    "one slice": lambda p: p.change_plans("MNetPlans", patch_size=[1, 16, 16]),
}


def one_stage() -> dict:
    architecture = unet(3)
    architecture["arch_kwargs"] |= {"n_stages": 1, "features_per_stage": [4], "kernel_sizes": [[3, 3, 3]]}
    architecture["arch_kwargs"] |= {"strides": [[1, 1, 1]], "n_conv_per_stage": [1], "n_conv_per_stage_decoder": []}
    return architecture


# what is damaged, the arguments, the status and the name of the line, and texts in it
FAULTS = {
    "labels without background": (
        lambda p: p.write(p.preprocessed / "dataset.json", {**DATASET_JSON, "labels": {"left": 1}}), STOCK, FAIL,
        "plans", ("refuses the labels",),
    ),
    "no plans": (
        None, (*STOCK, "-p", "NoPlans"), FAIL, "plans",
        ("NoPlans.json", "choose -p from MNetPlans, PaRPlans, nnUNetPlans"),
    ),
    "truncated plans": (
        lambda p: truncate(p.preprocessed / "nnUNetPlans.json"), STOCK, FAIL, "plans",
        ("damaged file", "nnUNetv2_plan_and_preprocess -d 901"),
    ),
    "plans without content": (
        lambda p: p.write(p.preprocessed / "nnUNetPlans.json", {}), STOCK, FAIL, "plans", ("lacks dataset_name",),
    ),
    "plans of another data set": (
        lambda p: p.write(p.preprocessed / "nnUNetPlans.json", plans("x", {}) | {"dataset_name": "Dataset004_X"}),
        STOCK, FAIL, "plans", ("made for Dataset004_X",),
    ),
    "plans under another name": (
        lambda p: p.write(p.preprocessed / "CopiedPlans.json", (p.preprocessed / "nnUNetPlans.json").read_text()),
        (*STOCK, "-p", "CopiedPlans"), WARN, "plans", ("calls itself nnUNetPlans",),
    ),
    "unknown trainer": (
        None, (*STOCK, "-tr", "NoTrainer"), FAIL, "trainer",
        ("no trainer NoTrainer", "MNetTrainer", "nnU-Net's own, nnUNetTrainer"),
    ),
    "unknown configuration": (
        None, (*STOCK, "-c", "3d_lowres"), FAIL, "configuration", ("no 3d_lowres", "choose -c from 2d, 3d_fullres"),
    ),
    "configuration that inherits from none": (
        lambda p: p.change_plans("nnUNetPlans", inherits_from="gone"), STOCK, FAIL, "configuration", ("gone",),
    ),
    "2d with a trainer of ours": (
        None, (*STOCK, "-tr", "MNetTrainer", "-c", "2d"), FAIL, "configuration",
        ("MNetTrainer needs 3D", "[32, 32]", "choose -c from 3d_fullres"),
    ),
    "2d with a network of ours": (
        lambda p: p.change_plans("MNetPlans", patch_size=[32, 32]), (*STOCK, "-p", "MNetPlans"), FAIL, "configuration",
        ("MNet needs 3D",),
    ),
    "our network with a stock trainer": (
        None, (*STOCK, "-p", "MNetPlans"), FAIL, "configuration",
        ("nnUNetTrainer cannot train nnunetv2_ext.architectures.MNet", "choose -tr MNetTrainer"),
    ),
    **{
        f"one stage under {trainer}": (
            lambda p: p.change_plans("nnUNetPlans", architecture=one_stage()), (*STOCK, "-tr", trainer), FAIL,
            "network", ("1 stage", "two or more", "patch"),
        )
        for trainer in ("nnUNetTrainer", "BackboneTrainer")
    },
    "unknown key in training": (
        lambda p: p.change_plans("MNetPlans", training={"epoch": 3}), OURS, FAIL, "training block", ("epoch",),
    ),
    "wrong type in training": (
        lambda p: p.change_plans("MNetPlans", training={"epochs": "many"}), OURS, FAIL, "training block",
        ("epochs", "many"),
    ),
    "more weights than outputs": (
        lambda p: p.change_plans("MNetPlans", training={"deep_supervision_weights": [1, 0.5]}), OURS, FAIL,
        "training block",
        ("2 numbers in training.deep_supervision_weights", "7, one per output of MNet"),
    ),
    "nothing to freeze": (
        lambda p: p.change_plans("MNetPlans", training={"freeze_backbone": True}), OURS, FAIL, "training block",
        ("MNet, which has no backbone to freeze", "choose a trainer of one"),
    ),
    "another patch than the refiner's": (
        lambda p: p.change_plans("PaRPlans", patch_size=[16, 16, 32]), PAR, FAIL, "network",
        ("a patch of (16, 16, 32)", "(16, 16, 16), which the refiner was built for"),
    ),
    "a patch that the backbone cannot halve": (
        lambda p: p.change_plans("nnUNetPlans", patch_size=[16, 16, 15]), (*STOCK, "-tr", "PaRTrainer"), FAIL,
        "network", ("a patch of (16, 16, 15) for PlainConvUNet", "[16, 16, 14] or [16, 16, 16]"),
    ),
    "an unknown backbone": (
        lambda p: p.change_plans("PaRPlans", architecture=par([16] * 3, "nnFormer")), PAR, FAIL, "network",
        ("the backbone 'nnFormer'", "one of PlainConvUNet"),
    ),
    "training nobody reads": (
        lambda p: p.change_plans("nnUNetPlans", training={"epochs": 3}), STOCK, WARN, "training block",
        ("does not read",),
    ),
    "no first stage": (
        cascade, STOCK, FAIL, "previous stage", ("5 cases", "train all folds of 3d_lowres with -tr nnUNetTrainer"),
    ),
    "results is a file": (
        lambda p: p.write(p.model(), "x"), STOCK, FAIL, "results", ("a file stands in its place",),
    ),
    "a damaged checkpoint": (
        checkpoints("latest", damaged=("final",)), (*STOCK, "-f", "0"), FAIL, "checkpoints",
        ("checkpoint_final.pth cannot be read", "--c then goes on from checkpoint_latest.pth"),
    ),
    "a damaged checkpoint of ours": (
        checkpoints("previous", damaged=("latest",), trainer="MNetTrainer", plans_name="MNetPlans"), (*OURS, "-f", "0"),
        WARN, "checkpoints", ("checkpoint_latest.pth cannot be read", "falls back"),
    ),
    "only a damaged checkpoint": (
        checkpoints(damaged=("latest",)), STOCK, FAIL, "checkpoints", ("train the fold anew",),
    ),
    "a patch too small in plane": (PATCH["flat"], OURS, FAIL, "network", ("8",)),
    "a patch too small to normalise": (PATCH["one slice"], OURS, FAIL, "network", ("16",)),
    "an architecture that does not exist": (
        lambda p: p.change_plans("nnUNetPlans", architecture={**unet(3), "network_class_name": "gone.Network"}), STOCK,
        FAIL, "network", ("cannot build its network",),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "arguments", "status", "name", "texts"), FAULTS.values(), ids=FAULTS)
def test_training(damage, arguments, status, name, texts, prepared, diagnose):
    if damage is not None:
        damage(prepared)
    assert_only_fault(diagnose(*arguments), status, name, texts)


TRAINER_OF_A_USER = """
from nnunetv2_ext.trainers.mnet import MNetTrainer


class UsersTrainer(MNetTrainer):
    @classmethod
    def check_data(cls, plans_manager, configuration_manager, folder):
        return f"looked at {folder.name}"
"""


def test_a_trainer_of_a_user_on_ours(prepared, diagnose, tmp_path, monkeypatch):
    prepared.write(tmp_path / "trainers" / "users_trainer.py", TRAINER_OF_A_USER)
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join([str(DISCOVERY_FOLDER), str(tmp_path / "trainers")]))
    exit_status, checks = diagnose(*STOCK, "-tr", "UsersTrainer", "-p", "MNetPlans")
    assert exit_status == 0, [what for status, what in checks if status == FAIL]
    assert_told(checks, OK, "slabs", ("looked at nnUNetPlans_3d",))
    assert_told(checks, OK, "training block", ("epochs 7",))


def test_a_backbone_whose_extra_is_missing(prepared, diagnose, monkeypatch):
    for module in [name for name in sys.modules if name.partition(".")[0] == "monai"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "monai", None)
    prepared.change_plans("PaRPlans", architecture=par([16] * 3, "SegResNet", {}))
    exit_status, checks = diagnose(*PAR)
    assert exit_status == 1
    assert_told(checks, FAIL, "network", ("it for SegResNet", "pip install 'nnunetv2_ext[monai]'"))
    assert_told(checks, OK, "trainers", ("PaRTrainer",))


def test_unset_results_are_told_once(prepared, diagnose, monkeypatch):
    monkeypatch.delenv("nnUNet_results")
    _, checks = diagnose(*PAR)
    assert [what.partition(":")[0] for status, what in checks if status == FAIL] == ["nnUNet_results"]
    assert_told(checks, OK, "network", ("PaRNetwork",))


def test_more_memory_than_the_gpu_has(prepared, diagnose, monkeypatch):
    Gpu(monkeypatch)
    prepared.change_plans("nnUNetPlans", patch_size=[512, 512, 512])
    exit_status, checks = diagnose("-d", "901")
    assert exit_status == 0
    assert_told(checks, WARN, "memory", ("the GPU has 24.0 GiB", "-gpu_memory_target 24"))


def test_checkpoints_in_order(prepared, diagnose):
    checkpoints("final", "best")(prepared)
    exit_status, checks = diagnose(*STOCK)
    assert exit_status == 0, [what for status, what in checks if status == FAIL]
    assert_told(checks, OK, "checkpoints", ("2 checkpoints, all readable",))


def test_a_cascade_in_order(prepared, diagnose):
    cascade(prepared)
    for case in CASES:
        prepared.write(prepared.model(name="3d_lowres") / "predicted_next_stage" / "3d_fullres" / f"{case}.b2nd", "x")
    exit_status, checks = diagnose(*STOCK)
    assert exit_status == 0, [what for status, what in checks if status == FAIL]
    assert_told(checks, OK, "previous stage", ("predictions of 3d_lowres",))


@pytest.mark.parametrize("how", ["access", "write"])
@pytest.mark.parametrize(("where", "name"), [("fold", "results"), ("root", "nnUNet_results")])
def test_a_read_only_results_folder(how, where, name, prepared, diagnose, monkeypatch):
    # permissions do not stop root, so that they are simulated
    locked = prepared.model() / "fold_0" if where == "fold" else prepared.results.parent
    locked.mkdir(parents=True, exist_ok=True)
    if how == "access":
        access = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != locked and access(path, mode))
    else:
        temporary_file = examination.tempfile.TemporaryFile

        def refuse(*arguments, dir=None, **more):
            if Path(dir) == locked:
                raise OSError(30, "Read-only file system")
            return temporary_file(*arguments, dir=dir, **more)

        monkeypatch.setattr(examination.tempfile, "TemporaryFile", refuse)
    exit_status, checks = diagnose(*STOCK, "-f", "0")
    assert exit_status == 1
    assert_told(checks, FAIL, name, ("cannot be written", "no permission" if how == "access" else "Read-only"))
