"""`find_best` over a results folder made by hand: small real volumes, two models that err in different places."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_ext.cli import main
from nnunetv2_ext.cli.find_best import _print_table
from nnunetv2_ext.inference.models import Model
from nnunetv2_ext.jobs.engine import Seen
from nnunetv2_ext.jobs.record import WAITING, Job, write_job
from tests.cli.boxes import DATASET, DESCRIPTION, reference
from tests.jobs.fake import use

OURS, STOCK = Model("MNetTrainer", "MNetPlans", "3d_fullres"), Model("nnUNetTrainer", "nnUNetPlans", "3d_fullres")
FOLDS = {0: ["a", "b"], 1: ["c", "d"]}
GEOMETRY = {"spacing": (1.0, 1.0, 4.0), "origin": (0.0, 0.0, 0.0), "direction": (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)}

UNCLOSED_BY_NNUNET = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""nnU-Net leaves its inference_instructions.txt open."""


def plans(model: Model) -> dict:
    return {
        "dataset_name": DATASET,
        "plans_name": model.plans,
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "configurations": {"2d": {"architecture": {}}, "3d_fullres": {"architecture": {}}},
    }


def write_labels(labels: np.ndarray, file: Path) -> None:
    image = sitk.GetImageFromArray(labels.astype(np.uint8))
    image.SetSpacing(GEOMETRY["spacing"])
    sitk.WriteImage(image, str(file))


def write_summary(validation: Path, voxels: dict[str, dict[int, int]]) -> None:
    """What find_best reads in nnU-Net's summary: the voxels of each label in the reference of each case."""
    cases = [{"metrics": {str(label): {"n_ref": n} for label, n in of.items()}} for of in voxels.values()]
    (validation / "summary.json").write_text(json.dumps({"metric_per_case": cases}))


def probabilities(wrong: tuple[slice, ...]) -> np.ndarray:
    """Sure of the truth, but weakly for background in `wrong`: the mean of two such is right everywhere."""
    one_hot = np.stack([reference() == label for label in range(3)]).astype(np.float32)  # (classes, z, y, x)
    everywhere: tuple[slice | int, ...] = (slice(None), *wrong)
    one_hot[everywhere] *= 0.4
    one_hot[0][wrong] = 0.6
    return one_hot


