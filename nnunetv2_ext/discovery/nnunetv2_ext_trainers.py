"""Resolves trainer names for nnU-Net's finder, which imports this file by itself and asks it for attributes.

nnU-Net (2.8) imports every module of the folder as a top-level module and forgets it afterwards. The classes therefore
live in `nnunetv2_ext.trainers`, where they stay the same object and can be pickled; this module only hands them on.
"""

from typing import Any

from nnunetv2_ext.registry import TRAINERS

_ENTRIES = {entry.name: entry for entry in TRAINERS}


def __getattr__(name: str) -> Any:
    if name not in _ENTRIES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _ENTRIES[name].load()
