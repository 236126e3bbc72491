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
