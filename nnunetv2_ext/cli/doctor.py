"""`nnunetv2_ext doctor`: check the installation and, if asked, one training before it starts."""

import argparse
from collections import Counter

from nnunetv2_ext.doctor.examination import FAIL, OK, SKIP, WARN, Subject, examine
from nnunetv2_ext.doctor.installation import INSTALLATION
from nnunetv2_ext.doctor.training import TRAINING

EXAMPLE = """examples:
  nnunetv2_ext doctor
  nnunetv2_ext doctor -d 104 -c 3d_fullres -tr MNetTrainer -p MNetPlans -f 0 -device cpu

exit status: 0, or 1 if anything FAILs"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of nnUNetv2_train that decide whether it will run, with its defaults."""
    parser.epilog = EXAMPLE
    parser.add_argument("-d", dest="dataset", help="also check a training on this data set, id or name")
    parser.add_argument("-c", dest="configuration", default="3d_fullres", help="configuration")
    parser.add_argument("-tr", dest="trainer", default="nnUNetTrainer", help="trainer, ours or nnU-Net's")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans", help="plans identifier")
    parser.add_argument("-f", dest="fold", help="a number, or all (default: every fold that splits_final.json holds)")
    parser.add_argument(
        "-device", choices=["cpu", "cuda", "mps"], help="where the training is to run (default: cuda, as nnU-Net's)"
    )


def run(args: argparse.Namespace) -> int:
    """Print one line for each check, and below it what to do where something is wrong."""
    subject = Subject(args.dataset, args.configuration, args.trainer, args.plans, args.fold, args.device)
    examinations = INSTALLATION if args.dataset is None else (*INSTALLATION, *TRAINING)
    counts: Counter[str] = Counter()
    for check in examine(examinations, subject):
        counts[check.status] += 1
        print(f"{check.status:<5} {check.what}", flush=True)
        if check.remedy:
            print(f"        -> {check.remedy}", flush=True)
    print(", ".join(f"{counts[status]} {status}" for status in (OK, WARN, FAIL, SKIP) if counts[status]))
    return 1 if counts[FAIL] else 0
