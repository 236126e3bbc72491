"""Checkpoints that a kill or a full disk cannot damage: `write_beside` writes them, they are verified on reading."""

import zipfile
from pathlib import Path
from typing import Any

import torch

from nnunetv2_ext.errors import InputError

FINAL, LATEST, PREVIOUS, BEST = (f"checkpoint_{name}.pth" for name in ("final", "latest", "previous", "best"))
FALLBACKS = (FINAL, LATEST, PREVIOUS, BEST)
REQUIRED_KEYS = ("network_weights", "current_epoch", "init_args", "trainer_name", "logging")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The verified content of one of our checkpoints, on the CPU.

    Raises:
        InputError: the file is missing, truncated or damaged, or is no checkpoint of a trainer.
    """
    remedy = "continue from an earlier checkpoint with --c, or train again"
    if not path.is_file():
        raise InputError(f"no file {path}", "a checkpoint", remedy)
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"checksum of {damaged}")
        content = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # unpickling damaged bytes raises anything
        raise InputError(f"the damaged checkpoint {path} ({error})", "a whole file", remedy) from error
    missing = [key for key in REQUIRED_KEYS if not isinstance(content, dict) or key not in content]
    if missing:
        raise InputError(f"{path} without {', '.join(missing)}", "a checkpoint that a trainer wrote", remedy)
    return content


def is_readable(path: Path) -> bool:
    """Whether the file is a whole checkpoint."""
    try:
        read_checkpoint(path)
    except InputError:
        return False
    return True
