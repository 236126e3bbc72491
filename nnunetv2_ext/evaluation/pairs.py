"""The values of two models side by side, case by case."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from nnunetv2_ext.evaluation.metrics import ALL_METRICS, LESIONS
from nnunetv2_ext.evaluation.scores import BOTH_EMPTY, Scores

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
    shape = (2, len(labels), len(cases))
    lines = [
        scores.of(model, label, metric).get(case) for model in (first, second) for label in labels for case in cases
    ]
    values = np.array([math.nan if line is None else line.value for line in lines], float).reshape(shape)
    notes = np.array(["" if line is None else line.note for line in lines], object).reshape(shape)
    if ALL_METRICS[metric].better == "nearer 0":
        values = abs(values)
    known = ~np.isnan(values)
    decided = known & (notes != "")
    right = ~known & known[::-1] & (notes == BOTH_EMPTY) & (metric in PERFECT)
    values[right] = PERFECT.get(metric, math.nan)
    counts = (known | right).sum(axis=1)  # (2, cases)
    pairs = (counts > 0).all(axis=0)
    means = np.nansum(values, axis=1)[:, pairs] / counts[:, pairs]
    return Pairs(
        means.T,
        int((~pairs).sum()),
        *(int((pairs & which.any(axis=(0, 1))).sum()) for which in (decided, right)),
    )
