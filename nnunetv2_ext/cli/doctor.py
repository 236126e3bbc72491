"""`nnunetv2_ext doctor`: check the installation, one training before it starts, or the folder of a trained model."""

import argparse
from collections import Counter
from pathlib import Path

from nnunetv2_ext.doctor.examination import FAIL, GROUPS, INSTALLED, OK, SKIP, WARN, Check, Subject, examine
from nnunetv2_ext.doctor.installation import INSTALLATION
from nnunetv2_ext.doctor.model import SAFE_MODEL, TRAINED_MODEL
from nnunetv2_ext.doctor.training import TRAINING
from nnunetv2_ext.errors import InputError

EXAMPLE = """examples:
  nnunetv2_ext doctor
  nnunetv2_ext doctor -d 42 -c 3d_fullres -tr MNetTrainer -p MNetPlans -f 0 -device cpu
  nnunetv2_ext doctor -d 42 --deep
  nnunetv2_ext doctor "$nnUNet_results"/Dataset042_Liver/MNetTrainer__MNetPlans__3d_fullres

exit status: 0, or 1 if anything FAILs"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of nnUNetv2_train that decide whether it will run, with its defaults."""
    parser.epilog = EXAMPLE
    parser.add_argument(
        "model",
        nargs="?",
        type=Path,
        metavar="MODEL_FOLDER",
        help="check the folder of a trained model instead: whole for prediction, and nothing in it that can run code",
    )
    parser.add_argument("-d", dest="dataset", help="also check a training on this data set, id or name")
    parser.add_argument("-c", dest="configuration", default="3d_fullres", help="configuration")
    parser.add_argument("-tr", dest="trainer", default="nnUNetTrainer", help="trainer, ours or nnU-Net's")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans", help="plans identifier")
    parser.add_argument(
        "-f", dest="fold", help="a number, or all (default: every fold that splits_final.json holds, or the model)"
    )
    parser.add_argument(
        "-device", choices=["cpu", "cuda", "mps"], help="where the training is to run (default: cuda, as nnU-Net's)"
    )
    parser.add_argument(
        "--deep", action="store_true", help="also read the voxels of the raw data, as far as planning has not yet"
    )


def run(args: argparse.Namespace) -> int:
    """Print one line for each check, below it what to do where something is wrong, and at the end what is next."""
    subject = Subject(
        args.dataset,
        args.configuration,
        args.trainer,
        args.plans,
        args.fold,
        args.device,
        args.deep,
        args.model,
    )
    examinations = INSTALLATION if args.dataset is None else (*INSTALLATION, *TRAINING)
    if args.model is not None:
        if args.dataset is not None:
            raise InputError(f"a data set and the model folder {args.model}", "one of them", "ask for one at a time")
        safe = (args.model / "model.json").is_file()
        examinations = SAFE_MODEL if safe else TRAINED_MODEL
    checks: list[Check] = []
    if args.model is None:
        print(INSTALLED)
    for check in examine(examinations, subject):
        checks.append(check)
        if check.group == INSTALLED:  # at once, since a GPU or a disk may keep us waiting
            _print(check)
    for group in GROUPS[1:]:
        of_group = [check for check in checks if check.group == group]
        if of_group:
            print(f"\n{group}" if args.model is None else group)
        for check in of_group:
            _print(check)
    counts = Counter(check.status for check in checks)
    print("\n" + ", ".join(f"{counts[status]} {status}" for status in (OK, WARN, FAIL, SKIP) if counts[status]))
    if args.dataset is not None and not counts[FAIL]:
        fold = 0 if args.fold is None else args.fold
        device = f" -device {args.device}" if args.device in ("cpu", "mps") else ""
        train = f"nnUNetv2_train {args.dataset} {args.configuration} {fold} -tr {args.trainer} -p {args.plans}"
        print(f"ready: {train}{device}")
    if args.model is not None and not counts[FAIL]:
        folds = " ".join(sorted(fold.removeprefix("fold_") for fold in subject.found["contents"]))
        print(f"ready: nnunetv2_ext predict -m {args.model} -f {folds} -i IMAGES -o PREDICTIONS")
    return 1 if counts[FAIL] else 0


def _print(check: Check) -> None:
    print(f"  {check.status:<5} {check.what}", flush=True)
    if check.remedy:
        print(f"          -> {check.remedy}", flush=True)
