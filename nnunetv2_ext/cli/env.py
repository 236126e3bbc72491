"""`nnunetv2_ext env`: the line that makes our trainers known to nnU-Net's own commands."""

import argparse
import shlex

from nnunetv2_ext import external_trainer_folders


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments, one example."""
    parser.epilog = 'example:\n  eval "$(nnunetv2_ext env)"    # in a shell, or as a line of ~/.bashrc'


def run(args: argparse.Namespace) -> int:
    """Print the export line; what `nnUNet_extTrainer` already holds stays in front of our folder."""
    print(f"export nnUNet_extTrainer={shlex.quote(external_trainer_folders())}")
    return 0
