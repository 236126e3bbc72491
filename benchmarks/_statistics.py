"""Dice from nnU-Net's validation summaries, and the paired comparison of two trainers.

Definitions, as in nnU-Net: the Dice of a label that neither truth nor prediction holds is NaN and left out; Dice per
label is the mean over cases; the mean Dice is the mean over labels of those. A case's mean Dice, which the paired
comparison uses, is the mean over the labels that have a Dice in that case. All in 0 to 1, over the cases of all folds
together (each case is validated in one fold only).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import read_json

RESAMPLES = 10_000
Cases = Mapping[str, Mapping[str, float]]
"""Case name to label (or region, as nnU-Net writes it) to Dice."""


@dataclass(frozen=True)
class Difference:
    """Mean over cases of the difference of their mean Dice, with the bounds of its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    cases: int


def in_points(difference: Mapping[str, float]) -> str:
    """The fields of a `Difference` for a table, `mean [low, high]` in points of percent."""
    mean, low, high = (100 * difference[key] for key in ("mean", "low", "high"))
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def read_summary(path: Path) -> dict[str, dict[str, float]]:
    """Dice per case and foreground label of one fold's `validation/summary.json`.

    Raises:
        InputError: missing, truncated or not a summary.
    """
    remedy = "train this fold again"
    content = read_json(path, remedy)
    cases: dict[str, dict[str, float]] = {}
    try:
        for entry in content["metric_per_case"]:
            name = Path(entry["prediction_file"]).name.partition(".")[0]
            cases[name] = {
                # nnU-Net writes NaN; null is what stricter writers make of it
                label: math.nan if metrics["Dice"] is None else float(metrics["Dice"])
                for label, metrics in entry["metrics"].items()
                if label != "0"
            }
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path} ({error!r})", "a validation summary of nnU-Net", remedy) from None
    return cases


def nan_mean(values: Sequence[float]) -> float:
    """The mean without the NaN among the values, NaN if nothing is left."""
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def dice_per_label(cases: Cases) -> dict[str, float]:
    """Mean Dice over cases, per label."""
    labels = {label: None for metrics in cases.values() for label in metrics}
    return {label: nan_mean([metrics[label] for metrics in cases.values() if label in metrics]) for label in labels}


def mean_dice(cases: Cases) -> float:
    """Mean over labels of the mean over cases; a label that no case holds is left out."""
    return nan_mean(list(dice_per_label(cases).values()))


def paired_differences(cases: Cases, reference: Cases) -> NDArray[np.float64]:
    """Per case: its mean Dice less the reference's, by case name; a case where either has no Dice is left out.

    Raises:
        InputError: the two hold different cases.
    """
    unpaired = sorted(set(cases) ^ set(reference))
    if unpaired:
        raise InputError(
            f"{len(unpaired)} cases that only one trainer predicted ({', '.join(unpaired[:3])}, ...)",
            "the same validation cases for both",
            "train both on the same folds",
        )
    differences = [nan_mean(list(cases[c].values())) - nan_mean(list(reference[c].values())) for c in sorted(cases)]
    return np.array([difference for difference in differences if not math.isnan(difference)], dtype=np.float64)


def bootstrap(differences: NDArray[np.float64], *, resamples: int = RESAMPLES, seed: int = 0) -> Difference:
    """Percentile bootstrap over cases (2.5 % and 97.5 %); below two cases the bounds are NaN.

    Args:
        differences: (cases,).
    """
    count = len(differences)
    if count < 2:
        return Difference(float(differences.mean()) if count else math.nan, math.nan, math.nan, count)
    # how often each resample draws each case: (resamples, cases)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    low, high = np.percentile(draws @ differences / count, [2.5, 97.5])
    return Difference(float(differences.mean()), float(low), float(high), count)
