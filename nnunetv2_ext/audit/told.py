"""How much an audit lists, in words and numbers."""

from collections.abc import Mapping
from pathlib import Path

from nnunetv2_ext.audit.result import MAP, VALIDATION, Audit
from nnunetv2_ext.audit.tables import WRONG
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import read_json
from nnunetv2_ext.text import browser_command, listed

PAGE, RUN = "audit.html", "run.json"
"""Files of an audit: its page, and what it was asked for and found in numbers, which is written last."""
COUNTS = ("cases", "probably_wrong", "other_style", "findings")
"""In `RUN`."""
SOURCES = {VALIDATION: "held-out predictions of {model}", MAP: "a map of all cases, of the data of {model}"}


def counts_of(audit: Audit) -> dict[str, int]:
    """How many cases, how many of them listed, and how many findings, by the names of `COUNTS`."""
    wrong = sum(verdict.wrong for verdict in audit.verdicts)
    numbers = (len(audit.files), wrong, len(audit.verdicts) - wrong, len(audit.findings))
    return dict(zip(COUNTS, numbers, strict=True))


def told_of(output: Path) -> str:
    """What the audit in a folder found and where its page is, in two lines; empty where there is none that is whole."""
    try:
        run = read_json(output / RUN, "run nnunetv2_ext audit again")
        told = summary(run)
    except (InputError, KeyError):
        return ""
    return f"Audit of the labels: {told}\n  {browser_command(output / PAGE)}"


def summary(counts: Mapping[str, int]) -> str:
    """How much is listed, in a sentence.

    Args:
        counts: as `RUN` has them.
    """
    cases, wrong, style, findings = (counts[name] for name in COUNTS)
    found = f"{findings} finding{'s' * (findings != 1)} that need{'s' * (findings == 1)} no model"
    return f"{cases} case{'s' * (cases != 1)}: {wrong} {WRONG}, {style} of another style, {found}."


def about(audit: Audit) -> str:
    """Cases, labels and source in a line."""
    labels = f"label{'s' * (len(audit.labels.of) != 1)} {listed(audit.labels.of, shown=12)}"
    return f"{len(audit.files)} cases · {labels} · by {SOURCES[audit.source].format(model=audit.model)}"
