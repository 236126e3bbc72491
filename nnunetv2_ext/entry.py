"""A name that users type, with where its class lives: imported only when it is asked for."""

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from nnunetv2_ext.errors import InputError


@dataclass(frozen=True)
class Entry:
    """A name that users type, where its class lives, and one line on what it is."""

    name: str
    path: str
    summary: str
    extra: str | None = None
    """The optional dependency group (`pip install nnunetv2_ext[extra]`) that this entry needs."""

    def load(self) -> Any:
        """Import and return the class.

        Raises:
            InputError: an optional dependency is missing; the message names the extra to install.
        """
        module, _, attribute = self.path.rpartition(".")
        try:
            return getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            if self.extra is None:
                raise
            raise InputError(
                f"no module '{error.name}'",
                f"it for {self.name}",
                f"run pip install 'nnunetv2_ext[{self.extra}]'",
            ) from error


AnyEntry = TypeVar("AnyEntry", bound=Entry)


def named(kind: str, entries: Iterable[AnyEntry], name: str) -> AnyEntry:
    """The entry of that name.

    Args:
        kind: what the entries are, for the message.

    Raises:
        InputError: unknown name; the message lists the known ones.
    """
    known = {entry.name: entry for entry in entries}
    if name not in known:
        raise InputError(f"the {kind} '{name}'", f"one of {', '.join(known)}", "see `nnunetv2_ext list`")
    return known[name]
