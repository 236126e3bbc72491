"""Means over cases with their 95 % interval: percentile bootstrap over cases (Efron, Annals of Statistics 7, 1979)."""

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from nnunetv2_ext.evaluation.scores import nan_mean

RESAMPLES = 10_000


class Interval(NamedTuple):
    """A mean over cases with the bounds of its 95 % interval, which are NaN below two cases."""

    mean: float
    low: float
    high: float
    cases: int

    def __str__(self) -> str:
        mean, low, high = (f"{round(value, 3) + 0.0:.3f}" for value in self[:3])  # no -0.000
        return f"{mean} [{low}, {high}]" if self.cases > 1 else mean if self.cases else "-"


def interval(values: Iterable[float], *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The mean of the values that are no NaN, with the 2.5 % and 97.5 % percentiles of bootstrap means."""
    known = np.array([value for value in values if not math.isnan(value)], dtype=np.float64)
    if known.size < 2:
        return Interval(nan_mean(known), math.nan, math.nan, known.size)
    low, high = np.percentile(_draws(known.size, resamples, seed).astype(np.float64) @ known / known.size, [2.5, 97.5])
    return Interval(float(known.mean()), float(low), float(high), known.size)


def interval_of_labels(values: np.ndarray) -> Interval:
    """The mean over labels of their means over cases, as nnU-Net's, with the interval of resampled cases.

    Args:
        values: (cases, labels); NaN does not count.
    """
    known = ~np.isnan(values)
    values, known = values[known.any(axis=1)], known[known.any(axis=1)]
    filled, weights = np.where(known, values, 0.0), known.astype(np.float64)
    mean = float(_mean_of_means(filled.sum(axis=0), weights.sum(axis=0)))
    if len(values) < 2 or not np.isfinite(filled).all():
        return Interval(mean, math.nan, math.nan, len(values))
    draws = _draws(len(values), RESAMPLES, 0).astype(np.float64)
    low, high = np.percentile(_mean_of_means(draws @ filled, draws @ weights), [2.5, 97.5])
    return Interval(mean, float(low), float(high), len(values))


def _mean_of_means(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Over the last axis, without what was never counted; NaN where nothing was."""
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0).sum(axis=-1)
    labels = (counts > 0).sum(axis=-1)
    return np.divide(means, labels, out=np.full_like(means, math.nan), where=labels > 0)


@lru_cache(maxsize=24)  # labels count in different numbers of cases
def _draws(count: int, resamples: int, seed: int) -> np.ndarray:
    """How often each resample draws each case: (resamples, cases)."""
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    return draws.astype(np.uint8)
