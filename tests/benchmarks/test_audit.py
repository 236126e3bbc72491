"""What is planted in labels, and the figures of an audit from tables by hand."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks._planted import KINDS, Truth, dilated, plant, read_truth
from benchmarks.audit import Data, Figures, auroc, data_of, main, main_axis, read_figures, row_of, verdicts, write_block
from nnunetv2_ext.data.raw import examine
from nnunetv2_ext.data.volumes import read_volume
from tests.data.raw_dataset import RawDataset

LABELS = np.zeros((15, 17, 18), np.uint8)
LABELS[4:10, 5:11, 5:12] = 1
LABELS[4:10, 5:11, 12:14] = 2
OTHER = np.ones((12, 20, 18), np.uint8)


def planted(kind: str, seed: int = 0) -> np.ndarray:
    return KINDS[kind](LABELS, OTHER, np.random.default_rng(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_errors_leave_the_grid_and_change_the_labels(kind: str) -> None:
    before = LABELS.copy()
    for seed in range(6):
        found = planted(kind, seed)
        assert found.shape == LABELS.shape and found.dtype == LABELS.dtype
        assert (found != LABELS).any() and found.any() and found.max() <= 2
    assert np.array_equal(LABELS, before)


def test_what_each_error_is() -> None:
    shifts = {
        tuple(np.subtract(np.argwhere(planted("shift by 4 voxels", seed)).min(0), (4, 5, 5))) for seed in range(20)
    }
    assert len(shifts) == 6 and {tuple(np.sort(np.abs(shift))) for shift in shifts} == {(0, 0, 4)}
    assert np.count_nonzero(planted("half of the label")) in (144, 162, 180)
    laid = planted("another case's label")
    assert laid.sum() == 12 * 17 * 18 and not laid[0].any() and not laid[-1].any()
    assert (
        np.count_nonzero(planted("every 2nd slice")) == LABELS[::2].astype(bool).sum() == np.count_nonzero(LABELS) / 2
    )
    assert (
        np.argwhere(planted("eroded twice")).tolist() == np.add(np.argwhere(LABELS[6:8, 7:9, 7:12]), (6, 7, 7)).tolist()
    )


def test_a_dilated_label_is_one_voxel_thicker() -> None:
    thick = dilated(LABELS)
    assert thick.dtype == LABELS.dtype and (thick[LABELS > 0] == LABELS[LABELS > 0]).all()
    assert thick[3, 8, 8] == 1 and thick[7, 8, 14] == 2 and thick[2, 8, 8] == 0 and thick[3, 4, 8] == 0


def test_a_data_set_with_errors(tmp_path: Path) -> None:
    source = RawDataset(tmp_path)
    before = {path: path.read_bytes() for path in source.folder.rglob("*.nii.gz")}
    folder, truth = tmp_path / "Dataset701_Planted0", tmp_path / "truth.json"
    told = plant(source.folder, folder, truth, cases=4, seed=1, wrong=2, share_dilated=0.25)
    assert read_truth(truth) == told and not truth.is_relative_to(folder)
    assert len(told.cases) == 4 and len(told.unseen) == 1 and len(told.dilated) == 1
    assert list(told.wrong.values()) == list(KINDS)[:2]
    assert not {*told.wrong} & {*told.dilated} and {*told.wrong, *told.dilated} < {*told.cases}
    assert not examine(folder).faults
    for case in told.cases:
        own, its = (read_volume(of / "labelsTr" / f"{case}.nii.gz") for of in (folder, source.folder))
        assert (own == its).all() == (case not in {*told.wrong, *told.dilated})
        image = f"imagesTr/{case}_0000.nii.gz"
        assert (folder / image).read_bytes() == before[source.path(image)]
    assert {path: path.read_bytes() for path in source.folder.rglob("*.nii.gz")} == before
    with pytest.raises(ValueError, match="5 whole cases"):
        plant(source.folder, folder, truth, cases=6, seed=1)
    assert plant(source.folder, folder, truth, cases=4, seed=1, wrong=2, share_dilated=0.25) == told


CASES = [f"case_{number:02d}" for number in range(20)]


def figures(order: Mapping[str, float], wrong: set[str], size: Mapping[str, float] | None = None) -> Figures:
    return Figures(
        {**dict.fromkeys(CASES, 0.0), **order}, dict(size or dict.fromkeys(CASES, 0.0)), {}, wrong, {"case_02"}
    )


def test_a_row_tells_what_was_found() -> None:
    truths = {
        "planted": Truth(CASES, {"case_00": "flip", "case_01": "eroded twice"}, [], []),
        "clean": Truth(CASES, {}, [], []),
        "dilated": Truth(CASES, {}, CASES[:5], []),
    }
    found = {
        "planted": figures({"case_00": 5.0, "case_07": 4.0, "case_01": -1.0}, {"case_00", "case_07"}),
        "clean": figures({}, {"case_04"}),
        "dilated": figures({}, {"case_01", "case_19"}, {case: -float(number) for number, case in enumerate(CASES)}),
    }
    row = row_of(truths, found)
    assert row["AUROC"] == pytest.approx(0.5) and row["hits"] == 1
    assert (row["wrong, clean"], row["wrong, dilated"], row["other style, dilated"]) == (0.05, 0.2, 0.2)
    assert row["AUROC of size"] == 1 and "AUROC of the main axis" not in row
    assert row["listed, right and in vain"] == "1, 1" and row["not listed"] == "eroded twice"
    told = verdicts([{"seed": 3, "from": "validation", **row}]).splitlines()[2:]
    assert [line.split("|")[-2].strip() for line in told] == ["no", "no", "no", "yes", "no"]
    mapped = found["dilated"]._replace(axis=found["dilated"].size)
    by_map = row_of(truths, {**found, "dilated": mapped})
    assert by_map["AUROC of the main axis"] == 1 and "AUROC of size" not in by_map


def test_an_axis_has_no_sign() -> None:
    values = {"a": 3.0, "b": 2.0, "c": 1.0}
    assert auroc(values, ["c"]) == 0 and auroc(values, ["c"], two_sided=True) == 1


def test_the_axis_of_most_variance() -> None:
    latents = np.array([[0.0, 0.0], [1.0, 10.0], [2.0, 20.0], [1.1, 9.9]])
    places = main_axis(list("abcd"), latents)
    ordered = sorted(places, key=lambda case: places[case])
    assert ordered in (["a", "d", "b", "c"], ["c", "b", "d", "a"])


@pytest.mark.parametrize("mapped", [False, True])
def test_figures_come_from_the_table_of_an_audit(mapped: bool, tmp_path: Path) -> None:
    rows = [
        {
            "case": f"{number:03d}",
            "label": label,
            "listed_as": "probably wrong" if number == 7 else "other style" if number == 8 else "",
            "disagreement": 0.9 if number == 7 else 0.1 + 0.01 * number,
            "rank": 0.5,
            "voxels": 10,
            "predicted_voxels": 12,
            "volume_ml": 1.0,
            "size": float(number) if label == "one" else math.nan,
        }
        | ({"latent_1": float(number), "latent_2": 0.0} if mapped else {})
        for number in range(12)
        for label in ("one", "two")
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "audit.csv", index=False)
    found = read_figures(tmp_path)
    assert max(found.order, key=lambda case: found.order[case]) == "007" and len(found.order) == 12
    assert found.wrong == {"007"} and found.size["011"] == 11
    assert len(found.axis) == (12 if mapped else 0)


def test_names_and_numbers_of_data_sets() -> None:
    assert [one.name for one in data_of(2)] == ["Dataset721_Planted2", "Dataset722_Clean2", "Dataset723_Dilated2"]
    assert Data(701, "planted", 0) == data_of(0)[0]


def test_a_block_goes_into_the_plans(tmp_path: Path) -> None:
    plans = tmp_path / "Plans.json"
    planned = {"training": {"epochs": 1000, "loss": {}}, "architecture": {"arch_kwargs": {"merge": "difference"}}}
    plans.write_text(json.dumps({"configurations": {"3d_fullres": planned}}))
    write_block(plans, {"epochs": 5})
    write_block(plans, {}, {"features_per_stage": [8]})
    written = json.loads(plans.read_text())["configurations"]["3d_fullres"]
    assert written["training"] == {"epochs": 5, "loss": {}}
    assert written["architecture"]["arch_kwargs"] == {"merge": "difference", "features_per_stage": [8]}


@pytest.mark.parametrize(
    ("flags", "told"), [("--epochs 0", "a number below 1"), ("--cases 3 --wrong 4", "expected 3 or more")]
)
def test_bad_input(flags: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = RawDataset(tmp_path)
    assert main(["--source", str(source.folder), "--folder", str(tmp_path / "out"), *flags.split()]) == 2
    assert told in capsys.readouterr().err
