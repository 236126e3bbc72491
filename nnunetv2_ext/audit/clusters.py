"""Where cases lie among each other: in one cluster or two, and how far each is from its neighbours."""

from typing import NamedTuple

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors

SILHOUETTE = 0.5
"""Of two clusters in a plane: above it they lie apart."""
STRETCHED = 0.7
"""Likewise along one axis, where a bell curve has 0.57 and evenly spread points have 0.66."""
EVIDENCE = 4
"""By which the BIC of two normal distributions is lower than that of one, so that there are two."""
APART = 2.5
"""Standard deviations between their centres."""
SMALLEST_SHARE = 0.05
"""Of the cases, in the smaller cluster."""
FEWEST = 5
"""Cases in it; of fewer, in a small data set, none says whether they follow a style."""
OWN_CENTRE = 0.15
"""Share of the cases from which on a cluster is measured by a centre of its own. That of a smaller one would repeat
errors: ten cases that are wrong in one way, of a hundred, soon lie together."""
NEIGHBOURS = 5


class Clusters(NamedTuple):
    """Of all cases."""

    of: np.ndarray
    """(cases,) of int: 0 the larger cluster, 1 the smaller one; all 0 where there is one."""
    silhouette: float
    """Of two clusters; NaN where there is one."""
    centres: np.ndarray
    """(clusters, 2): the median of each cluster's latents, of a small cluster that of the larger one,
    see `OWN_CENTRE`."""


def find_clusters(latents: np.ndarray) -> Clusters:
    """The two clusters of 2-means, where the cases form two; else one.

    They do where the smaller is no handful of cases, where the silhouette is above `STRETCHED`, and above less the more
    of the variance the second axis has, down to `SILHOUETTE`, and where two normal distributions tell the latents
    better than one (BIC): halves of one stretched cloud are no clusters.

    Args:
        latents: (cases, 2).
    """
    of, silhouette = np.zeros(len(latents), int), float("nan")
    if len(np.unique(latents, axis=0)) > 1:
        found = _larger_first(KMeans(2, n_init=10, random_state=0).fit_predict(latents))
        if _is_no_handful(found):
            second, first = np.linalg.eigvalsh(np.cov(latents.T))
            apart = float(silhouette_score(latents, found))
            if apart > max(STRETCHED - second / first, SILHOUETTE) and _two_normals(latents).gain > 0:
                of, silhouette = found, apart
    centres = np.stack([np.median(latents[of == number], axis=0) for number in range(of.max() + 1)])
    if np.count_nonzero(of) < OWN_CENTRE * len(of):
        centres[1:] = centres[0]
    return Clusters(of, silhouette, centres)


def _larger_first(groups: np.ndarray) -> np.ndarray:
    """Two groups with the number 0 for the larger one."""
    groups = groups.astype(int)
    return 1 - groups if np.count_nonzero(groups) > len(groups) / 2 else groups


def _is_no_handful(groups: np.ndarray) -> bool:
    return bool(np.count_nonzero(groups) >= max(SMALLEST_SHARE * len(groups), FEWEST))


def two_normals(values: np.ndarray) -> np.ndarray:
    """The two groups of values of which two normal distributions tell more than one; else one.

    They do where the smaller group is no handful of cases, where their BIC is lower by `EVIDENCE`, and where their
    centres are `APART` standard deviations apart.

    Args:
        values: (cases,), not all alike.

    Returns:
        (cases,) of int: 0 the larger group, 1 the smaller one; all 0 where there is one.
    """
    told = _two_normals(values[:, None])
    found = _larger_first(told.groups)
    if told.apart >= APART and told.gain >= EVIDENCE and _is_no_handful(found):
        return found
    return np.zeros(len(found), int)


class _TwoNormals(NamedTuple):
    """Two normal distributions of one width."""

    groups: np.ndarray
    apart: float
    """Standard deviations, of the first axis, between their centres."""
    gain: float
    """By which their BIC is lower than that of one."""


def _two_normals(points: np.ndarray) -> _TwoNormals:
    scaled = points / points.std(axis=0).max()  # beside which the 1e-6 added to covariances is nothing
    one, two = (
        GaussianMixture(number, covariance_type="tied", n_init=5, random_state=0).fit(scaled) for number in (1, 2)
    )
    apart = np.ptp(two.means_[:, 0]) / np.sqrt(two.covariances_[0, 0])
    return _TwoNormals(two.predict(scaled), float(apart), float(one.bic(scaled) - two.bic(scaled)))


def rarity_of(latents: np.ndarray) -> np.ndarray:
    """The mean distance of each latent to the five nearest others: (cases, numbers of a latent) -> (cases,)."""
    neighbours = min(NEIGHBOURS, len(latents) - 1)
    distances, _ = NearestNeighbors(n_neighbors=neighbours).fit(latents).kneighbors()
    return np.asarray(distances.mean(axis=1))
