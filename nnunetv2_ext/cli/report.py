"""`nnunetv2_ext report`: all of an evaluation in one HTML file, which needs no network."""

import argparse
from pathlib import Path

from nnunetv2_ext.cli.options import value_of
from nnunetv2_ext.errors import InputError, is_whole

EXAMPLES = """examples:
  nnunetv2_ext report evaluation -o report.html                     what nnunetv2_ext evaluate wrote
  nnunetv2_ext report ours stock -o report.html -i imagesTs         two evaluations of the same cases, with images

exit status: 2 where no page can be made, 0 otherwise; what the page lacks, such as the picture of a case whose file is
gone, is told in it and here
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Evaluations, where to write, and how many cases are shown."""
    parser.epilog = EXAMPLES
    parser.add_argument(
        "evaluations",
        nargs="+",
        type=Path,
        metavar="EVALUATION",
        help="folder that nnunetv2_ext evaluate wrote, or its metrics.csv",
    )
    parser.add_argument("-o", dest="output", required=True, type=Path, metavar="FILE", help="the page, .html")
    parser.add_argument(
        "-i",
        dest="images",
        type=Path,
        metavar="FOLDER",
        help="images, named as in imagesTr (default: those that the evaluation tells of, or imagesTs beside labelsTs)",
    )
    parser.add_argument(
        "--title", metavar="TEXT", help="heading of the page (default: the data set's name, else the folder's)"
    )
    parser.add_argument("--note", metavar="TEXT", help="what a reader must know first, below the heading")
    parser.add_argument(
        "--cases", default="3", metavar="N", help="worst cases with pictures, beside the median and the best one"
    )
    parser.add_argument("--viewer", default="3", metavar="N", help="cases in the interactive viewer")


def run(args: argparse.Namespace) -> int:
    """Write the page; tells what it lacks, and where it is."""
    counts = {}
    for flag in ("cases", "viewer"):
        counts[flag] = value_of(getattr(args, flag), int, f"--{flag}")
        if not is_whole(counts[flag], least=0):
            raise InputError(f"--{flag} {counts[flag]}", "0 or more", "correct it")

    from nnunetv2_ext.report.figure import plain_words
    from nnunetv2_ext.report.page import write_report

    with plain_words():
        lacking = write_report(
            args.evaluations,
            args.output,
            images=args.images,
            title=args.title,
            note=args.note or "",
            cases=counts["cases"],
            viewer_cases=counts["viewer"],
        )
    for sentence in lacking:
        print(sentence)
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB; open it in a browser")
    return 0
