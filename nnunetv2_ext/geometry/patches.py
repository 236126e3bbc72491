"""Slabs in preprocessed cases and in training patches: which of them a patch covers, and P of its slices.

A patch is told by the numbers of the preprocessed slices that it holds, in its own order. So cropping, padding and
flipping along the slice axis need no rule of their own: P of the patch is the columns of those slices.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.geometry.slabs import (
    COVERED,
    SAME,
    CaseSlabs,
    centre_slices,
    covered,
    holding_slabs,
    shown_matrix,
    slab_matrix,
)


@dataclass(frozen=True)
class Patch:
    """The slabs in a patch of S slices: t of them wholly."""

    matrix: np.ndarray
    """P, float32 (t, S): rows sum to 1 and are in the order of the patch's slices."""
    centres: np.ndarray
    """int64 (t,): the patch's slice nearest each slab's centre, where its annotation is read."""
    touched: np.ndarray
    """float64 (at least t, S): P of all slabs that the patch touches, of those at its ends with the slices there."""

    @property
    def blurred(self) -> np.ndarray:
        """Takes each slice to the average of its slab, of two by its shares in them: float32 (S, S).

        Slabs at the patch's ends count with the slices that are there; slices in no slab stay as they are.
        """
        share = self.touched.sum(axis=0)
        back = np.divide(self.touched.T, share[:, None], out=np.zeros_like(self.touched.T), where=share[:, None] > 0)
        averages = self.touched / self.touched.sum(axis=1, keepdims=True)
        return (back @ averages + np.diag(share == 0)).astype(np.float32)


@dataclass(frozen=True)
class PreprocessedSlabs:
    """The slabs of one case and what its preprocessed slices show, both in mm of the stored image."""

    slabs: np.ndarray
    """float64 (T, 2), ascending and without overlap"""
    slices: np.ndarray
    """float64 (N, 2): the stored slices where resampling takes the nearest of them, else the preprocessed ones"""
    shown: np.ndarray
    """int64 (S,): which of `slices` each preprocessed slice shows, ascending"""

    @cached_property
    def centres(self) -> np.ndarray:
        """The preprocessed slice that shows what lies nearest to each slab's centre: int64 (T,)."""
        return centre_slices(self.slabs, self.slices[self.shown])

    @cached_property
    def matrix(self) -> np.ndarray:
        """P of the whole case: float64 (T, S)."""
        matrix = shown_matrix(self.slabs, self.slices, self.shown)
        # of a slab as thin as the slices nothing may be left but what another slab annotates
        annotated = holding_slabs(self.slabs, self.slices)[self.shown][self.centres] == np.arange(len(self.slabs))
        return matrix * annotated[:, None]

    @property
    def dropped(self) -> int:
        """Slabs in the image of which resampling left no slice that they annotate."""
        return int((covered(slab_matrix(self.slabs, self.slices)) & ~self.matrix.any(axis=1)).sum())

    @property
    def spacing(self) -> float:
        """Mean distance of the preprocessed slices in mm."""
        return float(np.diff(self.slices).sum()) / len(self.shown)

    def most_covered(self, slices: int) -> int:
        """The largest number of whole slabs in a window of so many neighbouring slices."""
        matrix = self.matrix
        before = np.concatenate([np.zeros((len(matrix), 1)), matrix.cumsum(axis=1)], axis=1)  # (T, S + 1)
        size = min(slices, matrix.shape[1])
        held = before[:, size:] - before[:, : before.shape[1] - size]  # (T, windows)
        return int((held >= 1 - COVERED).sum(axis=0).max())

    def patch(self, slices: np.ndarray) -> Patch:
        """The slabs in a patch.

        Args:
            slices: (S,) numbers of the preprocessed slices, counted from 1; 0 is padding.
        """
        inside = slices > 0
        here = slices[inside]
        columns = np.zeros((len(self.slabs), len(slices)))
        columns[:, inside] = self.matrix[:, here - 1]
        flipped = len(here) > 1 and here[0] > here[-1]
        whole = np.flatnonzero(covered(columns))[:: -1 if flipped else 1]
        rows = columns[whole] / columns[whole].sum(axis=1, keepdims=True)
        place = np.zeros(len(self.shown) + 1, np.int64)
        place[slices] = np.arange(len(slices))
        return Patch(rows.astype(np.float32), place[self.centres[whole] + 1], columns[columns.any(axis=1)])


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


