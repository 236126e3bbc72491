"""Where cases lie among each other: in one cluster or two, and how far each is from its neighbours."""

from typing import NamedTuple

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
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
    """(clusters, numbers of a latent): the median of each cluster's latents, of a small cluster that of the larger one,
    see `OWN_CENTRE`."""


def find_clusters(latents: np.ndarray) -> Clusters:
    """Two clusters where the cases form two, see `two_groups`, else one.

    Args:
        latents: (cases, numbers of a latent).
    """
    of, silhouette = two_groups(latents)
    centres = np.stack([np.median(latents[of == number], axis=0) for number in range(of.max() + 1)])
    if np.count_nonzero(of) < OWN_CENTRE * len(of):
        centres[1:] = centres[0]
    return Clusters(of, silhouette, centres)


def two_groups(points: np.ndarray) -> tuple[np.ndarray, float]:
    """The two groups of 2-means along the two axes of most variance, where the points form two; else one.

    They do where the smaller is no handful of cases, where the silhouette is above `STRETCHED`, and above less the more
    of the variance the second axis has, down to `SILHOUETTE`, and where two normal distributions tell the points better
    than one (BIC): halves of one stretched cloud are no groups.

    Args:
        points: (cases, numbers of each).

    Returns:
        The group of each case, 0 for the larger one, and the silhouette, NaN of one group.
    """
    if len(np.unique(points, axis=0)) > 1:
        main = PCA(min(2, points.shape[1]), random_state=0)
        axes = main.fit_transform(points)
        found = _larger_first(KMeans(2, n_init=10, random_state=0).fit_predict(axes))
        if _is_no_handful(found):
            second = float((main.explained_variance_[1:] / main.explained_variance_[0]).sum())
            silhouette = float(silhouette_score(axes, found))
            if silhouette > max(STRETCHED - second, SILHOUETTE) and _is_told_by_two(axes):
                return found, silhouette
    return np.zeros(len(points), int), float("nan")


def _larger_first(groups: np.ndarray) -> np.ndarray:
    """Two groups with the number 0 for the larger one."""
    groups = groups.astype(int)
    return 1 - groups if np.count_nonzero(groups) > len(groups) / 2 else groups


def _is_no_handful(groups: np.ndarray) -> bool:
    return bool(np.count_nonzero(groups) >= max(SMALLEST_SHARE * len(groups), FEWEST))


def _is_told_by_two(points: np.ndarray) -> bool:
    spread = points / points.std(axis=0).max()
    return bool(_normals(spread, 2).bic(spread) < _normals(spread, 1).bic(spread))


def two_normals(values: np.ndarray) -> np.ndarray:
    """The two groups of values of which two normal distributions tell more than one; else one.

    They do where the smaller group is no handful of cases, where their BIC is lower by `EVIDENCE`, and where their
    centres are `APART` standard deviations apart.

    Args:
        values: (cases,), not all alike.

    Returns:
        (cases,) of int: 0 the larger group, 1 the smaller one; all 0 where there is one.
    """
    points = values[:, None] / values.std()
    one, two = _normals(points, 1), _normals(points, 2)
    found = _larger_first(two.predict(points))
    apart = np.ptp(two.means_) / np.sqrt(two.covariances_.item())
    told = apart >= APART and one.bic(points) - two.bic(points) >= EVIDENCE
    return found if told and _is_no_handful(found) else np.zeros(len(points), int)


def _normals(points: np.ndarray, number: int) -> GaussianMixture:
    """So many normal distributions of one width, of points that are no longer than a few units."""
    return GaussianMixture(number, covariance_type="tied", n_init=5, random_state=0).fit(points)


def rarity_of(latents: np.ndarray) -> np.ndarray:
    """The mean distance of each latent to the five nearest others: (cases, numbers of a latent) -> (cases,)."""
    neighbours = min(NEIGHBOURS, len(latents) - 1)
    distances, _ = NearestNeighbors(n_neighbors=neighbours).fit(latents).kneighbors()
    return np.asarray(distances.mean(axis=1))
