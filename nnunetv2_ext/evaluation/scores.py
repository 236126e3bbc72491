"""The scores of cases: one line per model, case, label and metric, kept in `metrics.csv`."""

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation.journal import FILE as JOURNAL
from nnunetv2_ext.files import read_json, unwritable, write_beside

FILE = "metrics.csv"
BOTH_EMPTY = "both empty"
"""The note of a label that neither mask holds."""
REMEDY = "give what nnunetv2_ext evaluate wrote, metrics.csv or its folder"


class Score(NamedTuple):
    """One line."""

    model: str
    case: str
    label: str
    """Its name, or that of a region, in dataset.json."""
    metric: str
    """A name of `METRICS`."""
    value: float
    """In the metric's unit; NaN where it does not count, such as the Dice of a label that neither file holds."""
    how: str = ""
    """The setting that the value depends on, such as `tolerance 1 mm`; values of other settings cannot be compared."""
    note: str = ""
    """Why the value was decided and not measured: `both empty`, `no reference` or `no prediction`."""


@dataclass(frozen=True)
class Scores:
    """All lines of an evaluation, in their order."""

    lines: tuple[Score, ...]

    @cached_property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(line.model for line in self.lines))

    @cached_property
    def cases(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(line.case for line in self.lines))

    @cached_property
    def labels(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(line.label for line in self.lines))

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(line.metric for line in self.lines))

    @cached_property
    def _by_key(self) -> Mapping[tuple[str, str, str], dict[str, Score]]:
        keys: dict[tuple[str, str, str], dict[str, Score]] = {}
        for line in self.lines:
            keys.setdefault((line.model, line.label, line.metric), {})[line.case] = line
        return keys

    def of(self, model: str, label: str, metric: str) -> dict[str, Score]:
        """The lines of one model, label and metric, by case."""
        return self._by_key.get((model, label, metric), {})

    def values(self, model: str, label: str, metric: str) -> dict[str, float]:
        """The values of one model, label and metric, by case; those that do not count are NaN."""
        return {case: line.value for case, line in self.of(model, label, metric).items()}

    def mean(self, model: str, label: str, metric: str) -> float:
        """Over the cases that count; NaN where none does."""
        return nan_mean(self.values(model, label, metric).values())

    def mean_of_labels(self, model: str, metric: str) -> float:
        """The mean over labels of the means over cases, as nnU-Net's; labels without one do not count."""
        return nan_mean(self.mean(model, label, metric) for label in self.labels)

    def case_mean(self, model: str, case: str, metric: str) -> float:
        """The mean of a case over its labels that count."""
        lines = (self.of(model, label, metric).get(case) for label in self.labels)
        return nan_mean(line.value for line in lines if line is not None)

    def decided(self, model: str, label: str, metric: str) -> int:
        """How many cases count with a value that was decided, since one of both masks is empty."""
        return sum(bool(line.note) and not math.isnan(line.value) for line in self.of(model, label, metric).values())

    def __add__(self, other: "Scores") -> "Scores":
        return Scores((*self.lines, *other.lines))


def nan_mean(values: Iterable[float]) -> float:
    """The mean without the NaN among the values, NaN if nothing is left."""
    known = np.array([value for value in values if not math.isnan(value)])
    return float(known.mean()) if known.size else math.nan


def write_scores(scores: Scores, path: Path) -> None:
    """Write `metrics.csv`, whole or not at all; a value that does not count is left empty.

    Raises:
        InputError: the file cannot be written.
    """
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Score._fields)
    for line in scores.lines:
        writer.writerow(line._replace(value="" if math.isnan(line.value) else repr(float(line.value))))  # type: ignore[arg-type]
    try:
        write_beside(lambda beside: beside.write_text(text.getvalue(), encoding="utf-8"), path)
    except OSError as error:
        raise unwritable(path, error) from None


