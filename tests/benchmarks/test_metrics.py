"""The benchmark of the metrics on small masks."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import metrics
from nnunetv2_ext.evaluation.metrics import METRICS


def test_the_masks_are_what_the_benchmark_says() -> None:
    (organ, predicted), (lesions, found) = metrics.masks((20, 40, 40), 0)
    assert 0.05 < organ.mean() < 0.5
    assert lesions[organ].sum() == lesions.sum() > found[lesions].sum() > 0
    for prediction in (predicted, found):
        assert prediction[0, 0, 0] and prediction[-1, -1, -1]


def test_ours_in_a_fresh_process() -> None:
    args = argparse.Namespace(shape=[12, 24, 24], spacing=[5.0, 0.8, 0.8], seed=0)
    found = metrics.in_a_process("ours", args)
    assert found["seconds"] > 0
    assert [list(values) for values in found["values"]] == [list(METRICS)] * 2


def test_tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def in_a_process(side: str, args: argparse.Namespace) -> dict[str, Any]:
        surface = dict.fromkeys(("HD", "HD95", "ASSD", "hd", "hd95", "assd"), 1.5)
        ours = side == "ours"
        return {"seconds": 1 if ours else 10, "memory": (6 if ours else 10) * 2**20, "values": [surface, surface]}

    monkeypatch.setattr(metrics, "in_a_process", in_a_process)
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(metrics.importlib.metadata, "version", lambda name: "0.5.2")
    assert metrics.main(["--rounds", "2", "--json", str(tmp_path / "out.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    verdicts = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "at most" in line]
    assert verdicts == [
        ["time ratio", "at most 0.20", "0.10", "yes"],
        ["memory ratio", "at most 0.50", "0.60", "no"],
    ]
    assert len(json.loads((tmp_path / "out.json").read_text())["costs"]["medpy"]) == 2


@pytest.mark.parametrize(
    ("argv", "there", "message"),
    [
        (["--rounds", "0"], True, "got --rounds 0; expected whole numbers, 1 or more"),
        (["--shape", "4", "9", "9"], True, "got --shape 4 9 9; expected whole numbers, 8 or more"),
        (["--spacing", "0", "1", "1"], True, "got --spacing 0.0 1.0 1.0; expected numbers of mm above 0"),
        ([], False, "no MedPy in this environment"),
    ],
)
def test_bad_input(
    argv: list[str], there: bool, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: there or None)
    monkeypatch.setattr(metrics.importlib.metadata, "version", lambda name: "0.5.2")
    assert metrics.main(argv) == 2
    assert message in capsys.readouterr().err
