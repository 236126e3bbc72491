"""What averaging leaves of labels: voxels and connected components of each, before and after."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

NEIGHBOURS = np.ones((3, 3, 3))
"""Voxels that share a face, an edge or a corner are connected."""


@dataclass
class LabelCount:
    """One label, over the cases that have it."""

    cases: int = 0
    gone: list[str] = field(default_factory=list)
    """Cases that have it no longer."""
    volume: float = 0
    """ml."""
    thick_volume: float = 0
    components: int = 0
    thick_components: int = 0
    lost: int = 0
    """Components of which no thick voxel tells."""


def count_labels(
    labels: np.ndarray, thick: np.ndarray, *, case: str, axis: int, factor: float, millilitres: float
) -> dict[int, LabelCount]:
    """Count every label of one case but 0.

    Args:
        labels: (Z, Y, X).
        thick: of its slabs of `factor` slices along `axis`: (Z // factor, Y, X) for axis 0.
        case: its name.
        millilitres: volume of a voxel.
    """
    slab = ((np.arange(labels.shape[axis]) + 0.5) / factor).astype(int)
    # What fills no slab is lost.
    held = np.flatnonzero(slab < thick.shape[axis])
    spread = np.zeros_like(labels)
    np.moveaxis(spread, axis, 0)[held] = np.moveaxis(thick, axis, 0)[slab[held]]
    counts = {}
    for value in np.unique(labels).tolist():
        if value == 0:
            continue
        before, after = labels == value, thick == value
        (box,) = ndimage.find_objects(before.view(np.uint8))
        components, number = ndimage.label(before[box], NEIGHBOURS)
        kept = np.unique(components[before[box] & (spread[box] == value)])
        voxels, thick_voxels = int(np.count_nonzero(before)), int(np.count_nonzero(after))
        counts[int(value)] = LabelCount(
            cases=1,
            gone=[] if thick_voxels else [case],
            volume=voxels * millilitres,
            thick_volume=thick_voxels * millilitres * factor,
            components=number,
            thick_components=ndimage.label(after, NEIGHBOURS)[1],
            lost=number - len(kept),
        )
    return counts


def added(counts: Iterable[Mapping[int, LabelCount]]) -> dict[int, LabelCount]:
    """The counts of several cases together, by label."""
    total: dict[int, LabelCount] = {}
    for of_case in counts:
        for value, count in of_case.items():
            one = vars(total.setdefault(value, LabelCount()))
            one.update({name: one[name] + number for name, number in vars(count).items()})
    return dict(sorted(total.items()))
