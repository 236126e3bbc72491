"""`nnunetv2_ext audit`: which labels of a data set are probably wrong, and which follow another style."""

import argparse
import io
import os
import shlex
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunetv2_ext.cli.options import add_processes, number, processes, value_of
from nnunetv2_ext.data.splits import SPLITS
from nnunetv2_ext.errors import InputError, is_whole
from nnunetv2_ext.files import check_output_file, dataset_name, nnunet_folder
from nnunetv2_ext.inference.models import parse_models
from nnunetv2_ext.planning.options import flag_of
from nnunetv2_ext.text import browser_command, counted, listed

if TYPE_CHECKING:
    from nnunetv2_ext.audit.evidence import AuditRequest
    from nnunetv2_ext.audit.result import Audit

EXAMPLE = """examples:
  nnunetv2_ext audit -d 42                                        by the folds' validation; without one, by a map
  nnunetv2_ext audit -d 42 --from map -o audit_by_map
  nnunetv2_ext audit -d 42 -m MNetTrainer:MNetPlans:3d_fullres --exclude splits.json

No label and no image is changed. Exit status: 0 the report is written, whatever it lists; 2 bad input.
"""
MAP_NUMBERS = {
    "voxels": "that a case has in it at the most, once it is resampled (default: 262144, as of 64 x 64 x 64)",
    "channels": "of its network's finest level (default: 8)",
    "epochs": "at the most (default: 40)",
    "seed": "of its random numbers (default: 0)",
    "max_parameters": "of its hyper-network; more are refused (default: 30000000)",
}
SHOWN = 5
"""Listed cases that are told here."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The data set, the source of evidence, what is written."""
    parser.epilog = EXAMPLE
    parser.add_argument("-d", dest="dataset", required=True, metavar="ID", help="id or name of the data set")
    parser.add_argument(
        "--from",
        dest="source",
        choices=("validation", "map"),
        help="by the held-out predictions of trained folds, or by a map of all cases, which needs no training "
        "(default: validation where a fold has one, else map)",
    )
    parser.add_argument(
        "-m",
        dest="model",
        metavar="TRAINER:PLANS:CONFIG",
        help="the trained model, or whose preprocessed cases the map is made of (default: the model with most folds)",
    )
    parser.add_argument(
        "-o", dest="output", type=Path, metavar="OUT", help="folder to write to (default: DATASET_audit)"
    )
    parser.add_argument(
        "--exclude",
        type=Path,
        metavar="FILE",
        help="write folds there without the cases that are probably wrong, as splits_final.json has them",
    )
    parser.add_argument("--pictures", default="20", metavar="N", help="listed cases with pictures, at the most")
    parser.add_argument("--viewer", default="3", metavar="N", help="listed cases in the interactive viewer")
    add_processes(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace another audit in OUT, and FILE")
    parser.add_argument("--disable_progress_bar", action="store_true", help="no progress on stderr")
    of_map = parser.add_argument_group("the map, which the numbers ask for")
    for name, meaning in MAP_NUMBERS.items():
        of_map.add_argument(flag_of(name), metavar="N", help=meaning)
    of_map.add_argument("-device", choices=("cpu", "cuda", "mps"), default="cpu", help="where it is trained")


def run(args: argparse.Namespace) -> int:
    """Audit, tell."""
    words = sys.stdout
    with redirect_stdout(io.StringIO()):  # nnU-Net's readers print
        return _run(args, words)


def _run(args: argparse.Namespace, words: Any) -> int:
    at_once = min(processes(args), os.cpu_count() or 1)  # threads that compute
    request = _request(args)
    _check_exclude(args.exclude, request.dataset, args.overwrite)
    output = args.output or Path(f"{request.dataset}_audit")

    from nnunetv2_ext.audit.told import PAGE
    from nnunetv2_ext.audit.whole import run_audit, write_exclusion

    audit, lacking = run_audit(
        request,
        output,
        processes=at_once,
        overwrite=args.overwrite,
        progress=not args.disable_progress_bar and sys.stderr is not None,
    )
    for line in (*summary(audit), *lacking):
        print(line, file=words)
    if args.exclude is not None:
        left_out = write_exclusion(audit, args.exclude)
        own = nnunet_folder("nnUNet_preprocessed") / request.dataset / SPLITS
        if left_out:
            print(f"{args.exclude}: the folds without {counted(left_out, 'case')}; to train with them:", file=words)
            print(f"  cp {shlex.quote(str(args.exclude))} {shlex.quote(str(own))}", file=words)
        else:
            print(f"{args.exclude}: the folds as they are, since no case is probably wrong", file=words)
    print(f"Open the report: {browser_command(output / PAGE)}", file=words)
    return 0


def _request(args: argparse.Namespace) -> "AuditRequest":
    """What the flags ask for.

    Raises:
        InputError: no such data set, no model's name, or numbers that make no sense.
    """
    from nnunetv2_ext.audit.evidence import AuditRequest

    counts = {}
    for flag in ("pictures", "viewer"):
        counts[flag] = value_of(getattr(args, flag), int, f"--{flag}")
        if not is_whole(counts[flag], least=0):
            raise InputError(f"--{flag} {counts[flag]}", "0 or more", "correct it")
    numbers = {}
    for name in MAP_NUMBERS:
        flag = flag_of(name)
        if (given := number(getattr(args, name), int, flag)) is not None:
            if not is_whole(given, least=0 if name == "seed" else 1):
                raise InputError(f"{flag} {given}", "a larger whole number", "correct it")
            numbers[name] = given
    if args.source == "validation" and (numbers or args.device != "cpu"):
        given_flags = [flag_of(name) for name in numbers] + ["-device"] * (args.device != "cpu")
        raise InputError(f"{listed(given_flags)} beside --from validation", "--from map", "leave one of both out")
    (model,) = parse_models([args.model]) if args.model else (None,)
    source = args.source or ("map" if numbers else None)
    return AuditRequest(dataset_name(args.dataset), source, model, numbers, args.device, **counts)


def _check_exclude(path: Path | None, dataset: str, overwrite: bool) -> None:
    """Refuse a file for the folds that would replace another one, before the work is done.

    Raises:
        InputError: it lies in the data set, or is there already; or the data set's own folds are damaged.
    """
    if path is None:
        return
    check_output_file(path, "--exclude")
    from nnunetv2_ext.audit.whole import own_splits, refuse_data

    refuse_data(path, "--exclude", dataset)
    own_splits(dataset)
    if path.exists() and not overwrite:
        raise InputError(f"--exclude {path}, which is there", "a new file", "choose another name, or --overwrite")


def summary(audit: "Audit") -> list[str]:
    """What an audit found, in a few lines."""
    from nnunetv2_ext.audit import told as words
    from nnunetv2_ext.audit.tables import STYLE, WRONG

    told = [f"{audit.dataset}: {words.about(audit)}", *audit.notes, words.summary(words.counts_of(audit))]
    for kind, is_wrong in ((WRONG, True), (STYLE, False)):
        verdicts = [one for one in audit.verdicts if one.wrong is is_wrong]
        told += [f"  {one.case}: {kind}: {one.sentence}" for one in verdicts[:SHOWN]]
        if len(verdicts) > SHOWN:
            told.append(f"  and {len(verdicts) - SHOWN} more")
    for one in audit.findings[:SHOWN]:
        told.append(f"  {listed(one.cases, shown=3)}: {one.sentence}" if one.cases else f"  {one.sentence}")
    if len(audit.findings) > SHOWN:
        told.append(f"  and {len(audit.findings) - SHOWN} more findings")
    return told
