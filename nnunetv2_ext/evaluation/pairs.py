"""The values of two models side by side, case by case."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from nnunetv2_ext.evaluation.metrics import ALL_METRICS, LESIONS
from nnunetv2_ext.evaluation.scores import BOTH_EMPTY, Score, Scores, nan_mean

PERFECT: Mapping[str, float] = {
    name: float(metric.better == "higher")
    for name, metric in ALL_METRICS.items()
    if metric.better and name not in LESIONS[:2]
}
"""What a model scores that finds nothing where nothing is."""


class Pairs(NamedTuple):
    """The cases that count for both."""

    values: np.ndarray
    """(pairs, 2)"""
    left_out: int
    """Cases that do not count for one of both or for both."""
    decided: int
    """Pairs with a value that was decided, since one of both masks is empty."""
    rightly_empty: int
    """Pairs with a perfect value of one model, which finds nothing where the other invents something."""


def cases_of(scores: Scores, model: str, labels: Sequence[str], metric: str) -> set[str]:
    """The cases that a model has a line of."""
    return {case for label in labels for case in scores.of(model, label, metric)}


def pair(scores: Scores, first: str, second: str, labels: Sequence[str], metric: str) -> Pairs:
    """The means of each case over some labels, absolute values where the metric is better nearer 0.

    Where a label is not in the reference, a model that does not predict it has no value. If the other model does, this
    one counts with the perfect value: without the pair, what the other invents would not be seen. Recall and precision
    of lesions have no such value, as there is no lesion to count.
    """
    cases = sorted(cases_of(scores, first, labels, metric))
    lines = [(scores.of(first, label, metric), scores.of(second, label, metric)) for label in labels]
    values, decided, right = [], [], []
    for case in cases:
        of_case = [_side_by_side(ours.get(case), theirs.get(case), metric) for ours, theirs in lines]
        values.append([nan_mean(of_model) for of_model in zip(*(one[:2] for one in of_case), strict=True)])
        decided.append(any(one.decided for one in of_case))
        right.append(any(one.rightly_empty for one in of_case))
    both = np.array(values, float).reshape(-1, 2)
    counts = ~np.isnan(both).any(axis=1)
    return Pairs(
        both[counts],
        int((~counts).sum()),
        int((counts & np.array(decided, bool)).sum()),
        int((counts & np.array(right, bool)).sum()),
    )


class _Both(NamedTuple):
    """One case and label."""

    first: float
    second: float
    decided: bool
    rightly_empty: bool


def _side_by_side(first: Score | None, second: Score | None, metric: str) -> _Both:
    change = abs if ALL_METRICS[metric].better == "nearer 0" else float
    lines = (first, second)
    values = [math.nan if line is None else change(line.value) for line in lines]
    counts = [not math.isnan(value) for value in values]
    decided = any(line is not None and line.note and known for line, known in zip(lines, counts, strict=True))
    perfect = PERFECT.get(metric)
    right = counts.index(False) if counts[0] != counts[1] else None
    if right is None or perfect is None or (line := lines[right]) is None or line.note != BOTH_EMPTY:
        return _Both(values[0], values[1], decided, False)
    values[right] = perfect
    return _Both(values[0], values[1], decided, True)
