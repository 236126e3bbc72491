"""Which labels follow another style: thicker or thinner than the predictions, or in another cluster of the map."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from nnunetv2_ext.audit.result import LabelScore, LatentMap, Verdict
from nnunetv2_ext.audit.scores import robust_z
from nnunetv2_ext.audit.sentences import explain_size
from nnunetv2_ext.text import counted

LIMIT = 3.0
"""Standard deviations beyond which a value is unlike the others."""
SILHOUETTE = 0.7
"""Two groups of sizes where it is above this; of one number, halves of a single bell curve have 0.57 already."""
SHARE = 0.05
"""Of the cases, in the smaller group at least."""


def styles_of(scores: Sequence[LabelScore], latents: LatentMap | None = None) -> list[Verdict]:
    """The cases of another style, each once.

    By size: that of a label is beyond three standard deviations (robust; of several labels a little more), or the mean
    size over the labels is in the smaller of two groups. Where a quarter of the cases is thicker, the deviations are so
    wide that no size is beyond three of them, but the sizes fall into two groups. By the map: the smaller cluster.
    """
    found: dict[str, Verdict] = {}
    furthest: dict[str, tuple[float, LabelScore, float]] = {}
    labels = by_label([score for score in scores if score.voxels and score.predicted])
    limit = limit_of(len(labels))
    for of in labels.values():
        sizes = np.array([score.size for score in of])
        usual = float(np.median(sizes))
        for score, far in zip(of, np.abs(robust_z(sizes)).tolist(), strict=True):
            if score.case not in furthest or furthest[score.case][0] < far:
                furthest[score.case] = (far, score, usual)
    for case, (far, score, usual) in furthest.items():
        if far > limit:
            found[case] = Verdict(case, False, far, score.label, explain_size(score, usual))
    thick = _smaller_group(labels)
    for case in thick:
        far, score, usual = furthest[case]
        told = f"{explain_size(score, usual)}, one of {len(thick)} cases that lie apart in this"
        found.setdefault(case, Verdict(case, False, far, score.label, told))
    smaller = [] if latents is None else [latents.cases[place] for place in np.flatnonzero(latents.clusters)]
    told = f"it lies in the smaller of two clusters of the map, with {counted(smaller, 'case')}"
    for case in smaller:
        found.setdefault(case, Verdict(case, False, 0.0, "", told))
    return list(found.values())


def by_label(scores: Sequence[LabelScore]) -> dict[str, list[LabelScore]]:
    """The scores of each label, by its name."""
    found: dict[str, list[LabelScore]] = {}
    for score in scores:
        found.setdefault(score.label, []).append(score)
    return found


def limit_of(labels: int) -> float:
    """The limit for the largest of several z, so that it is passed by chance as seldom as `LIMIT` by one."""
    normal = NormalDist()
    return -normal.inv_cdf(normal.cdf(-LIMIT) / max(labels, 1))


def _smaller_group(labels: dict[str, list[LabelScore]]) -> list[str]:
    """The cases of the smaller of two groups by the mean size of their labels; none where there is one group.

    Each label's sizes count from their median.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    of_cases: dict[str, list[float]] = {}
    for of in labels.values():
        usual = float(np.median([score.size for score in of]))
        for score in of:
            of_cases.setdefault(score.case, []).append(score.size - usual)
    cases, means = list(of_cases), np.array([math.fsum(sizes) / len(sizes) for sizes in of_cases.values()])[:, None]
    if len(np.unique(means)) < 3:
        return []
    groups = KMeans(2, n_init=10, random_state=0).fit_predict(means)
    small = int(np.count_nonzero(groups) <= len(groups) / 2)
    group = [case for case, number in zip(cases, groups, strict=True) if number == small]
    apart = silhouette_score(means, groups) > SILHOUETTE
    return group if apart and len(group) >= SHARE * len(cases) else []
