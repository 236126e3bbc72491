"""What averaging leaves of labels: voxels and connected components of each, before and after."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from nnunetv2_ext.geometry.boxes import components


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
    counted, place, values, number = _components(labels)
    thick_counted, _, thick_values, thick_number = _components(thick)
    kept = np.zeros(counted, bool)
    kept[number[spread[place] == values]] = True
    # Of each component its label.
    label_of, thick_label_of = np.zeros(counted, int), np.zeros(thick_counted, int)
    label_of[number], thick_label_of[thick_number] = values, thick_values
    counts = {}
    for value in np.unique(values).tolist():
        voxels, thick_voxels = (int(np.count_nonzero(found == value)) for found in (values, thick_values))
        counts[int(value)] = LabelCount(
            cases=1,
            gone=[] if thick_voxels else [case],
            volume=voxels * millilitres,
            thick_volume=thick_voxels * millilitres * factor,
            components=int(np.count_nonzero(label_of == value)),
            thick_components=int(np.count_nonzero(thick_label_of == value)),
            lost=int(np.count_nonzero(label_of[~kept] == value)),
        )
    return counts


def _components(labels: np.ndarray) -> tuple[int, tuple[np.ndarray, ...], np.ndarray, np.ndarray]:
    """Number of components, then of each voxel with a label its place, its label and the number of its component."""
    whole = labels.astype(np.int32) if labels.dtype.kind == "f" else labels
    # Voxels that share a face, an edge or a corner are connected.
    numbered, counted = components(whole, 26)
    place = np.nonzero(labels)
    return counted, place, labels[place], numbered[place].astype(np.int64) - 1


def added(counts: Iterable[Mapping[int, LabelCount]]) -> dict[int, LabelCount]:
    """The counts of several cases together, by label."""
    total: dict[int, LabelCount] = {}
    for of_case in counts:
        for value, count in of_case.items():
            one = vars(total.setdefault(value, LabelCount()))
            one.update({name: one[name] + number for name, number in vars(count).items()})
    return dict(sorted(total.items()))
