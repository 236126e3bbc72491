"""The course of a benchmark with a stand-in for training."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks import accuracy
from nnunetv2_ext.errors import InputError

NAN = math.nan
DATASET = "Dataset104_Thick"


def write_summary(path, cases):
    """nnU-Net's summary.json of `{case: {label: Dice}}`, NaN included, with what else stands in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = [
        {
            "metrics": {label: {"Dice": dice, "IoU": dice, "n_ref": 1} for label, dice in metrics.items()},
            "prediction_file": f"/some/where/validation/{case}.nii.gz",
            "reference_file": f"/some/where/labelsTr/{case}.nii.gz",
        }
        for case, metrics in cases.items()
    ]
    path.write_text(json.dumps({"foreground_mean": {}, "mean": {}, "metric_per_case": entries}))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["A", "B"], [("A", "Plans"), ("B", "Plans")]),
        (["A:Own", "A"], [("A", "Own"), ("A", "Plans")]),
        (["A", "A:Plans"], None),
        (["A:"], None),
        ([":P"], None),
    ],
)
def test_parse_trainers(names, expected):
    if expected is None:
        with pytest.raises(InputError, match="TRAINER:PLANS, each once"):
            accuracy.parse_trainers(names, "Plans")
    else:
        assert accuracy.parse_trainers(names, "Plans") == expected


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """nnU-Net's folders with one data set; results of the user's that must stay as they are."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / variable / DATASET).mkdir(parents=True)
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return tmp_path


def stand_in(calls, better=0.1):
    """A `train_fold` that writes a summary at once: MNetTrainer is better by 0.1 in every case."""

    def train(dataset, configuration, fold, *, trainer, plans, training, device):
        calls.append((trainer, plans, fold, training, device))
        folder = Path(os.environ[accuracy.RESULTS_VARIABLE]) / dataset / f"{trainer}__{plans}__{configuration}"
        dice = 0.5 + (better if trainer == "MNetTrainer" else 0)
        cases = {f"case{2 * fold + n}": {"1": dice + 0.01 * n, "2": NAN if n else dice} for n in range(2)}
        write_summary(folder / f"fold_{fold}" / "validation" / "summary.json", cases)

    return train


def test_a_benchmark_from_training_to_table(folders, capsys, monkeypatch):
    calls: list[Any] = []
    train = stand_in(calls)
    arguments = ["-d", "104", "-tr", "MNetTrainer:MNetPlans", "nnUNetTrainer", "--output", str(folders / "own")]
    arguments += ["--epochs", "2", "--iterations", "3", "--expect", "10", "--json", str(folders / "out.json")]
    assert accuracy.main(arguments, train) == 0
    training = {"epochs": 2, "iterations_per_epoch": 3, "val_iterations_per_epoch": 5, "batch_size": 4}
    assert calls == [
        (trainer, plans, fold, training, "cpu")
        for fold in (0, 1)
        for trainer, plans in (("MNetTrainer", "MNetPlans"), ("nnUNetTrainer", "nnUNetPlans"))
    ]
    printed = capsys.readouterr().out
    assert "+10.00 [+10.00, +10.00]" in printed and "reference" in printed
    assert "epochs 2" in printed
    rows = json.loads((folders / "out.json").read_text())["rows"]
    assert [row["cases"] for row in rows] == [4, 4]
    assert rows[1]["dice_per_label"] == pytest.approx({"1": 0.505, "2": 0.5})
    assert rows[0]["difference"]["mean"] == pytest.approx(0.1) and rows[1]["difference"] is None
    assert list(rows[0]["seconds_per_fold"]) == ["0", "1"]
    assert not any((folders / "nnUNet_results" / DATASET).iterdir())

    # again: refused, unless asked to resume; then only the missing fold is trained
    monkeypatch.setenv("nnUNet_results", str(folders / "nnUNet_results"))
    assert accuracy.main(arguments, train) == 2
    assert "add --resume" in capsys.readouterr().err
    calls.clear()
    assert accuracy.main([*arguments, "--resume", "--folds", "0", "1", "2"], train) == 0
    assert [(trainer, fold) for trainer, _, fold, _, _ in calls] == [("MNetTrainer", 2), ("nnUNetTrainer", 2)]
    calls.clear()
    monkeypatch.setenv("nnUNet_results", str(folders / "nnUNet_results"))
    assert accuracy.main([*arguments, "--resume", "--epochs", "9"], train) == 2
    assert "with the budget" in capsys.readouterr().err and calls == []


def test_a_trainer_that_nnunet_does_not_find_is_handed_over_as_a_class(folders):
    from benchmarks._primus import PrimusTrainer

    given = []

    def train(*fold, trainer, **rest):
        given.append(trainer)
        name = trainer if isinstance(trainer, str) else trainer.__name__
        stand_in([])(*fold, trainer=name, **rest)

    arguments = ["-d", "104", "-tr", "PrimusTrainer:Own", "nnUNetTrainer", "--output", str(folders / "own")]
    assert accuracy.main([*arguments, "--folds", "0"], train) == 0
    assert given == [PrimusTrainer, "nnUNetTrainer"]


@pytest.mark.parametrize(
    ("low", "high", "told"), [(-0.01, 0.02, "+0.80 points lie in"), (0.009, 0.02, "+0.80 points do not lie in")]
)
def test_expectation(low, high, told):
    rows: list[dict[str, Any]] = [
        {"trainer": "A", "difference": {"low": low, "high": high}},
        {"trainer": "B", "difference": None},
    ]
    assert accuracy.expectation(rows, 0.8) == f"A: {told} the interval."


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--epochs", "0"], "--epochs 0; expected a positive number"),
        (["--batch-size", "-1"], "--batch-size -1"),
        (["--folds", "1", "1"], "each once"),
        (["--output", "nnUNet_results"], "a folder of its own"),
        (["--json", "no/such/folder/out.json"], "existing folder"),
        (["-d", "999"], "no data set 999"),
        (["-tr", "A", "A"], "each once"),
    ],
)
def test_bad_input_is_a_sentence_and_trains_nothing(folders, monkeypatch, capsys, arguments, told):
    calls: list[Any] = []
    monkeypatch.chdir(folders)
    train = stand_in(calls)
    assert accuracy.main(["-d", "104", "-tr", "nnUNetTrainer", *arguments], train) == 2
    assert told in capsys.readouterr().err
    assert calls == [] and not (folders / "benchmark_results").exists()
