"""Each fault of a data set is told in a line, with what to do about it; plans are made again as they were made."""

import json
import pickle
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from nnunetv2_ext.cli import main
from nnunetv2_ext.doctor.dataset import replan
from nnunetv2_ext.doctor.examination import FAIL, OK, WARN, Subject
from tests.doctor.conftest import (
    CASES,
    DATASET_JSON,
    ENDING,
    OURS,
    STOCK,
    Prepared,
    assert_only_fault,
    assert_told,
    truncate,
)
from tests.planning.conftest import Described


def second_dataset(prepared: Prepared) -> None:
    (prepared.raw.parent / "Dataset901_Other").mkdir()


def two_layouts(prepared: Prepared) -> None:
    prepared.write_cases(".npz")


def drop_case(prepared: Prepared) -> None:
    for file in prepared.data.glob("case_3*"):
        file.unlink()


def drop_case_and_reference(prepared: Prepared) -> None:
    drop_case(prepared)
    (prepared.preprocessed / "gt_segmentations" / f"case_3{ENDING}").unlink()


def keep_two_cases(prepared: Prepared) -> None:
    for file in [*prepared.data.iterdir(), *(prepared.preprocessed / "gt_segmentations").iterdir()]:
        if not file.name.startswith(("case_0", "case_1")):
            file.unlink()
    for folder in (prepared.raw, prepared.preprocessed):
        prepared.write(folder / "dataset.json", {**DATASET_JSON, "numTraining": 2})


def only_raw(prepared: Prepared) -> None:
    prepared.write_images()
    shutil.rmtree(prepared.preprocessed)


def split(train: list[str], val: list[str]) -> dict:
    return {"train": train, "val": val}


def npz_layout(prepared: Prepared, truncated: str = "") -> None:
    shutil.rmtree(prepared.data)
    prepared.write_cases(".npz", ".pkl", ".npy", "_seg.npy")
    if truncated:
        truncate(prepared.data / truncated)


def describe(prepared: Prepared, **changes: Any) -> None:
    """Another description, of the raw data and its copy."""
    for folder in (prepared.raw, prepared.preprocessed):
        prepared.write(folder / "dataset.json", {**DATASET_JSON, **changes})


