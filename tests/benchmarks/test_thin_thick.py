"""Which trainings are made, what the table says of made-up scores, refusals, and steps that are really timed."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from benchmarks import _slab_steps, thin_thick
from benchmarks.thin_thick import LAID, THICK, THIN_THICK, TRUTH, Run
from nnunetv2_ext.data.sidecar import read_sidecar
from nnunetv2_ext.errors import InputError
from tests.benchmarks.test_accuracy import write_summary


def arguments(output: Path, **changes: Any) -> argparse.Namespace:
    given = {
        "networks": ["PlainConvUNet"],
        "ways": [TRUTH, THICK, LAID, THIN_THICK],
        "factors": [4, 8],
        "random_start": False,
        "folds": [0, 1],
        "output": output,
        "epochs": 2,
        "iterations": 3,
        "batch_size": 2,
        "width": 4,
        "adamw": None,
        "patch_size": None,
        "resume": False,
        "device": "cpu",
        "steps": 0,
        "json": None,
    }
    return argparse.Namespace(**{**given, **changes})


def test_the_truth_is_learned_once_for_all_factors(tmp_path: Path) -> None:
    runs = thin_thick.plan_runs(arguments(tmp_path))
    assert len(runs) == len(set(runs)) == 2 * (1 + 2 * 3)
    assert {run.dataset for run in runs if run.factor == 8} == {82, 83}
    assert {(run.way, run.method) for run in runs} == {
        (TRUTH, "Backbone"),
        (THICK, "Backbone"),
        (LAID, "Backbone"),
        (THIN_THICK, "ThinThick"),
    }
    assert Run("ConvFreeTransformer", LAID, 4, 0).method == "ConvFree"
    begun = thin_thick.plan_runs(arguments(tmp_path, random_start=True))
    assert {run.dataset for run in begun} == {1, 44, 45, 84, 85}
    assert {run for run in begun if run.way == TRUTH} == {run for run in runs if run.way == TRUTH}


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """Scores and records of finished trainings with one factor, as if by themselves."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    for name in ("Dataset001_Thin", "Dataset042_Thick", "Dataset043_ThinThick"):
        (tmp_path / "nnUNet_raw" / name).mkdir(parents=True)
    args = arguments(tmp_path, factors=[4], folds=[0, 1])
    scores = {TRUTH: 0.9, THICK: 0.6, LAID: 0.7, THIN_THICK: 0.8}
    for run in thin_thick.plan_runs(args):
        folder = run.folder(tmp_path)
        base = scores[run.way]
        write_summary(folder / "thin" / "summary.json", {f"case{run.fold}": {"1": base, "2": base + 0.02 * run.fold}})
        record = {"budget": thin_thick.budget(args), "width": 4, "seconds": 10.0 + run.fold}
        (folder / "benchmark.json").write_text(json.dumps(record))
    return args


def test_the_table(finished: argparse.Namespace) -> None:
    rows = thin_thick.compare(finished, thin_thick.plan_runs(finished))
    by_way = {row["way"]: row for row in rows}
    assert by_way[THIN_THICK]["mean_dice"] == pytest.approx(0.805)
    assert by_way[THIN_THICK]["mean_dice_per_fold"] == pytest.approx({0: 0.8, 1: 0.81})
    assert by_way[THIN_THICK]["difference"]["mean"] == pytest.approx(0.1)
    assert by_way[THIN_THICK]["closed"] == pytest.approx(0.5)
    assert by_way[THICK]["closed"] == pytest.approx(-0.5)
    assert by_way[LAID]["difference"] is None and by_way[TRUTH]["closed"] is None
    line = thin_thick.table(rows).splitlines()[-1]
    assert line.startswith("| thin_thick")
    assert "+10.00 [+10.00, +10.00]" in line and "50 %" in line and "10 11" in line