def slabs_per_patch(cases: Mapping[str, PreprocessedSlabs], slices: int) -> int:
    """The largest number of whole slabs that a patch of so many slices covers in any case.

    A case whose image holds no whole slab, since it was cropped, teaches nothing, but does no harm.

    Raises:
        InputError: the patch is too short for any slab of some case, or no case has a whole slab.
    """
    most = {}
    for name, case in cases.items():
        most[name] = case.most_covered(slices)
        if most[name] == 0 and len(whole := case.slabs[covered(case.matrix)]):
            needed = next((more for more in range(slices + 1, len(case.shown)) if case.most_covered(more)), None)
            raise refused_patch(name, whole, slices, case.spacing, needed or len(case.shown))
    if not any(most.values()):
        raise no_slabs(len(most))
    return max(most.values())


def no_slabs(cases: int) -> InputError:
    """The error of so many cases without any slab that lies wholly in its image."""
    return InputError(
        f"no slab that lies wholly in the image, in none of {cases} cases", "one or more", "convert others"
    )


def refused_patch(name: str, slabs: np.ndarray, slices: int, spacing: float, needed: int) -> InputError:
    """The error of a patch that is too short for the slabs (mm) of a case, whose slices lie `spacing` mm apart."""
    return InputError(
        f"a patch of {slices} slices, {slices * spacing:.4g} mm, and slabs of {float(np.diff(slabs).min()):.4g} mm or "
        f"more in case {name}",
        f"a patch that covers a whole slab: {needed} slices or more",
        "choose one of so many (--patch-size), or convert the data without that case",
    )


def whole_slabs(case: CaseSlabs) -> np.ndarray:
    """Those that lie wholly in the image as it is stored: float64 (T, 2)."""
    return case.slabs[covered(slab_matrix(case.slabs, case.slices))]


def most_within(slabs: np.ndarray, length: float) -> int:
    """The largest number of slabs (T, 2) that any stretch of so many mm covers wholly."""
    reach = slabs[:, 0] + length
    last = np.searchsorted(slabs[:, 1] - COVERED * np.diff(slabs)[:, 0], reach, side="right")
    return int((last - np.arange(len(slabs))).max())


def slices_for_a_slab(case: CaseSlabs, spacing: float) -> int:
    """So many preprocessed slices, `spacing` mm apart, cover one of the case's whole slabs wherever its edges lie.

    Where resampling takes nearest slices, a slab needs all that show any of the stored slices that it touches.
    """
    slabs = whole_slabs(case)
    length = float(np.diff(slabs).min())
    if is_resampled(case, spacing):
        touched = (slab_matrix(slabs, case.slices) > COVERED).sum(axis=1).min()
        length = max(length, float(touched) * case.thin_spacing)
    return int(np.ceil(length / spacing - COVERED)) + 1


def longest_reach(case: CaseSlabs, slices: int, spacing: float) -> float:
    """So many mm hold all slabs that a patch of preprocessed slices, about `spacing` mm apart, covers in the case."""
    # the slices of a cropped case are up to half a slice longer over a whole patch
    reach = (slices + 1) * spacing
    # stored slices beyond the patch that no slice shows
    return reach + max(case.thin_spacing, spacing) if is_resampled(case, spacing) else reach


def is_resampled(case: CaseSlabs, spacing: float) -> bool:
    """Whether the slices of the image lie otherwise than `spacing` mm apart."""
    return abs(case.thin_spacing / spacing - 1) > SAME
