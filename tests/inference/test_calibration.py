"""The margin of an ROI model: by hand on small cases, and against growing the boxes until they hold all."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunetv2_ext.cli import main
from nnunetv2_ext.geometry.boxes import component_boxes, margin_in_voxels
from nnunetv2_ext.inference.calibration import margins_needed
from nnunetv2_ext.inference.region import margin_of

DATASET, MODEL = "Dataset907_Organs", "BackboneTrainer__ROIPlans__3d_roi"
SPACING = (5.0, 1.0, 2.0)
ORGANS = {"a": [1], "b": [2]}


def painted(*boxes: tuple[int, tuple[int, ...], tuple[int, ...]], shape: tuple[int, ...] = (8, 20, 20)) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    for value, low, high in boxes:
        labels[tuple(map(slice, low, high))] = value
    return labels


@pytest.mark.parametrize(
    ("predicted", "truth", "expected", "recall"),
    [
        # equal, and a prediction that is too large
        ([(1, (2, 4, 4), (4, 8, 8))], [(1, (2, 4, 4), (4, 8, 8))], {"a": 0}, 1),
        ([(1, (1, 2, 2), (5, 9, 9))], [(1, (2, 4, 4), (4, 8, 8))], {"a": 0}, 1),
        # one slice of 5 mm, three rows of 1 mm, two columns of 2 mm
        ([(1, (2, 4, 4), (4, 8, 8))], [(1, (2, 4, 4), (5, 8, 8))], {"a": 5}, 2 / 3),
        ([(1, (2, 4, 4), (4, 8, 8))], [(1, (2, 1, 4), (4, 8, 8))], {"a": 3}, 4 / 7),
        ([(1, (2, 4, 4), (4, 8, 8))], [(1, (2, 4, 4), (4, 8, 10))], {"a": 4}, 4 / 6),
        # a corner: the largest of the three
        ([(1, (2, 4, 4), (4, 8, 8))], [(1, (2, 4, 4), (4, 8, 8)), (1, (4, 8, 8), (5, 16, 9))], {"a": 8}, 32 / 40),
        # the wrong label marks the place all the same; each label has its own need
        ([(2, (2, 4, 4), (4, 8, 8))], [(1, (2, 4, 4), (4, 8, 8)), (2, (2, 8, 4), (4, 9, 8))], {"a": 0, "b": 1}, 0.8),
        # the nearest of two boxes
        (
            [(1, (2, 2, 2), (4, 4, 4)), (1, (2, 14, 2), (4, 16, 4))],
            [(1, (2, 2, 2), (4, 4, 4)), (1, (2, 11, 2), (4, 16, 4))],
            {"a": 3},
            16 / 28,
        ),
        # nothing predicted, nothing there
        ([], [(1, (2, 4, 4), (4, 8, 8))], {"a": np.inf}, 0),
        ([(1, (2, 4, 4), (4, 8, 8))], [], {}, 1),
        # what is ignored needs no box
        ([(1, (2, 4, 4), (4, 8, 8))], [(1, (2, 4, 4), (4, 8, 8)), (3, (6, 0, 0), (8, 20, 20))], {"a": 0}, 1),
    ],
)
def test_margins_by_hand(predicted, truth, expected, recall):
    by_label, share = margins_needed(painted(*predicted), painted(*truth), SPACING, ORGANS)
    assert by_label == expected
    assert share == pytest.approx(recall, abs=1e-2)


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_the_margin_is_the_smallest_that_holds_all(seed):
    random = np.random.default_rng(seed)
    shape = (6, 15, 12)
    predicted, truth = ((random.random(shape) < share).astype(np.uint8) for share in (0.003, 0.01))
    spacing = random.uniform(0.5, 5, 3).tolist()
    if not predicted.any() or not truth.any():
        return
    by_label, _ = margins_needed(predicted, truth, spacing, {"a": [1]})

    def holds(margin: float) -> bool:
        held = np.zeros(shape, bool)
        for box in component_boxes(predicted > 0):
            grown = box.grown(margin_in_voxels(margin, spacing)).clipped(shape)
            assert grown is not None
            held[grown.slices] = True
        return bool(held[truth > 0].all())

    assert holds(by_label["a"])
    if by_label["a"] > max(spacing):
        assert not holds(by_label["a"] - max(spacing))


class Validated:
    """A model folder with validated folds, and the references of their cases."""

    def __init__(self, root: Path):
        self.model = root / "nnUNet_results" / DATASET / MODEL
        self.references = root / "nnUNet_preprocessed" / DATASET / "gt_segmentations"
        self.references.mkdir(parents=True)
        plans = {
            "image_reader_writer": "SimpleITKIO",
            "configurations": {"3d_roi": {"spacing": [6.0, 4.0, 4.0], "architecture": {}, "batch_size": 2}},
        }
        self.model.mkdir(parents=True)
        (self.model / "plans.json").write_text(json.dumps(plans))
        description = {"labels": {"background": 0, "a": 1, "b": 2, "ignore": 3}, "file_ending": ".nii.gz"}
        (self.model / "dataset.json").write_text(json.dumps(description))

    def write(self, path: Path, labels: np.ndarray, spacing: tuple[float, ...] = SPACING) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(labels.T, np.diag([*spacing[::-1], 1.0])), path)

    def add(self, number: int, rows: int, *, fold: int | None = None, missed: bool = False) -> None:
        """A case whose prediction lacks so many rows of 1 mm of the organ's, or lies elsewhere."""
        fold = number % 2 if fold is None else fold
        truth = painted((1, (2, 6, 4), (5, 16, 9)))
        predicted = painted((1, (6, 1, 12), (8, 3, 14))) if missed else painted((1, (2, 6 + rows, 4), (5, 16, 9)))
        self.write(self.validation(fold) / f"case_{number}.nii.gz", predicted)
        self.write(self.references / f"case_{number}.nii.gz", truth)
        (self.validation(fold) / "summary.json").write_text("{}")

    def validation(self, fold: int) -> Path:
        return self.model / f"fold_{fold}" / "validation"

    def plans(self) -> dict[str, Any]:
        return json.loads((self.model / "plans.json").read_text())


