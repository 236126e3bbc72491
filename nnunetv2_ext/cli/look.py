"""`nnunetv2_ext look`: a picture of cases, images with their predictions and, where there are any, their labels."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_ext.cli.options import value_of
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import check_output_file, read_json
from nnunetv2_ext.text import listed

if TYPE_CHECKING:
    from nnunetv2_ext.evaluation.segmentations import Labels

EXAMPLES = """examples:
  nnunetv2_ext look -i images -p predictions -o cases.png                   cases spread over the folder
  nnunetv2_ext look -i imagesTs -p predictions -r labelsTs -o cases.png     the best, the median and the worst
  nnunetv2_ext look -i images -p predictions --cases liver_7 --window -160 240 -o case.png
"""
MOST = 4
"""Cases in a picture."""
CT_WINDOW = (-160.0, 240.0)
"""Of soft tissue, in Hounsfield units."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Folders, which cases, how they are drawn."""
    parser.epilog = EXAMPLES
    parser.add_argument("-i", dest="images", type=Path, required=True, metavar="IMAGES", help="folder of the images")
    parser.add_argument(
        "-p", dest="predictions", type=Path, required=True, metavar="PREDICTIONS", help="folder of predicted labels"
    )
    parser.add_argument("-r", dest="truths", type=Path, metavar="LABELS", help="folder of the true labels")
    parser.add_argument("-o", dest="output", type=Path, required=True, metavar="FILE", help="the picture, a .png")
    parser.add_argument(
        "--cases", nargs="+", metavar="CASE", help=f"names of cases, or how many, at most {MOST} (default: 3)"
    )
    parser.add_argument("--channel", default="0", metavar="N", help="of the images")
    parser.add_argument(
        "--window",
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="values shown as black and white (default: {:g} to {:g} for CT, else the 1st and 99.5th percentile of "
        "each image)".format(*CT_WINDOW),
    )
    parser.add_argument(
        "-djfile",
        dest="description",
        type=Path,
        metavar="FILE",
        help="dataset.json that names labels and channels (default: beside the predictions, else beside or in LABELS)",
    )


def run(args: argparse.Namespace) -> int:
    """Find, choose, draw."""
    check_output_file(args.output, "-o")
    if args.output.suffix.lower() != ".png":
        raise InputError(f"-o {args.output}", "a file .png", "choose one")
    for flag, folder in {"-i": args.images, "-p": args.predictions, "-r": args.truths}.items():
        if folder is not None and args.output.resolve().is_relative_to(folder.resolve()):
            got = f"-o {args.output}, inside {flag} {folder}"
            raise InputError(got, "a picture beside the volumes, which would be taken for one", "choose another folder")
    channel = value_of(args.channel, int, "--channel")
    window = None if args.window is None else tuple(value_of(args.window, float, "--window"))
    if window is not None and not window[0] < window[1]:
        raise InputError(f"--window {listed(window, separator=' ')}", "the lower value first", "correct it")

    from nnunetv2.configuration import default_num_processes

    from nnunetv2_ext.report.cases import choose, draw, find_cases, named

    labels, is_ct = _described(args, channel)
    cases = find_cases(args.images, args.predictions, args.truths, channel=channel)
    asked = args.cases or ["3"]
    number = int(asked[0]) if len(asked) == 1 and asked[0].isdecimal() and asked[0] not in cases else None
    if not 1 <= (len(asked) if number is None else number) <= MOST:
        raise InputError(f"--cases {listed(asked, shown=5, separator=' ')}", f"1 to {MOST}", "make several pictures")
    if number is None:
        chosen = named(cases, asked)
    else:
        chosen = choose(cases, labels, number, processes=default_num_processes, progress=len(cases) > 20)
    if is_ct and window is None:
        window = CT_WINDOW
    grey = "from {:g} to {:g}".format(*window) if window else "from the 1st to the 99.5th percentile of each image"
    note = f"Grey values {grey}. The patient's right is on the left of axial and coronal planes."
    draw(cases, chosen, labels, args.output, heading=args.predictions.resolve().name, note=note, window=window)
    print(f"{args.output}: {listed(chosen)}")
    return 0


def _described(args: argparse.Namespace, channel: int) -> "tuple[Labels, bool]":
    """The labels' names, and whether the images are CT."""
    from nnunetv2_ext.data.description import channel_names
    from nnunetv2_ext.evaluation.segmentations import Labels, descriptions, labels_of

    paths = (
        [args.description] if args.description else descriptions([args.predictions], args.truths or args.predictions)
    )
    if not paths:
        return Labels({}), False
    path = paths[0]
    content = read_json(path, "correct the file, or give another with -djfile")
    labels = labels_of(content, path)
    names = channel_names(content)
    is_ct = isinstance(names, dict) and str(names.get(str(channel))).lower() == "ct"
    return labels, is_ct
