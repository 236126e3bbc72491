"""What a user may set of a planner: one declaration gives attribute, flag, help and the row in the docs."""

import json
from collections.abc import Callable
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


class Option(Generic[Value]):
    """An attribute of a planner that the user may set; read from a planner it is its value, at first the default.

        axis = Option(0, "axis to refine, 0, 1 or 2 of z, y, x", int, shown="0, the coarsest")

    makes `self.axis`, the flag `--axis` of `plan_and_preprocess` and a key of `made_by` in the plans.

    Args:
        default: the value where the user sets none.
        help: what it is, for `--help` and the docs.
        kind: makes the value from the flag's text; `bool`: a switch.
        numbers: how many texts the flag takes; None: one, which is no list.
        metavar: what stands for the text in `--help`.
        shown: the default in words, where its value does not tell.
    """

    def __init__(
        self,
        default: Value,
        help: str,
        kind: Callable[[str], Any] = str,
        *,
        numbers: int | None = None,
        metavar: str | None = None,
        shown: str | None = None,
    ):
        self.default = default
        self.help = help
        self.kind = kind
        self.numbers = numbers
        self.metavar = metavar
        self.shown = str(default) if shown is None else shown

    def __get__(self, instance: Any, owner: Any = None) -> Value:
        return self.default


def options_of(planner: type[Any]) -> dict[str, Option[Any]]:
    """The options that a planner's class and its bases declare, by name, those of the bases first."""
    found: dict[str, Option[Any]] = {}
    for base in reversed(planner.__mro__):
        found.update({name: value for name, value in vars(base).items() if isinstance(value, Option)})
    return found


def flag_of(name: str) -> str:
    """The flag of an option."""
    return "--" + name.replace("_", "-")


def json_object(text: str) -> dict[str, Any]:
    """The object that a flag's text holds.

    Raises:
        ValueError: no JSON, or another value than an object.
    """
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("put it into braces")
    return content
