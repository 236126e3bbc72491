"""`nnunetv2_ext list`: trainers, planners and architectures, one line each."""

import argparse
from importlib.util import find_spec

from nnunetv2_ext.entry import Entry
from nnunetv2_ext.registry import ARCHITECTURES, BACKBONES, PLANNERS, TRAINERS

GROUPS = (
    ("trainers, for nnUNetv2_train -tr", TRAINERS),
    ("planners, for nnunetv2_ext plan_and_preprocess -pl", PLANNERS),
    ("architectures, in nnunetv2_ext.architectures", ARCHITECTURES),
    ("backbones, for plan_and_preprocess --backbone", BACKBONES),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments, one example."""
    parser.epilog = "example:\n  nnunetv2_ext list"


def run(args: argparse.Namespace) -> int:
    """Print the registry; nothing of it is imported, so that a missing optional dependency does not matter."""
    width = max(len(entry.name) for _, entries in GROUPS for entry in entries)
    for heading, entries in GROUPS:
        print(f"{heading}:")
        for entry in entries:
            print(f"  {entry.name:<{width}}  {entry.summary}{_needs(entry)}")
    return 0


def _needs(entry: Entry) -> str:
    """The extra of an entry, or that it is there; the package is looked for, not imported."""
    if entry.extra is None:
        return ""
    there = find_spec(entry.extra) is not None
    return " [installed]" if there else f" [needs pip install 'nnunetv2_ext[{entry.extra}]']"
