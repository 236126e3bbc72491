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
from nnunetv2_ext.data.slabs import COVERED, covered, preprocessed_edges, slab_matrix
from nnunetv2_ext.errors import InputError


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
        columns[:, inside] = slab_matrix(self.slabs, self.slices[here - 1])
        flipped = len(here) > 1 and here[0] > here[-1]
        whole = np.flatnonzero(covered(columns))[:: -1 if flipped else 1]
        rows = columns[whole] / columns[whole].sum(axis=1, keepdims=True)
        place = np.zeros(len(self.slices) + 1, np.int64)
        place[slices] = np.arange(len(slices))
        centres = place[centre_slices(self.slabs[whole], self.slices) + 1]
        return Patch(rows.astype(np.float32), centres, columns[columns.any(axis=1)])


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


def preprocessed_slabs(
    name: str, case: CaseSlabs, axis: int, properties: Mapping[str, Any], resampled_slices: int
) -> PreprocessedSlabs:
    """The slabs of a case in what nnU-Net's preprocessing made of it, the slice axis being the first.

    Args:
        name: of the case, for errors.
        axis: the slice axis of the stored image.
        properties: nnU-Net's, of the preprocessed case.
        resampled_slices: slices of the preprocessed image.

    Raises:
        InputError: the side-car is of another image.
    """
    stored, spacing = int(properties["shape_before_cropping"][0]), float(properties["spacing"][axis])
    if stored != case.thin_slices or abs(spacing / case.thin_spacing - 1) > COVERED:
        raise InputError(
            f"{case.thin_slices} slices of {case.thin_spacing:.4g} mm of case {name} in {SIDECAR}, and {stored} of "
            f"{spacing:.4g} mm in its preprocessed image",
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
            raise refused_patch(name, whole, slices, float(np.diff(case.slices).mean()))
    if not any(most.values()):
        raise no_slabs(len(most))
    return max(most.values())


def no_slabs(cases: int) -> InputError:
    """The error of so many cases without any slab that lies wholly in its image."""
    return InputError(
        f"no slab that lies wholly in the image, in none of {cases} cases", "one or more", "convert others"
    )


def refused_patch(name: str, slabs: np.ndarray, slices: int, spacing: float) -> InputError:
    """The error of a patch that is too short for the slabs (mm) of a case, whose slices lie `spacing` mm apart."""
    return InputError(
        f"a patch of {slices} slices, {slices * spacing:.4g} mm, and slabs of {float(np.diff(slabs).min()):.4g} mm or "
        f"more in case {name}",
        "a patch that covers a whole slab",
        "choose one of more slices (--patch_size), or convert the data without that case",
    )


def whole_slabs(case: CaseSlabs) -> np.ndarray:
    """Those that lie wholly in the image as it is stored: float64 (T, 2)."""
    return case.slabs[covered(slab_matrix(case.slabs, case.slices))]


def most_within(slabs: np.ndarray, length: float) -> int:
    """The largest number of slabs (T, 2) that any stretch of so many mm covers wholly."""
    reach = slabs[:, 0] + length
    last = np.searchsorted(slabs[:, 1] - COVERED * np.diff(slabs)[:, 0], reach, side="right")
    return int((last - np.arange(len(slabs))).max())


def slices_for_a_slab(slabs: np.ndarray, spacing: float) -> int:
    """So many slices, `spacing` mm apart, cover one of the slabs (T, 2) wherever its edges lie between theirs."""
    return int(np.ceil(float(np.diff(slabs).min()) / spacing - COVERED)) + 1


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
