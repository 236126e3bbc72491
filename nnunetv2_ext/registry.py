"""The one explicit list of architectures, trainers and planners. Registered means tested."""

import importlib
from dataclasses import dataclass
from typing import Any

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
            ImportError: an optional dependency is missing; the message names the extra to install.
        """
        module, _, attribute = self.path.rpartition(".")
        try:
            return getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            if self.extra is None:
                raise
            raise ImportError(
                f"{self.name} needs the module '{error.name}': run pip install 'nnunetv2_ext[{self.extra}]'"
            ) from error


ARCHITECTURES = (
    Entry("MNet", "nnunetv2_ext.architectures.mnet.MNet", "2D and 3D streams fused in a 5 x 5 mesh (IJCAI 2022)"),
)
TRAINERS = (
    Entry("MNetTrainer", "nnunetv2_ext.trainers.mnet.MNetTrainer", "MNet with its published schedule, on any 3D plans"),
)
PLANNERS = (
    Entry("MNetPlanner", "nnunetv2_ext.plans.mnet.MNetPlanner", "plans patch and batch for MNet from its own memory"),
)
KINDS = {"architecture": ARCHITECTURES, "trainer": TRAINERS, "planner": PLANNERS}


def find(kind: str, name: str) -> Entry:
    """The entry called `name` among the architectures, trainers or planners.

    Raises:
        InputError: unknown name; the message lists the known ones.
    """
    known = {entry.name: entry for entry in KINDS[kind]}
    if name not in known:
        raise InputError(f"the {kind} '{name}'", f"one of {', '.join(known)}", "see `nnunetv2_ext list`")
    return known[name]
