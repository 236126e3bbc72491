"""How far a training is, from what nnU-Net writes into the fold: its logs and `debug.json`. Imports no torch."""

import math
import re
import statistics
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import read_json

DEBUG = "debug.json"
"""In which nnU-Net tells the number of epochs."""
LAST = 5
"""Epochs whose median tells how long one takes."""
_EPOCH = re.compile(r": Epoch (\d+) $")
_SECONDS = re.compile(r": Epoch time: ([\d.]+) s $")
_DICE = re.compile(r": Pseudo dice \[(.*)\] $")
_NUMBER = re.compile(r"(?<![\w.])(?:nan|-?\d+(?:\.\d*)?(?:e[+-]?\d+)?)")  # numpy 2 writes np.float32(0.5)
_SPLIT = re.compile(r" split has \d+ training and (\d+) validation cases\. $")
_PREDICTING = re.compile(r": predicting \S")


@dataclass(frozen=True)
class Progress:
    """How far a training is; None is what its files do not tell."""

    epochs_done: int = 0
    """Whole epochs, of the training that goes on: one that a kill has lost does not count."""
    epochs: int | None = None
    """In all."""
    seconds_per_epoch: float | None = None
    """Median of the last ones."""
    seconds_left: float | None = None
    """Of training, without the validation."""
    dice: float | None = None
    """Mean pseudo Dice over the labels of the last whole epoch, without those that it did not meet."""
    trained: bool = False
    """All epochs are done."""
    validated: bool = False
    """The validation after them is done as well."""
    cases_done: int = 0
    """Cases that the validation has begun to predict."""
    cases: int | None = None
    """To be validated in all."""

    @property
    def validates(self) -> bool:
        """Whether it predicts its validation cases now, or was ended while it did."""
        return self.trained and not self.validated and self.cases_done > 0


def progress(fold: Path, since: float = 0.0) -> Progress | None:
    """How far the training of a fold is; None where it has not written a log.

    A resumed training begins a new log, which starts with the epoch that is repeated.

    Args:
        fold: its folder. Earlier trainings that stand aside, in other folders, do not count.
        since: when the run that goes on began, in seconds since 1970: cases before it were validated by another.
    """
    logs = sorted(fold.glob("training_log_*.txt"), key=_began)
    if not logs:
        return None
    stamps = [_stamp(path) for path in (*logs, fold / DEBUG)]
    found = _read(fold, tuple(zip((*logs, fold / DEBUG), stamps, strict=True)))
    now = any(stamp is not None and stamp[1] >= since * 1e9 for stamp in stamps[:-1])
    return found if now else replace(found, cases_done=0)


def _stamp(path: Path) -> tuple[int, int] | None:
    """By which a file is known to have changed; None where there is none."""
    with suppress(OSError):
        return (state := path.stat()).st_size, state.st_mtime_ns
    return None


@lru_cache(256)
def _read(fold: Path, files: tuple[tuple[Path, tuple[int, int] | None], ...]) -> Progress:
    """What the files of a fold tell, which are read again only when one of them has changed.

    Args:
        files: the logs, in the order in which they began, and `DEBUG`.
    """
    done, dice, cases_done, cases = 0, None, 0, None
    trained = validated = False
    seconds: list[float] = []
    for log, _ in files[:-1]:
        cases_done = 0
        for line in _whole_lines(log):
            if found := _EPOCH.search(line):
                done = int(found[1])
                if done == 0:
                    seconds, dice = [], None
                trained = validated = False
                cases_done = 0
            elif found := _DICE.search(line):
                dice = _mean(found[1])
            elif found := _SECONDS.search(line):
                seconds.append(float(found[1]))
                done += 1
            elif found := _SPLIT.search(line):
                cases = int(found[1])
            elif line.endswith(": Training done. "):
                trained = True
            elif _PREDICTING.search(line):
                # one that runs again, in a log of its own, begins with the first case
                cases_done += 1
                trained, validated = True, False
            elif line.endswith(": Validation complete "):
                validated = True
    epochs = _epochs(fold)
    per_epoch = statistics.median(seconds[-LAST:]) if seconds else None
    left = None
    if trained:
        left = 0.0
    elif epochs is not None and per_epoch is not None:
        left = max(epochs - done, 0) * per_epoch
    return Progress(done, epochs, per_epoch, left, dice, trained, validated, cases_done, cases)


def _began(log: Path) -> tuple[int, ...]:
    """When a log was begun, by its name, in which months and days have one digit or two."""
    return tuple(map(int, re.findall(r"\d+", log.stem)))


def _whole_lines(log: Path) -> list[str]:
    """The lines of a log, without one that is being written; none where the file has just gone."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.split("\n")[:-1]


def _mean(values: str) -> float | None:
    dice = [value for value in map(float, _NUMBER.findall(values)) if math.isfinite(value)]
    return sum(dice) / len(dice) if dice else None


def _epochs(fold: Path) -> int | None:
    """Epochs in all, which nnU-Net writes as a text, each time a training begins or goes on."""
    with suppress(InputError, ValueError, TypeError):
        return int(read_json(fold / DEBUG, "").get("num_epochs", ""))
    return None
