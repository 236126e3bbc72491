"""`nnunetv2_ext schedule`: write the `training` block into existing plans, stock ones too."""

import argparse
import json
import os
from typing import Any

from nnunetv2_ext.block import (
    METHODS,
    PRESETS,
    THICK_GRID,
    THIN_GRID,
    check_block,
    merge_blocks,
    planned_block,
)
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import dataset_name, nnunet_folder, read_json, write_json

EXAMPLE = """example:
  nnunetv2_ext schedule -d 4 -p nnUNetPlans -c 3d_fullres --epochs 200 --batch_size 4
  nnunetv2_ext schedule -d 4 -p nnUNetPlans --preset par_paper --lr 0.0002

Trainers of nnunetv2_ext read the block; nnU-Net's own trainers do not. Keys that are not given keep what the plans say,
or the method's published value. A running training is not changed, and --c refuses to continue it with another block.
"""


def add_block_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the training block, shared with `plan_and_preprocess`."""
    group = parser.add_argument_group("training block of the plans")
    group.add_argument("--preset", choices=PRESETS, help="optimizer, scheduler, length, batch and loss in one")
    group.add_argument("--epochs", type=int, help="number of epochs")
    group.add_argument("--iterations", type=int, help="training iterations per epoch")
    group.add_argument("--val_iterations", type=int, help="validation iterations per epoch")
    group.add_argument("--batch_size", type=int, help="batch size instead of the configuration's")
    group.add_argument("--lr", type=float, help="initial learning rate")
    group.add_argument("--weight_decay", type=float, help="weight decay")
    group.add_argument("--grad_clip", type=float, help="bound of the gradient norm, at most 12")
    group.add_argument("--freeze_backbone", action="store_true", help="train only what refines the backbone's output")
    group = parser.add_argument_group("thin slices from thick annotations (ThinThickTrainer)")
    group.add_argument("--thick_weight", type=float, help="weight of the loss of the thick image (default: 0.1)")
    group.add_argument("--thin_weight", type=float, help="weight of the loss of averaged thin predictions (default: 1)")
    group.add_argument("--features_weight", type=float, help="weight of the distance of features (default: 0.1)")
    group.add_argument("--beta", type=float, help="sharpening of averaged predictions, 1 as published (default: 4)")
    group.add_argument(
        "--ramp_up_epochs",
        type=int,
        help="epochs in which beta rises from 1, and the weight of features (default: all)",
    )
    group.add_argument(
        "--thick_image",
        choices=[THICK_GRID, THIN_GRID],
        help="grid of the thick image (default: what the network takes)",
    )


def block_from_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The `training` block that the given flags make, with nothing for those that were not given."""
    block = {
        "epochs": args.epochs,
        "iterations_per_epoch": args.iterations,
        "val_iterations_per_epoch": args.val_iterations,
        "batch_size": args.batch_size,
        "grad_clip": args.grad_clip,
        "freeze_backbone": args.freeze_backbone or None,
    }
    optimizer = {
        key: value for key, value in (("lr", args.lr), ("weight_decay", args.weight_decay)) if value is not None
    }
    for method, keys in METHODS.items():
        given = {key: getattr(args, key) for key in keys if getattr(args, key, None) is not None}
        block[method] = given or None
    block = {key: value for key, value in block.items() if value is not None}
    return merge_blocks(PRESETS.get(args.preset, {}), {**block, "optimizer": optimizer} if optimizer else block)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLE
    parser.add_argument("-d", required=True, help="data set id or name")
    parser.add_argument("-p", default="MNetPlans", help="plans identifier (default: %(default)s)")
    parser.add_argument("-c", nargs="+", help="configurations (default: all 3D ones that inherit from none)")
    add_block_arguments(parser)


def run(args: argparse.Namespace) -> int:
    path = nnunet_folder("nnUNet_preprocessed") / dataset_name(args.d) / f"{args.p}.json"
    plans = read_json(path, "run nnunetv2_ext plan_and_preprocess or correct -p")
    block = block_from_arguments(args)
    if not block:
        raise InputError("no flag of the training block", "at least one, such as --epochs", "see --help")
    configurations = plans["configurations"]
    chosen = args.c or [
        name for name, held in configurations.items() if "inherits_from" not in held and len(held["patch_size"]) == 3
    ]
    if not chosen:
        raise InputError(f"{args.p} without a 3D configuration", "one such as 3d_fullres", "pass -c or other plans")
    for name in chosen:
        if name not in configurations:
            raise InputError(f"the configuration '{name}'", f"one of {', '.join(configurations)}", "correct -c")
        merged = merge_blocks(planned_block(configurations, name), block)
        check_block(merged)
        configurations[name]["training"] = merged
        print(f"{args.p} {name}: training = {json.dumps(merged)}")
    try:
        before = path.stat()
        write_json(path, plans)
        # preprocessed data are judged by the age of the plans, and nothing that they depend on has changed
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    except OSError as error:
        raise InputError(f"{path}, which cannot be written ({error})", "a writable folder", "see to it") from None
    return 0
