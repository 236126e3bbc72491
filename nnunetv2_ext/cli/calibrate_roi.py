"""`nnunetv2_ext calibrate_roi`: the margin that the boxes of an ROI model need, from its validation."""

import argparse
from typing import TYPE_CHECKING

from nnunetv2_ext.cli.options import add_processes, processes
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import REFERENCES, dataset_name, nnunet_folder
from nnunetv2_ext.inference.models import model_folder, parse_models
from nnunetv2_ext.text import counted, listed, markdown_table

if TYPE_CHECKING:
    from nnunetv2_ext.inference.calibration import Calibration

EXAMPLE = """example:
  nnunetv2_ext calibrate_roi -d 7 -m BackboneTrainer:ROIPlans:3d_roi -f 0 1 2 3 4"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLE
    parser.add_argument("-d", dest="dataset", required=True, help="id or name of the data set")
    parser.add_argument("-m", dest="model", required=True, metavar="TRAINER:PLANS:CONFIG", help="the trained model")
    parser.add_argument(
        "-f", dest="folds", nargs="+", default=["0", "1", "2", "3", "4"], metavar="FOLD", help="its validated folds"
    )
    parser.add_argument(
        "--strict", action="store_true", help="refuse at the first case of whose foreground the boxes miss half"
    )
    add_processes(parser)


def run(args: argparse.Namespace) -> int:
    folds = _folds(args.folds)
    at_once = processes(args)
    (model,) = parse_models([args.model])
    dataset = dataset_name(args.dataset)
    folder = model_folder(args.model, dataset)
    references = nnunet_folder("nnUNet_preprocessed") / dataset / REFERENCES

    train = f"nnUNetv2_train {dataset} {model.configuration} {{fold}} -tr {model.trainer} -p {model.plans}"
    if not references.is_dir():
        command = f"nnUNetv2_preprocess -d {dataset} -plans_name {model.plans} -c {model.configuration}"
        raise InputError(f"no folder {references}", "the labels of the validated cases", f"run {command}")

    from nnunetv2_ext.inference.calibration import FEW, calibrate, record

    calibration = calibrate(folder, references, folds, commands=train, processes=at_once, strict=args.strict)
    _tell(calibration)
    if calibration.fails:
        print(
            f"\n{len(calibration.misses)} of {len(calibration.needs)} cases are missed, more than 5 %: no margin would "
            "do, and nothing is written. Train the model longer, or on a finer --grid."
        )
        return 1
    path = record(folder, calibration)
    cases = len(calibration.needs) - len(calibration.misses)
    print(f"\nmargin {calibration.margin:g} mm: the largest need and one voxel of {calibration.voxel:g} mm")
    print(f"a further case like these {cases} needs more with a probability of at most 1 / {cases + 1}")
    if len(calibration.needs) < FEW:
        print(f"warning: {len(calibration.needs)} cases are few; {FEW} or more tell of rare ones")
    print(f"written into {path}")
    return 0


def _folds(texts: list[str]) -> list[int]:
    """The folds' numbers.

    Raises:
        InputError: `all`, whose validation was trained on, or no number.
    """
    told = f"-f {listed(texts, separator=' ')}"
    if "all" in texts:
        remedy = "train folds with numbers, for instance 0 1 2 3 4, and name them"
        raise InputError(f"{told}, whose validation cases were trained on", "folds that validate unseen cases", remedy)
    if not all(text.isdecimal() for text in texts):
        raise InputError(told, "numbers of folds, 0 1 2 3 4 for instance", "correct it")
    return list(dict.fromkeys(map(int, texts)))


def _tell(calibration: "Calibration") -> None:
    """One line per case: how much its boxes hold, and how far each label reaches out of them."""
    labels = list(dict.fromkeys(label for need in calibration.needs for label in need.by_label))
    rows = []
    for need in calibration.needs:
        texts = [f"{need.by_label[label]:.4g}" if label in need.by_label else "-" for label in labels]
        rows.append([need.case, str(need.fold), f"{need.recall:.4f}", *texts])
    print(markdown_table(["case", "fold", "in the boxes", *(f"{label}, mm" for label in labels)], rows))
    if calibration.misses:
        print(f"\nmissed, and left out: {counted([need.case for need in calibration.misses], 'case')}")
