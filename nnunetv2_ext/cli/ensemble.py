"""`nnunetv2_ext ensemble`: labels from the probabilities of several models, once these were seen to agree."""

import argparse
from pathlib import Path

from nnunetv2_ext.cli.options import add_processes, processes, value_of
from nnunetv2_ext.text import markdown_table

EXAMPLES = """examples:
  nnunetv2_ext ensemble -i ours stock -o ensemble               folders of predictions with --save_probabilities
  nnunetv2_ext ensemble -i ours stock -o ensemble -w 2 1        the first counts twice

Run again, it goes on where it was ended: cases of the same files, members and weights stay.

exit status: 1 where the files of a case are damaged or do not fit, 2 where nothing could be made, 0 otherwise
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """nnU-Net's flags, weights and --overwrite."""
    parser.epilog = EXAMPLES
    parser.add_argument(
        "-i",
        dest="folders",
        nargs="+",
        required=True,
        type=Path,
        metavar="FOLDER",
        help="predictions of each member, with probabilities (nnunetv2_ext predict or nnUNetv2_predict with "
        "--save_probabilities)",
    )
    parser.add_argument("-o", dest="output", required=True, type=Path, metavar="FOLDER", help="output folder")
    parser.add_argument(
        "-w", dest="weights", nargs="+", metavar="W", help="weight of each member (default: all the same)"
    )
    parser.add_argument(
        "--save_probabilities",
        "--save_npz",
        dest="probabilities",
        action="store_true",
        help="write the averages too, CASE.npz and CASE.pkl",
    )
    parser.add_argument("--overwrite", action="store_true", help="make everything anew, over what is there")
    add_processes(parser)


def run(args: argparse.Namespace) -> int:
    """Make the ensemble; last, which cases are made and what is wrong with the others."""
    from nnunetv2_ext.inference.ensemble import ensemble_folders

    outcome = ensemble_folders(
        args.folders,
        args.output,
        weights=None if args.weights is None else value_of(args.weights, float, "-w"),
        probabilities=args.probabilities,
        overwrite=args.overwrite,
        processes=processes(args),
    )
    written = f"{len(outcome.written)} case{'s' * (len(outcome.written) != 1)}"
    kept = f", {len(outcome.kept)} were there already" if outcome.kept else ""
    failed = f", {len(outcome.failed)} failed" if outcome.failed else ""
    print(f"{args.output}: {written} of {len(args.folders)} members{kept}{failed}")
    if outcome.failed:
        print(markdown_table(["failed", "why"], outcome.failed.items(), aligned=False))
    return 1 if outcome.failed else 0
