"""Which cases are listed: probably wrong, or of another style; the worst first."""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from nnunetv2_ext.audit.result import LabelScore, LatentMap, Verdict
from nnunetv2_ext.audit.scores import LIMIT, robust_z
from nnunetv2_ext.audit.sentences import explain, explain_size
from nnunetv2_ext.text import counted

LEAST = 0.05
"""Of Dice by which a case is below the median, at least: where all are alike, little is not wrong."""
NEAREST_TO_CERTAIN = 1e-3
"""Disagreements of 0 and 1 count as this far from them: the logit of these has no end."""


class Evidence(NamedTuple):
    """How far a case is from the others."""

    order: float
    """By which cases are listed: the larger, the worse; NaN where nothing is known of it."""
    wrong: bool
    worst: LabelScore | None
    """That of the label which is furthest; None where none counts."""
    others: tuple[LabelScore, ...]
    """Of further labels beyond the limit, the worst first."""


def judge(scores: Sequence[LabelScore], latents: LatentMap | None = None) -> list[Verdict]:
    """The cases to be listed: the probably wrong ones, the worst first, then those of another style.

    Args:
        scores: of all cases and labels, with ranks.
        latents: the map of the same cases, where the scores are of one.
    """
    found = evidence(scores, latents)
    medians = {label: _median(np.array([one.disagreement for one in of])) for label, of in _by_label(scores).items()}
    wrong = [
        Verdict(case, True, one.order, one.worst.label, _sentence(one.worst, one.others, medians))
        for case, one in found.items()
        if one.wrong and one.worst is not None
    ]
    styles = _styles(scores, latents)
    rest = [one for case, one in styles.items() if not found[case].wrong]
    return [one for part in (wrong, rest) for one in sorted(part, key=lambda one: (-one.order, one.case))]


def evidence(scores: Sequence[LabelScore], latents: LatentMap | None = None) -> dict[str, Evidence]:
    """How far each case is from the others, by what speaks for an error.

    A label counts by the robust z of the logit of its disagreement over the cases. Disagreements are skewed to the
    right: median + 3 x 1.4826 MAD of themselves, the published rule, lists more than 3 % of clean cases; their logits
    are nearly symmetric. A case counts by the worst of its labels, and the limit grows with their number, so that clean
    cases are listed as seldom as with one.
    """
    labels = _by_label(scores)
    limit = limit_of(len(labels))
    of_cases: dict[str, list[_Far]] = {score.case: [] for score in scores}
    for of in labels.values():
        values = np.array([score.disagreement for score in of])
        least = _median(values) + LEAST
        for score, far in zip(of, robust_z(_logit(values)).tolist(), strict=True):
            if not math.isnan(far):
                of_cases[score.case].append(_Far(far, far > limit and score.disagreement >= least, score))
    found = {}
    for case, given in of_cases.items():
        ordered = sorted(given, key=lambda one: (-one.beyond, -one.far))
        first, *rest = ordered or [_Far(math.nan, False, None)]
        others = tuple(one.score for one in rest if one.beyond and one.score is not None)
        found[case] = Evidence(first.far, first.beyond, first.score, others)
    return found


class _Far(NamedTuple):
    """How far a label of a case is from those of the others."""

    far: float
    """Standard deviations."""
    beyond: bool
    """The limit."""
    score: LabelScore | None


def _median(values: np.ndarray) -> float:
    """Of those that are known, NaN where none is."""
    known = values[~np.isnan(values)]
    return float(np.median(known)) if known.size else math.nan


def limit_of(labels: int) -> float:
    """The limit for the largest of several z, so that it is passed by chance as seldom as `LIMIT` by one."""
    normal = NormalDist()
    return -normal.inv_cdf(normal.cdf(-LIMIT) / max(labels, 1))


def _by_label(scores: Sequence[LabelScore]) -> dict[str, list[LabelScore]]:
    found: dict[str, list[LabelScore]] = {}
    for score in scores:
        found.setdefault(score.label, []).append(score)
    return found


def _logit(values: np.ndarray) -> np.ndarray:
    inside = np.clip(values, NEAREST_TO_CERTAIN, 1 - NEAREST_TO_CERTAIN)
    return np.asarray(np.log(inside / (1 - inside)))


def _sentence(worst: LabelScore, others: Sequence[LabelScore], medians: Mapping[str, float]) -> str:
    dice = f"(Dice {1 - worst.disagreement:.2f}; the others' median {1 - medians[worst.label]:.2f})"
    beside = f"; also {', '.join(f'{one.label} (Dice {1 - one.disagreement:.2f})' for one in others)}" * bool(others)
    return f"{explain(worst, medians[worst.label])} {dice}{beside}"


def _styles(scores: Sequence[LabelScore], latents: LatentMap | None) -> dict[str, Verdict]:
    """The cases of another style, by name."""
    found: dict[str, Verdict] = {}
    for label, of in _by_label(scores).items():
        known = [score for score in of if score.voxels and score.predicted]
        sizes = np.array([score.size for score in known])
        for score, far in zip(known, robust_z(sizes).tolist(), strict=True):
            if abs(far) > LIMIT and (score.case not in found or found[score.case].order < abs(far)):
                sentence = explain_size(score, float(np.median(sizes)))
                found[score.case] = Verdict(score.case, False, abs(far), label, sentence)
    smaller = [] if latents is None else [latents.cases[place] for place in np.flatnonzero(latents.clusters)]
    told = f"it lies in the smaller of two clusters of the map, with {counted(smaller, 'case')}"
    for case in smaller:
        found.setdefault(case, Verdict(case, False, 0.0, "", told))
    return found
