"""Words and tables for messages, reports and docs."""

import shlex
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path


def listed(items: Iterable[object], *, shown: int | None = None, separator: str = ", ") -> str:
    """Numbers or names for a message: `0.8, 0.9`, or, of more than `shown`, `0.8, 0.9 and 3 more`."""
    words = [f"{item:g}" if isinstance(item, float) else str(item) for item in items]
    more = f" and {len(words) - shown} more" if shown is not None and len(words) > shown else ""
    return separator.join(words[:shown]) + more


def counted(names: Collection[object], noun: str, *, shown: int = 3) -> str:
    """How many, and the first of them: `7 cases (a, b, c and 4 more)`."""
    return f"{len(names)} {noun}{'s' * (len(names) != 1)} ({listed(names, shown=shown)})"


def browser_command(page: Path) -> str:
    """The command that opens a page."""
    return f"python -m webbrowser {shlex.quote(page.resolve().as_uri())}"


def told_apart(*values: float, digits: int = 3) -> list[str]:
    """Numbers with so many digits behind the point, or, where these make different ones look alike, with more."""
    for more in range(digits, 17):
        texts = [f"{value:.{more}f}" for value in values]
        if len(set(texts)) == len(set(values)):
            return texts
    return [repr(value) for value in values]


def one_line(error: BaseException, *, last: bool = False) -> str:
    """What an exception says, in one line; of one without words its name.

    Args:
        last: the last line of several, where libraries write above it where they were; else the first.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1 if last else 0][:300]


def shortened(name: str, most: int) -> str:
    """A name with so many letters at the most, those in its middle left out."""
    return name if len(name) <= most else name[: most // 2] + "…" + name[len(name) - (most - 1) // 2 :]


def duration(seconds: float) -> str:
    """A time in its largest unit that fits twice: `9 h`, `65 s`."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, aligned: bool = True) -> str:
    """A Markdown table; a bar or a line's end in a cell does not end it.

    Args:
        aligned: columns line up, the first as text, the others as numbers to the right; without it a changed row
            changes no other line.
    """
    lines = [[" ".join(cell.splitlines()).replace("|", "\\|") for cell in line] for line in (header, *rows)]
    if not aligned:
        return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], ["---"] * len(header), *lines[1:]))
    widths = [max(2, *map(len, column)) for column in zip(*lines, strict=True)]  # "-:" is the shortest rule
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    padded = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in (padded[0], rule, *padded[1:]))
