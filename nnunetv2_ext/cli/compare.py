"""`nnunetv2_ext compare`: models that were evaluated, paired by case, with intervals, tests and their correction."""

import argparse
import csv
import json
import math
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import check_output_file, unwritable, write_beside

if TYPE_CHECKING:
    from nnunetv2_ext.evaluation.comparison import Comparison

EXAMPLES = """examples:
  nnunetv2_ext compare evaluation                                 every two models of an evaluation
  nnunetv2_ext compare ours/metrics.csv theirs/metrics.csv        of several
  nnunetv2_ext compare evaluation --reference nnU-Net --metrics Dice --labels mean -o comparison.md

One line for each pair of models, label and metric. All lines are one family for Holm's correction: ask for what you
want to know, not for everything.
"""
ENDINGS = (".csv", ".md")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Files, and what to compare of them."""
    parser.epilog = EXAMPLES
    parser.add_argument(
        "scores",
        nargs="+",
        type=Path,
        metavar="SCORES",
        help="metrics.csv of nnunetv2_ext evaluate, or the folder that holds it",
    )
    parser.add_argument(
        "--reference", metavar="MODEL", help="compare the others with this one (default: each with each)"
    )
    parser.add_argument(
        "--metrics", nargs="+", metavar="METRIC", help="metrics to compare (default: Dice, HD95 and NSD)"
    )
    parser.add_argument(
        "--labels",
        nargs="+",
        metavar="LABEL",
        help="labels to compare; mean: the mean of each case over its labels (default: every label)",
    )
    parser.add_argument("-o", dest="output", type=Path, metavar="FILE", help="write it too: .csv, or .md as printed")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Read, compare, print."""
    check_output_file(args.output, "-o")
    if args.output is not None and args.output.suffix not in ENDINGS:
        raise InputError(f"-o {args.output}", "a file .csv or .md", "choose one")
    from nnunetv2_ext.evaluation.comparison import compare, comparison_notes, comparison_table, together
    from nnunetv2_ext.evaluation.scores import FILE, read_scores

    given = [path.resolve() for path in args.scores]
    if args.output is not None and (args.output.name == FILE or args.output.resolve() in given):
        raise InputError(f"-o {args.output}", "another file than the scores of an evaluation", "choose another name")
    scores = together([(str(path), read_scores(path)) for path in args.scores])
    found = compare(scores, reference=args.reference, metrics=args.metrics, labels=args.labels)
    notes = comparison_notes(found)
    text = "\n\n".join([comparison_table(found), "\n".join(notes)])
    if args.output is not None:
        written = text + "\n" if args.output.suffix == ".md" else _csv(found)
        try:
            write_beside(lambda beside: beside.write_text(written, encoding="utf-8"), args.output)
        except OSError as error:
            raise unwritable(args.output, error) from None
    print(json.dumps({"comparisons": list(map(_flat, found)), "notes": notes}, indent=4) if args.json else text)
    return 0


def _flat(one: "Comparison") -> dict[str, Any]:
    """The fields of a comparison, those of its interval among them; None where there is no number."""
    fields: dict[str, Any] = {}
    for name, value in one._asdict().items():
        if name == "difference":
            mean, low, high, cases = one.difference
            fields |= {"difference": mean, "low": low, "high": high, "cases": cases}
        else:
            fields[name] = value
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in fields.items()}


def _csv(comparisons: "Sequence[Comparison]") -> str:
    rows = list(map(_flat, comparisons))
    text = StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