WRONG = {OURS: np.s_[1:2, 2:10, 1:11], STOCK: np.s_[3:5, 2:10, 1:11]}


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    """nnU-Net's three folders with two trained models; returns the data set's results folder."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    ground_truth = tmp_path / "nnUNet_preprocessed" / DATASET / "gt_segmentations"
    ground_truth.mkdir(parents=True)
    for case in "abcd":
        write_labels(reference(), ground_truth / f"{case}.nii.gz")
    for model in (OURS, STOCK):
        (ground_truth.parent / f"{model.plans}.json").write_text(json.dumps(plans(model)))
        folder = tmp_path / "nnUNet_results" / DATASET / model.folder_name
        for fold, cases in FOLDS.items():
            validation = folder / f"fold_{fold}" / "validation"
            validation.mkdir(parents=True)
            (validation.parent / "checkpoint_final.pth").touch()
            write_summary(validation, {case: {1: 128, 2: 128} for case in cases})
            for case in cases:
                predicted = probabilities(WRONG[model])
                np.savez_compressed(validation / f"{case}.npz", probabilities=predicted)
                (validation / f"{case}.pkl").write_bytes(pickle.dumps({"sitk_stuff": GEOMETRY}))
                write_labels(predicted.argmax(0), validation / f"{case}.nii.gz")
        (folder / "plans.json").write_text(json.dumps(plans(model)))
        (folder / "dataset.json").write_text(json.dumps(DESCRIPTION))
    return tmp_path / "nnUNet_results" / DATASET


def find_best(*more: str) -> int:
    models = [":".join(model) for model in (OURS, STOCK)]
    return main(["find_best", "-d", "901", "-m", *models, "-f", "0", "1", "-np", "1", *more])


@pytest.mark.pipeline
@pytest.mark.usefixtures("light")
@UNCLOSED_BY_NNUNET
def test_the_pair_wins_and_the_instructions_name_the_commands(results, capfd):
    assert find_best() == 0
    printed = capfd.readouterr().out
    information = json.loads((results / "inference_information.json").read_text())
    assert set(information["all_results"]) == {
        OURS.folder_name,
        STOCK.folder_name,
        f"ensemble___{OURS.folder_name}___{STOCK.folder_name}___0_1",
    }
    # each model loses a part of both labels, the ensemble nothing
    scores = sorted(information["all_results"].values())
    assert scores[-1] == pytest.approx(1.0)
    assert scores[1] == pytest.approx(2 * 3 / (3 + 4))
    assert scores[0] == pytest.approx(2 * 2 / (2 + 4))
    assert len(information["best_model_or_ensemble"]["selected_model_or_models"]) == 2
    for command in (
        f"nnUNetv2_predict -d {DATASET} -i INPUT_FOLDER -o OUTPUT_FOLDER_MODEL_1 -f  0 1 "
        "-tr MNetTrainer -c 3d_fullres -p MNetPlans --save_probabilities",
        "-tr nnUNetTrainer -c 3d_fullres -p nnUNetPlans --save_probabilities",
        "nnUNetv2_ensemble -i OUTPUT_FOLDER_MODEL_1 OUTPUT_FOLDER_MODEL_2 -o OUTPUT_FOLDER",
        "nnUNetv2_apply_postprocessing -i OUTPUT_FOLDER -o OUTPUT_FOLDER_PP",
    ):
        assert command in printed
        assert command in (results / "inference_instructions.txt").read_text()
    models = "MNetTrainer:MNetPlans:3d_fullres nnUNetTrainer:nnUNetPlans:3d_fullres"
    assert f"nnunetv2_ext predict -d {DATASET} -f 0 1 -m {models} -i INPUT_FOLDER -o OUTPUT_FOLDER\n" in printed
    assert table(printed) == {
        "MNetTrainer:MNetPlans:3d_fullres": ["0.857", "0.857", "0.857"],
        "nnUNetTrainer:nnUNetPlans:3d_fullres": ["0.667", "0.667", "0.667"],
        "MNetTrainer:MNetPlans:3d_fullres + nnUNetTrainer:nnUNetPlans:3d_fullres": ["1.000", "1.000", "1.000"],
    }
    assert printed.endswith("\nThe ensemble helped: mean Dice 1.000, the best single model 0.857.\n")


def table(printed: str) -> dict[str, list[str]]:
    """The rows of the table by model, below the heading and the line under it."""
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["model", "left", "right", "mean Dice"]
    return {row[0]: row[1:] for row in cells[2:]}


@pytest.mark.pipeline
@pytest.mark.usefixtures("light")
@UNCLOSED_BY_NNUNET
def test_without_ensembling_no_probabilities_are_needed(results, capfd):
    for file in results.rglob("*.npz"):
        file.unlink()
    assert find_best("--disable_ensembling") == 0
    printed = capfd.readouterr().out
    assert f"*Best*: {OURS.folder_name}" in printed
    assert "nnUNetv2_ensemble" not in printed and "nnunetv2_ext predict" not in printed
    assert len(table(printed)) == 2
    assert "ensemble helped" not in printed


@pytest.mark.pipeline
@pytest.mark.usefixtures("light")
@UNCLOSED_BY_NNUNET
def test_nnunet_reads_the_summaries_of_evaluate(results, tmp_path, capfd):
    models = [":".join(model) for model in (OURS, STOCK)]
    command = ["evaluate", "-d", "901", "-m", *models, "-f", "0", "1", "-o", str(tmp_path / "scores"), "-np", "1"]
    assert main(command) == 0
    kept = {}
    for model in (OURS, STOCK):
        folder = results / model.folder_name
        merged = folder / "crossval_results_folds_0_1"
        merged.mkdir()
        for file in (*folder.glob("*.json"), *folder.glob("fold_*/validation/*.nii.gz")):
            shutil.copy(file, merged)
        ours = tmp_path / "scores" / model.folder_name / "summary.json"
        kept[Path(shutil.copy(ours, merged))] = ours.read_bytes()
        content = json.loads(ours.read_text())
        for place in folder.glob("fold_*/validation"):
            cases = [case for case in content["metric_per_case"] if Path(case["prediction_file"]).parent == place]
            (place / "summary.json").write_text(json.dumps({**content, "metric_per_case": cases}))
    assert find_best("--disable_ensembling", "--no_overwrite") == 0
    assert {path: path.read_bytes() for path in kept} == kept  # read, and not made anew
    information = json.loads((results / "inference_information.json").read_text())
    assert information["all_results"] == pytest.approx({OURS.folder_name: 6 / 7, STOCK.folder_name: 4 / 6})
    assert (results / OURS.folder_name / "crossval_results_folds_0_1" / "postprocessing.pkl").is_file()


@pytest.mark.parametrize(
    ("ensemble", "verdict"),
    [
        (0.9, "The ensemble helped: mean Dice 0.900, the best single model 0.800."),
        (0.8, "The ensemble did not help: mean Dice 0.800, the best single model 0.800."),
        (0.7, "The ensemble did not help: mean Dice 0.700, the best single model 0.800."),
        (0.80003, "The ensemble helped: mean Dice 0.80003, the best single model 0.80000."),
    ],
)
def test_the_table_of_regions_and_whether_an_ensemble_helped(ensemble, verdict, tmp_path, capsys):
    both = f"ensemble___{OURS.folder_name}___{STOCK.folder_name}___0_1"
    labels = {"background": 0, "whole": [1, 2], "right": 2, "ignore": 3}
    described = json.dumps({**DESCRIPTION, "labels": labels, "regions_class_order": [1, 2]})
    dice = {OURS.folder_name: 0.8, STOCK.folder_name: 0.5, both: ensemble}
    for identifier, value in dice.items():
        merged = tmp_path / (f"ensembles/{both}" if identifier == both else f"{identifier}/crossval_results_folds_0_1")
        merged.mkdir(parents=True)
        (merged / "dataset.json").write_text(described)
        of_case = {"(1, 2)": {"Dice": value + 0.05}, "2": {"Dice": value - 0.05}}
        cases = (of_case, {**of_case, "2": {"Dice": None}})
        of_cases = [{"prediction_file": f"{number}.nii.gz", "metrics": case} for number, case in enumerate(cases)]
        (merged / "summary.json").write_text(json.dumps({"metric_per_case": of_cases}))
    _print_table(tmp_path, [OURS, STOCK], [0, 1], dice)
    printed = capsys.readouterr().out
    row = " ".join(printed.splitlines()[2].split())
    assert row == "| MNetTrainer:MNetPlans:3d_fullres | 0.850 | 0.750 (1 not counted) | 0.800 (1 not counted) |"
    assert printed.splitlines()[-1] == verdict


def remove(pattern: str):
    def damage(results: Path) -> None:
        found = list(results.glob(pattern))
        assert found
        for path in found:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def leave_a_started_fold(results: Path) -> None:
    fold = results / OURS.folder_name / "fold_1"
    shutil.rmtree(fold)
    fold.mkdir()
    (fold / "checkpoint_latest.pth").touch()


def repeat_a_case(results: Path) -> None:
    validation = results / OURS.folder_name / "fold_{}" / "validation"
    for ending in ("nii.gz", "npz", "pkl"):
        shutil.copy(str(validation).format(0) + f"/a.{ending}", str(validation).format(1) + f"/a.{ending}")


def change_the_labels(results: Path) -> None:
    changed = {**DESCRIPTION, "labels": {"background": 0, "right": 1, "left": 2}}
    (results / STOCK.folder_name / "dataset.json").write_text(json.dumps(changed))


def lose_a_label(results: Path) -> None:
    for folder in results.glob("*/fold_*/validation"):
        write_summary(folder, {"a": {1: 128, 2: 0}, "b": {1: 0, 2: 0}})


def write(path: str, content: str):
    return lambda results: (results / path).write_text(content)


TRAIN = f"nnUNetv2_train {DATASET} 3d_fullres"
FAULTS = {
    "a fold missing": (
        remove(f"{OURS.folder_name}/fold_1"),
        [f"{OURS.folder_name}/fold_1 was not trained", f"\n  {TRAIN} 1 -tr MNetTrainer -p MNetPlans --npz\n"],
    ),
    "a model missing": (
        remove(STOCK.folder_name),
        [f"\n  {TRAIN} {fold} -tr nnUNetTrainer -p nnUNetPlans --npz\n" for fold in (0, 1)],
    ),
    "a fold not finished": (
        leave_a_started_fold,
        ["fold_1 is not finished", f"\n  {TRAIN} 1 -tr MNetTrainer -p MNetPlans --npz --c\n"],
    ),
    "a validation without its training": (
        remove(f"{OURS.folder_name}/fold_1/checkpoint_final.pth"),
        ["fold_1 is not finished", f"\n  {TRAIN} 1 -tr MNetTrainer -p MNetPlans --npz\n"],
    ),
    "the validation of an earlier training": (
        lambda results: os.utime(results / OURS.folder_name / "fold_1" / "checkpoint_final.pth", (4e9, 4e9)),
        [
            "fold_1/validation holds 3 files (c.nii.gz, d.nii.gz, summary.json) older than checkpoint_final.pth",
            f"\n  {TRAIN} 1 -tr MNetTrainer -p MNetPlans --npz --val\n",
        ],
    ),
    "no validation": (
        remove(f"{OURS.folder_name}/fold_0/validation"),
        ["no validation/summary.json", f"\n  {TRAIN} 0 -tr MNetTrainer -p MNetPlans --npz --val\n"],
    ),
    "no summary": (
        remove(f"{OURS.folder_name}/fold_0/validation/summary.json"),
        ["no validation/summary.json", f"\n  {TRAIN} 0 -tr MNetTrainer -p MNetPlans --npz --val\n"],
    ),
    "no probabilities": (
        remove(f"{STOCK.folder_name}/fold_*/validation/*.npz"),
        ["lacks the probabilities of 2 of 2 cases", f"\n  {TRAIN} 0 -tr nnUNetTrainer -p nnUNetPlans --npz --val\n"],
    ),
    "one without probabilities": (
        remove(f"{STOCK.folder_name}/fold_0/validation/a.npz"),
        ["lacks the probabilities of 1 of 2 cases"],
    ),
    "no plans in the model": (
        remove(f"{OURS.folder_name}/plans.json"),
        ["has no plans.json", "\n  cp '", f"nnUNet_preprocessed/{DATASET}/MNetPlans.json' '"],
    ),
    **{
        f"{file} with {content}": (write(file, content), told)
        for content in ("null", "[]", "5", '{"labels": 5, "configurations": []}', '{"metric_per_case": [5]}', "{")
        for file, told in {
            f"{OURS.folder_name}/fold_0/validation/summary.json": [
                "summary.json is damaged",
                f"\n  {TRAIN} 0 -tr MNetTrainer",
            ],
            f"{OURS.folder_name}/plans.json": ["has no plans.json as training wrote it", "\n  cp '"],
            f"{OURS.folder_name}/dataset.json": ["has no dataset.json as training wrote it", "\n  cp '"],
            f"../../nnUNet_preprocessed/{DATASET}/MNetPlans.json": [
                "MNetPlans.json",
                "plan_and_preprocess -d Dataset901_Boxes -pl MNetPlanner",
            ],
        }.items()
    },
    "no reference": (
        remove(f"../../nnUNet_preprocessed/{DATASET}/gt_segmentations"),
        ["gt_segmentations", f"nnUNetv2_preprocess -d {DATASET} -plans_name MNetPlans -c 3d_fullres"],
    ),
    "no plans": (
        remove(f"../../nnUNet_preprocessed/{DATASET}/MNetPlans.json"),
        ["no file", "MNetPlans.json", "; run nnunetv2_ext plan_and_preprocess -d Dataset901_Boxes -pl MNetPlanner"],
    ),
    "a case twice": (repeat_a_case, ["1 case (a) in the validation of several folds"]),
    "other labels": (
        change_the_labels,
        [f"the label 'left' = 1 in {OURS.folder_name}, but 2 in {STOCK.folder_name}", "leave one of them out"],
    ),
    "a label of which nothing is left": (
        lose_a_label,
        ["no voxel of right in any reference of folds 0 1, so that", "take it out of dataset.json"],
    ),
    "other cases": (
        remove(f"{STOCK.folder_name}/fold_0/validation/b.*"),
        ["1 case (b) that only one of", "same splits_final.json"],
    ),
}


@pytest.mark.parametrize(("damage", "told"), FAULTS.values(), ids=FAULTS)
def test_what_is_missing_is_told_with_the_command_that_makes_it(damage, told, results, capsys):
    damage(results)
    assert find_best() == 2
    message = capsys.readouterr().err
    for text in told:
        assert text in message


def test_the_fold_that_holds_a_label_is_named(results, capsys):
    write_summary(results / OURS.folder_name / "fold_0" / "validation", {"a": {1: 128, 2: 0}, "b": {1: 128, 2: 0}})
    assert main(["find_best", "-d", "901", "-m", ":".join(OURS), "-f", "0"]) == 2
    assert "no voxel of right in any reference of fold 0, so" in (error := capsys.readouterr().err)
    assert error.endswith("; add -f 1, where it occurs.\n")


def test_all_faults_are_told_at_once(results, capsys):
    shutil.rmtree(results / OURS.folder_name / "fold_1")
    (results / STOCK.folder_name / "fold_0" / "validation" / "summary.json").unlink()
    assert find_best() == 2
    message = capsys.readouterr().err
    assert message.startswith("nnunetv2_ext find_best: got 2 of 4 trainings missing or incomplete; expected folds 0 1 ")
    assert f"\n  # {OURS.folder_name}/fold_1 was not trained\n  {TRAIN} 1 " in message
    assert f"\n  # {STOCK.folder_name}/fold_0 has no validation/summary.json\n  {TRAIN} 0 " in message
    assert message.count("nnUNetv2_train") == 2


def test_a_fold_whose_job_waits_is_not_trained_by_hand(results, capsys, monkeypatch):
    shutil.rmtree(results / OURS.folder_name / "fold_1")
    name = f"{OURS.folder_name}__fold_1"
    write_job(results / "jobs", Job(name, ("true",)))
    use(monkeypatch).states = {name: Seen(WAITING)}
    assert find_best() == 2
    assert f"1 fold ({name}) whose job waits or runs; expected whole folds; wait" in capsys.readouterr().err


def test_commands_of_missing_trainings_name_the_device(results, capsys):
    shutil.rmtree(results / OURS.folder_name / "fold_1")
    assert find_best("-device", "cpu") == 2
    assert f"\n  {TRAIN} 1 -tr MNetTrainer -p MNetPlans --npz -device cpu\n" in (error := capsys.readouterr().err)
    assert f"\nor, as jobs, nnunetv2_ext train -d {DATASET} -m {':'.join(OURS)} -f 1 -device cpu\n" in error


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["-d", "901", "-m", "MNetTrainer:MNetPlans"], "the model 'MNetTrainer:MNetPlans'"),
        (["-d", "901", "-m", "MNetTrainer:MNetPlans:4d"], "the configuration 4d"),
        (["-d", "902", "-m", "MNetTrainer:MNetPlans:3d_fullres"], "no data set 902"),
        (["-d", "901", "-m", "MNetTrainer:NoPlans:3d_fullres"], "NoPlans.json"),
        (["-d", "901", "-m", "MNetTrainer:MNetPlans:3d_fullres", "-f", "7"], "fold_7 was not trained"),
        (["-d", "901", "-m", ":".join(OURS), "-f", "0", "-1"], "got -f 0 -1; expected folds from 0"),
        (["-d", "901", "-m", "MNetTrainer:MNetPlans:3d_fullres", "-np", "-1"], "got -np -1; expected 1 or more"),
        (["-d", "901", "-m", "MNetTrainer:MNetPlans:3d_fullres", "-np", "0"], "got -np 0; expected 1 or more"),
    ],
)
def test_bad_arguments(arguments, told, results, capsys):
    before = sorted(results.rglob("*"))
    assert main(["find_best", *arguments]) == 2
    assert told in capsys.readouterr().err
    assert sorted(results.rglob("*")) == before


@pytest.mark.parametrize("variable", ["nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"])
def test_an_unset_variable(variable, results, monkeypatch, capsys):
    monkeypatch.delenv(variable)
    assert find_best() == 2
    assert f"no value of {variable}" in capsys.readouterr().err
