"""The held-out predictions that an audit reads: which model, which folds, which cases; what it notes and refuses."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nnunetv2_ext.audit.validation import find_validation, most_validated, score_cases
from nnunetv2_ext.data.volumes import read_grid, write_volume
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import REFERENCES
from nnunetv2_ext.inference.models import parse_models
from tests.audit.organs import CASES, DATASET, MODEL, changed_label, label_of, write_validated

OTHER = "ATrainer:MNetPlans:3d_fullres"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_validated(tmp_path, monkeypatch)


def fold(data: Path, number: int, model: str = MODEL) -> Path:
    return data / "results" / DATASET / model.replace(":", "__") / f"fold_{number}"


def label(data: Path, case: str) -> Path:
    return data / "preprocessed" / DATASET / REFERENCES / f"{case}.nii.gz"


def test_all_folds_of_the_only_model(data):
    found = find_validation(DATASET)
    assert (str(found.model), found.folds, found.notes) == (MODEL, ("0", "1", "2", "3", "4"), ())
    assert list(found.references) == list(found.predictions) == list(CASES)
    assert found.predictions["organ_07"] == fold(data, 2) / "validation" / "organ_07.nii.gz"
    assert list(found.labels.of) == ["liver", "spleen"]


def test_the_model_with_most_folds_else_the_first_by_name(data, monkeypatch):
    write_validated(data, monkeypatch, model=OTHER)
    assert str(most_validated(DATASET)) == OTHER
    (fold(data, 0, OTHER) / "checkpoint_final.pth").unlink()
    assert str(most_validated(DATASET)) == MODEL
    assert str(find_validation(DATASET, parse_models([OTHER])[0]).model) == OTHER


def test_of_some_folds_their_cases_alone_and_the_rest_is_named(data):
    shutil.rmtree(fold(data, 3))
    (fold(data, 4) / "validation" / "summary.json").unlink()
    (data / "results" / DATASET / MODEL.replace(":", "__") / "fold_all").mkdir()
    found = find_validation(DATASET)
    assert found.folds == ("0", "1", "2")
    assert list(found.references) == [case for number, case in enumerate(CASES) if number % 5 < 3]
    assert found.notes == (
        "Audited are the cases of folds 0, 1, 2 alone: fold_3 was not trained; fold_4 has no validation/summary.json.",
        "12 cases (organ_03, organ_04, organ_08 and 9 more) without a prediction of these folds: not audited.",
    )


def test_labels_that_changed_after_the_prediction_are_noted(data):
    os.utime(label(data, "organ_03"), (4e9, 4e9))
    label(data, "organ_05").unlink()
    assert find_validation(DATASET).notes == (
        "1 prediction (organ_05) without a label in gt_segmentations: not audited.",
        "1 label (organ_03) newer than the prediction: the network was trained with the label as it was.",
    )


def _untrained(data: Path) -> None:
    shutil.rmtree(data / "results" / DATASET)


def _stopped(data: Path) -> None:
    for number in range(5):
        shutil.rmtree(fold(data, number) / "validation")


def _few(data: Path) -> None:
    for number in range(1, 5):
        shutil.rmtree(fold(data, number))


def _not_preprocessed(data: Path) -> None:
    shutil.rmtree(label(data, "a").parent)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_untrained, "that is trained and validated; expected one or more; run nnunetv2_ext train"),
        (_stopped, "--from map, which needs none"),
        (_few, "got 6 cases of fold 0 of MNetTrainer:MNetPlans:3d_fullres; expected 10 or more"),
        (_not_preprocessed, "no folder"),
    ],
)
def test_what_cannot_be_audited_is_refused(data, spoil, told):
    spoil(data)
    with pytest.raises(InputError, match=told.replace("(", r"\(")):
        find_validation(DATASET)


def test_a_model_that_is_asked_for_and_not_validated_tells_its_folds(data):
    _stopped(data)
    with pytest.raises(InputError, match=f"{MODEL}: fold_0 has no validation/summary.json; fold_1"):
        find_validation(DATASET, parse_models([MODEL])[0])


def test_cases_that_cannot_be_scored_are_told_and_the_others_scored(data):
    found = find_validation(DATASET)
    changed_label(label(data, "organ_02"), lambda voxels: np.where(voxels == 2, 7, voxels))
    changed_label(label(data, "organ_04"), lambda voxels: np.where(voxels == 2, np.nan, voxels).astype(np.float32))
    grid = read_grid(label(data, "organ_06"))
    write_volume(label_of("organ_06"), replace(grid, spacing=(2.0, 1.0, 4.0)), label(data, "organ_06"))
    label(data, "organ_08").write_bytes(b"no volume")
    scores, notes = score_cases(found.references, found.predictions, found.labels, processes=2)
    assert {score.case for score in scores} == set(CASES) - {"organ_02", "organ_04", "organ_06", "organ_08"}
    for note, case, told in zip(
        notes, (2, 4, 6, 8), ("label value 7", "voxels of NaN", "spacing (2, 1, 3)", "organ_08"), strict=True
    ):
        assert note.startswith(f"organ_{case:02} is not audited: got ")
        assert told in note


def test_a_first_case_on_another_grid_is_told_and_the_others_scored(data):
    path = fold(data, 0) / "validation" / "organ_00.nii.gz"
    write_volume(label_of("organ_00")[:, :-4], replace(read_grid(path), size=(28, 24, 16)), path)
    found = find_validation(DATASET)
    scores, notes = score_cases(found.references, found.predictions, found.labels)
    assert {score.case for score in scores} == set(CASES[1:])
    assert notes[0].startswith("organ_00 is not audited: got the prediction")


def test_fewer_than_ten_scored_cases_are_refused(data):
    found = find_validation(DATASET)
    for case in CASES[:21]:
        label(data, case).write_bytes(b"no volume")
    with pytest.raises(InputError, match="organ_00"):
        score_cases(found.references, found.predictions, found.labels)


def test_as_many_processes_as_one_likes_give_the_same(data):
    found = find_validation(DATASET)
    one, three = (score_cases(found.references, found.predictions, found.labels, processes=n) for n in (1, 3))
    assert one == three
