"""What is odd about a label, in a sentence: what, where, how much."""

import math
from collections.abc import Sequence

import numpy as np

from nnunetv2_ext.audit.result import ACROSS, SIDES, LabelScore
from nnunetv2_ext.text import listed

CAUSE = 0.7
"""Of what a disagreement is above the median, a shift or a mirroring must mend so much to be taken for its cause."""
MUCH = 0.15
"""Of a mask, or of Dice: less is not told."""


def explain(score: LabelScore, usual: float) -> str:
    """What is odd about a label that is unlike its prediction, by what would mend it.

    Args:
        usual: the median disagreement of this label over the cases.
    """
    name, mended = score.label, usual + (1 - CAUSE) * (score.disagreement - usual)
    if not score.voxels:
        return f"{name} is missing, where the prediction has {volume(score.predicted, score)}"
    if not score.predicted:
        return f"{name} has {volume(score.voxels, score)}, where the prediction has none"
    if score.empty_slices >= 2:
        return f"{name} lacks {score.empty_slices} slices between slices that have it"
    best = int(np.argmin(score.mirrored))
    if score.mirrored[best] < min(mended, score.moved - MUCH):
        would = f"Dice {1 - score.mirrored[best]:.2f} if it were mirrored {ACROSS[best]}"
        return f"{name} would have {would} and laid upon the prediction"
    if score.moved < mended:
        return f"{name} {_lies(score)}"
    lacking, beyond = lacking_and_beyond(score)
    if lacking > MUCH and beyond < lacking / 2:
        return f"{name} lacks {_percent(lacking)} of the prediction{_where(score, -1)}"
    if beyond > MUCH and lacking < beyond / 2:
        return f"{name} lies beyond the prediction with {_percent(beyond)} of it{_where(score, 1)}"
    both = f"lacks {_percent(lacking)} of the prediction and lies beyond it with {_percent(beyond)}"
    return f"{name} {both}{_within(score)}, perhaps another case's label"


def explain_size(score: LabelScore, usual: float) -> str:
    """That a label is larger or smaller than its prediction.

    Args:
        usual: the median of `size` over the cases.
    """
    return f"{score.label} is {_larger(score.size)} than the prediction (the others' median: {_larger(usual)})"


def _larger(size: float) -> str:
    return f"{_percent(abs(math.expm1(size)))} {'smaller' if size < 0 else 'larger'}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def lacking_and_beyond(score: LabelScore) -> tuple[float, float]:
    """The share of the prediction that the label lacks, and that of the label which lies beyond the prediction."""
    common = (1 - score.disagreement) * (score.voxels + score.predicted) / 2
    lacking, beyond = (float(np.clip(1 - common / voxels, 0, 1)) for voxels in (score.predicted, score.voxels))
    return lacking, beyond


def volume(voxels: int, score: LabelScore) -> str:
    """Of so many voxels: `1.2 ml`."""
    return f"{voxels * score.voxel_volume:.3g} ml"


def _lies(score: LabelScore) -> str:
    """Where a label lies that a shift would mend."""
    if any(map(math.isnan, score.shift)):
        return f"lies beside the prediction{_within(score)}"
    far = math.hypot(*score.shift)
    return f"lies {far:.1f} mm further to the patient's {_way(score.shift)} than the prediction"


def _way(shift: Sequence[float]) -> str:
    """The sides to which a shift goes, the most first, without those to which it hardly goes."""
    most = max(map(abs, shift))
    axes = sorted(range(3), key=lambda axis: -abs(shift[axis]))
    return listed((SIDES[axis][shift[axis] < 0] for axis in axes if abs(shift[axis]) > most / 2), separator=" and ")


def _where(score: LabelScore, sign: int) -> str:
    """On which side a label lacks something (-1) or has too much (1), or that it does so on all."""
    if math.hypot(*score.shift) > 0.25 * score.distance:
        return f", towards the patient's {_way([sign * one for one in score.shift])}"
    return f", all around{_within(score)}"


def _within(score: LabelScore) -> str:
    return "" if math.isnan(score.distance) else f", 95 % of the surfaces within {score.distance:.1f} mm"