GOOD = split(CASES[:4], CASES[4:])
# what is damaged, the arguments, the status and the name of the line, and texts in it
FAULTS = {
    "no such data set": (None, (*STOCK, "-d", "902"), FAIL, "data set", ("no data set 902",)),
    "no such name": (None, (*STOCK, "-d", "Dataset901_Spheres"), FAIL, "data set", ("Dataset901_Spheres",)),
    "no id": (None, (*STOCK, "-d", "boxes"), FAIL, "data set", ("'boxes'",)),
    "an id twice": (second_dataset, STOCK, FAIL, "data set", ("2 data sets with id 901", "Dataset901_Other")),
    "not preprocessed": (
        only_raw, STOCK, FAIL, "data set",
        ("was not preprocessed", "nnunetv2_ext plan_and_preprocess -d 901 -pl ExperimentPlanner"),
    ),
    "not preprocessed for ours": (
        only_raw, OURS, FAIL, "data set",
        ("nnunetv2_ext plan_and_preprocess -d 901 -pl MNetPlanner",),
    ),
    "no dataset.json": (
        lambda p: (p.preprocessed / "dataset.json").unlink(), STOCK, FAIL, "dataset.json", ("no file",),
    ),
    "truncated dataset.json": (
        lambda p: truncate(p.preprocessed / "dataset.json"), STOCK, FAIL, "dataset.json", ("damaged",),
    ),
    "incomplete dataset.json": (
        lambda p: p.write(p.preprocessed / "dataset.json", {"labels": {}}), STOCK, FAIL, "dataset.json",
        ("lacks channel_names, numTraining, file_ending",),
    ),
    "dataset.json is a list": (
        lambda p: p.write(p.preprocessed / "dataset.json", []), STOCK, FAIL, "dataset.json", ("a list in",),
    ),
    "raw dataset.json changed": (
        lambda p: p.write(p.raw / "dataset.json", {**DATASET_JSON, "numTraining": 9}), STOCK, WARN, "dataset.json",
        ("differs",),
    ),
    "no fingerprint": (
        lambda p: (p.preprocessed / "dataset_fingerprint.json").unlink(), STOCK, FAIL, "fingerprint",
        ("no file", "nnunetv2_ext plan_and_preprocess -d 901 -pl ExperimentPlanner"),
    ),
    "truncated fingerprint": (
        lambda p: truncate(p.preprocessed / "dataset_fingerprint.json"), STOCK, FAIL, "fingerprint", ("damaged",),
    ),
    "no preprocessed data": (
        lambda p: shutil.rmtree(p.data), OURS, FAIL, "preprocessed data",
        ("no folder", "nnUNetv2_preprocess -d 901 -plans_name MNetPlans -c 3d_fullres"),
    ),
    "empty data folder": (
        lambda p: [f.unlink() for f in p.data.iterdir()], STOCK, FAIL, "preprocessed data", ("no cases",),
    ),
    "a stray file among the data": (
        lambda p: p.write(p.data / "notes.txt", "x"), STOCK, FAIL, "preprocessed data", ("several kinds", "(txt)"),
    ),
    "two layouts": (two_layouts, STOCK, FAIL, "preprocessed data", ("several kinds", "(b2nd, npz)")),
    "a case without labels": (
        lambda p: (p.data / "case_1_seg.b2nd").unlink(), STOCK, FAIL, "preprocessed data", ("1 case (case_1)",),
    ),
    "a case without properties": (
        lambda p: (p.data / "case_1.pkl").unlink(), STOCK, FAIL, "preprocessed data", ("1 case (case_1)",),
    ),
    "an empty file": (
        lambda p: (p.data / "case_1.b2nd").write_text(""), STOCK, FAIL, "preprocessed data",
        ("1 damaged case (case_1)", "case_1.b2nd"),
    ),
    "a case not preprocessed": (drop_case, STOCK, FAIL, "preprocessed data", ("1 case (case_3) not preprocessed",)),
    "fewer cases than stated": (
        drop_case_and_reference, STOCK, FAIL, "preprocessed data", ("4 of the 5 cases", "numTraining"),
    ),
    "more cases than stated": (
        lambda p: p.write(p.preprocessed / "dataset.json", {**DATASET_JSON, "numTraining": 3}), STOCK, WARN,
        "preprocessed data", ("more than the 3",),
    ),
    "a reference missing": (
        lambda p: (p.preprocessed / "gt_segmentations" / f"case_2{ENDING}").unlink(), STOCK, FAIL, "references",
        ("1 case (case_2) without a reference",),
    ),
    "a truncated image": (
        lambda p: truncate(p.data / "case_1.b2nd"), OURS, FAIL, "preprocessed data",
        ("(case_1)", "case_1.b2nd (cut off", "nnUNetv2_preprocess -d 901 -plans_name MNetPlans -c 3d_fullres"),
    ),
    "a truncated segmentation": (
        lambda p: truncate(p.data / "case_1_seg.b2nd"), STOCK, FAIL, "preprocessed data", ("case_1_seg.b2nd",),
    ),
    "truncated properties": (
        lambda p: truncate(p.data / "case_1.pkl"), STOCK, FAIL, "preprocessed data", ("case_1.pkl",),
    ),
    "properties of another kind": (
        lambda p: p.write(p.data / "case_1.pkl", pickle.dumps({"spacing": [1.0, 1.0, 1.0]})), STOCK, FAIL,
        "preprocessed data", ("1 damaged case (case_1)", "no shape_before_cropping, bbox_used_for_cropping"),
    ),
    "properties that run code": (
        lambda p: p.write(p.data / "case_1.pkl", pickle.dumps({"spacing": Path("marker")})), STOCK, FAIL,
        "preprocessed data", ("1 damaged case (case_1)", "which could run code"),
    ),
    "a truncated packed case": (
        lambda p: npz_layout(p, "case_1.npz"), STOCK, FAIL, "preprocessed data", ("case_1.npz",),
    ),
    "a truncated unpacked image": (
        lambda p: npz_layout(p, "case_1.npy"), STOCK, FAIL, "preprocessed data", ("case_1.npz",),
    ),
    "data of another spacing": (
        lambda p: p.change_plans("nnUNetPlans", spacing=[9.0, 3.0, 3.0]), STOCK, FAIL, "preprocessed data",
        ("(1, 16, 16, 16) instead of (1, 2, 5, 5)", "9, 3, 3 mm", "nnUNetv2_preprocess -d 901 -plans_name nnUNetPlans"),
    ),
    "data of another spacing, shared": (
        lambda p: p.change_plans("MNetPlans", spacing=[9.0, 3.0, 3.0]), OURS, FAIL, "preprocessed data",
        ("5 cases", "set data_identifier of 3d_fullres in MNetPlans.json to MNetPlans_3d_fullres, since PaRPlans"),
    ),
    "data of another number of channels": (
        lambda p: p.change_plans("nnUNetPlans", normalization_schemes=["ZScoreNormalization"] * 2), STOCK, FAIL,
        "preprocessed data", ("(1, 16, 16, 16) instead of (2, 16, 16, 16)",),
    ),
    "data of other labels": (
        lambda p: describe(p, labels={"background": 0, "left": 1, "ignore": 2}), STOCK, FAIL, "preprocessed data",
        ("5 cases", "regions 1, 2, where dataset.json has (-1, 0, 1), 1"),
    ),
    "data of labels, not of regions": (
        lambda p: describe(p, labels={"background": 0, "all": [1, 2], "right": 2}, regions_class_order=[1, 2]), STOCK,
        FAIL, "preprocessed data", ("where dataset.json has (1, 2), 2",),
    ),
    "labels changed in the raw data": (
        lambda p: p.write(p.raw / "dataset.json", {**DATASET_JSON, "labels": {"background": 0, "right": 1, "left": 2}}),
        OURS, FAIL, "dataset.json", ("other labels than the copy", "nnunetv2_ext plan_and_preprocess -d 901 -pl"),
    ),
    "a channel renamed in the raw data": (
        lambda p: p.write(p.raw / "dataset.json", {**DATASET_JSON, "channel_names": {"0": "CT"}}), STOCK, FAIL,
        "dataset.json", ("other channel_names",),
    ),
    "regions in another order": (
        lambda p: [
            p.write(folder / "dataset.json", {**DATASET_JSON, "labels": labels, "regions_class_order": [1, 2]})
            for folder, labels in (
                (p.raw, {"background": 0, "all": [1, 2], "right": 2}),
                (p.preprocessed, {"background": 0, "right": 2, "all": [1, 2]}),
            )
        ], STOCK, FAIL, "dataset.json", ("other labels",),
    ),
    "a truncated reference": (
        lambda p: truncate(p.preprocessed / "gt_segmentations" / f"case_2{ENDING}"), STOCK, FAIL, "references",
        ("1 damaged reference (case_2)", "copy"),
    ),
    "no references": (
        lambda p: shutil.rmtree(p.preprocessed / "gt_segmentations"), STOCK, FAIL, "references", ("and 2 more",),
    ),
    "no number of a fold": (None, (*STOCK, "-f", "first"), FAIL, "splits", ("the fold first",)),
    "a fold beyond the default": (None, (*STOCK, "-f", "5"), FAIL, "splits", ("fold 5 of 5", "0 to 4")),
    "a fold beyond the splits": (
        lambda p: p.write_splits([GOOD]), (*STOCK, "-f", "1"), FAIL, "splits", ("fold 1 of 1",),
    ),
    "too few cases for five folds": (keep_two_cases, STOCK, FAIL, "splits", ("2 cases are too few",)),
    "truncated splits": (
        lambda p: p.write_splits(json.dumps([GOOD])[:-10]), STOCK, FAIL, "splits", ("damaged file", "restore"),
    ),
    "splits of another shape": (lambda p: p.write_splits({"train": []}), STOCK, FAIL, "splits", ("an object in",)),
    "a split without val": (lambda p: p.write_splits([{"train": CASES}]), STOCK, FAIL, "splits", ("no list of folds",)),
    "a split without cases": (
        lambda p: p.write_splits([split([], CASES)]), STOCK, FAIL, "splits", ("fold 0 without cases to train with",),
    ),
    "a split with strangers": (
        lambda p: p.write_splits([GOOD, split(["case_9"], CASES)]), STOCK, FAIL, "splits",
        ("fold 1 that names 1 case (case_9)",),
    ),
    "a case in no fold": (
        lambda p: p.write_splits([split(CASES[:3], CASES[3:4])]), STOCK, WARN, "splits",
        ("1 case (case_4) in no fold",),
    ),
    "a split that overlaps": (
        lambda p: p.write_splits([split(CASES, CASES[:1])]), STOCK, WARN, "splits",
        ("trains and validates with 1 case",),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "arguments", "status", "name", "texts"), FAULTS.values(), ids=FAULTS)
