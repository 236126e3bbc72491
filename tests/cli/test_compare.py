"""`compare` on tables made by hand; the statistics themselves are tested with `comparison`."""

import csv
import json

import numpy as np
import pytest

from nnunetv2_ext.cli import main
from nnunetv2_ext.evaluation.scores import FILE, Score, Scores, write_scores


def lines(model, values, *, metric="Dice", label="liver", how="", note=""):
    return [Score(model, f"case_{number}", label, metric, value, how, note) for number, value in enumerate(values)]


@pytest.fixture
def evaluation(tmp_path, monkeypatch):
    """Five cases: `ours` is better by Dice in each, worse by HD95 in each; `tie` is as ours."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    dice, distance = random.uniform(0.6, 0.9, 5), random.uniform(2, 9, 5)
    better = np.array([0.01, 0.02, 0.03, 0.04, 0.05])
    of_ours = lines("ours", dice + better) + lines("ours", distance + 100 * better, metric="HD95", how="empty 100 mm")
    (tmp_path / "ours").mkdir()
    write_scores(Scores(tuple(of_ours)), tmp_path / "ours" / FILE)
    of_others = lines("other", dice) + lines("other", distance, metric="HD95", how="empty 100 mm")
    write_scores(Scores(tuple(of_others)), tmp_path / "other.csv")
    tie = [line._replace(model="tie") for line in of_ours]
    write_scores(Scores(tuple(tie)), tmp_path / "tie.csv")
    return tmp_path


def test_a_table_and_what_it_means(evaluation, capsys):
    assert main(["compare", "ours", "other.csv"]) == 0
    table, notes = capsys.readouterr().out.split("\n\n")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert [row[:3] for row in cells[2:]] == [
        ["ours less other", "liver", "Dice"],
        ["ours less other", "liver", "HD95 (mm)"],
    ]
    assert [row[5].partition(" ")[0] for row in cells[2:]] == ["0.030", "3.000"]
    # all five pairs on one side, twice
    assert [row[6:] for row in cells[2:]] == [["0.0625", "0.125", "5/0/0", "5"], ["0.0625", "0.125", "0/0/5", "5"]]
    assert "corrected over the 2 tests of this table" in notes
    assert "in 2 of 2 tests: 5 never give less than 0.0625" in notes
    assert "Dice higher, HD95 lower is better" in notes


def test_tables_are_written(evaluation, capsys):
    arguments = ["compare", "ours", "other.csv", "tie.csv", "--reference", "ours", "--metrics", "Dice"]
    assert main([*arguments, "-o", "out.md"]) == 0
    assert (evaluation / "out.md").read_text() == capsys.readouterr().out
    assert main([*arguments, "-o", "out.csv", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    with (evaluation / "out.csv").open() as stream:
        written = list(csv.DictReader(stream))
    assert [(row["model"], row["reference"]) for row in written] == [("other", "ours"), ("tie", "ours")]
    assert [float(row["difference"]) for row in written] == pytest.approx([-0.03, 0])
    assert [row["difference"] for row in told["comparisons"]] == pytest.approx([-0.03, 0])
    assert [row["p"] for row in told["comparisons"]] == [0.0625, 1.0]
    assert [(row["wins"], row["ties"], row["losses"]) for row in told["comparisons"]] == [(0, 0, 5), (0, 5, 0)]


def test_one_case_has_no_interval(tmp_path, capsys):
    write_scores(Scores((*lines("one", [0.5]), *lines("two", [0.7]))), tmp_path / FILE)
    assert main(["compare", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "Below two cases there is no interval." in printed and "nan" not in printed
    assert "1 never gives less than 1" in printed
    assert main(["compare", str(tmp_path), "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["comparisons"]
    assert (one["difference"], one["low"], one["high"], one["cases"]) == (pytest.approx(-0.2), None, None, 1)


def test_no_case_that_counts(tmp_path, capsys):
    nothing = [float("nan")] * 3
    write_scores(Scores((*lines("one", nothing, note="both empty"), *lines("two", nothing))), tmp_path / FILE)
    assert main(["compare", str(tmp_path)]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| one")]
    assert [cell.strip() for cell in row.strip("|").split("|")][3:] == ["-", "-", "-", "-", "-", "0/0/0", "0", "3"]


def test_decided_values_are_counted(tmp_path, capsys):
    lost = lines("one", [0.0, 0.5, 0.6])
    lost[0] = lost[0]._replace(note="no prediction")
    write_scores(Scores((*lost, *lines("two", [0.4, 0.5, 0.5]))), tmp_path / FILE)
    assert main(["compare", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].endswith("| decided |") and printed.splitlines()[2].endswith("|       1 |")
    assert "Decided: pairs with a value that was set and not measured" in printed


def other(**changed):
    """The scores of `other`, in a file of their own, changed."""
    return lambda folder: write_scores(
        Scores(tuple(line._replace(**changed) for line in read(folder / "other.csv"))), folder / "new.csv"
    )


def read(path):
    from nnunetv2_ext.evaluation.scores import read_scores

    return read_scores(path).lines


def other_without(case):
    return lambda folder: write_scores(
        Scores(tuple(line for line in read(folder / "other.csv") if line.case != case)), folder / "new.csv"
    )


LINKED = ["ours", "other.csv", "-o", "link.csv"]


@pytest.mark.parametrize(
    ("change", "arguments", "told"),
    [
        (None, ["ours"], "the scores of ours alone"),
        (None, ["ours", "ours/metrics.csv"], "the scores of ours alone"),
        (None, ["none.csv", "ours"], "no file none.csv"),
        (lambda folder: (folder / "new.csv").write_text("a,b\n"), ["new.csv"], "with the columns a, b"),
        (other_without("case_3"), ["ours", "new.csv"], "1 case (case_3) that only one of ours and other has"),
        (
            other(label="lung"),
            ["ours", "new.csv"],
            "no Dice of liver for 5 cases (case_0, case_1, case_2 and 2 more) of other",
        ),
        (other(model="ours"), ["ours", "new.csv"], "two models called ours, in ours and in new.csv"),
        (
            other(how="empty 5 mm"),
            ["ours", "new.csv", "--metrics", "HD95"],
            "with empty 100 mm for ours and with empty 5 mm",
        ),
        (None, ["ours", "other.csv", "--metrics", "dice"], "the metric dice; expected one of Dice, HD95"),
        (None, ["ours", "other.csv", "--labels", "Liver"], "the label Liver; expected one of liver, mean"),
        (None, ["ours", "other.csv", "--reference", "theirs"], "the model theirs; expected one of ours, other"),
        (None, ["ours", "other.csv", "-o", "out.txt"], "a file .csv or .md"),
        (None, ["ours", "other.csv", "-o", "nowhere/out.csv"], "an existing folder"),
        (None, ["ours", "other.csv", "-o", "/proc/out.csv"], "an error on writing /proc/out.csv"),
        (None, ["ours", "other.csv", "-o", "ours/metrics.csv"], "another file than the scores of an evaluation"),
        (None, ["ours", "other.csv", "-o", "ours/../other.csv"], "another file than the scores"),
        (None, ["ours", "other.csv", "-o", "metrics.csv"], "another file than the scores"),
        (lambda folder: (folder / "link.csv").symlink_to("other.csv"), LINKED, "another file than the scores"),
    ],
)
def test_bad_input(evaluation, capsys, change, arguments, told):
    if change is not None:
        change(evaluation)
    before = [(evaluation / name).read_bytes() for name in ("ours/metrics.csv", "other.csv")]
    assert main(["compare", *arguments]) == 2
    assert before == [(evaluation / name).read_bytes() for name in ("ours/metrics.csv", "other.csv")]
    error = capsys.readouterr().err
    assert error.startswith("nnunetv2_ext compare: got ") and told in error