@pytest.fixture
def validated(nnunet_folders: Path) -> Validated:
    return Validated(nnunet_folders)


def calibrate(*more: str) -> int:
    return main(["calibrate_roi", "-d", "907", "-m", MODEL.replace("__", ":"), "-f", "0", "1", "-np", "2", *more])


def test_the_margin_of_ten_cases(validated, capsys):
    rows = [0, 1, 0, 2, 3, 0, 1, 4, 2, 0]
    for number, lacking in enumerate(rows):
        validated.add(number, lacking)
    before = validated.plans()
    assert calibrate() == 0
    # the largest need is 4 mm, the longest side of a voxel of the model 6 mm
    roi = {"margin_mm": 10.0, "cases": 10, "misses": 0, "recall": pytest.approx(1 - sum(rows) / 100)}
    after = validated.plans()
    assert after["configurations"]["3d_roi"].pop("roi") == roi
    assert after == before
    assert margin_of(validated.plans(), "3d_roi") == 10
    told = capsys.readouterr().out
    lines = {line.split("|")[1].strip(): line for line in told.splitlines() if line.startswith("| case_")}
    assert len(lines) == 10
    assert [cell.strip() for cell in lines["case_7"].split("|")] == ["", "case_7", "1", "0.6000", "4", ""]
    assert "a further case like these 10 needs more with a probability of at most 1 / 11" in told
    assert "warning: 10 cases are few" in told


@pytest.mark.parametrize(("misses", "status"), [(1, 0), (2, 1)])
def test_missed_cases(validated, capsys, misses, status):
    for number in range(21):
        validated.add(number, 2, missed=number < misses)
    before = (validated.model / "plans.json").read_bytes()
    assert calibrate() == status
    told = capsys.readouterr().out
    if status:
        assert (validated.model / "plans.json").read_bytes() == before
        assert "2 of 21 cases are missed, more than 5 %" in told
        assert "missed, and left out: 2 cases (case_0, case_1)" in told
        return
    assert "missed, and left out: 1 case (case_0)" in told
    assert "at most 1 / 21" in told  # twenty are left
    roi = validated.plans()["configurations"]["3d_roi"]["roi"]
    assert (roi["margin_mm"], roi["cases"], roi["misses"]) == (8.0, 21, 1)
    assert calibrate("--strict") == 2
    assert "the case case_0 of fold 0, of whose foreground the boxes hold 0.0%" in capsys.readouterr().err


