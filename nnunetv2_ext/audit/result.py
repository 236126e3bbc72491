"""What an audit finds out, as its sources make it and its report tells it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnunetv2_ext.evaluation.segmentations import Labels

VALIDATION, MAP = "validation", "map"
"""The sources of evidence: the folds' held-out predictions, or a map of all cases."""
SIDES = (("left", "right"), ("back", "front"), ("head", "feet"))
"""Of the patient, towards which millimetres along each axis are above 0, and below."""
ACROSS = tuple(f"from {side} to {other}" for side, other in SIDES)
"""The patient, along each axis."""


class LabelScore(NamedTuple):
    """One label of one case, beside what a model makes of the image."""

    case: str
    label: str
    """Its name, or that of a region."""
    voxels: int
    """Of the label."""
    predicted: int
    """Voxels of the prediction."""
    voxel_volume: float
    """In ml."""
    disagreement: float
    """1 - Dice of label and prediction; NaN where both are empty. Of the map: the mean over its readings."""
    size: float
    """ln((voxels + 1) / (predicted + 1)): above 0 the label is the larger one."""
    distance: float = math.nan
    """95 % percentile of the surfaces' distances in mm; NaN where a mask is empty."""
    shift: tuple[float, float, float] = (math.nan, math.nan, math.nan)
    """From the prediction's centre to the label's, in mm to the patient's left, back and head."""
    components: int = 0
    """Of the label, touching by corners too."""
    empty_slices: int = 0
    """Without the label, but with the prediction, between slices that have it; of the axis that has most of them."""
    moved: float = math.nan
    """The disagreement once the label is shifted onto the prediction's centre."""
    mirrored: tuple[float, float, float] = (math.nan, math.nan, math.nan)
    """Likewise, once it is mirrored from left to right, from back to front, or from head to feet too."""
    rank: float = math.nan
    """The share of the data set's values of this label that are below its disagreement; of the map, the mean over its
    readings of the mean rank by disagreement and by rarity."""


class Finding(NamedTuple):
    """Something that is odd whatever a model says of it."""

    cases: tuple[str, ...]
    """Those that it is about, one or those that share it."""
    kind: str
    """One of `findings.KINDS`."""
    sentence: str
    """What, where, how much."""


class Verdict(NamedTuple):
    """What the scores say of a case that is listed."""

    case: str
    wrong: bool
    """Probably wrong; otherwise of another style."""
    order: float
    """By which cases are listed: the larger, the worse."""
    label: str
    """That of the worst score, or none where it is the whole case."""
    sentence: str
    """What, where, how much."""


class LatentMap(NamedTuple):
    """The map of all cases, at its last reading."""

    cases: tuple[str, ...]
    latents: np.ndarray
    """(cases, 2)."""
    clusters: np.ndarray
    """(cases,) of int: 0 the largest cluster, 1, ... smaller ones."""
    silhouette: float
    """Of two clusters; NaN where there is one."""
    rarity: np.ndarray
    """(cases,): the mean distance to the five nearest latents."""


class Files(NamedTuple):
    """Where the report finds a case."""

    image: Path | None
    label: Path
    prediction: Path | None = None


@dataclass(frozen=True)
class Audit:
    """All that is reported."""

    dataset: str
    source: str
    """`VALIDATION` or `MAP`."""
    model: str
    """TRAINER:PLANS:CONFIG of the predictions, or of the preprocessed cases of the map."""
    labels: Labels
    files: Mapping[str, Files]
    """Of every audited case by its name."""
    scores: Sequence[LabelScore]
    verdicts: Sequence[Verdict]
    """Of the listed cases: the probably wrong ones, the worst first, then those of another style."""
    findings: Sequence[Finding]
    map: LatentMap | None = None
    notes: Sequence[str] = ()
    """What a reader must know: folds that are missing, predictions older than labels; a sentence each."""
    settings: Mapping[str, Any] | None = None
    """Of the run, for run.json."""
