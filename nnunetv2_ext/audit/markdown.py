"""The lists of an audit in Markdown."""

import re
from urllib.parse import quote

from nnunetv2_ext.audit.pictures import FOLDER
from nnunetv2_ext.audit.result import Audit
from nnunetv2_ext.audit.told import about, counts_of, summary
from nnunetv2_ext.text import listed

PICTURE_OF_MAP = "map.png"


def lists(audit: Audit, pictured: set[str]) -> str:
    """The lists in Markdown.

    Args:
        pictured: the cases that have a picture.
    """
    lines = [f"# Label audit: {_plain(audit.dataset)}", "", f"{_plain(about(audit))}.", "", summary(counts_of(audit))]
    for note in audit.notes:
        lines += ["", f"> {_plain(note)}"]
    rank = 0
    for title, wrong in (("Probably wrong", True), ("Other style", False)):
        lines += ["", f"## {title}", ""]
        of_list = [verdict for verdict in audit.verdicts if verdict.wrong is wrong]
        for verdict in of_list:
            rank += 1
            label = f" ({_plain(verdict.label)})" if verdict.label else ""
            picture = f" ([picture]({FOLDER}/{quote(verdict.case)}.png))" if verdict.case in pictured else ""
            lines.append(f"{rank}. **{_plain(verdict.case)}**{label}: {_plain(verdict.sentence)}{picture}")
        lines += ["No case is."] * (not of_list)
    lines += ["", "## Findings that need no model", ""]
    for one in audit.findings:
        cases = f" **{_plain(listed(one.cases, shown=5))}**" if one.cases else ""
        lines.append(f"- {_plain(one.kind)}{cases}: {_plain(one.sentence)}")
    lines += ["There is none."] * (not audit.findings)
    if audit.map is not None:
        lines += ["", "## Map", "", f"![Map of all cases]({PICTURE_OF_MAP})"]
    return "\n".join([*lines, ""])


def _plain(text: str) -> str:
    """A text in one line, in which Markdown sees no sign of its own; an underscore within a word is none."""
    return re.sub(r"([\\`*\[\]<>|~$]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))
