"""`audit`: what it tells, the folds that it writes, what it refuses."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nnunetv2_ext.audit.result import Audit, Finding, LatentMap
from nnunetv2_ext.cli import main
from nnunetv2_ext.data.splits import default_splits
from nnunetv2_ext.files import write_json
from tests.audit.organs import CASES, DATASET, MODEL, PLANTED, write_validated

WRONG = CASES[3:6]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three wrong cases; findings and report, which are tested by themselves, are stand-ins."""

    def write_audit(audit: Audit, output: Path, *, pictures: int, viewer: int) -> list[str]:
        write_json(output / "run.json", {"settings": dict(audit.settings or {}), "shown": [pictures, viewer]})
        return ["The report lacks a picture."]

    def find_all(raw, labels, references, preprocessed, *, processes, progress) -> list[Finding]:
        assert raw is None or list(raw.cases) == list(references)
        assert list(references) == list(CASES)
        return [Finding(("organ_00",), "outside", "liver lies outside the body.")]

    monkeypatch.setitem(sys.modules, "nnunetv2_ext.audit.report", SimpleNamespace(write_audit=write_audit))
    monkeypatch.setitem(sys.modules, "nnunetv2_ext.audit.findings", SimpleNamespace(find_all=find_all))
    monkeypatch.chdir(tmp_path)
    return write_validated(tmp_path, monkeypatch, dict(zip(WRONG, PLANTED.values(), strict=False)))


def audit(*more: str) -> int:
    return main(["audit", "-d", "902", "-np", "2", "--disable_progress_bar", *more])


def before(data: Path) -> dict[Path, bytes]:
    files = [path for folder in ("raw", "preprocessed", "results") for path in (data / folder).rglob("*")]
    return {path: path.read_bytes() for path in files if path.is_file()}


def test_it_tells_what_is_wrong_and_changes_nothing(data, capsys):
    files = before(data)
    assert audit() == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"{DATASET}: 30 cases · labels liver, spleen · by held-out predictions of {MODEL}"
    assert told[1] == "30 cases: 3 probably wrong, 0 of another style, 1 finding that needs no model."
    assert [line.split(": ")[:2] for line in told[2:5]] == [
        [f"  {case}", "probably wrong"] for case in ("organ_05", "organ_03", "organ_04")
    ]
    assert told[5:7] == ["  organ_00: liver lies outside the body.", "The report lacks a picture."]
    assert told[7].endswith(f"{DATASET}_audit/audit.html")
    assert json.loads((data / f"{DATASET}_audit" / "run.json").read_text())["shown"] == [20, 3]
    assert before(data) == files


@pytest.mark.parametrize("own", [False, True])
def test_folds_without_the_wrong_cases(data, capsys, own):
    splits = default_splits(CASES)
    file = data / "preprocessed" / DATASET / "splits_final.json"
    if own:
        splits = splits[::-1]
        write_json(file, splits)
    assert audit("--exclude", "splits.json") == 0
    kept = json.loads((data / "splits.json").read_text())
    assert len(kept) == 5
    for fold, of_all in zip(kept, splits, strict=True):
        assert fold == {part: [case for case in of_all[part] if case not in WRONG] for part in ("train", "val")}
    assert f"cp splits.json {file}" in capsys.readouterr().out
    assert file.is_file() == own


def test_damaged_folds_are_told_before_the_work(data, capsys):
    (data / "preprocessed" / DATASET / "splits_final.json").write_text("[{}]")
    assert audit("--exclude", "splits.json") == 2
    assert "splits_final.json, which is no list of folds" in capsys.readouterr().err
    assert not (data / f"{DATASET}_audit").exists()


def test_raw_data_that_are_none_are_noted(data, capsys):
    (data / "raw" / DATASET / "dataset.json").unlink()
    assert audit() == 0
    told = capsys.readouterr().out.splitlines()
    assert told[1].startswith("The raw data set is not looked at: got no file")
    assert told[2].startswith("30 cases: 3 probably wrong")


def test_without_a_wrong_case_the_folds_stay_as_they_are(data, capsys):
    for case in WRONG:
        for folder in ("raw/{}/labelsTr", "preprocessed/{}/gt_segmentations"):
            path = data / folder.format(DATASET) / f"{case}.nii.gz"
            shutil.copy(next((data / "results").rglob(path.name)), path)
    assert audit("--exclude", "splits.json") == 0
    assert "splits.json: the folds as they are, since no case is probably wrong" in capsys.readouterr().out
    assert json.loads((data / "splits.json").read_text()) == default_splits(CASES)


