"""Slabs in preprocessed cases and in training patches: which of them a patch covers, and P of its slices.

A patch is told by the numbers of the preprocessed slices that it holds, in its own order. So cropping, padding and
flipping along the slice axis need no rule of their own: P of the patch is the columns of those slices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunetv2_ext.data.laying import centre_slices
from nnunetv2_ext.data.sidecar import SIDECAR, CaseSlabs, Sidecar
from nnunetv2_ext.data.slabs import COVERED, covered, preprocessed_edges, slab_matrix, slice_edges
from nnunetv2_ext.errors import InputError


@dataclass(frozen=True)
class Patch:
    """The slabs in a patch of S slices: t of them wholly."""

    matrix: np.ndarray
    """P, float32 (t, S): rows sum to 1 and are in the order of the patch's slices."""
    centres: np.ndarray
    """int64 (t,): the patch's slice nearest each slab's centre, where its annotation is read."""
    blurred: np.ndarray
    """float32 (S, S): takes each slice to the average of its slab, of two by its shares in them. Slabs at the patch's
    ends count with the slices that are there; slices in no slab stay as they are."""


@dataclass(frozen=True)
class PreprocessedSlabs:
    """The slabs of one case and the slices that preprocessing made of its image, both in mm of the stored image."""

    slabs: np.ndarray
    """float64 (T, 2)"""
    slices: np.ndarray
    """float64 (S, 2)"""

    @property
    def matrix(self) -> np.ndarray:
        """P of the whole case: float64 (T, S)."""
        return slab_matrix(self.slabs, self.slices)

    def most_covered(self, slices: int) -> int:
        """The largest number of whole slabs in a window of so many neighbouring slices."""
        matrix = self.matrix
        before = np.concatenate([np.zeros((len(matrix), 1)), matrix.cumsum(axis=1)], axis=1)  # (T, S + 1)
        size = min(slices, matrix.shape[1])
        windows = before[:, size:] - before[:, : before.shape[1] - size]
        return int(covered_columns(windows).max())

    def fewest_slices(self) -> int:
        """A number of neighbouring slices that holds a whole slab wherever its edges lie between the slices'.

        At most those that there are.
        """
        thinnest = float(np.diff(self.slabs[covered(self.matrix)]).min())
        spacing = float(np.diff(self.slices).mean())
        return min(int(np.ceil(thinnest / spacing - COVERED)) + 1, len(self.slices))

    def patch(self, slices: np.ndarray, matrix: np.ndarray | None = None) -> Patch:
        """The slabs in a patch.

        Args:
            slices: (S,) numbers of the preprocessed slices, counted from 1; 0 is padding.
            matrix: `self.matrix`, where it is at hand.
        """
        matrix = self.matrix if matrix is None else matrix
        inside = slices > 0
        columns = np.where(inside, matrix[:, slices - 1], 0)
        touched = columns[columns.any(axis=1)]
        if inside.sum() > 1 and np.diff(slices[inside])[0] < 0:  # flipped: slabs in the order of the patch, too
            order = np.arange(len(matrix))[::-1]
        else:
            order = np.arange(len(matrix))
        whole = order[covered(columns[order])]
        # a slice without number is nowhere near
        edges = np.where(inside[:, None], self.slices[slices - 1], -1e9 - np.array([[1.0, 0.0]]))
        position = np.argsort(edges[:, 0], kind="stable")
        centres = position[centre_slices(self.slabs[whole], edges[position])] if len(whole) else np.zeros(0, np.int64)
        rows = columns[whole] / columns[whole].sum(axis=1, keepdims=True)
        return Patch(rows.astype(np.float32), centres, _blurred(touched, len(slices)))


