"""Tables of a page against values made by hand."""

import math

import pytest

from nnunetv2_ext.evaluation.means import means_table
from nnunetv2_ext.evaluation.scores import Score, Scores
from nnunetv2_ext.report.tables import ALL, means

NAN = math.nan


def scores(metric: str, values: dict[str, dict[str, tuple[float, ...]]]) -> Scores:
    """Lines by model and label, of the cases a, b, ..."""
    return Scores(
        tuple(
            Score(model, case, label, metric, value)
            for model, labels in values.items()
            for label, of_label in labels.items()
            for case, value in zip("abcdef", of_label, strict=False)
        )
    )


def shown(of: Scores, label: str) -> list[tuple[str, bool]]:
    """The means of the models in the one line of a label, and whether they are bold."""
    (line,) = dict(means(of))[label]
    return [(cell.mean, cell.best) for cell in line.cells]


@pytest.mark.parametrize(
    ("metric", "values", "expected"),
    [
        ("Dice", ((0.8, 0.6), (0.9, 0.7)), [("0.700", False), ("0.800", True)]),
        ("HD95", ((8.0, 6.0), (9.0, 7.0)), [("7.00", True), ("8.00", False)]),
        ("HD95", ((8.0, 6.0), (6.0, 8.0)), [("7.00", False), ("7.00", False)]),
        # signs cancel in the mean, but not in its size: 100 and 1
        ("volume error", ((100.0, -100.0), (1.0, 1.0)), [("0.00", False), ("1.00", True)]),
        ("volume error", ((-3.0, -3.0), (1.0, 2.0)), [("\N{MINUS SIGN}3.00", False), ("1.50", True)]),
        ("volume", ((8.0, 6.0), (9.0, 7.0)), [("7.00", False), ("8.00", False)]),
    ],
)
def test_the_best_mean_is_bold(metric, values, expected):
    assert shown(scores(metric, {"one": {"liver": values[0]}, "two": {"liver": values[1]}}), "liver") == expected


def test_labels_weigh_the_same_on_the_page_and_in_the_terminal():
    of = scores("Dice", {"one": {"liver": (0.5, 0.5), "lesion": (NAN, 1.0)}})
    # of the means of cases it would be (0.5 + 0.75) / 2
    assert shown(of, ALL) == [("0.750", False)]
    assert of.mean_of_labels("one", "Dice") == 0.75
    assert "| one | mean of labels | 0.750 (1 not counted) |" in [
        " ".join(row.split()) for row in means_table(of).splitlines()
    ]


def test_signed_errors_of_labels_have_no_mean():
    of = scores("volume error", {"one": {"liver": (5.0,), "lesion": (-5.0,)}})
    assert dict(means(of))[ALL] == []
    assert "| one | mean of labels | - |" in [" ".join(row.split()) for row in means_table(of).splitlines()]


def test_beside_each_mean_stands_what_was_decided_or_does_not_count():
    of = scores("Dice", {"one": {"liver": (0.5, 0.0, 1.0), "lesion": (NAN, 1.0, NAN)}})
    of = Scores(tuple(line._replace(note="no prediction") if line.value == 0 else line for line in of.lines))
    notes = {label: line.cells[0].note for label, (line,) in means(of)}
    assert notes == {ALL: "1 decided, 2 not counted", "liver": "1 decided", "lesion": "2 not counted"}
    rows = [" ".join(row.split()) for row in means_table(of).splitlines()]
    assert rows[2:5] == [
        "| one | liver | 0.500 (1 decided) |",
        "| one | lesion | 1.000 (2 not counted) |",
        "| one | mean of labels | 0.750 (1 decided, 2 not counted) |",
    ]
