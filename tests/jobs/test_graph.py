"""The jobs of a request: which commands, in which order, and what is refused before anything is written."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnunetv2_ext.data.splits import SPLITS
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.inference.models import Model
from nnunetv2_ext.jobs.checks import Trainable
from nnunetv2_ext.jobs.engine import Seen
from nnunetv2_ext.jobs.folds import command_now
from nnunetv2_ext.jobs.graph import How, trainings, write_splits
from nnunetv2_ext.jobs.record import BLOCKED, CANCELLED, FAILED, RUNNING, TIMED_OUT, WAITING, Job, Resources
from nnunetv2_ext.training.run import make_trainer
from tests.doctor.conftest import CASES, DATASET, MNET, Prepared

OURS, STOCK = Model("MNetTrainer", "MNetPlans", "3d_fullres"), Model("nnUNetTrainer", "nnUNetPlans", "3d_fullres")
CPU = How(device="cpu", resources=Resources(jobs=2))
SPLIT = [{"train": [case for case in CASES if case != one], "val": [one]} for one in CASES]


def finish(prepared: Prepared, model: Model, fold: str, *, probabilities: bool = True) -> Path:
    """A trained and validated fold, as far as files tell."""
    folder = prepared.model(*model) / f"fold_{fold}"
    case = CASES[0 if fold == "all" else int(fold)]
    prepared.write(folder / "checkpoint_final.pth", b"")
    endings = (".nii.gz", *((".npz", ".pkl") if probabilities else ()))
    for ending in endings:
        prepared.write(folder / "validation" / f"{case}{ending}", b"")
    reference = str(prepared.preprocessed / "gt_segmentations" / f"{case}.nii.gz")
    prediction = str(folder / "validation" / f"{case}.nii.gz")
    metrics = {"1": {"n_ref": 3}, "2": {"n_ref": 4}}
    of_case = {"metrics": metrics, "prediction_file": prediction, "reference_file": reference}
    prepared.write(folder / "validation" / "summary.json", {"metric_per_case": [of_case]})
    for name in (f"{model.plans}.json", "dataset.json"):
        content = (prepared.preprocessed / name).read_bytes()
        prepared.write(folder.parent / ("plans.json" if name != "dataset.json" else name), content)
    return folder


def by_name(jobs: tuple[Job, ...]) -> dict[str, Job]:
    return {job.name: job for job in jobs}


def test_each_fold_of_each_model_is_a_job(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_compile", "f")
    monkeypatch.setenv("PASSWORD", "secret")
    wanted = trainings(DATASET, [OURS, STOCK], ["0", "3", "all"], {}, CPU)
    assert [job.name for job in wanted.jobs] == [
        *(f"MNetTrainer__MNetPlans__3d_fullres__fold_{fold}" for fold in ("0", "3", "all")),
        *(f"nnUNetTrainer__nnUNetPlans__3d_fullres__fold_{fold}" for fold in ("0", "3", "all")),
    ]
    job = wanted.jobs[1]
    expected = f"nnUNetv2_train {DATASET} 3d_fullres 3 -tr MNetTrainer -p MNetPlans --npz -device cpu"
    assert " ".join(job.command) == expected
    assert job.needs == ()
    assert job.fold == prepared.results / "MNetTrainer__MNetPlans__3d_fullres" / "fold_3"
    assert (job.resources, job.retries, job.engine) == (Resources(jobs=2), 2, "local")
    assert job.environment["nnUNet_compile"] == "f"
    assert job.environment["nnUNet_results"] == str(prepared.results.parent)
    assert "PASSWORD" not in job.environment
    assert wanted.last == tuple(job.name for job in wanted.jobs)
    assert wanted.told == ()
    assert not list(prepared.results.iterdir()), "nothing is written"


def test_the_default_device(prepared: Prepared) -> None:
    wanted = trainings(DATASET, [OURS], ["0"], {}, How())
    assert wanted.jobs[0].command[-5:] == ("-tr", "MNetTrainer", "-p", "MNetPlans", "--npz")


@pytest.mark.parametrize("state", [WAITING, RUNNING])
def test_a_fold_under_way_is_left_alone_and_waited_for(prepared: Prepared, state: str) -> None:
    name = "MNetTrainer__MNetPlans__3d_fullres__fold_1"
    wanted = trainings(DATASET, [OURS], ["0", "1"], {name: Seen(state)}, CPU)
    assert [job.name[-6:] for job in wanted.jobs] == ["fold_0"]
    assert wanted.told == (f"MNetTrainer:MNetPlans:3d_fullres, fold 1: its job is {state} already",)
    assert name in wanted.last


@pytest.mark.parametrize("state", [FAILED, CANCELLED, TIMED_OUT, BLOCKED])
def test_a_fold_that_did_not_finish_is_submitted_again(prepared: Prepared, state: str) -> None:
    name = "MNetTrainer__MNetPlans__3d_fullres__fold_1"
    assert [job.name for job in trainings(DATASET, [OURS], ["1"], {name: Seen(state)}, CPU).jobs] == [name]


def test_a_whole_fold_gets_no_job(prepared: Prepared) -> None:
    finish(prepared, OURS, "0")
    finish(prepared, OURS, "1", probabilities=False)
    wanted = trainings(DATASET, [OURS], ["0", "1", "2"], {}, CPU)
    assert [job.name[-6:] for job in wanted.jobs] == ["fold_1", "fold_2"]
    assert wanted.told == ("MNetTrainer:MNetPlans:3d_fullres, fold 0: trained and validated already",)


@pytest.mark.parametrize(
    ("folds", "cases", "split", "validated"),
    [
        (["0", "1"], 12, None, 6),  # nnU-Net's five folds of 12: 3, 3, 2, 2, 2
        (["0", "4", "0", "all"], 12, None, 5),
        (["0", "1", "2", "3", "4"], 12, None, 12),
        (["all"], 12, None, 0),
        (["0", "1"], 4, [["a"], ["a", "b"], ["c"]], 2),
    ],
)
def test_cases_that_folds_validate_together(
    folds: list[str], cases: int, split: list[list[str]] | None, validated: int
) -> None:
    names = frozenset(f"case_{number}" for number in range(cases))
    of_folds = None if split is None else tuple({"train": ["d"], "val": val} for val in split)
    one = Trainable(OURS, Path(), True, names, of_folds, None, 0)
    assert one.validated_together(folds) == validated


def retrained(fold: Path) -> None:
    os.utime(fold / "checkpoint_final.pth", (4e9, 4e9))


def lost(fold: Path) -> None:
    (fold / "validation" / f"{CASES[0]}.nii.gz").unlink()


@pytest.mark.parametrize("damage", [retrained, lost])
def test_a_trained_fold_whose_validation_is_not_its_own_is_validated(
    prepared: Prepared, damage: Callable[[Path], None]
) -> None:
    fold = finish(prepared, OURS, "0")
    damage(fold)
    (job,) = trainings(DATASET, [OURS], ["0"], {}, CPU).jobs
    assert (job.command[-1], job.fold) == ("cpu", fold)
    assert command_now(job.command, fold) == [*job.command, "--val"], "its supervisor sees that it is trained"


@pytest.mark.parametrize(("there", "goes_on"), [("checkpoint_latest.pth", ["--c"]), ("debug.json", [])])
def test_a_fold_without_its_final_checkpoint_is_trained_whatever_its_validation(
    prepared: Prepared, there: str, goes_on: list[str]
) -> None:
    fold = finish(prepared, OURS, "0")
    (fold / "checkpoint_final.pth").rename(fold / there)
    (job,) = trainings(DATASET, [OURS], ["0"], {}, CPU).jobs
    assert command_now(job.command, fold) == [*job.command, *goes_on]


def test_slabs_are_not_looked_for_in_data_that_are_to_be_made(prepared: Prepared) -> None:
    prepared.write_images()
    empty(prepared)
    prepared.change_plans("nnUNetPlans", patch_size=[16] * 3)
    thin = Model("ThinThickTrainer", "nnUNetPlans", "3d_fullres")
    assert [job.name[:10] for job in trainings(DATASET, [thin], ["0"], {}, CPU).jobs] == ["preprocess", "ThinThickT"]


def cut(prepared: Prepared) -> None:
    for path in prepared.data.glob(f"{CASES[2]}*"):
        path.unlink()


def empty(prepared: Prepared) -> None:
    for path in prepared.data.iterdir():
        path.unlink()
    prepared.data.rmdir()


def no_reference(prepared: Prepared) -> None:
    (prepared.preprocessed / "gt_segmentations" / f"{CASES[1]}.nii.gz").unlink()


@pytest.mark.parametrize("damage", [cut, empty, no_reference])
def test_data_that_are_missing_are_preprocessed_once(prepared: Prepared, damage: Callable[[Prepared], None]) -> None:
    prepared.write_images()
    damage(prepared)
    wanted = trainings(DATASET, [OURS, STOCK], ["0", "1"], {}, CPU)
    first, *others = wanted.jobs
    assert (first.name, first.needs) == ("preprocess_nnUNetPlans_3d", ())
    expected = "nnUNetv2_preprocess -d 901 -plans_name MNetPlans -c 3d_fullres -np 1 --no_pbar"
    assert " ".join(first.command) == expected
    assert [job.needs for job in others] == [(first.name,)] * 4
    assert wanted.cases == {*CASES}
    again = trainings(DATASET, [OURS], ["0"], {first.name: Seen(RUNNING)}, CPU)
    assert [job.needs for job in again.jobs] == [(first.name,)], "one that runs is waited for"


def plan_cascade(prepared: Prepared) -> Model:
    content = json.loads((prepared.preprocessed / "nnUNetPlans.json").read_text())
    full = content["configurations"]["3d_fullres"]
    content["configurations"]["3d_lowres"] = full | {"next_stage": "3d_cascade_fullres"}
    content["configurations"]["3d_cascade_fullres"] = full | {"previous_stage": "3d_lowres"}
    prepared.write(prepared.preprocessed / "nnUNetPlans.json", content)
    return STOCK._replace(configuration="3d_cascade_fullres")


def test_a_cascade_needs_all_folds_of_its_first_stage(prepared: Prepared) -> None:
    cascade = plan_cascade(prepared)
    wanted = trainings(DATASET, [cascade], ["2"], {}, CPU)
    *first, last = wanted.jobs
    names = [f"nnUNetTrainer__nnUNetPlans__3d_lowres__fold_{fold}" for fold in range(5)]
    assert [job.name for job in first] == names
    assert (last.needs, wanted.last) == (tuple(names), (last.name,))


def test_a_cascade_needs_only_the_folds_whose_predictions_are_lacking(prepared: Prepared) -> None:
    cascade = plan_cascade(prepared)
    prepared.write_splits(SPLIT)
    low = cascade._replace(configuration="3d_lowres")
    for case in CASES[:3]:
        prepared.write(prepared.model(*low) / "predicted_next_stage" / "3d_cascade_fullres" / f"{case}.b2nd", b"")
    finish(prepared, low, "4")
    wanted = trainings(DATASET, [low, cascade], ["0"], {}, CPU)
    jobs = by_name(wanted.jobs)
    assert [name.partition("__3d_")[2] for name in jobs] == [
        *("lowres__fold_0", "lowres__fold_3", "lowres__fold_4", "cascade_fullres__fold_0")
    ]
    fourth = jobs["nnUNetTrainer__nnUNetPlans__3d_lowres__fold_4"]
    place = prepared.model(*low) / "fold_4"
    assert (fourth.command[-1], fourth.fold) == ("--val", place), "of a whole fold, the validation alone"
    assert command_now(fourth.command, place) == [*fourth.command], "though that is there"
    assert {need[-6:] for need in wanted.jobs[-1].needs} == {"fold_3", "fold_4"}


# --- what is refused ---


def other_block(prepared: Prepared) -> None:
    finish(prepared, OURS, "0")
    prepared.change_plans("MNetPlans", training={"epochs": 9})


def other_network(prepared: Prepared) -> None:
    finish(prepared, OURS, "0")
    wider = {**MNET, "arch_kwargs": {"features_per_stage": [3, 3, 4, 5, 6]}}
    prepared.change_plans("MNetPlans", architecture=wider)


REFUSED: dict[str, tuple[Callable[[Prepared], Any], Model, str, str]] = {
    "no plans": (
        lambda p: None,
        Model("MNetTrainer", "MyPlans", "3d_fullres"),
        "0",
        "no plans file .*choose -m MNetTrainer:MNetPlans:3d_fullres",
    ),
    "no data set": (
        lambda p: p.preprocessed.rename(p.preprocessed.with_name("elsewhere")),
        OURS,
        "0",
        "was not preprocessed.*run nnunetv2_ext plan_and_preprocess -d Dataset901_Boxes -pl MNetPlanner",
    ),
    "no trainer": (lambda p: None, OURS._replace(trainer="MyTrainer"), "0", "no trainer MyTrainer"),
    "no configuration": (
        lambda p: None,
        OURS._replace(configuration="3d_low"),
        "0",
        "no 3d_low; .* choose -m MNetTrainer:MNetPlans:3d_fullres",
    ),
    "a fold too many": (lambda p: None, OURS, "5", "fold 5 of 5"),
    "a fold of a user's split": (lambda p: p.write_splits(SPLIT[:2]), OURS, "2", "fold 2 of 2"),
    "a short axis": (lambda p: None, STOCK._replace(plans="MNetPlans"), "0", "cannot train"),
    "a case of no raw data": (cut, OURS, "0", "not preprocessed in .*copy it from where it was preprocessed"),
    "data of no raw data": (empty, OURS, "0", "no raw data of .* to preprocess"),
    "another block": (other_block, OURS, "0", r"folds 0 of .* trained otherwise \(training.epochs: 7 and 9\)"),
    "another network": (other_network, OURS, "0", "trained otherwise.*features_per_stage"),
    "a block that is none": (
        lambda p: p.change_plans("MNetPlans", training={"epoch": 9}),
        OURS,
        "0",
        "the unknown key 'training.epoch'",
    ),
}


@pytest.mark.parametrize(("damage", "model", "fold", "told"), REFUSED.values(), ids=REFUSED)
def test_what_would_fail_is_refused(
    prepared: Prepared, damage: Callable[[Prepared], Any], model: Model, fold: str, told: str
) -> None:
    damage(prepared)
    with pytest.raises(InputError, match=told):
        trainings(DATASET, [model], ["1", fold], {}, CPU)


def test_a_disk_that_is_too_small_is_refused(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunetv2_ext.jobs import checks

    wanted = trainings(DATASET, [OURS], ["0"], {}, CPU)
    assert len(wanted.jobs) == 1

    class Usage:
        free = 10_000

    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(InputError, match=r"0.0 GB free in .*; expected 0.1 GB for the checkpoints of 2 folds"):
        trainings(DATASET, [OURS], ["0", "1"], {}, CPU)


# --- the split ---


def test_the_split_is_what_a_training_writes(prepared: Prepared) -> None:
    write_splits(DATASET, reversed(CASES))
    file = prepared.preprocessed / SPLITS
    ours = file.read_bytes()
    file.unlink()
    trainer = make_trainer(DATASET, "3d_fullres", 0, trainer="nnUNetTrainer", plans="nnUNetPlans")
    trainer.do_split()
    assert ours == file.read_bytes()


def test_a_split_that_is_there_stays(prepared: Prepared) -> None:
    prepared.write_splits(SPLIT)
    write_splits(DATASET, CASES)
    assert json.loads((prepared.preprocessed / SPLITS).read_text()) == SPLIT
