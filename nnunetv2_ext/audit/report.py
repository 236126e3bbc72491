"""An audit as files: a table, a text, pictures, a map, and one page that holds all of it and loads nothing."""

import math
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from nnunetv2_ext import __version__
from nnunetv2_ext.audit.chart import map_chart
from nnunetv2_ext.audit.markdown import PICTURE_OF_MAP, lists
from nnunetv2_ext.audit.pictures import FOLDER, cases_to_show, overlaid, read_shown, save_picture, viewed_case
from nnunetv2_ext.audit.result import VALIDATION, Audit
from nnunetv2_ext.audit.tables import COLUMNS, IN_PAGE, page_rows, table
from nnunetv2_ext.audit.told import PAGE, RUN, about, counts_of, summary
from nnunetv2_ext.files import unwritable, write_beside, write_json
from nnunetv2_ext.report.charts import box_chart, is_wide
from nnunetv2_ext.report.html import render, viewed, write_page
from nnunetv2_ext.report.tables import NONE, rounded
from nnunetv2_ext.text import listed

TABLE, TEXT = "audit.csv", "audit.md"
"""Beside the page, the pictures and `RUN`."""


class _Pictured(NamedTuple):
    """A listed case in the page."""

    anchor: str
    case: str
    rank: str
    sentences: Sequence[str]
    address: str
    """Of the PNG, which stands in it; none where there is no picture."""
    values: Sequence[tuple[str, str]]
    """The Dice of each label by name."""
    note: str
    """What is missing, and why."""


def write_audit(audit: Audit, output: Path, *, pictures: int, viewer: int) -> list[str]:
    """Write the files of an audit, each whole or not at all; those that are there are replaced.

    Args:
        output: a folder, which is made.
        pictures: how many of the listed cases have one, from the worst on.
        viewer: how many of them are in the page's viewer.

    Returns:
        What is missing, a sentence each.

    Raises:
        InputError: the folder cannot be written.
    """
    chosen = cases_to_show(audit)
    try:
        (output / FOLDER).mkdir(parents=True, exist_ok=True)
        _write(output / TABLE, table(audit).encode())
        shown = _pictured(audit, dict([*chosen.items()][:pictures]), output)
        views = [read_shown(audit, case, *why)[0] for case, why in [*chosen.items()][:viewer]]
        chart = ""
        if audit.map is not None:
            chart, png = map_chart(audit.map, audit.verdicts)
            _write(output / PICTURE_OF_MAP, png)
        there = {one.case for one in shown if one.address}
        _write(output / TEXT, lists(audit, there).encode(errors="backslashreplace"))
        content = _content(audit, shown, chart) | viewed([viewed_case(audit, one) for one in views if one is not None])
        write_page(render("audit.html", content, package=__package__), output / PAGE)
        write_json(output / RUN, _run(audit))
    except OSError as error:
        raise unwritable(output, error) from None
    return [one.note for one in shown if one.note]


def _write(path: Path, content: bytes) -> None:
    write_beside(lambda part: part.write_bytes(content), path)


def _pictured(audit: Audit, chosen: Mapping[str, tuple[str, str]], output: Path) -> list[_Pictured]:
    """Write the pictures of some cases, and what the page holds of each."""
    told: dict[str, list[str]] = {}
    for verdict in audit.verdicts:
        told.setdefault(verdict.case, []).append(verdict.sentence)
    for finding in audit.findings:
        for case in finding.cases:
            told.setdefault(case, []).append(finding.sentence)
    dice = {(of.case, of.label): 1 - of.disagreement for of in audit.scores}
    pictures = []
    for path in (output / FOLDER).glob("*.png"):  # of an audit before
        path.unlink()
    for number, (case, (rank, label)) in enumerate(chosen.items(), start=1):
        shown, note = read_shown(audit, case, rank, label)
        source = ""
        if shown is not None:
            shown = shown.cropped()
            save_picture(audit, shown, output / FOLDER / f"{case}.png")
            source = overlaid(audit, shown)
        values = [(name, rounded(dice.get((case, name), math.nan), 3)) for name in audit.labels.of]
        pictures.append(_Pictured(f"case-{number}", case, rank, told.get(case, []), source, values, note))
    return pictures


def _content(audit: Audit, shown: Sequence[_Pictured], chart: str) -> dict[str, Any]:
    """All that the page's template asks for, the viewer aside."""
    return {
        "title": f"Label audit: {audit.dataset}",
        "note": "",
        "lacking": audit.notes,
        "about": about(audit),
        "counts": summary(counts_of(audit)),
        "wrong": [verdict for verdict in audit.verdicts if verdict.wrong],
        "other": [verdict for verdict in audit.verdicts if not verdict.wrong],
        "findings": [(one.kind, listed(one.cases, shown=5) or NONE, one.sentence) for one in audit.findings],
        "shown": shown,
        "dice": "Dice" if audit.source == VALIDATION else "Dice, mean of the map's readings",
        "anchors": {one.case: one.anchor for one in shown},
        "map": Markup(chart),
        "boxes": _boxes(audit),
        "columns": [(column.heading, column.meaning) for column in IN_PAGE],
        "rows": page_rows(audit),
        "settings": [*(audit.settings or {}).items()],
    }


def _boxes(audit: Audit) -> list[tuple[str, str, bool, Markup]]:
    """Disagreement and size of all cases, by label."""
    charts = []
    for column in (one for one in COLUMNS if one.name in ("disagreement", "size")):
        values: dict[str, list[float]] = {}
        for of in audit.scores:
            values.setdefault(of.label, []).append(column.value(of))
        known = {label: [one for one in of if not math.isnan(one)] for label, of in values.items()}
        if any(known.values()):
            chart = box_chart(
                {label: [(of, ())] for label, of in known.items()},
                f"Box plot of {column.heading} by label",
                bounded=column.name == "disagreement",
            )
            charts.append((column.heading, column.meaning, is_wide(len(known), 1), Markup(chart)))
    return charts


def _run(audit: Audit) -> dict[str, Any]:
    versions = {"nnunetv2_ext": __version__, **{name: metadata.version(name) for name in ("nnunetv2", "torch")}}
    about = {"dataset": audit.dataset, "source": audit.source, "model": audit.model}
    return about | counts_of(audit) | {"notes": [*audit.notes], "settings": audit.settings or {}, "versions": versions}
