"""Options that commands share: numbers, and the number of processes."""

import argparse
from typing import Any

from nnunetv2_ext.errors import InputError


def number(text: str | None, kind: type, option: str) -> Any:
    """An option's text as `int` or `float`, None where it is not given.

    Commands read numbers themselves, so that a wrong one ends in the same kind of sentence as any other bad input.

    Raises:
        InputError: no such number.
    """
    try:
        return None if text is None else kind(text)
    except ValueError:
        expected = "a whole number" if kind is int else "a number"
        raise InputError(f"{option} {text}", expected, "correct it") from None


def add_processes(parser: argparse.ArgumentParser) -> None:
    """The option -np; see `processes`."""
    parser.add_argument(
        "-np", dest="processes", metavar="N", help="cases at the same time (default: nnUNet_def_n_proc)"
    )


def processes(args: argparse.Namespace) -> int:
    """The value of -np, by default nnU-Net's.

    Raises:
        InputError: no whole number.
    """
    from nnunetv2.configuration import default_num_processes

    asked = number(args.processes, int, "-np")
    return default_num_processes if asked is None else asked
