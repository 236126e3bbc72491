"""How a training goes on from what stands in the folder of its fold, read without torch."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

FINAL, LATEST, PREVIOUS, BEST = (f"checkpoint_{name}.pth" for name in ("final", "latest", "previous", "best"))
SUMMARY = "summary.json"


def command_now(command: Sequence[str], fold: Path) -> list[str] | None:
    """The command of a training as it goes on in its fold: plain, with `--c` or `--val`; None where it has finished."""
    command = [*command]
    if (fold / FINAL).is_file():
        if _is_validated(fold / "validation", probabilities="--npz" in command):
            return None
        return [*_without_weights(command), "--val"]
    if any((fold / name).is_file() for name in (LATEST, PREVIOUS, BEST)):
        return [*_without_weights(command), "--c"]
    return command


def _is_validated(folder: Path, *, probabilities: bool) -> bool:
    """Whether a fold was validated, and whether with probabilities where they are wanted."""
    if not (folder / SUMMARY).is_file():
        return False
    if not probabilities:
        return True
    with_probabilities = {path.stem for path in folder.glob("*.npz")}
    others = [path.name for path in folder.iterdir() if path.suffix not in (".npz", ".pkl", ".json")]
    return len(with_probabilities) >= len(others)


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