def _unfinished(validated: Validated) -> None:
    (validated.validation(1) / "summary.json").unlink()


def _lost(validated: Validated) -> None:
    lost = {"metric_per_case": [{"prediction_file": "fold_1/validation/case_11.nii.gz"}]}
    (validated.validation(1) / "summary.json").write_text(json.dumps(lost))
    (validated.model / "fold_1" / "checkpoint_final.pth").touch()


def _untrained(validated: Validated) -> None:
    (validated.validation(1) / "summary.json").unlink()
    (validated.model / "fold_1" / "checkpoint_final.pth").touch()


def _twice(validated: Validated) -> None:
    validated.add(0, 0, fold=1)


def _few(validated: Validated) -> None:
    for number in (3, 4):
        (validated.validation(number % 2) / f"case_{number}.nii.gz").unlink()


def _other_shape(validated: Validated) -> None:
    validated.write(validated.references / "case_3.nii.gz", painted(shape=(9, 20, 20)))


def _other_spacing(validated: Validated) -> None:
    validated.write(validated.references / "case_3.nii.gz", painted(), (4.0, 1.0, 2.0))


def _no_reference(validated: Validated) -> None:
    (validated.references / "case_3.nii.gz").unlink()


def _damaged(validated: Validated) -> None:
    (validated.validation(1) / "case_3.nii.gz").write_bytes(b"no volume")


TRAIN = f"nnUNetv2_train {DATASET} 3d_roi 1 -tr BackboneTrainer -p ROIPlans"


@pytest.mark.parametrize(
    ("change", "flags", "message"),
    [
        (_unfinished, [], f"no finished validation in 1 fold (fold_1) of .*run\n  {TRAIN}\nand"),
        (_lost, [], f"no finished validation in 1 fold (fold_1) of .*run\n  {TRAIN} --val\nand"),
        (_untrained, [], f"run\n  {TRAIN} --val\nand"),
        (_twice, [], r"1 case (case_0) in the validation of several folds"),
        (_few, [], "9 validated cases in folds 0 1; expected 10 or more, best 50"),
        (_other_shape, [], f"the case case_3 of 8, 20, 20 voxels of 5, 1, 2 mm in .*9, 20, 20.*{TRAIN} --val"),
        (_other_spacing, [], "the case case_3 of .*voxels of 4, 1, 2 mm"),
        (_no_reference, [], "no file .*gt_segmentations/case_3.nii.gz"),
        (_damaged, [], "an unreadable file .*fold_1/validation/case_3.nii.gz"),
        (None, ["-f", "all"], "-f all, whose validation cases were trained on"),
        (None, ["-f", "one"], "-f one; expected numbers of folds"),
        (None, ["-m", "BackboneTrainer:ROIPlans"], "the model 'BackboneTrainer:ROIPlans'"),
        (None, ["-m", "BackboneTrainer:ROIPlans:3d_fullres"], "no trained model .*BackboneTrainer:ROIPlans:3d_roi"),
        (None, ["-np", "0"], "-np 0"),
    ],
)
def test_refused(
    validated: Validated, capsys: pytest.CaptureFixture[str], change: Callable[[Validated], None], flags, message
) -> None:
    for number in range(11):
        validated.add(number, 1)
    if change is not None:
        change(validated)
    before = (validated.model / "plans.json").read_bytes()
    assert calibrate(*flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("nnunetv2_ext calibrate_roi: got ")
    assert re.search(message.replace("(fold_1)", r"\(fold_1\)").replace("(case_0)", r"\(case_0\)"), error, re.DOTALL)
    assert (validated.model / "plans.json").read_bytes() == before


def test_a_full_disk_leaves_the_plans(validated, capsys, monkeypatch):
    for number in range(11):
        validated.add(number, 1)
    before = (validated.model / "plans.json").read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nnunetv2_ext.files.os.fsync", full)
    assert calibrate() == 2
    assert "No space left on device" in capsys.readouterr().err
    assert (validated.model / "plans.json").read_bytes() == before
    assert list(validated.model.glob("*.part")) == []
