"""A folder of predictions: what a stopped evaluation keeps, what is measured anew, and what nnU-Net makes of it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from filelock import FileLock
from nnunetv2.evaluation.evaluate_predictions import compute_metrics, load_summary_json
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_ext.data.sidecar import Sidecar
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation import folder as module
from nnunetv2_ext.evaluation.folder import Evaluation, Predicted, evaluate, files_in
from nnunetv2_ext.evaluation.journal import FILE
from nnunetv2_ext.evaluation.metrics import METRICS, Settings
from nnunetv2_ext.evaluation.scores import read_scores
from nnunetv2_ext.evaluation.segmentations import Labels
from nnunetv2_ext.evaluation.summary import read_summaries
from nnunetv2_ext.geometry.slabs import CaseSlabs, slice_edges

SHAPE = (5, 8, 9)
CASES = ("a", "b", "c", "d")
READER = SimpleITKIO()
LABELS = Labels({"one": 1, "both": (1, 2)}, ignore=3, known=frozenset(range(4)))


def write(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(labels.astype(np.uint8).T, np.diag([1.0, 1.0, 3.0, 1.0])), path)


@pytest.fixture
def of_two(tmp_path: Path) -> Evaluation:
    """Two models of noise."""
    random = np.random.default_rng(1)
    for case in CASES:
        write(tmp_path / "labels" / f"{case}.nii.gz", random.integers(0, 4, SHAPE))
        for model in ("x", "y"):
            write(tmp_path / model / f"{case}.nii.gz", random.integers(0, 3, SHAPE))
    models = [Predicted(model, files_in(tmp_path / model, ".nii.gz")) for model in ("x", "y")]
    return Evaluation(files_in(tmp_path / "labels", ".nii.gz"), models, LABELS)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cases that are measured, one entry for each time."""
    names: list[str] = []
    read = module.read_pair

    def noting(pair: Any, labels: Labels) -> Any:
        names.append(f"{pair.prediction.parent.name}/{pair.case}")
        return read(pair, labels)

    monkeypatch.setattr(module, "read_pair", noting)
    return names


def test_scores_are_those_of_nnunet(of_two: Evaluation, tmp_path: Path) -> None:
    scores = evaluate(of_two, tmp_path / "out", processes=3)
    assert read_scores(tmp_path / "out").lines == scores.lines
    assert scores.metrics == tuple(METRICS)
    for model in ("x", "y"):
        found = load_summary_json(str(tmp_path / "out" / model / "summary.json"))
        expected = [
            compute_metrics(*(str(tmp_path / n / f"{case}.nii.gz") for n in ("labels", model)), READER, [1, (1, 2)], 3)
            for case in CASES
        ]
        for ours, of_nnunet in zip(found["metric_per_case"], expected, strict=True):
            assert ours["prediction_file"] == of_nnunet["prediction_file"]
            for label, values in of_nnunet["metrics"].items():
                assert values.items() <= ours["metrics"][label].items()
        for key in ("Dice", "IoU", "TP", "FP", "FN", "TN", "n_pred", "n_ref"):
            means = {label: np.mean([case["metrics"][label][key] for case in expected]) for label in (1, (1, 2))}
            assert {label: found["mean"][label][key] for label in means} == pytest.approx(means)
            assert found["foreground_mean"][key] == pytest.approx(np.mean(list(means.values())))
        dice = {case: of_case["metrics"][1, 2]["Dice"] for case, of_case in zip(CASES, expected, strict=True)}
        assert scores.values(model, "both", "Dice") == dice


def test_a_stopped_evaluation_goes_on(of_two: Evaluation, tmp_path: Path, measured: list[str]) -> None:
    whole = tmp_path / "x" / "c.nii.gz"
    content = whole.read_bytes()
    whole.write_bytes(content[:-9])
    with pytest.raises(InputError, match="unreadable file"):
        evaluate(of_two, tmp_path / "out")
    assert sorted(measured) == [f"{model}/{case}" for model in ("x", "y") for case in CASES]
    assert {path.name for path in (tmp_path / "out").iterdir() if path.name[0] != "."} == {FILE}

    journal = tmp_path / "out" / FILE
    text = journal.read_text()
    journal.write_text(text[:-40])  # as a kill leaves it
    whole.write_bytes(content)
    write(tmp_path / "labels" / "b.nii.gz", np.ones(SHAPE))
    measured.clear()
    evaluate(of_two, tmp_path / "out")
    last = json.loads(text.splitlines()[-1])
    assert sorted(measured) == sorted({"x/c", "x/b", "y/b", f"{last['model']}/{last['case']}"})
    assert not journal.exists()
    scores = read_scores(tmp_path / "out")
    assert scores.values("x", "one", "reference volume")["b"] == pytest.approx(np.prod(SHAPE) * 3 / 1000)

    measured.clear()
    fresh = evaluate(of_two, tmp_path / "fresh")
    assert len(measured) == 8
    # NaN is not equal to itself, its text is
    assert str(fresh.lines) == str(scores.lines)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"version": "0.0.1"}, r"other version of nnunetv2_ext \(0\.0\.1; this is .*\); expected"),
        ({"slabs": "of old ones"}, "other slabs of the thick slices; expected"),
        ({"models": []}, "other models; expected"),
        ([], "other content; expected"),
    ],
)
def test_in_what_a_stopped_evaluation_differs(of_two: Evaluation, tmp_path: Path, line: Any, told: str) -> None:
    (tmp_path / "out").mkdir()
    about = {**module._about(of_two), **line} if line else line
    (tmp_path / "out" / FILE).write_text(json.dumps(about) + "\n")
    with pytest.raises(InputError, match=told):
        evaluate(of_two, tmp_path / "out")


