"""Which cases are listed: probably wrong, or of another style; the worst first."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nnunetv2_ext.audit.result import LabelScore, LatentMap, Verdict
from nnunetv2_ext.audit.scores import robust_z
from nnunetv2_ext.audit.sentences import explain
from nnunetv2_ext.audit.styles import LIMIT, by_label, limit_of, styles_of

OF_ONE = 2
"""By which the limit is higher for the worst label than for all together: its values have a heavier tail."""
CERTAIN = 1e-3
"""Disagreements nearer to 0 and 1 count as this far from them: the logit of these has no end."""
LEAST = 0.05
"""Of Dice by which a label is below the median, at least: where all are alike, little is not wrong."""


class Evidence(NamedTuple):
    """How far a case is from the others."""

    order: float
    """By which cases are listed: the larger, the worse; NaN where nothing is known of it."""
    wrong: bool
    """Probably."""
    labels: tuple[LabelScore, ...]
    """Of its labels that count, the furthest from the median first: it, and further ones that are beyond the limit."""


def judge(scores: Sequence[LabelScore], latents: LatentMap | None = None) -> list[Verdict]:
    """The cases to be listed: the probably wrong ones, the worst first, then those of another style.

    Args:
        scores: of all cases and labels.
        latents: the map of the same cases, where the scores are of one.
    """
    found = evidence(scores)
    medians = {label: _median([score.disagreement for score in of]) for label, of in by_label(scores).items()}
    wrong = [
        Verdict(case, True, one.order, one.labels[0].label, _sentence(one.labels, medians))
        for case, one in found.items()
        if one.wrong
    ]
    styles = [one for one in styles_of(scores, latents) if not found[one.case].wrong]
    return [one for part in (wrong, styles) for one in sorted(part, key=lambda one: (-one.order, one.case))]


def evidence(scores: Sequence[LabelScore]) -> dict[str, Evidence]:
    """How far each case is from the others, by what speaks for an error: its disagreements.

    A label counts by the robust z, among all cases, of the logit of its disagreement. Disagreements themselves are
    skewed: median + 3 x 1.4826 MAD of them lists 3 % of clean cases and more.

    Wrong is a case whose mean z over its labels is beyond median + 3 x 1.4826 MAD of these means: most errors concern
    the whole label map, while clean cases too have one label here and there that disagrees much. An error of one label
    among many hardly moves their mean; so the largest z of a case counts too, with twice the limit.
    """
    labels = by_label(scores)
    cases = {score.case: row for row, score in enumerate({score.case: score for score in scores}.values())}
    z, above = (np.full((len(cases), len(labels)), math.nan) for _ in range(2))
    for column, of in enumerate(labels.values()):
        rows = [cases[score.case] for score in of]
        values = np.array([score.disagreement for score in of])
        z[rows, column], above[rows, column] = robust_z(_logit(values)), values - _median(values)
    known = ~np.isnan(z)
    counted = known.any(axis=1)
    of_all, of_worst = (np.full(len(cases), math.nan) for _ in range(2))
    of_all[counted] = np.nansum(z[counted], axis=1) / known[counted].sum(axis=1)
    of_worst[counted] = np.nanmax(z[counted], axis=1)
    orders = np.fmax(robust_z(of_all), robust_z(of_worst) / OF_ONE)
    given = {(score.case, score.label): score for score in scores}
    limit = OF_ONE * limit_of(len(labels))
    found = {}
    for case, row in cases.items():
        places = [place for place in np.argsort(-z[row]) if known[row, place]]
        told = [place for rank, place in enumerate(places) if not rank or z[row, place] > limit]
        wrong = bool(orders[row] > LIMIT) and any(above[row, place] >= LEAST for place in told)
        names = list(labels)
        found[case] = Evidence(float(orders[row]), wrong, tuple(given[case, names[place]] for place in told))
    return found


def _logit(values: np.ndarray) -> np.ndarray:
    inside = np.clip(values, CERTAIN, 1 - CERTAIN)
    return np.asarray(np.log(inside / (1 - inside)))


def _median(values: Sequence[float] | np.ndarray) -> float:
    """Of those that are known, NaN where none is."""
    known = np.asarray(values)[~np.isnan(values)]
    return float(np.median(known)) if known.size else math.nan


def _sentence(labels: Sequence[LabelScore], medians: dict[str, float]) -> str:
    worst, *others = labels
    usual = medians[worst.label]
    dice = f"(Dice {1 - worst.disagreement:.2f}; the others' median {1 - usual:.2f})"
    beside = f"; also {', '.join(f'{one.label} (Dice {1 - one.disagreement:.2f})' for one in others)}" * bool(others)
    return f"{explain(worst, usual)} {dice}{beside}"
