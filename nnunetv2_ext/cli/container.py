"""`nnunetv2_ext container`: the folder of a container that predicts by one or several trained models."""

import argparse
from pathlib import Path

from nnunetv2_ext.cli.options import value_of
from nnunetv2_ext.inference.models import chosen
from nnunetv2_ext.weights.files import FINAL

EXAMPLE = """examples:
  nnunetv2_ext container -d 42 -m MNetTrainer:MNetPlans:3d_fullres nnUNetTrainer:nnUNetPlans:3d_fullres \\
      --interface grand-challenge --inputs ct-abdomen --output-slug liver-segmentation -o submission
  nnunetv2_ext container -d 42 -m MNetTrainer:MNetPlans:3d_fullres --interface folder -o watcher

Then run ./test_run.sh in the folder, and ./save.sh. Its README.md tells the rest.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The models, how they predict, and who asks them."""
    parser.epilog = EXAMPLE
    parser.add_argument(
        "-m",
        dest="models",
        nargs="+",
        required=True,
        metavar="MODEL",
        help="TRAINER:PLANS:CONFIG of -d, folders of models, or the file of find_best -o; several are an ensemble",
    )
    parser.add_argument("-d", dest="dataset", metavar="ID", help="id or name of the data set")
    parser.add_argument(
        "-f", dest="folds", nargs="+", metavar="FOLD", help="folds of every model (default: those that are trained)"
    )
    parser.add_argument("-o", dest="output", type=Path, required=True, metavar="FOLDER", help="the folder to make")
    parser.add_argument("-w", dest="weights", nargs="+", metavar="W", help="weight of each model (default: equal)")
    parser.add_argument("-chk", dest="checkpoint", default=FINAL, help="which checkpoint of each fold")
    parser.add_argument("-step_size", default="0.5", metavar="SHARE", help="of the sliding window, of its patch")
    parser.add_argument("--disable_tta", action="store_true", help="no mirrored copies: faster, less accurate")
    asks = parser.add_argument_group("who asks")
    asks.add_argument(
        "--interface",
        default="grand-challenge",
        metavar="NAME",
        help="grand-challenge: one case a run, by sockets; folder: a folder is watched",
    )
    asks.add_argument(
        "--inputs",
        nargs="+",
        metavar="SLUG",
        help="the slugs of the channels' sockets, in their order (required, but for folder)",
    )
    asks.add_argument("--output-slug", metavar="SLUG", help="the slug of the labels' socket (required, but for folder)")
    asks.add_argument(
        "--tif-spacing",
        nargs=3,
        metavar=("Z", "Y", "X"),
        help="mm between the voxels of TIFF files, which tell none (default: TIFF is refused)",
    )
    asks.add_argument(
        "--bake", action="store_true", help="the image holds the models too, for platforms that take no second file"
    )


def run(args: argparse.Namespace) -> int:
    """Write the folder and say what is in it."""
    models, folds = chosen(args.models, args.dataset, args.folds)
    step_size = value_of(args.step_size, float, "-step_size")
    weights = None if args.weights is None else value_of(args.weights, float, "-w")
    spacing = None if args.tif_spacing is None else value_of(args.tif_spacing, float, "--tif-spacing")

    from nnunetv2_ext.container.make import write_container
    from nnunetv2_ext.container.settings import Settings
    from nnunetv2_ext.inference.single import Options

    Options(step_size=step_size)  # refuses others
    settings = Settings(
        interface=args.interface,
        models=(),
        channels=(),
        inputs=tuple(args.inputs or ()),
        output=args.output_slug or "",
        weights=None if weights is None else tuple(weights),
        step_size=step_size,
        mirroring=not args.disable_tta,
        tif_spacing=None if spacing is None else tuple(spacing),
    )
    lines = write_container(models, args.output, settings, folds=folds, checkpoint=args.checkpoint, baked=args.bake)
    for line in lines:
        print(line)
    print(f"wrote {args.output}: run ./test_run.sh there, then ./save.sh")
    return 0
