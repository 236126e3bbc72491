"""Summaries of thin predictions: averaged to slabs and against a thin truth, on label maps worked out by hand."""

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_ext.data.sidecar import Sidecar
from nnunetv2_ext.evaluation.slabs import SLAB_SUMMARY, THIN_SUMMARY, SlabReader, summarize_slabs, summarize_thin
from nnunetv2_ext.geometry.slabs import CaseSlabs, slice_edges

COMMON: dict[str, Any] = {
    "reader": SimpleITKIO(),
    "file_ending": ".nii.gz",
    "labels": [*np.array([1, 2])],  # numpy's numbers, as nnU-Net's label manager has them
    "ignore_label": np.int64(3),
}
# slices of slabs: two each, from the second slice on; the last slab sticks out by one slice
SLABS = slice_edges(4, 2.0, origin=1.0)
# along the slices; the annotation is laid, alike within a slab, 3: in no slab
LAID = [3, 1, 1, 2, 2, 0, 0, 1]
PREDICTED = [2, 0, 1, 2, 2, 0, 1, 1]
# by majority, ties to the slice at the centre, the later one: [1, 2, 1] against [1, 2, 0]
SLAB_DICE = {"1": 2 / 3, "2": 1.0}


def write(folder: Path, name: str, labels: list[int], *, axis: int) -> None:
    folder.mkdir(exist_ok=True)
    shape = [2, 2, 2]
    shape[axis] = len(labels)
    volume = np.broadcast_to(np.array(labels, np.uint8).reshape([-1 if k == axis else 1 for k in range(3)]), shape)
    nibabel.save(nibabel.Nifti1Image(volume.T.copy(), np.eye(4)), folder / f"{name}.nii.gz")


@pytest.fixture(params=[0, 1, 2])
def axis(request: pytest.FixtureRequest) -> int:
    return request.param


def sidecar(axis: int) -> Sidecar:
    return Sidecar("Dataset042_Liver", axis, {"a": CaseSlabs(1.0, 8, SLABS)})


def test_whole_slabs_are_read(tmp_path: Path, axis: int) -> None:
    write(tmp_path / "truth", "a", LAID, axis=axis)
    write(tmp_path / "predicted", "a", PREDICTED, axis=axis)
    reader = SlabReader(SimpleITKIO(), sidecar(axis), tmp_path / "truth", ".nii.gz")
    for folder, expected in (("truth", [1, 2, 0]), ("predicted", [1, 2, 1])):
        labels, properties = reader.read_seg(str(tmp_path / folder / "a.nii.gz"))
        assert "spacing" in properties
        assert np.moveaxis(labels[0], axis, 0)[:, 0, 0].tolist() == expected
        assert labels[0].size == 3 * 4


def test_predictions_averaged_to_slabs(tmp_path: Path, axis: int) -> None:
    write(tmp_path / "truth", "a", LAID, axis=axis)
    write(tmp_path / "predicted", "a", PREDICTED, axis=axis)
    mean = summarize_slabs(tmp_path / "truth", tmp_path / "predicted", sidecar(axis), **COMMON)
    summary = json.loads((tmp_path / "predicted" / SLAB_SUMMARY).read_text())
    assert mean == pytest.approx(np.mean(list(SLAB_DICE.values())))
    assert {label: summary["mean"][label]["Dice"] for label in ("1", "2")} == pytest.approx(SLAB_DICE)
    (case,) = summary["metric_per_case"]
    assert case["prediction_file"].endswith("predicted/a.nii.gz")
    assert case["metrics"]["1"]["n_ref"] == 4


def test_predictions_against_a_thin_truth(tmp_path: Path) -> None:
    write(tmp_path / "thin", "a", [0, 1, 1, 2, 2, 0, 0, 1], axis=0)
    write(tmp_path / "thin", "b", [1] * 8, axis=0)  # not predicted
    write(tmp_path / "predicted", "a", PREDICTED, axis=0)
    write(tmp_path / "predicted", "c", PREDICTED, axis=0)  # no truth
    assert summarize_thin(tmp_path / "thin", tmp_path / "predicted", **COMMON) == (
        pytest.approx((2 / 3 + 4 / 5) / 2),
        1,
    )
    summary = json.loads((tmp_path / "predicted" / THIN_SUMMARY).read_text())
    (case,) = summary["metric_per_case"]
    assert case["prediction_file"] == str(tmp_path / "predicted" / "a.nii.gz")
    assert summary["mean"]["1"]["Dice"] == pytest.approx(4 / 6)
    assert summary["mean"]["2"]["Dice"] == pytest.approx(4 / 5)


def test_without_any_thin_truth_there_is_no_summary(tmp_path: Path) -> None:
    (tmp_path / "thin").mkdir()
    write(tmp_path / "predicted", "a", PREDICTED, axis=0)
    assert summarize_thin(tmp_path / "thin", tmp_path / "predicted", **COMMON) is None
    assert not (tmp_path / "predicted" / THIN_SUMMARY).exists()
