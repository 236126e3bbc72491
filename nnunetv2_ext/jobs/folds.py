"""How a training goes on from what stands in the folder of its fold, read without torch."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_ext.inference.trained import fault_of_validation
from nnunetv2_ext.weights.files import BEST, FINAL, LATEST, has_begun


def command_now(command: Sequence[str], fold: Path) -> list[str] | None:
    """The command of a training as it goes on in its fold: plain, with `--c` or `--val`; None where it has finished.

    One that has `--val` already is to validate a fold that is whole.
    """
    again = "--val" in command
    command = [word for word in command if word != "--val"]
    if (fold / FINAL).is_file():
        if not again and not fault_of_validation(fold, probabilities="--npz" in command):
            return None
        return [*_without_weights(command), "--val"]
    if has_begun(fold):
        return [*_without_weights(command), "--c"]
    return command


def _without_weights(command: list[str]) -> list[str]:
    """Without pretrained weights, from which nnU-Net begins and does not go on."""
    if "-pretrained_weights" not in command:
        return command
    at = command.index("-pretrained_weights")
    return command[:at] + command[at + 2 :]


def set_damaged_aside(fold: Path) -> list[str]:
    """Rename checkpoints that a kill left half-written, which nnU-Net would fail with on every run.

    Our trainers leave none; nnU-Net's own write into place. A whole checkpoint is a zip file, whose list of contents
    stands at its end.

    Returns:
        A sentence for each.
    """
    told = []
    for name in (FINAL, LATEST, BEST):
        path = fold / name
        if path.is_file() and not zipfile.is_zipfile(path):
            aside = path.with_name(f"{name}.damaged")
            path.replace(aside)
            told.append(f"{path} is damaged; it is now {aside.name}")
    return told
