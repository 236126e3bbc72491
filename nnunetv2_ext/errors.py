"""The one error for bad input: what came, what was expected, how to mend it."""

from numbers import Integral
from typing import Any


class InputError(ValueError):
    """Bad input from a user, told in one sentence.

    Args:
        got: what came, with the offending value.
        expected: what would have been accepted.
        remedy: what to do, as an imperative ("choose ...", "run ...").
    """

    def __init__(self, got: str, expected: str, remedy: str):
        super().__init__(got, expected, remedy)

    def __str__(self) -> str:
        got, expected, remedy = self.args
        return f"got {got}; expected {expected}; {remedy}."


def is_whole(value: Any, least: int = 1) -> bool:
    """Whether a value is a whole number, `least` or more; true and false are none."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def check_whole(least: int = 1, **arguments: Any) -> None:
    """Arguments by name, each a whole number, `least` or more.

    Raises:
        InputError: the first that is none.
    """
    for name, value in arguments.items():
        if not is_whole(value, least):
            raise InputError(f"{name}={value!r}", f"a whole number from {least}", "correct it")


def check_per_level(levels: int, **arguments: Any) -> None:
    """Arguments by name, each a list of one whole number from 1 per level.

    Raises:
        InputError: the first that is none.
    """
    for name, value in arguments.items():
        if not isinstance(value, list | tuple) or len(value) != levels or not all(map(is_whole, value)):
            raise InputError(f"{name}={value!r}", f"{levels} whole numbers from 1, one per level", "correct it")


def check_share(**arguments: Any) -> None:
    """Arguments by name, each a number from 0 to below 1.

    Raises:
        InputError: the first that is none.
    """
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise InputError(f"{name}={value!r}", "a number in [0, 1)", "correct it")
