"""Clusters of latents, and how rare each is."""

import numpy as np
import pytest

from nnunetv2_ext.audit.clusters import find_clusters, rarity_of, two_normals


def cloud(count: int, centre: tuple[float, float], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(centre, 0.05, (count, 2))


@pytest.mark.parametrize(
    ("latents", "sizes"),
    [
        (cloud(40, (0, 0)), [40]),
        (np.concatenate([cloud(10, (1, 1)), cloud(30, (0, 0), 1)]), [30, 10]),
        (np.concatenate([cloud(1, (1, 1)), cloud(39, (0, 0), 1)]), [40]),  # a case alone is no style
        (np.concatenate([cloud(4, (1, 1)), cloud(16, (0, 0), 1)]), [20]),
        (np.zeros((20, 2)), [20]),
        (np.repeat([[0.0, 0.0], [1.0, 1.0]], 10, axis=0), [10, 10]),
    ],
    ids=["one", "two", "a case alone", "four cases", "alike", "two places"],
)
def test_clusters(latents: np.ndarray, sizes: list[int]) -> None:
    clusters = find_clusters(latents)
    assert np.bincount(clusters.of).tolist() == sizes
    assert np.isnan(clusters.silhouette) == (len(sizes) == 1)
    for number, centre in enumerate(clusters.centres):
        np.testing.assert_array_equal(centre, np.median(latents[clusters.of == number], axis=0))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", ["bell", "even"])
def test_halves_of_a_stretched_cloud_are_no_clusters(shape: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    along = random.normal(0, 1, 100) if shape == "bell" else random.uniform(-2, 2, 100)
    latents = np.stack([along, random.normal(0, 0.1, 100)], axis=1)
    assert not find_clusters(latents).of.any()
    latents[:25, 0] = latents[:, 0].max() + random.normal(4, 0.5, 25)
    assert np.flatnonzero(find_clusters(latents).of).tolist() == [*range(25)]


def test_a_small_cluster_is_measured_by_the_others_centre() -> None:
    for size, own in ((14, False), (15, True)):
        latents = np.concatenate([cloud(size, (1, 1)), cloud(100 - size, (0, 0), 1)])
        clusters = find_clusters(latents)
        assert np.bincount(clusters.of).tolist() == [100 - size, size]
        larger, smaller = np.median(latents[size:], axis=0), np.median(latents[:size], axis=0)
        np.testing.assert_array_equal(clusters.centres, [larger, smaller if own else larger])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("count", "shift", "is_group"), [(25, 0, False), (25, 1.5, False), (25, 4, True), (6, 6, True), (4, 6, False)]
)
def test_two_normal_distributions(count: int, shift: float, is_group: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    values = random.normal(0, 1, 100)
    values[:count] = random.normal(shift, 1, count)
    for scaled in (values, 1e-3 * values, -values):
        found = set(np.flatnonzero(two_normals(scaled)).tolist())
        assert len(found ^ set(range(count))) <= 2 if is_group else not found  # bell curves overlap


def test_rarity_is_the_mean_distance_to_the_five_nearest() -> None:
    latents = np.array([[float(place), 0.0] for place in range(6)] + [[10.0, 0.0]])
    rarity = rarity_of(latents)
    assert rarity[0] == np.mean([1, 2, 3, 4, 5])
    assert rarity[6] == np.mean([5, 6, 7, 8, 9])
    assert rarity_of(latents[:3]).tolist() == [1.5, 1.0, 1.5]
