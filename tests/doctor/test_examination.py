"""What fails leaves out what builds on it, and nothing else."""

import pytest

from nnunetv2_ext.doctor.examination import FAIL, OK, SKIP, Check, Examination, Subject, examine
from nnunetv2_ext.doctor.installation import INSTALLATION
from nnunetv2_ext.doctor.training import TRAINING
from nnunetv2_ext.errors import InputError


def boom(subject: Subject):
    yield Check(OK, "so far")
    raise ZeroDivisionError("what\nnobody foresaw")


def refuse(subject: Subject):
    raise InputError("this", "that", "do so")
    yield


def fine(subject: Subject):
    yield Check(OK, "done")


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (boom, [Check(OK, "first: so far"), (FAIL, "first: the check itself failed with ZeroDivisionError: what")]),
        (refuse, [Check(FAIL, "first: this; expected that", "do so")]),
    ],
)
def test_what_fails_leaves_out_what_builds_on_it_and_nothing_else(function, expected):
    examinations = (
        Examination("first", function),
        Examination("second", fine, needs=("first",)),
        Examination("third", fine, needs=("second",)),
        Examination("apart", fine),
    )
    checks = list(examine(examinations, Subject()))
    assert [check[: len(wanted)] for check, wanted in zip(checks, expected, strict=False)] == [
        tuple(e) for e in expected
    ]
    assert checks[-3:] == [
        Check(SKIP, "second: not checked, mend 'first' first"),
        Check(SKIP, "third: not checked, mend 'second' first"),
        Check(OK, "apart: done"),
    ]


def test_every_need_names_an_earlier_examination() -> None:
    seen: set[str] = set()
    for examination in (*INSTALLATION, *TRAINING):
        assert set(examination.needs) <= seen, examination.name
        seen.add(examination.name)
