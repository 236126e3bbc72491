"""What commands share: the help with each flag's default, values from texts, and the number of processes."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.planning.options import json_object

NOUNS: dict[Callable[[str], Any], str] = {int: "whole number", float: "number", json_object: "JSON object"}
"""What the makers of values expect."""


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


def value_of(text: str | Sequence[str], kind: Callable[[str], Any], flag: str) -> Any:
    """What `kind` makes of a flag's text, or the list of what it makes of several.

    Commands read values themselves, so that a wrong one ends in the same kind of sentence as any other bad input.

    Raises:
        InputError: a text that makes none.
    """
    try:
        return kind(text) if isinstance(text, str) else [kind(one) for one in text]
    except ValueError as error:
        noun = NOUNS.get(kind, "valid value")
        got, expected = (text, f"a {noun}") if isinstance(text, str) else (" ".join(text), f"{len(text)} {noun}s")
        why = "" if kind in (int, float) else f" ({error})"
        raise InputError(f"{flag} {got}", expected, f"correct it{why}") from None


def number(text: str | None, kind: type, flag: str) -> Any:
    """A flag's text as `int` or `float`, None where it is not given; see `value_of`."""
    return None if text is None else value_of(text, kind, flag)


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