def test_the_same_audit_again_and_another_one(data, capsys):
    assert audit("-o", "out") == 0
    assert audit("-o", "out") == 0
    assert audit("-o", "out", "-m", MODEL) == 2
    assert "an audit in out with another model; expected the same audit" in capsys.readouterr().err
    assert audit("-o", "out", "-m", MODEL, "--overwrite") == 0


def test_without_a_trained_fold_the_map_is_the_source(data, capsys, monkeypatch):
    """Of preprocessed 3D cases; disagreements and ranks are those of all readings."""
    predictions = {case: data / "predictions" / f"{case}.nii.gz" for case in CASES}
    (data / "predictions").mkdir()
    for path in (data / "results").rglob("*.nii.gz"):
        shutil.copy(path, predictions[path.name.removesuffix(".nii.gz")])
    shutil.rmtree(data / "results" / DATASET)
    assert audit("-o", "out") == 2
    assert "no preprocessed 3D configuration" in capsys.readouterr().err

    asked: dict[str, Any] = {}

    def run_map(folder, plans, configuration, description, labels, output, **settings):
        asked.update(settings, folder=folder, configuration=configuration, output=output)
        values = np.linspace(0.1, 0.12, 60).reshape(30, 2)
        values[7] = 0.9
        latents = LatentMap(CASES, np.zeros((30, 2)), np.zeros(30, int), np.nan, np.ones(30))
        return SimpleNamespace(
            map=latents, labels=tuple(labels.of), disagreement=values, ranks=values, predictions=predictions, notes=()
        )

    stand_in = SimpleNamespace(run_map=run_map, MapSettings=dict)
    monkeypatch.setitem(sys.modules, "nnunetv2_ext.audit.map", stand_in)
    folder = data / "preprocessed" / DATASET / "MNetPlans_3d_fullres"
    folder.mkdir()
    (folder / "organ_00.b2nd").touch()
    assert audit("-o", "out", "--epochs", "3") == 0
    told = capsys.readouterr().out
    assert "by a map of all cases, of the data of MNetPlans:3d_fullres\n30 cases: 1 probably wrong" in told
    assert "  organ_07: probably wrong: " in told
    assert "(Dice 0.10; the others' median 0.89)" in told
    assert (asked["folder"], asked["configuration"], asked["settings"]) == (folder, "3d_fullres", {"epochs": 3})
    assert audit("-o", "out", "--epochs", "3", "--max-parameters", "9") == 2
    assert "an audit in out with another map (--max-parameters); expected" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["-np", "0"], "-np 0"),
        (["--pictures", "-1"], "--pictures -1"),
        (["--viewer", "many"], "--viewer many"),
        (["-m", "MNetTrainer"], "the model 'MNetTrainer'"),
        (["-m", "MNetTrainer:MNetPlans:2d", "--from", "validation"], "no trained model MNetTrainer:MNetPlans:2d"),
        (["--from", "validation", "--epochs", "3"], "--epochs beside --from validation"),
        (["--from", "map", "--voxels", "0"], "--voxels 0"),
        (["--from", "map", "--seed", "x"], "--seed x"),
        (["-o", "file"], "-o file, a file"),
        (["--exclude", "file"], "--exclude file, which is there"),
        (["--exclude", "nowhere/splits.json"], "--exclude nowhere/splits.json"),
        (["--exclude", f"preprocessed/{DATASET}/splits_final.json", "--overwrite"], "in the preprocessed data set"),
        (["--exclude", f"raw/{DATASET}/labelsTr/organ_00.nii.gz", "--overwrite"], "in the raw data set"),
        (["-o", f"raw/{DATASET}/imagesTr"], "in the raw data set"),
        (["-o", f"preprocessed/{DATASET}/audit"], "in the preprocessed data set"),
    ],
)
def test_bad_input_ends_in_one_sentence(data, capsys, flags, told):
    (data / "file").write_text("mine")
    assert audit(*flags) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert (data / "file").read_text() == "mine"


def test_pictures_of_two_dimensions_are_refused(data, capsys):
    for path in (*data.rglob("*.nii.gz"),):
        if path.parent.name in ("validation", "gt_segmentations"):
            path.rename(path.with_name(path.name.replace(".nii.gz", ".png")))
    for path in data.rglob("dataset.json"):
        path.write_text(path.read_text().replace(".nii.gz", ".png"))
    assert audit("--from", "validation") == 2
    assert "a picture of two dimensions; expected 3D volumes" in capsys.readouterr().err
