"""Where cases lie among each other: in one cluster or two, and how far each is from its neighbours."""

from typing import NamedTuple

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors

SILHOUETTE = 0.5
"""Two clusters of latents where the silhouette is above it."""
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
    """Two clusters (k-means), where they lie apart and the smaller is no handful of cases; else one.

    Args:
        latents: (cases, numbers of a latent).
    """
    of, silhouette = two_means(latents)
    if not silhouette > SILHOUETTE:
        of, silhouette = np.zeros(len(latents), int), float("nan")
    centres = np.stack([np.median(latents[of == number], axis=0) for number in range(of.max() + 1)])
    if np.count_nonzero(of) < OWN_CENTRE * len(of):
        centres[1:] = centres[0]
    return Clusters(of, silhouette, centres)


def two_means(points: np.ndarray) -> tuple[np.ndarray, float]:
    """The two clusters of k-means, where the smaller is no handful of cases; else one.

    Args:
        points: (cases, numbers of each).

    Returns:
        The cluster of each case, 0 for the larger one, and the silhouette, NaN of one cluster.
    """
    if len(np.unique(points, axis=0)) > 1:
        found = KMeans(2, n_init=10, random_state=0).fit_predict(points).astype(int)
        if np.count_nonzero(found) > len(found) / 2:
            found = 1 - found
        if np.count_nonzero(found) >= max(SMALLEST_SHARE * len(found), FEWEST):
            return found, float(silhouette_score(points, found))
    return np.zeros(len(points), int), float("nan")


def rarity_of(latents: np.ndarray) -> np.ndarray:
    """The mean distance of each latent to the five nearest others: (cases, numbers of a latent) -> (cases,)."""
    neighbours = min(NEIGHBOURS, len(latents) - 1)
    distances, _ = NearestNeighbors(n_neighbors=neighbours).fit(latents).kneighbors()
    return np.asarray(distances.mean(axis=1))