def read_scores(path: Path) -> Scores:
    """Read `metrics.csv`, or that of a folder; empty lines and a byte order mark, as editors add, are no fault.

    Raises:
        InputError: no file, another table, a value that is no number or infinite, a line that stands twice, or an
            evaluation beside it that has not ended, so that the scores may be those of an earlier one.
    """
    path = path / FILE if path.is_dir() else path
    if path.name == FILE and (unfinished := path.with_name(JOURNAL)).is_file():
        raise InputError(
            f"an evaluation in {path.parent} that has not ended ({unfinished.name} is there)",
            "one that has",
            "run the same nnunetv2_ext evaluate again, which goes on with it",
        )
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.reader(stream))
    except FileNotFoundError:
        raise InputError(f"no file {path}", "the scores of an evaluation", REMEDY) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} ({error})", "a table that can be read", REMEDY) from None
    if not rows or tuple(rows[0]) != Score._fields:
        got = ", ".join(rows[0]) if rows else "nothing"
        raise InputError(f"{path} with the columns {got}", f"the columns {', '.join(Score._fields)}", REMEDY)
    lines = []
    for number, row in enumerate(rows[1:], start=2):
        if not any(row):
            continue
        try:
            model, case, label, metric, value, how, note = row
            lines.append(Score(model, case, label, metric, _number(value), how, note))
        except ValueError:
            raise InputError(
                f"line {number} of {path}: {','.join(row)}", "seven columns, the fifth a finite number", REMEDY
            ) from None
    if len({line[:4] for line in lines}) < len(lines):
        seen: set[tuple[str, ...]] = set()
        twice = next(line for line in lines if line[:4] in seen or seen.add(line[:4]))  # type: ignore[func-returns-value]
        raise InputError(f"two lines of {', '.join(twice[:4])} in {path}", "one", REMEDY)
    if not lines:
        raise InputError(f"no scores in {path}", "those of one case or more", REMEDY)
    return Scores(tuple(lines))


def _number(text: str) -> float:
    """A value of the table.

    Raises:
        ValueError: no number, or an infinite one, which no metric has.
    """
    value = float(text) if text else math.nan
    if math.isinf(value):
        raise ValueError(text)
    return value


def read_dice(path: Path, remedy: str) -> dict[str, dict[str, float]]:
    """Dice by case and foreground label, as nnU-Net names them, of a `summary.json`, nnU-Net's own or ours.

    Raises:
        InputError: missing, truncated or not a summary; ends with `remedy`.
    """
    cases: dict[str, dict[str, float]] = {}
    for line in read_dice_scores("", path, remedy).lines:
        cases.setdefault(line.case, {})[line.label] = line.value
    return cases


def read_dice_scores(model: str, path: Path, remedy: str, *, names: Mapping[str, str] | None = None) -> Scores:
    """The same as scores of a model, with notes where the summary counts voxels.

    Args:
        names: of labels, with nnU-Net's of each; by default all are called as nnU-Net does.

    Raises:
        InputError: see `read_dice`.
    """
    content = read_json(path, remedy)
    lines = []
    try:
        for entry in content["metric_per_case"]:
            case, metrics = Path(entry["prediction_file"]).name.partition(".")[0], entry["metrics"]
            for name, key in ({key: key for key in metrics if key != "0"} if names is None else names).items():
                if key in metrics:
                    dice, voxels = metrics[key]["Dice"], (metrics[key].get("n_ref"), metrics[key].get("n_pred"))
                    # nnU-Net writes NaN; null is what stricter writers make of it
                    value = math.nan if dice is None else float(dice)
                    note = BOTH_EMPTY if math.isnan(value) else ""
                    if not note and 0 in voxels:
                        note = "no reference" if voxels[0] == 0 else "no prediction"
                    lines.append(Score(model, case, name, "Dice", value, note=note))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path} ({error!r})", "a validation summary of nnU-Net", remedy) from None
    return Scores(tuple(lines))


def dice_scores(models: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Scores:
    """Scores of the Dice by model, case and label; one that is NaN is of a label that neither mask holds."""
    return Scores(
        tuple(
            Score(model, case, label, "Dice", value, note=BOTH_EMPTY if math.isnan(value) else "")
            for model, cases in models.items()
            for case, labels in cases.items()
            for label, value in labels.items()
        )
    )
