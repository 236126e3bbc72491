"""The metrics of two masks of one label, in mm and ml. Each definition stands in docs/reference-metrics.md."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from nnunetv2_ext.errors import InputError, is_whole
from nnunetv2_ext.evaluation.lesions import match_components
from nnunetv2_ext.evaluation.scores import BOTH_EMPTY
from nnunetv2_ext.evaluation.surface import surface_distances
from nnunetv2_ext.geometry.boxes import bounding_box
from nnunetv2_ext.text import listed


class Metric(NamedTuple):
    """What one number means."""

    unit: str
    better: str
    """`higher`, `lower` or `nearer 0`; empty where neither is."""
    meaning: str


METRICS: dict[str, Metric] = {
    "Dice": Metric("", "higher", "twice the common volume over the sum of both"),
    "IoU": Metric("", "higher", "the common volume over that of both together"),
    "volume": Metric("ml", "", "of the prediction"),
    "reference volume": Metric("ml", "", "of the reference"),
    "volume error": Metric("ml", "nearer 0", "volume of the prediction less that of the reference"),
    "HD": Metric("mm", "lower", "the largest distance from one surface to the other"),
    "HD95": Metric("mm", "lower", "the larger of the 95 % percentiles of both directions, by area"),
    "ASSD": Metric("mm", "lower", "mean distance between the surfaces, by area, over both"),
    "NSD": Metric("", "higher", "share of both surfaces, by area, within the tolerance of the other"),
    "lesion recall": Metric("", "higher", "share of the reference's components that are found"),
    "lesion precision": Metric("", "higher", "share of the prediction's components that are right"),
    "lesion F1": Metric("", "higher", "harmonic mean of both"),
}

SLAB_METRICS = {
    "Dice of slabs": Metric("", "higher", "of the prediction averaged to slabs, with the thick annotation"),
    "IoU of slabs": Metric("", "higher", "likewise"),
}
"""Of thin-thick data alone, see `slabs`."""
ALL_METRICS: dict[str, Metric] = {**METRICS, **SLAB_METRICS}

OVERLAP = ("Dice", "IoU")
DISTANCES = ("HD", "HD95", "ASSD")
LESIONS = ("lesion recall", "lesion precision", "lesion F1")
CONNECTIVITIES = (6, 18, 26)
MM3_PER_ML = 1000


@dataclass(frozen=True)
class Settings:
    """What metrics depend on.

    Raises:
        InputError: a value out of its range.
    """

    tolerance: float = 1.0
    """Of NSD, in mm."""
    tolerances: Mapping[str, float] = field(default_factory=dict)
    """Those of single labels, by name."""
    empty: float | None = None
    """The distance in mm where one mask is empty and the other is not; None for the diagonal of the image."""
    connectivity: int = 26
    """Voxels of a component touch by faces (6), edges too (18) or corners too (26)."""
    lesion_iou: float = 0.1
    """A component is found where one of the other mask's overlaps it by this intersection over union, one to one."""

    def __post_init__(self) -> None:
        if not isinstance(self.tolerances, Mapping):
            raise InputError(
                f"{self.tolerances!r} as tolerances", "a number of mm for each label by name", "give them so"
            )
        for name, tolerance in (("tolerance", self.tolerance), *self.tolerances.items()):
            if not _is_number(tolerance) or tolerance <= 0:
                of = "" if name == "tolerance" else f" of {name}"
                raise InputError(f"the tolerance {tolerance!r}{of}", "a number of mm above 0", "choose one, such as 1")
        if self.empty is not None and (not _is_number(self.empty) or self.empty < 0):
            remedy = "choose one, or leave it away for the diagonal of the image"
            raise InputError(f"{self.empty!r} as distance to an empty mask", "a number of mm, 0 or more", remedy)
        if not is_whole(self.connectivity) or self.connectivity not in CONNECTIVITIES:
            got = f"{self.connectivity!r} as connectivity of components"
            raise InputError(got, "6 (faces), 18 (edges too) or 26 (corners too)", "choose one of them")
        if not _is_number(self.lesion_iou) or not 0 <= self.lesion_iou <= 1:
            got = f"{self.lesion_iou!r} as intersection over union of a lesion that is found"
            raise InputError(got, "a number from 0 (any common voxel) to 1", "choose one, such as 0.1")

    def tolerance_of(self, label: str) -> float:
        """Of NSD, in mm."""
        return self.tolerances.get(label, self.tolerance)

    def how(self, metric: str, label: str) -> str:
        """What the value of a metric depends on, for the column of that name."""
        if metric == "NSD":
            return f"tolerance {self.tolerance_of(label):g} mm"
        if metric in DISTANCES:
            return f"empty = {'diagonal' if self.empty is None else f'{self.empty:g} mm'}"
        if metric in LESIONS:
            return f"{self.connectivity}-connected, IoU {self.lesion_iou:g}"
        return ""