def test_data_set(damage, arguments, status, name, texts, prepared, diagnose):
    if damage is not None:
        damage(prepared)
    assert_only_fault(diagnose(*arguments), status, name, texts)


@pytest.mark.parametrize(
    ("change", "name", "texts"),
    [
        (lambda p: p.write_splits([GOOD]), "splits", ("1 folds",)),
        (npz_layout, "preprocessed data", ("5 cases",)),
    ],
    ids=["splits", "npz"],
)
def test_data_in_order(change, name, texts, prepared, diagnose):
    change(prepared)
    exit_status, checks = diagnose(*STOCK)
    assert exit_status == 0, [what for status, what in checks if status == FAIL]
    assert_told(checks, OK, name, texts)


OURS_COMMAND = "nnunetv2_ext plan_and_preprocess -d 901 -pl"
STOCK_COMMAND = f"{OURS_COMMAND} ExperimentPlanner"


NAMED = "-overwrite_plans_name"


def used(planner: str) -> str:
    return json.dumps({"experiment_planner_used": planner})


def made_by(planner: str, training: dict[str, Any] | None = None, **options: Any) -> str:
    content = {"planner": planner, "options": options, "training": training or {}, "version": "0.1.0"}
    return json.dumps({"made_by": content})


@pytest.mark.parametrize(
    ("content", "plans_name", "trainer", "command"),
    [
        # nobody says who made them
        (None, "nnUNetPlans", "nnUNetTrainer", STOCK_COMMAND),
        (None, "nnUNetPlans", "MNetTrainer", STOCK_COMMAND),
        (None, "MyPlans", "nnUNetTrainer", f"{STOCK_COMMAND} -overwrite_plans_name MyPlans"),
        (None, "nnUNetResEncUNetXLPlans", "MNetTrainer", f"{OURS_COMMAND} nnUNetPlannerResEncXL"),
        ("{}", "nnUNetPlans", "MNetTrainer", STOCK_COMMAND),
        ("{}", "nnUNetResEncUNetLPlans", "nnUNetTrainer", f"{OURS_COMMAND} nnUNetPlannerResEncL"),
        # nnU-Net's planners say their name
        (used("nnUNetPlannerResEncM"), "Mine", "nnUNetTrainer", f"{OURS_COMMAND} nnUNetPlannerResEncM {NAMED} Mine"),
        (used("ExperimentPlanner"), "Mine", "nnUNetTrainer", f"{STOCK_COMMAND} {NAMED} Mine"),
        (used("PlannerOfElsewhere"), "Mine", "MNetTrainer", f"{STOCK_COMMAND} {NAMED} Mine"),
        # not there, or damaged: those of the trainer
        (None, "MNetPlans", "MNetTrainer", f"{OURS_COMMAND} MNetPlanner"),
        ('{"made_by', "MNetPlans", "MNetTrainer", f"{OURS_COMMAND} MNetPlanner"),
        ("[]", "MNetPlans", "MNetTrainer", f"{OURS_COMMAND} MNetPlanner"),
        (None, "MNetPlans24GB", "MNetTrainer", f"{OURS_COMMAND} MNetPlanner -overwrite_plans_name MNetPlans24GB"),
        (None, "PaRPlans", "PaRTrainer", f"{OURS_COMMAND} PaRPlanner"),
        (None, "MyPlans", "BackboneTrainer", f"{OURS_COMMAND} BackbonePlanner -overwrite_plans_name MyPlans"),
        (None, "ROIPlans", "BackboneTrainer", f"{OURS_COMMAND} ROIPlanner"),
        (None, "DetectorPlans", "DetectorTrainer", f"{OURS_COMMAND} ROIPlanner --network detector"),
        # as they say themselves, whatever their name and the trainer
        (made_by("MNetPlanner"), "MyPlans", "nnUNetTrainer", f"{OURS_COMMAND} MNetPlanner"),
        (
            made_by("PaRPlanner", backbone="SwinUNETR", backbone_kwargs={"feature_size": 24}),
            "PaRSwinUNETRPlans",
            "PaRTrainer",
            f"{OURS_COMMAND} PaRPlanner --backbone SwinUNETR --backbone-kwargs '{{\"feature_size\": 24}}'",
        ),
        (
            made_by("MNetPlanner", {"epochs": 20, "optimizer": {"lr": 0.02}}, axis=1),
            "MNetPlans",
            "MNetTrainer",
            f"{OURS_COMMAND} MNetPlanner --axis 1 --epochs 20 --lr 0.02",
        ),
        (
            made_by("ThinThickPlanner", backbone="PaR:MNet"),
            "ThinThickPaRMNetPlans",
            "ThinThickTrainer",
            f"{OURS_COMMAND} ThinThickPlanner --backbone PaR:MNet",
        ),
        (
            made_by("ConvFreePlanner", token_size=[3, 8, 8], post_norm=True, gpu_memory_target=24.0),
            "ConvFreePostNormPlans",
            "ConvFreeTrainer",
            f"{OURS_COMMAND} ConvFreePlanner --token-size 3 8 8 --post-norm -gpu_memory_target 24.0",
        ),
    ],
)
def test_the_command_that_plans_again(content, plans_name, trainer, command, tmp_path):
    if content is not None:
        (tmp_path / f"{plans_name}.json").write_text(content)
    subject = Subject(dataset="901", trainer=trainer, plans=plans_name, found={"folder": tmp_path})
    assert replan(subject) == f"run {command}"
    if content is None:
        assert replan(Subject(dataset="901", trainer=trainer, plans=plans_name)) == f"run {command}"


