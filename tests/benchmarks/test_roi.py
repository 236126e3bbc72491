"""The rows of the tables and what they are held to, from cases by hand; what the command refuses."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import roi
from benchmarks.roi import FINE, REGIONS, Seen, Way, iou, main, row_of, values_of, verdicts, ways_of
from nnunetv2_ext.geometry.boxes import Box

COARSE = "BackboneTrainer:ROIPlans:3d_roi"
WAY = Way("HierarchicalTrainer:HierarchicalPlans:3d_fullres", COARSE, "grid box")


def seen(seconds: float, dice: float, inside: float = 1.0, share: float = 1.0, windows: float = 1.0) -> Seen:
    return Seen(seconds, {"liver": dice, "kidney": dice - 0.1}, inside, share, windows, 0)


def test_a_row_compares_with_the_whole_image() -> None:
    whole = {"a": [seen(10, 0.8), seen(12, 0.8), seen(30, 0.8)], "b": [seen(8, 0.9)] * 3}
    boxes = {
        "a": [seen(3, 0.82, 0.99, 0.1, 0.2), seen(4, 0.82, 0.99, 0.1, 0.2), seen(9, 0.82, 0.99, 0.1, 0.2)],
        "b": [seen(6, 0.92, 1.0, 0.3, 0.4)] * 3,
    }
    row = row_of(WAY, boxes, whole)
    assert (row["model"], row["region"], row["way"]) == ("HierarchicalTrainer", "ROIPlans", "grid box")
    assert row["s"] == 5 and row["time ratio"] == 0.5
    assert round(row["windows"], 6) == 0.3 and round(row["share of image"], 6) == 0.2
    assert round(row["Dice"], 6) == 0.82 and round(row["Dice liver"], 6) == 0.87
    assert row["difference"] == "+2.00 [+2.00, +2.00]"
    assert (row["inside, mean"], row["inside, worst"]) == ("0.9950", "0.9900")
    assert "GPU MiB" not in row
    assert row_of(Way(WAY.fine), whole, whole)["time ratio"] == 1

    told = verdicts([row], [{"region": "DetectorPlans", "IoU, mean": 0.8, "misses": 1}]).splitlines()[2:]
    assert [line.split("|")[-2].strip() for line in told] == ["yes", "yes", "no", "yes", "yes", "no"]


def test_every_model_has_its_whole_image_first() -> None:
    ways = ways_of([*FINE], [*REGIONS])
    assert len(ways) == len(FINE) * (1 + len(REGIONS) + 2)
    for model in FINE:
        own = [way for way in ways if way.fine == model]
        assert own[0] == Way(model) and all(way.region for way in own[1:])
    assert ways_of(["one"], []) == [Way("one")]


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (Box((0, 0, 0), (2, 2, 2)), 1),
        (Box((0, 0, 1), (2, 2, 3)), 1 / 3),
        (Box((2, 0, 0), (3, 2, 2)), 0),
        (Box((5, 5, 5), (6, 6, 6)), 0),
    ],
)
def test_iou(other: Box, expected: float) -> None:
    box = Box((0, 0, 0), (2, 2, 2))
    assert iou(box, other) == iou(other, box) == pytest.approx(expected)


def test_labels_and_regions(tmp_path: Path) -> None:
    labels = {"background": 0, "organ": 1, "whole": [1, 2], "ignore": 3}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert values_of(tmp_path) == {"organ": [1], "whole": [1, 2]}


@pytest.mark.parametrize("boxes", [[], [{"region": "DetectorPlans", "IoU, mean": 0.8, "misses": 0}]])
def test_what_is_printed(
    boxes: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a region, there is one table."""
    whole = {"a": [seen(10, 0.8)], "b": [seen(8, 0.9)]}
    measured = {"cases": 2, "rows": [row_of(Way(WAY.fine), whole, whole)], "boxes": boxes}
    monkeypatch.setattr(roi, "measure", lambda folder, args: measured)
    (tmp_path / "nnUNet_raw" / "Dataset009_Own").mkdir(parents=True)
    assert main(["--folder", str(tmp_path), "-d", "9", "--json", str(tmp_path / "roi.json")]) == 0
    assert capsys.readouterr().out.count("\n| ---") == (3 if boxes else 1)
    assert json.loads((tmp_path / "roi.json").read_text())["boxes"] == boxes


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--rounds 0", "got --rounds 0"),
        ("-d 9", "got -d without --folder"),
        ("-d 9 --folder FOLDER", "no data set 9 in"),
    ],
)
def test_refused(flags: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "nnUNet_raw").mkdir()
    assert main(flags.replace("FOLDER", str(tmp_path)).split()) == 2
    assert told in capsys.readouterr().err
