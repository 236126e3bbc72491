"""Make a thin-thick data set: `nnunetv2_ext convert_thin_thick --images thin --labels thick -o 42 --name Liver ...`."""

import argparse
from pathlib import Path

from nnunetv2_ext.cli.options import add_processes, number, processes
from nnunetv2_ext.text import counted, markdown_table

EXAMPLES = """examples:
  nnunetv2_ext convert_thin_thick --images thin --labels thick -o 42 --name Liver --label-names background liver tumour
  nnunetv2_ext convert_thin_thick --images thin --labels thick -o 42 --name Liver --label-names background liver \\
      --channel-names CT --slice-thickness 3    slices 3 mm thick with gaps between them, which are ignored
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of thin images")
    parser.add_argument(
        "--labels", type=Path, required=True, metavar="DIR", help="folder of thick annotations, named as the images"
    )
    parser.add_argument(
        "-o",
        "-d",
        dest="output",
        required=True,
        metavar="ID",
        help="id of the new data set; one that exists is refused",
    )
    parser.add_argument("--name", required=True, help="name after DatasetXXX_")
    parser.add_argument(
        "--label-names",
        nargs="+",
        required=True,
        metavar="NAME",
        help="names of the values 0, 1, 2, ...: background first; ignore, where the annotations hold it, last",
    )
    parser.add_argument(
        "--channel-names",
        nargs="+",
        metavar="NAME",
        help="names of the channels; nnU-Net normalises CT as such, others by mean and standard deviation (default: "
        "image, or channel_0 channel_1 ...)",
    )
    parser.add_argument(
        "--slice-axis",
        metavar="K",
        help="array axis of the slices, 0, 1 or 2 in nnU-Net's order z, y, x; needed where annotations are coarser "
        "along several (default: the coarser one)",
    )
    parser.add_argument(
        "--slice-thickness",
        metavar="MM",
        help="thickness of all annotated slices; less than their spacing leaves gaps, within a hundredth of it counts "
        "as equal (default: what DICOM tells, else their spacing)",
    )
    parser.add_argument(
        "--skip-unmatched",
        action="store_true",
        help="leave out images without annotation and annotations without image",
    )
    add_processes(parser)
    parser.epilog = EXAMPLES


def run(args: argparse.Namespace) -> int:
    from nnunetv2_ext.data.thin_thick import ConvertedCase, convert_thin_thick

    made = convert_thin_thick(
        args.images,
        args.labels,
        args.output,
        name=args.name,
        label_names=args.label_names,
        channel_names=args.channel_names,
        slice_axis=number(args.slice_axis, int, "--slice-axis"),
        slice_thickness=number(args.slice_thickness, float, "--slice-thickness"),
        skip_unmatched=args.skip_unmatched,
        processes=processes(args),
    )

    def line(case: ConvertedCase) -> list[str]:
        lengths = [f"{length:.4g}" for length in (case.thin_spacing, case.thick_spacing, case.thickness, case.ratio)]
        numbers = [case.thin_slices, case.slabs, case.covered, case.ignored]
        return [case.case, *lengths, *map(str, numbers), "resampled" if case.resampled else "as the image"]

    head = ["case", "thin, mm", "thick, mm", "thickness, mm", "ratio", "thin slices", "slabs", "covered", "ignored"]
    print(markdown_table([*head, "within slices"], map(line, made.cases)))
    print(f"{made.folder}: {len(made.cases)} cases, slices along array axis {made.axis}, table in conversion.csv")
    if made.ignore_label is not None:
        ignored = sum(case.ignored for case in made.cases)
        print(f"{ignored} thin slices in no slab have the label {made.ignore_label}, which training ignores")
    if made.left_out:
        print(f"left out {len(made.left_out)} without partner: {', '.join(path.name for path in made.left_out)}")
    if made.no_volumes:
        print(f"left out {counted([path.name for path in made.no_volumes], 'file')}, as no volume")
    for folder in made.removed:
        print(f"removed {folder}, which a killed process had left behind")
    if not args.channel_names:
        print("channels are normalised by mean and standard deviation: give --channel-names CT for computed tomography")
    return 0
