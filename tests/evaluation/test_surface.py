"""Distances between surfaces: closed forms, surface-distance, exacta, and a search of every pair."""

import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from exacta import functional as exacta
from scipy.ndimage import gaussian_filter

from nnunetv2_ext.evaluation.surface import DENSE_SHARE, FAR_SHARE, Directed, distances_to, surface, surface_distances
from nnunetv2_ext.testing.shapes import Shapes, box, pair, shapes, spheres

SPACINGS = [(1.0, 1.0, 1.0), (5.0, 0.8, 0.8), (3.0, 0.7, 1.3)]
METRICS = ("hd", "hd95", "assd", "nsd")
ROUND = [one for one in shapes() if "sphere" in one.name]
FLAT = [one for one in shapes() if "sphere" not in one.name]
TOO_COARSE = {"hd95": "column", "assd": "box 1 x", "nsd": "box 1 x"}
"""Shapes one slice of which the elements are too far apart for; docs/reference-metrics.md tells why."""


def measured(reference: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...]) -> dict[str, float]:
    found = surface_distances(reference, prediction, spacing)
    values = (found.hausdorff(), found.hausdorff_percentile(95), found.average(), found.within(1))
    return dict(zip(METRICS, values, strict=True))


def blobs(seed: int, shape: tuple[int, ...] = (9, 21, 24)) -> tuple[np.ndarray, np.ndarray]:
    """Two random masks that are partly alike, up to the border of the image."""
    random = np.random.default_rng(seed)
    one, other = (gaussian_filter(random.standard_normal(shape), (0.7, 2, 2)) for _ in range(2))
    return one > 0.05, 0.8 * one + 0.4 * other > 0.05


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("known", FLAT, ids=[one.name for one in FLAT])
def test_flat_surfaces(known: Shapes, name: str) -> None:
    exact = getattr(known.exact, name)
    if exact is None:
        return
    found = measured(known.reference, known.prediction, known.spacing)[name]
    if known.name.startswith(TOO_COARSE.get(name, "none")):
        assert abs(found - exact) > 0.05
    elif name in ("hd", "hd95"):
        assert found == pytest.approx(exact, rel=1e-9)
    else:
        assert found == pytest.approx(exact, abs=0.05)


@pytest.mark.parametrize("known", ROUND, ids=[f"{one.spacing[0]:g} mm" for one in ROUND])
def test_spheres_are_staircases(known: Shapes) -> None:
    found = measured(known.reference, known.prediction, known.spacing)
    edge = max(known.spacing)
    apart = known.exact.hd  # by all three
    assert apart <= found["hd95"] <= found["hd"] < apart + edge / 3
    assert apart - edge < found["assd"] < apart


def test_a_missed_end_slice_is_seen_by_the_largest_distance_alone() -> None:
    found = measured(*pair((20, 20, 20), (2, 5, 5), (15, 8, 8), (2, 5, 5), (14, 8, 8)), (5, 0.8, 0.8))
    assert (found["hd"], found["hd95"]) == (5.0, 0.0)


def pairs() -> Iterator[tuple[np.ndarray, np.ndarray, tuple[float, ...]]]:
    for seed, spacing in enumerate(SPACINGS):
        yield *blobs(seed), spacing
    for known in FLAT:
        yield known.reference, known.prediction, known.spacing


@pytest.mark.parametrize(("reference", "prediction", "spacing"), list(pairs()))
def test_as_surface_distance(reference: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...]) -> None:
    import surface_distance as package

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # scipy.ndimage.filters
        distances = package.compute_surface_distances(reference, prediction, spacing)
    found = measured(reference, prediction, spacing)
    assert found["hd"] == pytest.approx(package.compute_robust_hausdorff(distances, 100), abs=1e-9)
    assert found["hd95"] == pytest.approx(package.compute_robust_hausdorff(distances, 95), abs=1e-9)
    assert found["nsd"] == pytest.approx(package.compute_surface_dice_at_tolerance(distances, 1 + 1e-6), abs=1e-9)
    of_reference, of_prediction = package.compute_average_surface_distance(distances)
    weights = [distances[f"surfel_areas_{side}"].sum() for side in ("gt", "pred")]
    assert found["assd"] == pytest.approx(np.average([of_reference, of_prediction], weights=weights), abs=1e-9)


