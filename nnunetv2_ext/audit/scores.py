"""The score of one label of one case: its mask beside what a model makes of the image."""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient

from nnunetv2_ext.audit.result import LabelScore
from nnunetv2_ext.data.volumes import read_grid
from nnunetv2_ext.evaluation.metrics import MM3_PER_ML
from nnunetv2_ext.evaluation.segmentations import Labels, Masks, Pair, count, is_volume, masks, read_pair
from nnunetv2_ext.evaluation.surface import surface_distances
from nnunetv2_ext.geometry.boxes import bounding_box, components

MAD, MEAN = 1.4826, 1.2533
"""By which a median or a mean of distances becomes the standard deviation of a normal distribution."""
MOST_GAP = 5
"""Empty slices in a row; where more are missing, the label is taken for two structures."""
OVERLAP = 0.5
"""Of the smaller one of the two slices around a gap: by less, they show two structures."""


def score_case(pair: Pair, labels: Labels) -> list[LabelScore]:
    """The score of every label of a case; where its file says to ignore, nothing counts.

    Raises:
        InputError: a file that cannot be read or has other labels, or two of other grids.
    """
    reference, prediction = read_pair(pair, labels)
    direction = direction_of(pair.reference, labels)
    return [
        score_label(pair.case, name, of, reference.spacing, direction=direction)
        for name, of in masks(reference.values, prediction.values, labels.of, labels.ignore)
    ]


def direction_of(path: Path, labels: Labels) -> np.ndarray | None:
    """How a file's voxels lie in the patient.

    Returns:
        (3, 3): a column each for the axes Z, Y, X as they are read, which point to the patient's left, back and head by
        its rows; None where the file does not tell.

    Raises:
        InputError: as `read_grid`.
    """
    if not is_volume(path):
        return None
    grid = read_grid(path)
    if grid.doubt:
        return None
    if labels.reader is NibabelIOWithReorient:  # its axes run to the right, front and head
        return np.diag([-1.0, -1.0, 1.0])[:, ::-1]
    return np.reshape(grid.direction, (3, 3))[:, ::-1]


def score_label(
    case: str, label: str, of: Masks, spacing: Sequence[float], *, direction: np.ndarray | None = None
) -> LabelScore:
    """Compare a label with its prediction.

    Args:
        case: its name.
        label: its name, or that of a region.
        of: the masks of label (`reference`) and prediction, (Z, Y, X), of the same part of the image.
        spacing: in mm, in the order of the axes.
        direction: see `direction_of`; None leaves the way of a shift open.
    """
    counts = count(of)
    score = LabelScore(
        case,
        label,
        voxels=int(counts["n_ref"]),
        predicted=int(counts["n_pred"]),
        voxel_volume=math.prod(spacing) / MM3_PER_ML,
        disagreement=1 - counts["Dice"],
        size=math.log((counts["n_ref"] + 1) / (counts["n_pred"] + 1)),
        components=components(of.reference, 26)[1] if counts["n_ref"] else 0,
    )
    if not score.voxels or not score.predicted:
        return score
    shift = np.subtract(centre(of.reference), centre(of.prediction)) * spacing
    axes = (2, 1, 0) if direction is None else np.argmax(np.abs(direction), axis=1).tolist()
    left, back, head = (_disagreement_aligned(np.flip(of.reference, axis), of.prediction) for axis in axes)
    return score._replace(
        distance=surface_distances(of.reference, of.prediction, spacing).hausdorff_percentile(95),
        shift=score.shift if direction is None else tuple((direction @ shift).tolist()),
        empty_slices=max(_empty_slices(of, axis) for axis in range(3)),
        moved=_disagreement_aligned(of.reference, of.prediction),
        mirrored=(left, back, head),
    )


def centre(mask: np.ndarray) -> tuple[float, ...]:
    """The centre of a mask's voxels along each axis, which must not be empty."""
    places = []
    for axis in range(mask.ndim):
        along = mask.sum(axis=tuple(other for other in range(mask.ndim) if other != axis))
        places.append(float(np.average(np.arange(len(along)), weights=along)))
    return tuple(places)


def _empty_slices(of: Masks, axis: int) -> int:
    """Slices along an axis in the label's gaps, of those that the prediction fills.

    What a shift bares between two of a pair, kidneys for instance, it fills in part.
    """
    others = tuple(other for other in range(3) if other != axis)
    predicted = np.asarray(of.prediction.any(axis=others))
    return sum(len(gap) for gap in gaps(of.reference, axis) if predicted[gap].all())


def gaps(mask: np.ndarray, axis: int, ignored: np.ndarray | None = None) -> list[range]:
    """The slices along an axis that are empty between two that show the same structure.

    Args:
        ignored: of the mask's shape; a slice that holds some of it is not empty.
    """
    slices = np.moveaxis(mask, axis, 0)
    filled = slices.any(axis=(1, 2))
    if ignored is not None:
        filled |= np.moveaxis(ignored, axis, 0).any(axis=(1, 2))
    found = []
    for before, after in pairwise(np.flatnonzero(filled).tolist()):
        if 1 < after - before <= MOST_GAP + 1:
            one, other = slices[before], slices[after]
            least = min(np.count_nonzero(one), np.count_nonzero(other))
            if np.count_nonzero(one & other) >= max(1, OVERLAP * least):
                found.append(range(before + 1, after))
    return found


def _disagreement_aligned(one: np.ndarray, other: np.ndarray) -> float:
    """1 - Dice of two masks once one of them is shifted, by whole voxels, so that their centres meet."""
    shift = np.round(np.subtract(centre(other), centre(one))).astype(int)
    boxes = [bounding_box(mask) for mask in (one, other)]
    assert boxes[0] is not None and boxes[1] is not None
    low = np.maximum(np.add(boxes[0].low, shift), boxes[1].low)
    high = np.minimum(np.add(boxes[0].high, shift), boxes[1].high)
    common = 0
    if (low < high).all():
        here = tuple(map(slice, low, high))
        there = tuple(map(slice, low - shift, high - shift))
        common = int(np.count_nonzero(one[there] & other[here]))
    return 1 - 2 * common / int(np.count_nonzero(one) + np.count_nonzero(other))


def robust_z(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """How many standard deviations each value lies above the median, by a measure that few outliers do not move.

    1.4826 MAD, the median absolute deviation; where more than half of the values are alike, 1.2533 times the mean one
    (Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993). NaN stays NaN; where all are alike, 0.
    """
    given = np.asarray(values, float)
    known = given[~np.isnan(given)]
    if not known.size:
        return given
    apart = np.abs(known - np.median(known))
    deviation = MAD * np.median(apart) or MEAN * apart.mean() or 1.0
    return (given - np.median(known)) / deviation


def ranked(scores: Iterable[LabelScore]) -> list[LabelScore]:
    """The scores with their ranks among those of their label."""
    given = list(scores)
    places: dict[str, list[int]] = {}
    for place, score in enumerate(given):
        places.setdefault(score.label, []).append(place)
    for of in places.values():
        for place, rank in zip(of, ranks([given[place].disagreement for place in of]).tolist(), strict=True):
            given[place] = given[place]._replace(rank=rank)
    return given


def ranks(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """The share of some values that are below each; NaN stays, and is below none."""
    given = np.asarray(values, float)
    known = ~np.isnan(given)
    found = np.full(given.shape, np.nan)
    found[known] = np.searchsorted(np.sort(given[known]), given[known]) / max(int(known.sum()), 1)
    return found