def padding_slabs(slices: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Slabs that hold nothing but a patch's padding, which nnU-Net counts as background.

    Args:
        slices: (S,) numbers of the slices; 0 is padding.
        most: how many slabs there is room for. Neighbours share one where there are more slices.

    Returns:
        P, float32 (k, S), and a slice of each, int64 (k,).
    """
    padding = np.flatnonzero(slices == 0)
    groups = np.array_split(padding, min(most, len(padding))) if most > 0 and len(padding) else []
    matrix = np.zeros((len(groups), len(slices)), np.float32)
    for row, group in zip(matrix, groups, strict=True):
        row[group] = 1 / len(group)
    return matrix, np.array([group[0] for group in groups], np.int64)


def covered_columns(shares: np.ndarray) -> np.ndarray:
    """How many slabs lie wholly in each window: shares (T, windows) -> (windows,)."""
    return np.stack([covered(column[:, None]).sum() for column in shares.T])


def _blurred(touched: np.ndarray, slices: int) -> np.ndarray:
    share = touched.sum(axis=0)
    back = np.divide(touched.T, share[:, None], out=np.zeros_like(touched.T), where=share[:, None] > 0)
    averages = touched / touched.sum(axis=1, keepdims=True)
    result = back @ averages + np.diag(share == 0)
    return result.astype(np.float32).reshape(slices, slices)


def preprocessed_slabs(
    name: str, case: CaseSlabs, properties: Mapping[str, Any], resampled_slices: int
) -> PreprocessedSlabs:
    """The slabs of a case in what nnU-Net's preprocessing made of it, the slice axis being the first.

    Args:
        name: of the case, for errors.
        properties: nnU-Net's, of the preprocessed case.
        resampled_slices: slices of the preprocessed image.

    Raises:
        InputError: the side-car is of another image.
    """
    stored = int(properties["shape_before_cropping"][0])
    if stored != case.thin_slices:
        raise InputError(
            f"{case.thin_slices} slices of case {name} in {SIDECAR} and {stored} in its preprocessed image",
            "a side-car of these images",
            "preprocess the data set again, or make it with `nnunetv2_ext convert_thin_thick`",
        )
    lower, upper = (int(bound) for bound in properties["bbox_used_for_cropping"][0])
    edges = preprocessed_edges(
        stored,
        case.thin_spacing,
        bounding_box=(lower, upper),
        stored_count=int(properties["shape_after_cropping_and_before_resampling"][0]),
        resampled_count=resampled_slices,
    )
    return PreprocessedSlabs(case.slabs, edges)


def expected_slabs(case: CaseSlabs, spacing: float) -> PreprocessedSlabs:
    """The same before preprocessing: nothing cropped, and slices of the planned spacing (mm)."""
    extent = case.thin_slices * case.thin_spacing
    count = max(round(extent / spacing), 1)
    return PreprocessedSlabs(case.slabs, slice_edges(count, extent / count))


def slabs_per_patch(cases: Mapping[str, PreprocessedSlabs], slices: int) -> int:
    """The largest number of whole slabs that a patch of so many slices covers in any case.

    Raises:
        InputError: in some case it covers none.
    """
    most = {name: case.most_covered(slices) for name, case in cases.items()}
    none = [name for name, number in most.items() if number == 0]
    if none:
        case = cases[none[0]]
        spacing = float(np.diff(case.slices).mean())
        more = f" and {len(none) - 1} others" if len(none) > 1 else ""
        thinnest = float(np.diff(case.slabs).min())
        raise InputError(
            f"a patch of {slices} slices, {slices * spacing:.4g} mm, without a whole slab of case {none[0]}{more}; "
            f"its slabs are {thinnest:.4g} mm thick or more, its image {len(case.slices) * spacing:.4g} mm",
            "a whole slab in it",
            "choose a patch of more slices (--patch_size), or leave the case out",
        )
    return max(most.values())


def refuse_thin_annotations(sidecar: Sidecar) -> None:
    """Refuse a data set whose annotations are all as thin as the images.

    Raises:
        InputError: in no case is a slab thicker than the slices.
    """
    ratios = [float(np.diff(case.slabs).max()) / case.thin_spacing for case in sidecar.cases.values()]
    if max(ratios, default=1.0) < 1 + 1e-2:
        raise InputError(
            f"annotations of {sidecar.dataset} as thin as the images (ratio {max(ratios, default=1.0):.3g})",
            "thicker ones",
            "train it with any other trainer; MNetTrainer, for instance",
        )


def refuse_other_axis(axis: int, transpose_forward: Sequence[int]) -> None:
    """Refuse plans in which the slices do not lie along the first axis.

    Raises:
        InputError: `axis`, an array axis of the stored images, becomes another one than the first.
    """
    if transpose_forward[0] != axis:
        raise InputError(
            f"plans whose first axis is axis {transpose_forward[0]} of the images (transpose_forward)",
            f"the slice axis {axis}",
            "plan with ThinThickPlanner",
        )
