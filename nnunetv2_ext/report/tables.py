"""The tables of a page: what failed or is weak, means with their intervals, comparisons, every case."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from nnunetv2_ext.evaluation.comparison import Comparison
from nnunetv2_ext.evaluation.intervals import Interval, interval, interval_of_labels
from nnunetv2_ext.evaluation.means import beside
from nnunetv2_ext.evaluation.metrics import ALL_METRICS, Metric
from nnunetv2_ext.evaluation.scores import Scores, nan_mean
from nnunetv2_ext.evaluation.summary import Summary
from nnunetv2_ext.inference.record import prediction_records
from nnunetv2_ext.report.charts import letter
from nnunetv2_ext.report.models import prediction_folders

ALL = "all labels"
NONE = "\N{EN DASH}"
"""In the place of a value that is not there."""
WEAKEST = 6
"""Lines of the lists of weak cases."""


def metric_of(name: str) -> Metric:
    """What a metric means, nothing of one that is not ours."""
    return ALL_METRICS.get(name, Metric("", "", ""))


def number(value: float, metric: str) -> str:
    """A value with the digits of its unit."""
    if math.isnan(value):
        return NONE
    unit = metric_of(metric).unit
    return rounded(value, 3 if not unit else 2 if unit == "mm" or abs(value) < 100 else 0)


def rounded(value: float, digits: int) -> str:
    """A value with so many digits behind the point, and no minus before zero."""
    if math.isnan(value):
        return NONE
    text = f"{value:.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}") if float(text) else text.removeprefix("-")


def with_unit(metric: str) -> str:
    """A metric with its unit."""
    return f"{metric} ({metric_of(metric).unit})" if metric_of(metric).unit else metric


def headed(metric: str, scores: Scores) -> str:
    """A metric with its unit and, where all lines share it, the setting that it depends on."""
    settings = {line.how for line in scores.lines if line.metric == metric}
    how = settings.pop() if len(settings) == 1 else ""
    details = [part for part in (metric_of(metric).unit, how) if part]
    return f"{metric} ({', '.join(details)})" if details else metric


class Failure(NamedTuple):
    """A case that was not predicted, or a label of it that one mask alone holds."""

    case: str
    model: str
    what: str


def failed_predictions(summaries: Mapping[str, Summary]) -> list[Failure]:
    """The cases that the records beside predictions tell of as failed."""
    failures = {}
    for model, summary in summaries.items():
        for record in (record for folder in prediction_folders(summary) for record in prediction_records(folder)):
            failed = record.get("failed")
            for case, sentence in failed.items() if isinstance(failed, dict) else ():
                failures[model, case] = Failure(str(case), model, f"not predicted: {sentence}")
    return list(failures.values())


def one_sided(scores: Scores) -> list[Failure]:
    """Labels that either the reference or the prediction lacks, a line for each case, label and kind."""
    models: dict[tuple[str, str, str], list[str]] = {}
    for line in scores.lines:
        if line.note.startswith("no "):
            of_label = models.setdefault((line.case, line.label, line.note), [])
            if line.model not in of_label:
                of_label.append(line.model)
    words = {"no prediction": "missed: nothing is predicted", "no reference": "invented: the reference holds none"}
    return [
        Failure(case, ", ".join(of_label), f"{label} {words.get(note, note)}")
        for (case, label, note), of_label in models.items()
    ]


class Row(NamedTuple):
    """A line of a table of values, one for each model."""

    case: str
    label: str
    values: Sequence[str]
    worst: int
    """The place of the weakest among them."""


def weakest(scores: Scores, metric: str) -> list[Row]:
    """The cases and labels with the weakest measured value of any model, weakest first."""
    sign = -1 if metric_of(metric).better == "higher" else 1
    found: dict[tuple[str, str], list[float]] = {}
    for number_of, model in enumerate(scores.models):
        for label in scores.labels:
            for case, line in scores.of(model, label, metric).items():
                values = found.setdefault((case, label), [math.nan] * len(scores.models))
                if not line.note:
                    values[number_of] = line.value
    weak = {
        key: max(sign * value for value in values if not math.isnan(value))
        for key, values in found.items()
        if not all(map(math.isnan, values))
    }
    perfect = sign if metric_of(metric).better == "higher" else 0
    weak = {key: value for key, value in weak.items() if value > perfect}
    rows = []
    for case, label in sorted(weak, key=lambda key: (-weak[key], key))[:WEAKEST]:
        values = found[case, label]
        place = max(range(len(values)), key=lambda at: -math.inf if math.isnan(values[at]) else sign * values[at])
        rows.append(Row(case, label, [number(value, metric) for value in values], place))
    return rows


def _tolerance(scores: Scores, label: str, metric: str) -> str:
    if metric != "NSD":
        return ""
    labels = scores.labels if label == ALL else (label,)
    lines = (line for model in scores.models for one in labels for line in scores.of(model, one, metric).values())
    settings = {line.how for line in lines}
    return settings.pop() if len(settings) == 1 else ""


class Cell(NamedTuple):
    """A mean in words."""

    mean: str
    interval: str
    note: str
    """Numbers of decided values, and of those that do not count; empty where there are none."""
    best: bool = False


class Line(NamedTuple):
    """The means of a metric, one for each model."""

    metric: str
    """With its unit."""
    tolerance: str
    """In words, of the metric that has one."""
    cells: Sequence[Cell]


def means(scores: Scores) -> list[tuple[str, list[Line]]]:
    """For all labels together, then for each: the metrics with the mean of every model.

    The means of all labels are over those of each label, as nnU-Net's. A signed error has none, since those of two
    labels would cancel.
    """
    groups = []
    for label in (*([ALL] if len(scores.labels) > 1 else []), *scores.labels):
        lines = []
        for metric in scores.metrics:
            if label == ALL and metric_of(metric).better not in ("higher", "lower"):
                continue
            found = [_mean(scores, model, label, metric) for model in scores.models]
            if any(known.cases for known, _ in found):
                judged = [known.mean for known, _ in found]
                if metric_of(metric).better == "nearer 0":
                    judged = [nan_mean(map(abs, scores.values(one, label, metric).values())) for one in scores.models]
                best = _best(judged, metric)
                cells = [_cell(known, note, metric, place in best) for place, (known, note) in enumerate(found)]
                lines.append(Line(with_unit(metric), _tolerance(scores, label, metric), cells))
        groups.append((label, lines))
    return groups


def _mean(scores: Scores, model: str, label: str, metric: str) -> tuple[Interval, str]:
    labels = scores.labels if label == ALL else (label,)
    counts = beside(scores, model, labels, metric)
    if label != ALL:
        return interval(scores.values(model, label, metric).values()), counts
    of_labels = [scores.values(model, one, metric) for one in labels]
    cases = dict.fromkeys(case for values in of_labels for case in values)
    values = [[of_label.get(case, math.nan) for of_label in of_labels] for case in cases]
    return interval_of_labels(np.array(values, float).reshape(len(cases), len(labels))), counts


def _cell(known: Interval, note: str, metric: str, best: bool) -> Cell:
    if known.cases == 0:
        return Cell(NONE, "", "no case counts")
    between = f"{number(known.low, metric)}, {number(known.high, metric)}" if known.cases > 1 else ""
    return Cell(number(known.mean, metric), between, note, best)


def _best(values: Sequence[float], metric: str) -> set[int]:
    """The places of the best means, as they are shown; none where all are alike.

    Args:
        values: means, or mean sizes where nearer 0 is better.
    """
    better = metric_of(metric).better
    shown = [number(value, metric) for value in values]
    if not better or len(set(shown)) < 2:
        return set()
    sign = -1 if better == "higher" else 1
    known = {place: sign * value for place, value in enumerate(values) if not math.isnan(value)}
    first = shown[min(known, key=lambda place: known[place])]
    return {place for place in known if shown[place] == first}


class Compared(NamedTuple):
    """A comparison in words."""

    models: tuple[str, str]
    letters: tuple[str, str]
    label: str
    metric: str
    means: tuple[str, str]
    difference: str
    interval: str
    p: str
    corrected: str
    significant: bool
    counts: tuple[int, int, int]
    """Wins, ties and losses of the first model."""


def compared(comparisons: Sequence[Comparison], models: Sequence[str], level: float) -> list[Compared]:
    """Comparisons in words, those whose corrected p lies below the level marked."""
    return [
        Compared(
            (one.model, one.reference),
            (letter(models.index(one.model)), letter(models.index(one.reference))),
            one.label,
            one.metric,
            (number(one.model_mean, one.metric), number(one.reference_mean, one.metric)),
            number(one.difference.mean, one.metric),
            f"{number(one.difference.low, one.metric)} to {number(one.difference.high, one.metric)}"
            if one.difference.cases > 1
            else "",
            _p(one.p),
            _p(one.corrected_p),
            one.corrected_p < level,
            (one.wins, one.ties, one.losses),
        )
        for one in comparisons
    ]


def _p(value: float) -> str:
    if math.isnan(value):
        return NONE
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"


def all_cases(scores: Scores) -> list[tuple[str, str, str, list[tuple[str, str]]]]:
    """Case, label, letter of the model, and for every metric its value and why it was decided."""
    rows = []
    for case in sorted(scores.cases):
        for label in scores.labels:
            for number_of, model in enumerate(scores.models):
                lines = [scores.of(model, label, metric).get(case) for metric in scores.metrics]
                if any(line is not None for line in lines):
                    cells = [
                        (NONE, "") if line is None else (number(line.value, line.metric), line.note) for line in lines
                    ]
                    rows.append((case, label, letter(number_of), cells))
    return rows
