"""Which labels follow another style: thicker or thinner than the predictions, or in another cluster of the map."""

from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np

from nnunetv2_ext.audit.clusters import two_normals
from nnunetv2_ext.audit.result import LabelScore, LatentMap, Verdict
from nnunetv2_ext.audit.scores import robust_z
from nnunetv2_ext.audit.sentences import explain_size

LIMIT = 3.0
"""Standard deviations beyond which a value is unlike the others."""
LEAST = 0.05
"""Of its size by which a label is larger or smaller than usual, at least: where all are alike, little is no style."""


def styles_of(scores: Sequence[LabelScore], latents: LatentMap | None = None) -> list[Verdict]:
    """The cases of another style, each once.

    By size: that of a label is beyond three standard deviations (robust; of several labels a little more), or the sizes
    are those of the smaller of two groups. Where a quarter of the cases is thicker, the deviations are so wide that no
    size is beyond three of them, but the sizes fall into two groups. By the map: the smaller cluster.
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
        if far > limit and abs(score.size - usual) > LEAST:
            found[case] = Verdict(case, False, far, score.label, explain_size(score, usual))
    thick = _smaller_group(labels)
    for case in thick:
        far, score, usual = furthest[case]
        told = f"{explain_size(score, usual)}, one of {len(thick)} cases that lie apart in this"
        found.setdefault(case, Verdict(case, False, far, score.label, told))
    smaller = [] if latents is None else [latents.cases[place] for place in np.flatnonzero(latents.clusters)]
    told = f"it lies in the smaller of two clusters of the map, {len(smaller)} cases{_unlike(smaller, labels)}"
    for case in smaller:
        found.setdefault(case, Verdict(case, False, 0.0, "", told))
    return list(found.values())


def _unlike(smaller: Sequence[str], labels: Mapping[str, list[LabelScore]]) -> str:
    """How the labels of the smaller cluster differ from the others', in words: the one whose volume differs most."""
    few, shares = set(smaller), {}
    for label, of in labels.items():
        ours, others = (
            [one.voxels * one.voxel_volume for one in of if (one.case in few) is kind] for kind in (True, False)
        )
        if ours and others:
            shares[label] = float(np.median(ours) / np.median(others) - 1)
    if not shares:
        return ""
    label, share = max(shares.items(), key=lambda item: abs(item[1]))
    told = f"{100 * abs(share):.0f} % {'larger' if share > 0 else 'smaller'}"
    return f", whose {label} is {told} than that of the others (medians)"


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
    """The cases of the smaller of two groups by the mean robust z of their labels' sizes; none where there is one."""
    cases = {case: row for row, case in enumerate(dict.fromkeys(score.case for of in labels.values() for score in of))}
    sizes = np.zeros((len(cases), len(labels)))  # a label that a case has not is as usual
    for column, of in enumerate(labels.values()):
        rows = [cases[score.case] for score in of]
        sizes[rows, column] = robust_z([score.size for score in of])
    means = sizes.mean(axis=1)
    if len(np.unique(means)) < 3:
        return []
    return [case for case, group in zip(cases, two_normals(means), strict=True) if group]
