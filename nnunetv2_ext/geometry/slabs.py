"""The slab operator: thick slices as weighted means of thin ones, from the edges of both in millimetres.

A thick slice t that covers [a_t, b_t) along the slice axis and thin slices s that cover [u_s, v_s) give

    P[t, s] = |[a_t, b_t) and [u_s, v_s)| / (b_t - a_t),

so that P @ x is the average intensity projection (AIP) of the thin slices x over every slab, for any ratio of
thickness. Where the thin slices cover all of a slab its row sums to 1, where they leave a gap or end within it to less.
P acts along the slice axis alone, so it commutes with every linear operation within the slices. Edges are counted
from the outer edge of the first slice of the volume as it is stored; any unit serves that slabs and slices share.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nnunetv2_ext.errors import InputError

SLIVER = 1e-9
"""Smallest weight in P. Less is rounding, and would tie a slab to slices that it does not touch."""
TIED = 1e-6
"""Votes that differ by less are equal: a share of a slab, in which rounding must not decide."""
SAME = 1e-3
"""Share of a slice's thickness: distances that differ by less are equal, which rounding in headers must not decide."""
COVERED = 1e-3
"""Share of a slab that may be missing at its ends: headers seldom tell lengths any better."""


def slice_edges(count: int, spacing: float, *, origin: float = 0.0, thickness: float | None = None) -> np.ndarray:
    """Lower and upper edges of equally spaced slices.

    Args:
        count: number of slices.
        spacing: distance between the centres of neighbours in mm.
        origin: where the first slice would begin if it were as thick as `spacing`, in mm.
        thickness: of each slice in mm, around the same centre: less than `spacing` leaves gaps, more makes slices
            overlap. By default `spacing`.

    Returns:
        float64 (count, 2)

    Raises:
        InputError: no slice, or a length that is not above 0.
    """
    thickness = spacing if thickness is None else thickness
    if count < 1 or not (0 < spacing < np.inf and 0 < thickness < np.inf):
        raise InputError(
            f"{count} slices every {spacing:g} mm, {thickness:g} mm thick",
            "one slice or more, spacing and thickness above 0",
            "check the image's header and the slice thickness",
        )
    # Neighbours without gap or overlap share their edge to the last bit.
    boundaries = origin + spacing * np.arange(count + 1)
    overhang = (thickness - spacing) / 2
    return np.stack([boundaries[:-1] - overhang, boundaries[1:] + overhang], axis=1)