@pytest.mark.parametrize(
    ("changes", "message"),
    [({}, "a finished training in .*add --resume"), ({"resume": True, "epochs": 9}, "'epochs': 2.*'epochs': 9")],
)
def test_finished_trainings_are_not_overwritten(
    finished: argparse.Namespace, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(thin_thick, "plan", lambda run, args: None)
    args = argparse.Namespace(**{**vars(finished), **changes})
    with pytest.raises(InputError, match=message):
        thin_thick.learn_all(args, thin_thick.plan_runs(args))
    held = argparse.Namespace(**{**vars(finished), "resume": True})
    thin_thick.learn_all(held, thin_thick.plan_runs(held))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--factors", "1"], "--factors 1; expected slices per slab from 2"),
        (["--epochs", "0"], "--epochs 0; expected a positive number"),
        (["--json", "nowhere/there.json"], "--json nowhere/there.json"),
    ],
)
def test_refused(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert thin_thick.main(["-d", "4", *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def boxes(nnunet_folders: Path) -> Path:
    """A thin data set of six boxes in noise."""
    raw = nnunet_folders / "nnUNet_raw" / "Dataset904_Boxes"
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(6):
        labels = np.zeros((32, 32, 24), np.uint8)
        labels[8:20, 6 + number : 18 + number, 4:19] = 1
        image = labels * 3 + random.normal(size=labels.shape)
        for name, array in (
            (f"imagesTr/case{number}_0000", image.astype(np.float32)),
            (f"labelsTr/case{number}", labels),
        ):
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), raw / f"{name}.nii.gz")
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "box": 1},
        "numTraining": 6,
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(description))
    return nnunet_folders


def test_slabs_begin_at_random_slices(boxes: Path) -> None:
    thin_thick.prepare(arguments(boxes / "out", dataset="904", factors=[4], random_start=True))
    raw = boxes / "out" / "nnUNet_raw"
    assert sorted(path.name for path in raw.iterdir()) == [
        "Dataset001_Thin",
        "Dataset044_Thick",
        "Dataset045_ThinThick",
    ]
    cases = read_sidecar(raw / "Dataset045_ThinThick", "Dataset045_ThinThick").cases.values()
    starts = {float(case.slabs[0, 0]) for case in cases}
    assert len(starts) > 1 and starts <= {0.0, 1.0, 2.0, 3.0}
    assert {len(case.slabs) for case in cases} <= {5, 6}


@pytest.mark.pipeline
@pytest.mark.usefixtures("light")
def test_a_whole_benchmark_and_its_steps(
    boxes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("nnUNet_extTrainer", os.environ.get("nnUNet_extTrainer", ""))
    command = ["-d", "904", "--factors", "4", "--epochs", "1", "--iterations", "2", "--width", "4"]
    command += ["--output", str(boxes / "out"), "--adamw", "1e-3"]
    assert thin_thick.main([*command, "--ways", LAID, THIN_THICK, "--json", str(boxes / "out.json")]) == 0
    rows = json.loads((boxes / "out.json").read_text())["rows"]
    assert [row["way"] for row in rows] == [LAID, THIN_THICK]
    assert all(np.isfinite(row["mean_dice"]) and row["cases"] == 2 for row in rows)
    assert "| thin_thick | PlainConvUNet |" in capsys.readouterr().out

    monkeypatch.setenv("nnUNet_raw", str(boxes / "nnUNet_raw"))
    seconds = {LAID: [1.0, 1.0], THIN_THICK: [1.5, 1.5], "thin_grid": [3.0, 3.0]}
    measured = _slab_steps.interleave
    monkeypatch.setattr(
        _slab_steps, "interleave", lambda runs, steps: {way: seconds[way] for way in measured(runs, steps)}
    )
    assert thin_thick.main([*command, "--random-start", "--steps", "2", "--json", str(boxes / "steps.json")]) == 0
    timed = json.loads((boxes / "steps.json").read_text())["rows"]
    assert [(row["way"], row["thin_slices"]) for row in timed] == [(THIN_THICK, 24), ("thin_grid", 24)]
    assert [row["thick_slices"] for row in timed] == [8, 24]
    assert [row["ratio"]["median"] for row in timed] == [1.5, 3.0]
