"""What is told of an audit that stands in a folder."""

import json
from pathlib import Path

import pytest

from nnunetv2_ext.audit.told import summary, told_of

COUNTS = {"cases": 60, "probably_wrong": 3, "other_style": 1, "findings": 2}


def test_what_it_found_and_where_its_page_is(tmp_path: Path) -> None:
    folder = tmp_path / "an audit"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({**COUNTS, "settings": {}}))
    first, second = told_of(folder).splitlines()
    assert first == f"Audit of the labels: {summary(COUNTS)}"
    assert second.endswith("an%20audit/audit.html")


@pytest.mark.parametrize("content", [None, "{", "{}", '{"cases": 3}'])
def test_an_audit_that_is_not_whole_tells_nothing(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    assert told_of(tmp_path) == ""


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "60 cases: 3 probably wrong, 1 of another style, 2 findings that need no model."),
        ({"cases": 1, "findings": 1}, "1 case: 3 probably wrong, 1 of another style, 1 finding that needs no model."),
    ],
)
def test_numbers_in_words(changes: dict[str, int], told: str) -> None:
    assert summary({**COUNTS, **changes}) == told
