"""What `evaluate` refuses of trained models and of their cross-validation."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.boxes import DATASET, DESCRIPTION, FOLDS, MODEL, OTHER, of_models, write_folders, write_models


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_models(write_folders(tmp_path), monkeypatch)


def of(folder: Path, name: str = MODEL, fold: str = "0") -> Path:
    return folder / "results" / DATASET / name.replace(":", "__") / f"fold_{fold}"


def _no_validation(folder: Path) -> None:
    shutil.rmtree(of(folder) / "validation")


def _unfinished_validation(folder: Path) -> None:
    (of(folder) / "validation" / "summary.json").unlink()


def _lost_predictions(folder: Path) -> None:
    entry = {"metrics": {"1": {"n_ref": 1}, "2": {"n_ref": 1}}}
    cases = [{**entry, "prediction_file": f"/then/fold_0/validation/{case}.nii.gz"} for case in FOLDS["0"]]
    for name in (MODEL, OTHER):  # both alike, so that they agree in their cases
        (of(folder, name) / "validation" / "summary.json").write_text(json.dumps({"metric_per_case": cases}))
        (of(folder, name) / "validation" / "b.nii.gz").unlink()


def _untrained(folder: Path) -> None:
    for fold in FOLDS:
        shutil.rmtree(of(folder, fold=fold))


def _twice(folder: Path) -> None:
    shutil.copy(of(folder) / "validation" / "a.nii.gz", of(folder, fold="1") / "validation")


def _others(folder: Path) -> None:
    (of(folder, OTHER) / "validation" / "a.nii.gz").unlink()


def _older(folder: Path) -> None:
    os.utime(of(folder) / "checkpoint_final.pth", (4e9, 4e9))


def _no_references(folder: Path) -> None:
    shutil.rmtree(folder / "preprocessed" / DATASET / "gt_segmentations")


def _lost_reference(folder: Path) -> None:
    (folder / "preprocessed" / DATASET / "gt_segmentations" / "a.nii.gz").unlink()


def _means_something_else(folder: Path) -> None:
    turned = {"background": 0, "left": 2, "right": 1}
    (of(folder, OTHER).parent / "dataset.json").write_text(json.dumps({**DESCRIPTION, "labels": turned}))


VALIDATE = f"nnUNetv2_train {DATASET} 3d_fullres 0 -tr MNetTrainer -p MNetPlans --val"


@pytest.mark.parametrize(
    ("spoil", "flags", "told"),
    [
        (_no_validation, [], VALIDATE),
        (_unfinished_validation, [], VALIDATE),
        (_lost_predictions, [], VALIDATE),
        (_lost_predictions, [], "fold_0/validation lacks 1 prediction (b.nii.gz) that its summary.json tells of"),
        (_untrained, [], "no checkpoint_final.pth in any fold"),
        (None, ["-f", "0", "0", "00", "3"], f"nnUNetv2_train {DATASET} 3d_fullres 3 -tr MNetTrainer -p MNetPlans"),
        (None, ["-m", "PaRTrainer:PaRPlans:3d_fullres"], "no trained model PaRTrainer:PaRPlans:3d_fullres"),
        (None, ["-m", "PaRTrainer"], "the model 'PaRTrainer'"),
        (None, ["-d", "902"], "no data set 902"),
        (_twice, [], "1 case (a) in the validation of several folds"),
        (_others, [], "1 case (a) that only one of"),
        (_older, [], VALIDATE),
        (_no_references, [], "gt_segmentations; expected the references"),
        (_lost_reference, [], "no file"),
        (_means_something_else, [], "'left' = 1 in"),
    ],
)
def test_bad_models(
    models: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None] | None, flags: list[str], told: str
) -> None:
    if spoil is not None:
        spoil(models)
    assert of_models(models, *flags) == 2
    assert told in (err := capsys.readouterr().err), err
    assert not (models / "out").exists()