@pytest.mark.parametrize(
    "command",
    [
        "-pl MNetPlanner -gpu_memory_target 4 -overwrite_plans_name MNetPlans4GB --patch-size 12 40 40",
        "-pl MNetPlanner -overwrite_target_spacing 5 2 2",
        "-pl PaRPlanner --backbone SegResNet --backbone-kwargs '{\"init_filters\": 8}' --axis 1 --patch-size 16 48 64",
        "-pl ConvFreePlanner --size B --token-size 3 8 8 --post-norm",
        "-pl MNetPlanner --epochs 20 --iterations 10 --lr 0.02",
    ],
)
def test_plans_made_again_are_the_same(command, nnunet_folders):
    data = Described(nnunet_folders).write()
    once = ["plan_and_preprocess", "-d", "901", "--no_pp", "--no_pbar", *shlex.split(command)]
    assert main(once) == 0
    (file,) = data.preprocessed.glob("*Plans*.json")
    planned = json.loads(file.read_text())
    again = replan(Subject(dataset="901", plans=file.stem, found={"folder": data.preprocessed}))
    file.unlink()
    assert main([*shlex.split(again)[2:], "--no_pp", "--no_pbar"]) == 0
    assert json.loads(file.read_text()) == planned
    assert planned["made_by"]["planner"] == command.split()[1]
