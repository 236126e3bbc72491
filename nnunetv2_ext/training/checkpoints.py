"""Checkpoints that a kill or a full disk cannot damage: written beside, renamed into place, verified on reading."""

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nnunetv2_ext.errors import InputError

FINAL, LATEST, PREVIOUS, BEST = (f"checkpoint_{name}.pth" for name in ("final", "latest", "previous", "best"))
FALLBACKS = (FINAL, LATEST, PREVIOUS, BEST)
REQUIRED_KEYS = ("network_weights", "current_epoch", "init_args", "trainer_name", "logging")


def write_beside(write: Callable[[Path], object], path: Path, *, keep_as: Path | None = None) -> None:
    """Let `write` fill a file beside `path`, then rename it into place; readers see the old file or the whole new one.

    Args:
        write: called with the path of the file to write.
        keep_as: where the file that is replaced stays available.

    Raises:
        OSError: the file could not be written, for instance on a full disk; the old file is untouched.
    """
    part = path.with_name(path.name + ".part")
    try:
        write(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        if keep_as is not None and path.exists():
            _keep(path, keep_as)
        part.replace(path)
    except RuntimeError as error:
        part.unlink(missing_ok=True)
        # torch.save(path) tells of a full disk with a RuntimeError of its zip writer, in one of several wordings
        if any(word in str(error) for word in ("inline_container", "PytorchStreamWriter", "iostream")):
            raise OSError(f"could not write {path}: {error}") from error
        raise
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _keep(path: Path, keep_as: Path) -> None:
    """Give the file a second name, replacing what had it; at no moment is either name without a whole file."""
    part = keep_as.with_name(keep_as.name + ".part")
    part.unlink(missing_ok=True)
    try:
        try:
            os.link(path, part)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, part)
        part.replace(keep_as)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


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
