"""What commands share: the help with each flag's default, numbers, and the number of processes."""

import argparse
from typing import Any

from nnunetv2_ext.errors import InputError


class Help(argparse.RawDescriptionHelpFormatter):
    """Help in which every flag ends with its default; `docs/tables.py` makes the reference of the same."""

    def _get_help_string(self, action: argparse.Action) -> str:
        meaning, default = meaning_and_default(action)
        return f"{meaning} ({'' if default == 'required' else 'default: '}{default})" if default else meaning


def meaning_and_default(action: argparse.Action) -> tuple[str, str]:
    """What a flag's help says, and its default: in the words of `(default: ...)` at the end of the help, or itself."""
    meaning, told, default = (action.help or "").partition(" (default: ")
    if told:
        return meaning, default.removesuffix(")")
    if action.required:
        return meaning, "required"
    if action.default is argparse.SUPPRESS:  # of --help
        return meaning, ""
    if action.default is False:
        return meaning, "off"
    values = action.default if isinstance(action.default, list) else [action.default]
    return meaning, "none" if action.default is None else " ".join(map(str, values))


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
        "-np", dest="processes", metavar="N", help="cases at the same time (default: nnUNet_def_n_proc, or 8)"
    )


def processes(args: argparse.Namespace) -> int:
    """The value of -np, by default nnU-Net's.

    Raises:
        InputError: no whole number.
    """
    from nnunetv2.configuration import default_num_processes

    asked = number(args.processes, int, "-np")
    return default_num_processes if asked is None else asked
