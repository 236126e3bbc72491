"""What commands share: the help with each flag's default, values from texts, paths, and the number of processes."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.planning.options import json_object
from nnunetv2_ext.text import listed

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


def folds_of(given: Sequence[str] | None) -> list[str]:
    """The folds that are asked for, each once.

    Raises:
        InputError: something else than names of folds.
    """
    given = given or []
    if odd := [fold for fold in given if fold != "all" and not fold.isdecimal()]:
        raise InputError(f"-f {listed(odd, separator=' ')}", "numbers of folds, or all", "correct it")
    return list(dict.fromkeys(fold if fold == "all" else str(int(fold)) for fold in given))


_EMPTY = Path()
"""Stands for an empty text, which would else be the current folder."""


def tell_empty_paths(parser: argparse.ArgumentParser) -> None:
    """Let a parser keep apart what `check_paths` refuses."""
    for action in parser._actions:
        if action.type is Path:
            action.type = lambda text: Path(text) if text else _EMPTY


def check_paths(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse paths that name nothing, of every flag of a command.

    Raises:
        InputError: an empty one, as of a shell variable that is not set, or one that the file system refuses.
    """
    for action in parser._actions:
        given = getattr(args, action.dest, None)
        for path in given if isinstance(given, list) else [given]:
            flag = action.option_strings[0] if action.option_strings else str(action.metavar)
            if path is _EMPTY:
                raise InputError(f"an empty {flag}", "a path", "write it, or set the variable that was to hold it")
            if isinstance(path, Path):
                try:
                    path.stat()
                except (FileNotFoundError, NotADirectoryError):
                    continue
                except OSError as error:  # too long, closed to the user, a link to itself
                    what = f"{flag} {_shortened(str(path))} ({error.strerror})"
                    raise InputError(what, "a path that can be looked at", "correct it") from None


def _shortened(path: str) -> str:
    return path if len(path) <= 100 else f"{path[:50]}...{path[-40:]}"


def add_processes(parser: argparse.ArgumentParser, counted: str = "cases at the same time") -> None:
    """The option -np; see `processes`."""
    parser.add_argument("-np", dest="processes", metavar="N", help=f"{counted} (default: nnUNet_def_n_proc, or 8)")


def processes(args: argparse.Namespace) -> int:
    """The value of -np, by default nnU-Net's.

    Raises:
        InputError: no whole number above 0.
    """
    from nnunetv2.configuration import default_num_processes

    asked = number(args.processes, int, "-np")
    if asked is None:
        return default_num_processes
    if asked < 1:
        raise InputError(f"-np {asked}", "1 or more", "correct it")
    return asked