def preprocessed_slices(
    count: int,
    spacing: float,
    *,
    bounding_box: tuple[int, int],
    stored_count: int,
    resampled_count: int,
    nearest: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """What the slices show that nnU-Net's preprocessing makes of a stored volume, in the stored volume's mm.

    Cropping to the bounding box drops slices at both ends. Resampling keeps the outer edges of what is left. Where it
    interpolates, its slices are new ones, every (extent / their number) mm, which is seldom the plans' spacing. Where
    it takes the nearest slice, they are stored slices: some stand for several, some for none.

    Args:
        count: slices of the volume as stored (`shape_before_cropping` of the case's properties).
        spacing: its slice spacing in mm.
        bounding_box: first slice kept and first one after them (`bbox_used_for_cropping`), of the slice axis.
        stored_count: slices that the crop left (`shape_after_cropping_and_before_resampling`).
        resampled_count: slices of the preprocessed volume.
        nearest: whether resampling takes the nearest slice.

    Returns:
        Edges of what is shown, float64 (N, 2), and the one of these that each preprocessed slice shows, int64
        (resampled_count,).

    Raises:
        InputError: the numbers contradict each other.
    """
    lower, upper = bounding_box
    if not 0 <= lower < upper <= count or upper - lower != stored_count or resampled_count < 1:
        raise InputError(
            f"a crop of {count} slices to [{lower}, {upper}) that left {stored_count}, and {resampled_count} of these",
            "properties of one preprocessed case",
            "preprocess the data set again",
        )
    if nearest:
        return slice_edges(count, spacing)[lower:upper], nearest_slices(stored_count, resampled_count)
    first = float(lower * spacing)
    edges = slice_edges(resampled_count, (upper * spacing - first) / resampled_count, origin=first)
    return edges, np.arange(resampled_count)


def nearest_slices(count: int, resampled_count: int) -> np.ndarray:
    """The slice of `count` that lies nearest to each of as many as shall cover the same length: int64.

    The later one of two that are as near, as in nnU-Net 2.8's `resample_data_or_seg_to_shape` with `order_z` 0.
    """
    position = count / resampled_count * (np.arange(resampled_count) + 0.5) - 0.5
    return np.clip(np.floor(position + 0.5).astype(np.int64), 0, count - 1)


def shown_matrix(slabs: np.ndarray, slices: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """P of slices that show others: those that show the same one share its weight.

    What a slice weighs that none shows falls to the others of its slab, so that rows have the sums of `slab_matrix`.

    Args:
        slabs: (T, 2), edges in mm.
        slices: (N, 2), edges in mm.
        shown: int (S,), which of `slices` each slice shows.

    Returns:
        float64 (T, S): rows of zeros for slabs of which nothing is shown.

    Raises:
        InputError: as `slab_matrix`.
    """
    whole = slab_matrix(slabs, slices)  # (T, N)
    matrix = whole[:, shown] / np.bincount(shown, minlength=len(slices))[shown]
    held = matrix.sum(axis=1)
    share = np.divide(whole.sum(axis=1), held, out=np.zeros(len(matrix)), where=held > 0)
    return matrix * share[:, None]


def slab_matrix(slabs: np.ndarray, slices: np.ndarray) -> np.ndarray:
    """The operator P: share of each slab that each slice holds.

    Args:
        slabs: (T, 2), lower and upper edge of each slab in mm, in any order; slabs may overlap.
        slices: (S, 2), the same of the slices, which may leave gaps but not overlap.

    Returns:
        float64 (T, S)

    Raises:
        InputError: edges of another shape or not finite, an upper edge that is not above the lower one, or slices that
            overlap.
    """
    slabs, slices = _checked(slabs, "slabs"), _checked(slices, "slices")
    lower, upper = slices[np.argsort(slices[:, 0])].T
    if np.any(upper[:-1] - lower[1:] > COVERED * (upper - lower)[:-1]):
        raise InputError("slices that overlap", "slices beside each other", "take their spacing as their thickness")
    begin = np.maximum(slabs[:, None, 0], slices[None, :, 0])
    end = np.minimum(slabs[:, None, 1], slices[None, :, 1])
    matrix = np.maximum(end - begin, 0) / np.diff(slabs)
    matrix[matrix < SLIVER] = 0
    return matrix


def _checked(edges: np.ndarray, name: str) -> np.ndarray:
    edges = np.asarray(edges, np.float64)
    if edges.ndim != 2 or edges.shape[1] != 2:
        raise InputError(
            f"edges of {name} of shape {edges.shape}", "(number, 2)", "give a lower and an upper edge each"
        )
    wrong = ~(np.isfinite(edges).all(axis=1) & (edges[:, 1] > edges[:, 0]))
    if wrong.any():
        number = int(wrong.argmax())
        lower, upper = edges[number]
        raise InputError(
            f"[{lower:.12g}, {upper:.12g}) mm as number {number} of the {name}",
            "an upper edge above the lower",
            "correct it",
        )
    return edges


def covered(matrix: np.ndarray, *, tolerance: float = COVERED) -> np.ndarray:
    """Which slabs lie wholly in the slices, but for the share `tolerance`: (T, S) -> bool (T,)."""
    return matrix.sum(axis=1) >= 1 - tolerance


def flipped(matrix: np.ndarray) -> np.ndarray:
    """P of slabs and slices that are both counted from the other end: (T, S) -> (T, S).

    `average(flip(x), flipped(P)) == flip(average(x, P))`. Where slabs keep their order, `P[:, ::-1]` is the one to use.
    """
    return matrix[::-1, ::-1]


def average(volume: np.ndarray, matrix: np.ndarray, *, axis: int = 0) -> np.ndarray:
    """Average intensity projection P @ x along `axis`: (S, ...) -> float32 (T, ...) for axis 0.

    A mean of integers is seldom one, and rounding it would add noise; nnU-Net reads every image as float32 anyway. Sums
    are in float64. A slab that no slice touches is 0; see `covered`.

    Raises:
        InputError: another number of slices than P has.
    """
    return _each_slab(_weighted_mean, volume, matrix, axis=axis, dtype=np.dtype(np.float32))


def majority(labels: np.ndarray, matrix: np.ndarray, *, axis: int = 0) -> np.ndarray:
    """The label with the largest share of each column of a slab: (S, ...) -> (T, ...) for axis 0, type as `labels`.

    Ties go to the label of the slice that holds the slab's centre (of the later one where it lies between two); where
    that label is not among the tied ones, to the smallest of them.

    Raises:
        InputError: another number of slices than P has, or a slab that no slice touches.
    """
    if not matrix.any(axis=1).all():
        number = int((~matrix.any(axis=1)).argmax())
        raise InputError(
            f"slab {number} outside all slices", "slabs that hold slices", "leave it out, or see 'covered'"
        )
    return _each_slab(_vote, labels, matrix, axis=axis, dtype=labels.dtype)


def centre_slices(slabs: np.ndarray, slices: np.ndarray) -> np.ndarray:
    """The slice nearest each slab's centre, where the slab's annotation is read from a laid label map.

    Where the centre lies between two slices, the later one: the rule of `majority`.

    Args:
        slabs: (T, 2), edges in mm.
        slices: (S, 2), edges in mm, ascending.

    Returns:
        int64 (T,). A slab whose centre lies outside all slices gets the first or last one: see `covered`.
    """
    distance = np.abs(np.mean(slabs, axis=1)[:, None] - np.mean(slices, axis=1))
    tolerance = SAME * np.diff(slices).T
    tied = distance <= distance.min(axis=1, keepdims=True) + tolerance
    return len(slices) - 1 - tied[:, ::-1].argmax(axis=1)


def holding_slabs(slabs: np.ndarray, slices: np.ndarray) -> np.ndarray:
    """The slab that holds each slice's centre, -1 where none does: int64 (S,).

    Args:
        slabs: (T, 2), edges in mm, ascending and without overlap. A centre on the edge of two belongs to the later one.
        slices: (S, 2), edges in mm.
    """
    centre = np.mean(slices, axis=1) + SAME * np.diff(slices)[:, 0]
    slab = np.searchsorted(slabs[:, 0], centre, side="right") - 1
    return np.where((slab >= 0) & (centre < slabs[slab, 1]), slab, -1)


def _each_slab(
    project: Callable[[np.ndarray, np.ndarray], np.ndarray],
    volume: np.ndarray,
    matrix: np.ndarray,
    *,
    axis: int,
    dtype: np.dtype,
) -> np.ndarray:
    """Put `project(slices, weights)`, (k, ...) and (k,) -> (...), of each slab along `axis`.

    A slab touches few slices, so that this takes a fraction of a product with the whole of P.
    """
    slices = np.moveaxis(volume, axis, 0)
    if len(slices) != matrix.shape[1]:
        raise InputError(
            f"{len(slices)} slices along axis {axis}", f"{matrix.shape[1]}, as P has", "build P for this volume"
        )
    shape = list(volume.shape)
    shape[axis] = len(matrix)
    result = np.zeros(shape, dtype)
    slabs = np.moveaxis(result, axis, 0)
    for slab, weights in enumerate(matrix):
        touched = np.flatnonzero(weights)
        if touched.size:
            slabs[slab] = project(slices[touched], weights[touched])
    return result


def _weighted_mean(slices: np.ndarray, weights: np.ndarray) -> np.ndarray:
    # Whole slices weigh exactly 1 relative to the largest, so that their sum is exact for integers.
    largest = weights.max()
    return np.tensordot(weights / largest, slices.astype(np.float64), axes=1) * largest


def _vote(slices: np.ndarray, weights: np.ndarray) -> np.ndarray:
    weights = weights / weights.sum()
    central = slices[np.count_nonzero(np.cumsum(weights) <= 0.5 + TIED)]
    # Most columns hold one label only.
    mixed = (slices != slices[0]).any(axis=0)
    if not mixed.any():
        return central
    columns = slices[:, mixed]
    labels = np.unique(columns)
    votes = np.stack([weights @ (columns == label) for label in labels])
    tied = votes > votes.max(axis=0) - TIED
    # Labels come in ascending order: the first of the tied ones is the smallest.
    smallest = labels[tied.argmax(axis=0)]
    central_tied = np.take_along_axis(tied, np.searchsorted(labels, central[mixed])[None], axis=0)[0]
    winner = central.copy()
    winner[mixed] = np.where(central_tied, central[mixed], smallest)
    return winner


@dataclass(frozen=True)
class CaseSlabs:
    """Thin slices and slabs of one case, in mm along the slice axis."""

    thin_spacing: float
    thin_slices: int
    slabs: np.ndarray
    """float64 (T, 2): lower and upper edge of each slab in ascending order, without overlap. Slabs may begin before and
    end after the image."""

    @property
    def slices(self) -> np.ndarray:
        """Edges of the thin slices as stored: float64 (S, 2)."""
        return slice_edges(self.thin_slices, self.thin_spacing)
