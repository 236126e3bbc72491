"""Each fault of a training is told in a line, with what to do about it."""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunetv2_ext import DISCOVERY_FOLDER
from nnunetv2_ext.doctor.examination import FAIL, OK, WARN
from tests.doctor.conftest import (
    CASES,
    DATASET_JSON,
    MNET,
    OURS,
    PAR,
    STOCK,
    Gpu,
    Prepared,
    assert_only_fault,
    assert_told,
    checkpoint_of,
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


WIDER = {**MNET, "arch_kwargs": {"features_per_stage": [3, 3, 4, 5, 6]}}
OF_NONE: dict[str, Any] = {"state": {}, "param_groups": [{"params": []}]}


def checkpoints(
    *names: str, damaged: tuple[str, ...] = (), trainer="nnUNetTrainer", plans_name="nnUNetPlans", labels=None, **more
):
    """Checkpoints of the planned network, of three epochs; `more` goes into each."""

    def write(prepared: Prepared) -> None:
        content = {**checkpoint_of(prepared, trainer, plans_name), **more}
        if labels is not None:
            content["init_args"]["dataset_json"] = {**DATASET_JSON, "labels": labels}
        fold = prepared.model(trainer, plans_name) / "fold_0"
        fold.mkdir(parents=True)
        for name in (*names, *damaged):
            torch.save(content, fold / f"checkpoint_{name}.pth")
        for name in damaged:
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
def with_batch_norm():
    """nnU-Net's U-Net with another normalisation."""
    architecture = unet(3)
    architecture["arch_kwargs"]["norm_op"] = "torch.nn.modules.batchnorm.BatchNorm3d"
    return architecture


FAULTS = {
    "a batch of none": (
        lambda p: p.change_plans("nnUNetPlans", batch_size=0), STOCK, FAIL, "configuration",
        ("the batch_size 0 of 3d_fullres", "a whole number from 1"),
    ),
    "labels without background": (
        lambda p: [
            p.write(folder / "dataset.json", {**DATASET_JSON, "labels": {"left": 1}})
            for folder in (p.raw, p.preprocessed)
        ], STOCK, FAIL, "plans", ("refuses the labels",),
    ),
    "no plans": (
        None, (*STOCK, "-p", "NoPlans"), FAIL, "plans",
        ("NoPlans.json", "choose -p from MNetPlans, PaRPlans, nnUNetPlans"),
    ),
    "truncated plans": (
        lambda p: truncate(p.preprocessed / "nnUNetPlans.json"), STOCK, FAIL, "plans",
        ("damaged file", "nnunetv2_ext plan_and_preprocess -d 901 -pl ExperimentPlanner"),
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
    "plans of a list": (
        lambda p: p.write(p.preprocessed / "nnUNetPlans.json", []), STOCK, FAIL, "plans", ("a list in", "an object"),
    ),
    "configurations of a list": (
        lambda p: p.write(
            p.preprocessed / "nnUNetPlans.json",
            {**json.loads((p.preprocessed / "nnUNetPlans.json").read_text()), "configurations": []},
        ),
        STOCK, FAIL, "plans", ("lacks configurations, or holds another kind",),
    ),
    "a configuration of a list": (
        lambda p: p.write(
            p.preprocessed / "nnUNetPlans.json",
            {**json.loads((p.preprocessed / "nnUNetPlans.json").read_text()), "configurations": {"3d_fullres": []}},
        ),
        STOCK, FAIL, "plans", ("1 configuration (3d_fullres)", "hold no object"),
    ),
    "no batch": (
        lambda p: p.change_plans("nnUNetPlans", batch_size=0), STOCK, FAIL, "configuration", ("the batch_size 0",),
    ),
    "a patch of texts": (
        lambda p: p.change_plans("nnUNetPlans", patch_size=["16"] * 3), STOCK, FAIL, "configuration", ("patch_size",),
    ),
    "no architecture": (
        lambda p: p.change_plans("nnUNetPlans", architecture=None), STOCK, FAIL, "configuration", ("3d_fullres",),
    ),
    "few slices with nnU-Net's augmentation": (
        lambda p: p.change_plans("nnUNetPlans", patch_size=[3, 32, 32]), STOCK, FAIL, "configuration",
        ("[3, 32, 32] with nnUNetTrainer", "blur needs 4 voxels", "-tr BackboneTrainer", "patch_size to [4, 32, 32]"),
    ),
    "a network that does not exist": (
        lambda p: p.change_plans("MNetPlans", architecture={
            "network_class_name": "nnunetv2_ext.architectures.MNett", "arch_kwargs": {}, "_kw_requires_import": []}),
        OURS, FAIL, "network", ("MNett, which does not exist",),
    ),
    "thin-thick plans for MNet": (
        lambda p: p.change_plans("MNetPlans", training={"thin_thick": {"beta": 1.0}}), OURS, FAIL, "training block",
        ("-tr ThinThickTrainer",),
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
        lambda p: p.change_plans("PaRPlans", architecture=par([16] * 3, "nnUNext")), PAR, FAIL, "network",
        ("the backbone 'nnUNext'", "one of PlainConvUNet"),
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
        ("checkpoint_final.pth, which cannot be read", "--c then goes on from checkpoint_latest.pth"),
    ),
    "a damaged checkpoint of ours": (
        checkpoints("previous", damaged=("latest",), trainer="MNetTrainer", plans_name="MNetPlans"), (*OURS, "-f", "0"),
        WARN, "checkpoints", ("checkpoint_latest.pth, which cannot be read", "falls back"),
    ),
    "weights that are no numbers": (
        checkpoints("latest", network_weights={"a": torch.tensor([torch.nan])}), STOCK, FAIL, "checkpoints",
        ("checkpoint_latest.pth (weights that are no finite numbers: 1 tensor (a))", "train the fold anew"),
    ),
    "weights of another network": (
        checkpoints("latest", network_weights={"a": torch.ones(1)}), STOCK, FAIL, "checkpoints",
        ("checkpoint_latest.pth (a (1,) instead of missing; ", "train the fold anew"),
    ),
    "another optimizer's state": (
        checkpoints("latest", trainer="MNetTrainer", plans_name="MNetPlans", optimizer_state=OF_NONE), OURS, FAIL,
        "checkpoints", ("its optimizer_state is of [0] parameters instead of [",),
    ),
    "an epoch before the first": (
        checkpoints("latest", current_epoch=-5), STOCK, FAIL, "checkpoints", ("its epoch is -5", "train the fold anew"),
    ),
    "an object in a checkpoint": (
        checkpoints("latest", "best", more=Path("x")), STOCK, FAIL, "checkpoints",
        ("which holds pickled Python objects (pathlib", "do not load it; take one from a source that you trust"),
    ),
    "a finished training": (
        checkpoints("final", "best", trainer="MNetTrainer", plans_name="MNetPlans"), (*OURS, "-f", "0"), WARN,
        "checkpoints", ("fold_0 holds a finished training of 3 epochs; without --c it is moved aside", "add --c"),
    ),
    "a training of another network": (
        lambda p: [
            checkpoints("final", trainer="MNetTrainer", plans_name="MNetPlans")(p),
            p.change_plans("MNetPlans", architecture=WIDER),
        ],
        (*OURS, "-f", "0"), WARN, "checkpoints",
        ("a finished training of 3 epochs; without --c it is moved aside", "features_per_stage", "anew"),
    ),
    "a training with another block": (
        lambda p: [
            checkpoints("latest", trainer="MNetTrainer", plans_name="MNetPlans")(p),
            p.change_plans("MNetPlans", training={"epochs": 9}),
        ],
        (*OURS, "-f", "0"), WARN, "checkpoints",
        ("an unfinished training of 3 epochs", "(training.epochs: 7 and 9), so that --c is refused", "write the old"),
    ),
    "a training of other labels": (
        checkpoints("final", labels={"background": 0, "organ": 1}), STOCK, WARN, "checkpoints",
        ("another training (dataset.json.labels.left: None and 1; ", "which --c would mix with this one"),
    ),
    "an unfinished training": (
        checkpoints("latest", "best"), STOCK, WARN, "checkpoints",
        ("fold_0 holds an unfinished training of 3 epochs; without --c it is overwritten by nnUNetTrainer",),
    ),
    "only a damaged checkpoint": (
        checkpoints(damaged=("latest",)), STOCK, FAIL, "checkpoints", ("train the fold anew",),
    ),
    "a patch too small in plane": (PATCH["flat"], OURS, FAIL, "network", ("8",)),
    "a patch too small to normalise": (PATCH["one slice"], OURS, FAIL, "network", ("16",)),
    "batch normalisation of one image": (
        lambda p: p.change_plans("nnUNetPlans", architecture=with_batch_norm(), batch_size=1), STOCK, WARN, "batch",
        ("batch normalisation at a batch of 1", "train with a batch of 2 or more"),
    ),
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
    assert exit_status == 0, checks
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
        temporary_file = tempfile.TemporaryFile

        def refuse(*arguments, dir=None, **more):
            if Path(dir) == locked:
                raise OSError(30, "Read-only file system")
            return temporary_file(*arguments, dir=dir, **more)

        monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    exit_status, checks = diagnose(*STOCK, "-f", "0")
    assert exit_status == 1
    assert_told(checks, FAIL, name, ("cannot be written", "no permission" if how == "access" else "Read-only"))
