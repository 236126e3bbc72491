"""The figures on known costs and labels, a command whose cost is known, and bad input."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from benchmarks import _export, predict
from benchmarks._commands import Cost, run
from nnunetv2_ext.testing.trainer import Shell

MIB = 2**20


def compared(seconds: dict[str, list[float]], equal: float = 1.0) -> predict.Compared:
    costs = {side: [Cost(s, s / 2, 2 * s, 0) for s in seconds[side]] for side in predict.SIDES}
    memory = dict.fromkeys(predict.SIDES, 100 * MIB)
    return predict.Compared("MNet", costs, memory, dict.fromkeys(predict.SIDES, equal))


def test_ratios_are_of_medians() -> None:
    one = compared(dict(zip(predict.SIDES, ([10.0, 20.0, 90.0], [16.0], [10.0]), strict=True)))
    assert one.ratio(predict.STOCK, "seconds") == pytest.approx(0.5)
    assert one.ratio(predict.FEW_PROCESSES, "seconds") == pytest.approx(0.625)
    assert "| MNet, nnUNetv2_predict " in predict.table([one])
    assert "20.0 (10.0-90.0)" in predict.table([one])


@pytest.mark.parametrize(
    ("cases", "ours", "equal", "answers"),
    [
        (8, 6.0, 1.0, ["yes", "yes", "no", "yes"]),  # of 10 s and 8 s; first case 0.6
        (8, 7.0, 0.99998, ["no", "no", "no", "no"]),
        (40, 8.0, 1.0, ["yes", "no", "yes"]),
    ],
)
def test_verdicts(cases: int, ours: float, equal: float, answers: list[str]) -> None:
    one = compared(dict(zip(predict.SIDES, ([10.0], [8.0], [ours]), strict=True)), equal)
    rows = predict.verdicts([one], cases).splitlines()[2:]
    assert [row.split("|")[-2].strip() for row in rows] == answers


def test_share_of_equal_labels(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("images", "first", "second")]
    for folder in folders:
        folder.mkdir()
    labels = np.zeros((2, 5, 10), np.uint8)
    for case in ("a", "b"):
        sitk.WriteImage(sitk.GetImageFromArray(labels), folders[0] / f"{case}_0000.nii.gz")
        for folder in folders[1:]:
            sitk.WriteImage(sitk.GetImageFromArray(labels), folder / f"{case}.nii.gz")
    labels[0, 0, :4] = 1
    sitk.WriteImage(sitk.GetImageFromArray(labels), folders[2] / "b.nii.gz")
    assert predict.share_of_equal_labels(folders[1], folders[2], folders[0]) == pytest.approx(1 - 4 / 200)


# a child that holds 64 MiB, a file after a second, the end after two
SCRIPT = """
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; a = bytearray(64 * 2**20); time.sleep(1.5)"])
time.sleep(1)
folder = pathlib.Path(sys.argv[1]); folder.mkdir(); (folder / "case.nii.gz.part").touch()
(folder / "case.nii.gz").touch()
child.wait()
"""


def test_cost_of_a_command(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    output = tmp_path / "output"
    cost = run(
        Shell(tmp_path), f"python {tmp_path / 'script.py'} {output}", output=output, ending=".nii.gz", memory=True
    )
    assert 1 <= cost.first < cost.seconds < 60
    assert 64 * MIB < cost.memory < 200 * MIB
    assert 0 < cost.processor < cost.seconds


def test_parts_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(_export, "export_table", lambda rounds: [{"case": "thick", "time ratio": 0.25}])
    assert predict.main(["--no-commands", "--export", "--json", str(tmp_path / "figures.json")]) == 0
    assert "| thick |       0.25 |" in capsys.readouterr().out
    assert json.loads((tmp_path / "figures.json").read_text())["export"] == [{"case": "thick", "time ratio": 0.25}]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--rounds", "0"], "got --rounds 0; expected a positive number"),
        (["--cases", "0"], "got --cases 0; expected a positive number"),
        (["--demo", "nowhere"], "expected the folder of a finished demo"),
        (["--json", "nowhere/figures.json"], "expected a file in an existing folder"),
    ],
)
def test_bad_input(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict.main(flags) == 2
    assert words in capsys.readouterr().err