@pytest.mark.parametrize(("reference", "prediction", "spacing"), list(pairs()))
def test_as_exacta(reference: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...]) -> None:
    """Its surface elements, the larger of both directions, and the mean over both surfaces together, are ours."""
    masks = [mask[None].astype(np.int64) for mask in (prediction, reference)]
    how: dict[str, Any] = {"spacing": spacing, "surface": "surfels", "num_classes": 2, "include_background": False}
    expected = {
        "hd": exacta.hausdorff_distance(*masks, combine="max", **how),
        "hd95": exacta.hd95(*masks, combine="max", **how),
        "assd": exacta.assd(*masks, combine="pooled", **how),
        "nsd": exacta.nsd(*masks, tolerance=1 + 1e-6, **how),
    }
    found = measured(reference, prediction, spacing)
    assert found == pytest.approx({name: np.asarray(value).item() for name, value in expected.items()}, abs=1e-9)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("kind", ["few far", "many far", "dense"])
def test_as_every_pair_of_elements(spacing: tuple[float, ...], kind: str) -> None:
    masks: dict[str, tuple[np.ndarray, np.ndarray]] = {
        "few far": pair((40, 40, 40), (0, 0, 0), (1, 1, 1), (36, 33, 33), (3, 5, 6)),
        "many far": pair((40, 40, 40), (0, 0, 0), (3, 6, 6), (36, 33, 33), (3, 5, 6)),
        "dense": tuple(np.random.default_rng(0).random((2, 7, 9, 10)) < 0.3),  # type: ignore[dict-item]
    }
    one, other = masks[kind]
    start, end = surface(one, spacing), surface(other, spacing)
    assert kind == "dense" or (start.places.size > FAR_SHARE * 41**3) == (kind == "many far")
    assert (start.places.size + end.places.size > DENSE_SHARE * np.prod(start.grid)) == (kind == "dense")
    apart = start.points(spacing)[:, None] - end.points(spacing)[None]
    expected = np.sqrt((apart**2).sum(-1)).min(1)
    assert distances_to(start, end, spacing) == pytest.approx(expected, abs=1e-9)


def test_two_surfaces_far_apart_take_no_time() -> None:
    """The farther they are apart, the longer a search in the tree alone takes."""
    inner, outer = spheres(15, 48, (1, 1, 1))
    start = time.perf_counter()
    found = surface_distances(inner, outer, (1, 1, 1))
    assert time.perf_counter() - start < 10
    assert found.hausdorff() == pytest.approx(33, abs=1)


def test_the_border_of_the_image_is_a_surface() -> None:
    full = np.ones((3, 4, 5), bool)
    inside = box((5, 6, 7), (1, 1, 1), (3, 4, 5))
    assert surface(full, (2, 1, 1)).areas.sum() == pytest.approx(surface(inside, (2, 1, 1)).areas.sum())


def test_a_large_box_has_nearly_its_area() -> None:
    found = surface(np.ones((20, 40, 60), bool), (3, 1, 0.5)).areas.sum()
    assert found == pytest.approx(2 * (60 * 40 + 60 * 30 + 40 * 30), rel=0.02)


def test_percentile_of_exactly_the_share() -> None:
    """19 of 20 equal elements are 95 %, whatever their sum rounds to."""
    for area in (0.1, 0.7, 1 / 3):
        distances = Directed(np.repeat([0.0, 5.0], [19, 1]), np.full(20, area))
        assert distances.percentile(95) == 0.0
        assert distances.percentile(95.1) == 5.0
        assert distances.percentile(100) == 5.0
