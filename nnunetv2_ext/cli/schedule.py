"""`nnunetv2_ext schedule`: write the `training` block into existing plans, stock ones too."""

import argparse
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nnunetv2_ext.block import PRESETS, all_settings, check_block, merge_blocks, planned_block
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import dataset_name, nnunet_folder, read_plans, unwritable, write_json
from nnunetv2_ext.locks import held
from nnunetv2_ext.schema import METHODS, Setting
from nnunetv2_ext.text import listed

EXAMPLE = """examples:
  nnunetv2_ext schedule -d 42 -p nnUNetPlans -c 3d_fullres --epochs 200 --batch-size 4
  nnunetv2_ext schedule -d 42 -p nnUNetPlans --preset par_paper --lr 0.0002

Trainers of nnunetv2_ext read the block; nnU-Net's own trainers do not. Keys that are not given keep what the plans say,
or the method's published value. A running training is not changed, and --c refuses to continue it with another block.
"""
THE_METHODS = "the method's"


def add_block_arguments(parser: argparse.ArgumentParser, *, default: str | None = None) -> None:
    """The flags of the training block, shared with `plan_and_preprocess`.

    Args:
        default: what becomes of a key whose flag is not given, for the help; None: what planning makes of it.
    """
    group = parser.add_argument_group("training block of the plans")
    told = "optimizer, scheduler, length, batch and loss in one; the other flags go over it"
    group.add_argument("--preset", choices=PRESETS, help=f"{told} (default: {default or THE_METHODS})")
    of_method = {name: parser.add_argument_group(method.title) for name, method in METHODS.items()}
    for path, setting in all_settings().items():
        if setting.flag is not None:
            method = path.partition(".")[0]
            _add_flag(of_method.get(method, group), setting, default or _planned(setting, method in METHODS))


def _planned(setting: Setting, of_method: bool) -> str:
    if setting.values.kind is bool:
        return "off"
    return str(setting.default) if of_method and setting.default is not None else setting.null or THE_METHODS


def _add_flag(group: argparse._ArgumentGroup, setting: Setting, default: str) -> None:
    kind, told = setting.values.kind, f"{setting.meaning} (default: {default})"
    assert setting.flag is not None
    if kind is bool:
        group.add_argument(setting.flag, action="store_const", const=True, help=told)
    elif isinstance(kind, tuple):
        group.add_argument(setting.flag, choices=kind, help=told)
    else:
        group.add_argument(setting.flag, type=kind, metavar="N" if kind is int else "X", help=told)


def block_from_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The `training` block that the given flags make, with nothing for those that were not given."""
    block: dict[str, Any] = {}
    for path, setting in all_settings().items():
        value = getattr(args, setting.flag.removeprefix("--").replace("-", "_")) if setting.flag else None
        if value is not None:
            group, _, key = path.rpartition(".")
            (block.setdefault(group, {}) if group else block)[key] = value
    return merge_blocks(PRESETS.get(args.preset, {}), block)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s -d ID [-p PLANS] [-c CONFIG ...] [flags of the training block]"
    parser.epilog = EXAMPLE
    parser.add_argument("-d", required=True, help="data set id or name")
    parser.add_argument("-p", default="MNetPlans", help="plans identifier")
    parser.add_argument("-c", nargs="+", help="configurations (default: all 3D ones that inherit from none)")
    add_block_arguments(parser, default="unchanged")


def run(args: argparse.Namespace) -> int:
    if Path(args.p).name != args.p:
        raise InputError(f"the plans identifier '{args.p}'", "a name, such as MNetPlans", "correct -p")
    folder = nnunet_folder("nnUNet_preprocessed") / dataset_name(args.d)
    with held(folder.parent, folder.name, "a change of plans"):
        return _write(args, folder / f"{args.p}.json")


def _write(args: argparse.Namespace, path: Path) -> int:
    plans = read_plans(path, "run nnunetv2_ext plan_and_preprocess or correct -p")
    block = block_from_arguments(args)
    if not block:
        raise InputError("no flag of the training block", "at least one, such as --epochs", "see --help")
    configurations = plans["configurations"]
    three = [name for name in configurations if _axes(configurations, name) == 3]
    if not three:
        raise InputError(f"{args.p} without a 3D configuration", "one such as 3d_fullres", "correct -p")
    chosen = args.c or [name for name in three if "inherits_from" not in configurations[name]]
    changed: dict[str, list[str]] = {}
    for name in chosen:
        if name not in three:
            got = f"the configuration '{name}'" + ", which is not 3D" * (name in configurations)
            raise InputError(got, f"one that our trainers train: {', '.join(three)}", "correct -c")
        planned = planned_block(configurations, name)
        merged = merge_blocks(planned, block)
        check_block(merged)
        changed[name] = _changes(planned, merged)
        configurations[name]["training"] = merged
    try:
        before = path.stat()
        write_json(path, plans)
        # preprocessed data are judged by the age of the plans, and nothing that they depend on has changed
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    except OSError as error:
        raise unwritable(path, error) from None
    for name, lines in changed.items():
        print(f"{args.p} {name}: {listed(lines) or 'nothing has changed'}")
    _warn(path, [name for name, lines in changed.items() if lines])
    return 0


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What is another in the training block now."""
    told = []
    for path in all_settings():
        group, _, key = path.rpartition(".")
        was, now = ((block.get(group) or {} if group else block).get(key) for block in (before, after))
        if was != now:
            told.append(f"{path} {'as published' if was is None else was} -> {now}")
    return told


def _warn(path: Path, configurations: Sequence[str]) -> None:
    """Tell of folds that were trained as these plans said before."""
    with suppress(InputError):  # no results yet
        results = nnunet_folder("nnUNet_results") / path.parent.name
        for name in configurations:
            for model in sorted(results.glob(f"*__{path.stem}__{name}")):
                if any(model.glob("fold_*/checkpoint_*.pth")):
                    print(f"{model} was trained otherwise, and is not gone on with: move it aside to train anew")


def _axes(configurations: Mapping[str, Any], name: str) -> int | None:
    """The axes of a configuration's patch, its own or the one that it inherits; None where it has none."""
    of_it = configurations[name]
    if "patch_size" not in of_it and "inherits_from" in of_it:
        return _axes(configurations, of_it["inherits_from"])
    return len(of_it["patch_size"]) if isinstance(of_it.get("patch_size"), list) else None
