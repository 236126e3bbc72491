import math

import pytest

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation.scores import FILE, Score, Scores, read_scores, write_scores

NAN = math.nan
LINES = Scores(
    (
        Score("one", "a", "liver", "Dice", 0.5),
        Score("one", "a", "tumour", "Dice", NAN, note="both empty"),
        Score("one", "b", "liver", "Dice", 0.7),
        Score("one", "b", "tumour", "Dice", 0.0, note="no prediction"),
        Score("two", "a", "liver", "NSD", 0.25, "tolerance 1 mm"),
    )
)


def test_they_are_read_as_they_were_written(tmp_path):
    write_scores(LINES, tmp_path / FILE)
    for path in (tmp_path, tmp_path / FILE):
        assert repr(read_scores(path)) == repr(LINES)
    assert (tmp_path / FILE).read_text().splitlines()[2] == "one,a,tumour,Dice,,,both empty"


def test_means_count_what_counts():
    assert LINES.models == ("one", "two")
    assert LINES.cases == ("a", "b")
    assert LINES.labels == ("liver", "tumour")
    assert LINES.metrics == ("Dice", "NSD")
    assert LINES.mean("one", "liver", "Dice") == pytest.approx(0.6)
    assert LINES.mean("one", "tumour", "Dice") == 0.0
    assert math.isnan(LINES.mean("two", "liver", "Dice"))
    assert LINES.mean_of_labels("one", "Dice") == pytest.approx(0.3)
    assert LINES.case_mean("one", "a", "Dice") == 0.5
    assert LINES.case_mean("one", "b", "Dice") == 0.35
    assert [LINES.decided("one", label, "Dice") for label in LINES.labels] == [0, 1]


HEADER = "model,case,label,metric,value,how,note\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no file .*metrics.csv"),
        ("", "with the columns nothing"),
        ("case,Dice\na,0.5\n", "with the columns case, Dice"),
        (HEADER, "no scores in"),
        (HEADER + "one,a,liver,Dice,high,,\n", "line 2 of .*: one,a,liver,Dice,high"),
        (HEADER + "one,a,liver,Dice\n", "line 2 of"),
        (HEADER + 2 * "one,a,liver,Dice,0.5,,\n", "two lines of one, a, liver, Dice"),
    ],
)
def test_another_table_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / FILE).write_text(text)
    with pytest.raises(InputError, match=message):
        read_scores(tmp_path)
