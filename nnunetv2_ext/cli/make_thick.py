"""Make a thick-slice data set: `nnunetv2_ext make_thick -d 4 -o 104 --factor 4`."""

import argparse
from collections import defaultdict
from typing import Any

from nnunetv2_ext.errors import InputError

EXAMPLES = """examples:
  nnunetv2_ext make_thick -d 4 -o 104 --factor 4         Dataset104_HippocampusThick4 from Dataset004_Hippocampus
  nnunetv2_ext make_thick -d 4 -o 105 --thickness 3.7    slabs of 3.7 mm, whatever the slice spacing
  nnunetv2_ext make_thick -d 4 -o 106 --factor 3 --axis 2 --name HippocampusSagittal
"""
SHOWN_CASES = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # Numbers are read in `run`, so that a wrong one ends in the same kind of sentence as any other bad input.
    parser.add_argument("-d", dest="dataset", required=True, metavar="DATASET", help="id or name of the source")
    parser.add_argument("-o", dest="output", required=True, metavar="ID", help="id of the new data set")
    parser.add_argument("--factor", metavar="N", help="slices per slab, 2 or more")
    parser.add_argument("--thickness", metavar="MM", help="slab thickness, more than each case's slice spacing")
    parser.add_argument(
        "--axis",
        metavar="K",
        help="array axis of the slices, 0, 1 or 2 in nnU-Net's order z, y, x (default: the coarsest median spacing of "
        "the training cases, the first such axis where several are equal)",
    )
    parser.add_argument("--name", help="name after DatasetXXX_ (default: the source's with Thick4 or Thick5mm)")
    parser.add_argument(
        "-np", dest="processes", metavar="N", help="cases at the same time (default: nnUNet_def_n_proc)"
    )
    parser.epilog = EXAMPLES


def run(args: argparse.Namespace) -> int:
    from nnunetv2.configuration import default_num_processes

    from nnunetv2_ext.data.thick import make_thick

    processes = _number(args.processes, int, "-np")
    made = make_thick(
        args.dataset,
        args.output,
        factor=_number(args.factor, int, "--factor"),
        thickness=_number(args.thickness, float, "--thickness"),
        axis=_number(args.axis, int, "--axis"),
        name=args.name,
        processes=default_num_processes if processes is None else processes,
    )
    factors = list(dict.fromkeys(f"{factor:.4g}" for factor in sorted(made.factors.values())))
    print(f"{made.folder}: {len(made.factors)} cases, {_listed(factors)} slices per slab along array axis {made.axis}")
    by_number = defaultdict(list)
    for case, number in made.dropped.items():
        by_number[number].append(case)
    if len(by_number) > SHOWN_CASES:
        span = f"{min(by_number):g} to {max(by_number):g}"
        print(f"dropped {span} remainder slices at the end of {len(made.dropped)} cases")
        by_number.clear()
    for number, cases in sorted(by_number.items()):
        plural = "" if number == 1 else "s"
        print(f"dropped {number:g} remainder slice{plural} at the end of {len(cases)} cases: {_listed(cases)}")
    if made.labels_left_out:
        print(f"left out {len(made.labels_left_out)} label files without an image: {_listed(made.labels_left_out)}")
    return 0


def _number(text: str | None, kind: type, option: str) -> Any:
    try:
        return None if text is None else kind(text)
    except ValueError:
        expected = "a whole number" if kind is int else "a number"
        raise InputError(f"{option} {text}", expected, "correct it") from None


def _listed(items: list) -> str:
    more = [f"and {len(items) - SHOWN_CASES} more"] if len(items) > SHOWN_CASES else []
    return ", ".join([*map(str, items[:SHOWN_CASES]), *more])
