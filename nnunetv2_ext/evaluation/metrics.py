"""The metrics of two masks of one label, in mm and ml. Each definition stands in docs/reference-metrics.md."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np


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


@dataclass(frozen=True)
class Settings:
    """What metrics depend on."""

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

    def how(self, metric: str, label: str) -> str:
        """What the value of a metric depends on, for the column of that name."""
        raise NotImplementedError


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
) -> dict[str, Measured]:
    """Every metric of `METRICS` for two masks, in that order.

    Args:
        reference: (Z, Y, X) of bool, without the voxels of an ignore label.
        prediction: likewise.
        spacing: in mm, in the order of the axes.
        label: its name, for a tolerance of its own.

    Raises:
        InputError: masks of other shapes, or settings that no metric can follow.
    """
    raise NotImplementedError