def _is_number(value: Any) -> bool:
    """Whether a value is a finite number; true and false are none."""
    numbers = (int, float, np.integer, np.floating)
    return isinstance(value, numbers) and not isinstance(value, bool) and bool(abs(value) <= sys.float_info.max)


class Measured(NamedTuple):
    """A value and, where it was decided and not measured, why: see `Score`."""

    value: float
    note: str = ""


def measure(
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing: Sequence[float],
    *,
    label: str = "",
    settings: Settings | None = None,
    shape: Sequence[int] | None = None,
) -> dict[str, Measured]:
    """Every metric of `METRICS` for two masks, in that order.

    Args:
        reference: (Z, Y, X) of bool, without the voxels of an ignore label.
        prediction: likewise.
        spacing: in mm, in the order of the axes.
        label: its name, for a tolerance of its own.
        settings: the defaults if None.
        shape: of the whole image, which the masks were cut from; their own if None.

    Raises:
        InputError: masks of other shapes, not of bool or not of three axes, or a spacing that is none.
    """
    settings = settings or Settings()
    _check(reference, prediction, spacing)
    diagonal = math.hypot(*np.multiply(reference.shape if shape is None else shape, spacing))
    box = bounding_box(reference | prediction)
    if box is not None:
        reference, prediction = reference[box.slices], prediction[box.slices]
    first, second = int(np.count_nonzero(reference)), int(np.count_nonzero(prediction))
    millilitre = math.prod(map(float, spacing)) / MM3_PER_ML
    measured = {
        "volume": Measured(second * millilitre),
        "reference volume": Measured(first * millilitre),
        "volume error": Measured((second - first) * millilitre),
    }
    if first and second:
        found = _of_both(reference, prediction, spacing, settings, label)
        measured |= {metric: Measured(value) for metric, value in found.items()}
    else:
        decided = _of_empty(bool(first), bool(second), diagonal if settings.empty is None else float(settings.empty))
        note = "no reference" if second else "no prediction" if first else BOTH_EMPTY
        measured |= {metric: Measured(value, note) for metric, value in decided.items()}
    return {metric: measured[metric] for metric in METRICS}


def _check(reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]) -> None:
    """Refuse what is no pair of masks with a spacing.

    Raises:
        InputError: see `measure`.
    """
    if reference.shape != prediction.shape:
        shapes = " and ".join(listed(mask.shape, separator=" x ") for mask in (reference, prediction))
        raise InputError(f"masks of the shapes {shapes}", "one shape", "give both on the same grid")
    if reference.ndim != 3:
        raise InputError(
            f"masks of the shape {listed(reference.shape, separator=' x ')}",
            "three axes",
            "give a volume; a slice is one of depth 1",
        )
    for mask in (reference, prediction):
        if mask.dtype != bool:
            raise InputError(
                f"a mask of {mask.dtype}", "true and false", "compare the label map with the label's value"
            )
    if len(spacing) != 3 or not all(_is_number(one) and one > 0 for one in spacing):
        got = f"the spacing {listed(spacing)}"
        raise InputError(got, "three numbers of mm above 0", "give that of the image, in the order of its axes")


def _of_both(
    reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float], settings: Settings, label: str
) -> dict[str, float]:
    """The metrics of two masks that have voxels, but for their volumes."""
    common = int(np.count_nonzero(reference & prediction))
    both = int(np.count_nonzero(reference)) + int(np.count_nonzero(prediction))
    distances = surface_distances(reference, prediction, spacing)
    lesions = match_components(
        reference, prediction, connectivity=settings.connectivity, iou=float(settings.lesion_iou)
    )
    return {
        "Dice": 2 * common / both,
        "IoU": common / (both - common),
        "HD": distances.hausdorff(),
        "HD95": distances.hausdorff_percentile(95),
        "ASSD": distances.average(),
        "NSD": distances.within(settings.tolerance_of(label)),
        "lesion recall": lesions.pairs / lesions.reference,
        "lesion precision": lesions.pairs / lesions.prediction,
        "lesion F1": 2 * lesions.pairs / (lesions.reference + lesions.prediction),
    }


def _of_empty(reference: bool, prediction: bool, distance: float) -> dict[str, float]:
    """The metrics where a mask has no voxel, but for the volumes.

    Args:
        reference: whether it has voxels.
        prediction: likewise.
        distance: in mm, what counts where one of both has.
    """
    one = reference or prediction
    values = dict.fromkeys((*OVERLAP, *DISTANCES, "NSD", *LESIONS), 0.0 if one else math.nan)
    if one:
        values |= dict.fromkeys(DISTANCES, distance)
        values["lesion recall" if prediction else "lesion precision"] = math.nan
    return values