def test_scores_beside_an_evaluation_that_has_not_ended_are_not_read(
    of_two: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are those of the earlier one, whose settings may be others."""
    evaluate(of_two, tmp_path / "out")
    other = dataclasses.replace(of_two, settings=Settings(tolerance=3))
    with monkeypatch.context() as patch:
        patch.setattr(module, "_measured", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            evaluate(other, tmp_path / "out", overwrite=True)
    for path in (tmp_path / "out", tmp_path / "out" / "metrics.csv"):
        with pytest.raises(InputError, match=r"has not ended .*run the same nnunetv2_ext evaluate again"):
            read_scores(path)
    evaluate(other, tmp_path / "out")
    assert {line.how for line in read_scores(tmp_path / "out").lines if line.metric == "NSD"} == {"tolerance 3 mm"}


def test_where_no_case_can_be_measured_nothing_stays(of_two: Evaluation, tmp_path: Path) -> None:
    wrong = dataclasses.replace(of_two, labels=Labels({"one": 1}, known=frozenset(range(2))))
    with pytest.raises(InputError, match="8 faulty cases"):
        evaluate(wrong, tmp_path / "out")
    assert not [path for path in (tmp_path / "out").iterdir() if path.name[0] != "."]
    evaluate(of_two, tmp_path / "out")


def test_a_kill_between_two_files_leaves_no_scores(
    of_two: Evaluation, tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(of_two, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_scores", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            evaluate(of_two, tmp_path / "out")
    assert not (tmp_path / "out" / "metrics.csv").exists()
    measured.clear()
    evaluate(of_two, tmp_path / "out")
    assert not measured
    assert read_summaries(tmp_path / "out").keys() == {"x", "y"}


def test_the_summaries_of_another_evaluation_below_stay(of_two: Evaluation, tmp_path: Path) -> None:
    evaluate(Evaluation(of_two.references, of_two.models[:1], LABELS), tmp_path / "out" / "first")
    evaluate(of_two, tmp_path / "out")
    assert read_summaries(tmp_path / "out").keys() == {"x", "y"}
    evaluate(of_two, tmp_path / "out", overwrite=True)
    assert read_summaries(tmp_path / "out" / "first").keys() == {"x"}


def test_summaries_of_nnunet_beside_predictions_in_the_output_stay(of_two: Evaluation, tmp_path: Path) -> None:
    models = [one._replace(model=f"model {one.model}") for one in of_two.models]
    for model in ("x", "y"):
        (tmp_path / model / "summary.json").write_text('{"metric_per_case": [], "mean": {}}')
    for _ in range(2):
        evaluate(dataclasses.replace(of_two, models=models), tmp_path)
        assert read_summaries(tmp_path).keys() == {"model x", "model y"}
    assert json.loads((tmp_path / "x" / "summary.json").read_text()) == {"metric_per_case": [], "mean": {}}


def test_slabs_of_a_thin_thick_data_set(tmp_path: Path) -> None:
    # slabs of two slices: by majority, ties to the later slice, 1 0 2 against 1 1 2
    for name, values in (("labels", [1, 1, 1, 1, 2, 2]), ("x", [1, 1, 2, 0, 1, 2])):
        write(tmp_path / name / "a.nii.gz", np.broadcast_to(np.reshape(values, (6, 1, 1)), (6, 4, 4)))
    labels = Labels({"one": 1, "two": 2}, known=frozenset(range(3)))
    sidecar = Sidecar("Dataset042_Liver", 0, {"a": CaseSlabs(3.0, 6, slice_edges(3, 6.0))})
    models = [Predicted("x", files_in(tmp_path / "x", ".nii.gz"))]
    scores = evaluate(
        Evaluation(files_in(tmp_path / "labels", ".nii.gz"), models, labels, sidecar=sidecar), tmp_path / "out"
    )
    assert scores.values("x", "one", "Dice of slabs") == {"a": pytest.approx(2 / 3)}
    assert scores.values("x", "one", "IoU of slabs") == {"a": 0.5}
    assert scores.values("x", "two", "Dice of slabs") == {"a": 1.0}
    assert scores.values("x", "one", "Dice") == {"a": pytest.approx(2 * 2 / (4 + 3))}
    (case,) = json.loads((tmp_path / "out" / "summary.json").read_text())["metric_per_case"]
    assert case["metrics"]["2"]["Dice of slabs"] == 1.0


def test_no_two_evaluations_in_one_folder_at_once(of_two: Evaluation, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".evaluate.lock"), pytest.raises(InputError, match="one at a time"):
        evaluate(of_two, tmp_path / "out")


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(InputError, match=r"cannot be read .Permission denied.*permissions"):
        files_in(tmp_path, ".nii.gz")


def test_a_full_disk(of_two: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.Journal, "add", full)
    with pytest.raises(InputError, match=r"writing .*out \(.*No space left"):
        evaluate(of_two, tmp_path / "out")
