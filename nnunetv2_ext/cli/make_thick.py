"""Make a thick-slice data set: `nnunetv2_ext make_thick -d 4 -o 104 --factor 4`."""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nnunetv2_ext.cli.options import add_processes, number, processes
from nnunetv2_ext.text import listed, markdown_table

if TYPE_CHECKING:
    from nnunetv2_ext.data.label_counts import LabelCount
    from nnunetv2_ext.data.thick import ThickDataset

EXAMPLES = """examples:
  nnunetv2_ext make_thick -d 4 -o 104 --factor 4         Dataset104_HippocampusThick4 from Dataset004_Hippocampus
  nnunetv2_ext make_thick -d 4 -o 105 --thickness 3.7    slabs of 3.7 mm, whatever the slice spacing
  nnunetv2_ext make_thick -d 4 -o 106 --factor 3 --slice-axis 2 --name HippocampusSagittal
"""
SHOWN_CASES = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", dest="dataset", required=True, metavar="DATASET", help="id or name of the source")
    parser.add_argument(
        "-o", dest="output", required=True, metavar="ID", help="id of the new data set; one that exists is refused"
    )
    parser.add_argument("--factor", metavar="N", help="slices per slab, 2 or more")
    parser.add_argument(
        "--thickness",
        metavar="MM",
        help="slab thickness, more than each case's slice spacing; within a hundredth of a whole multiple, that "
        "multiple",
    )
    parser.add_argument(
        "--slice-axis",
        metavar="K",
        help="array axis of the slices, 0, 1 or 2 in nnU-Net's order z, y, x (default: the one of the coarsest median "
        "spacing of the training cases, the first where several are equal)",
    )
    parser.add_argument("--name", help="name after DatasetXXX_ (default: the source's with Thick4 or Thick5mm)")
    add_processes(parser)
    parser.epilog = EXAMPLES


def run(args: argparse.Namespace) -> int:
    from nnunetv2_ext.data.thick import make_thick

    made = make_thick(
        args.dataset,
        args.output,
        factor=number(args.factor, int, "--factor"),
        thickness=number(args.thickness, float, "--thickness"),
        axis=number(args.slice_axis, int, "--slice-axis"),
        name=args.name,
        processes=processes(args),
    )
    factors = list(dict.fromkeys(f"{factor:.4g}" for factor in sorted(made.factors.values())))
    print(f"{made.folder}: {len(made.factors)} cases, {_shown(factors)} slices per slab along array axis {made.axis}")
    by_rest = defaultdict(list)
    for case, rest in made.dropped.items():
        by_rest[rest].append(case)
    if len(by_rest) > SHOWN_CASES:
        span = f"{min(by_rest):g} to {max(by_rest):g}"
        print(f"dropped {span} remainder slices at the end of {len(made.dropped)} cases")
        by_rest.clear()
    for rest, cases in sorted(by_rest.items()):
        plural = "" if rest == 1 else "s"
        print(f"dropped {rest:g} remainder slice{plural} at the end of {len(cases)} cases: {_shown(cases)}")
    if made.left_out:
        print(f"left out {len(made.left_out)} files of no case: {_shown(made.left_out)}")
    for folder in made.removed:
        print(f"removed {folder}, which a killed process had left behind")
    _print_labels(made)
    return 0


def _print_labels(made: "ThickDataset") -> None:
    def line(value: int, count: "LabelCount") -> list[str]:
        volumes = [f"{volume:.4g}" for volume in (count.volume, count.thick_volume)]
        components = [count.components, count.thick_components, count.lost]
        return [
            made.names.get(value, str(value)),
            str(count.cases),
            str(len(count.gone)),
            *volumes,
            *map(str, components),
        ]

    labels = sorted(made.labels.items())
    head = ["label", "cases", "gone in", "ml", "ml, thick", "components", "components, thick", "components lost"]
    if labels:
        print(markdown_table(head, (line(*item) for item in labels)))
    for value, count in labels:
        if count.gone and made.names.get(value) != "ignore":
            name, gone = made.names.get(value, value), len(count.gone)
            where = f"all {gone} cases" if gone == count.cases else f"{gone} of {count.cases} cases"
            print(f"warning: the label {name} is gone in {where} that have it: {_shown(count.gone)}")


def _shown(items: Sequence[str]) -> str:
    return listed(items, shown=SHOWN_CASES)
