"""`nnunetv2_ext safe_export`: a trained model as safetensors beside JSON, in which nothing can run code."""

import argparse
from pathlib import Path

from nnunetv2_ext.weights.files import FINAL

EXAMPLE = """example:
  nnunetv2_ext safe_export "$nnUNet_results"/Dataset042_Liver/MNetTrainer__MNetPlans__3d_fullres liver_mnet"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, where it goes, and what of it."""
    parser.epilog = EXAMPLE
    parser.add_argument(
        "model", type=Path, metavar="MODEL_FOLDER", help="of our trainers or nnU-Net's: with plans.json and fold_*"
    )
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the folder to make")
    parser.add_argument(
        "-f", dest="folds", nargs="+", metavar="FOLD", help="folds (default: those that have the checkpoint)"
    )
    parser.add_argument("-chk", dest="checkpoint", default=FINAL, help="which checkpoint of each fold")
    parser.add_argument(
        "--trust",
        action="store_true",
        help="unpickle checkpoints that hold more than tensors, and leave the rest out; this can run code, so only for "
        "files from a trusted source",
    )


def run(args: argparse.Namespace) -> int:
    """Export the model and say what of it."""
    from nnunetv2_ext.weights.safe import write_safe_model

    folds = write_safe_model(args.model, args.output, folds=args.folds, checkpoint=args.checkpoint, trust=args.trust)
    print(f"wrote {args.output}: {args.checkpoint} of fold {' '.join(folds)}, as safetensors beside JSON")
    return 0
