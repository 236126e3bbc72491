"""Thick annotations laid on the grid of thin images.

Each thin slice whose centre lies in a slab, the extent of an annotated slice, takes that slab's labels; the others take
the ignore label. Axes are array axes in the order of nnU-Net's readers (z, y, x).
"""

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from nnunetv2_ext.data.volumes import TOLERANCE, Grid
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.geometry.slabs import SAME, covered, holding_slabs, slab_matrix, slice_edges
from nnunetv2_ext.text import listed


@dataclass(frozen=True)
class Laying:
    """How an annotation comes to lie on the grid of its image."""

    axis: int
    slabs: np.ndarray
    """(T, 2): edges in mm of every annotated slice, counted from the outer edge of the image's first slice."""
    indices: tuple[np.ndarray, np.ndarray, np.ndarray]
    """Of each array axis of the image: the index into the annotation, -1 in slices outside all slabs."""

    def lay(self, annotation: np.ndarray, *, ignore: int, dtype: np.dtype) -> np.ndarray:
        """The label map of the image: annotation (T, V, U) -> (Z, Y, X) for axis 0."""
        laid = annotation[np.ix_(*self.indices)].astype(dtype)
        np.moveaxis(laid, self.axis, 0)[self.indices[self.axis] < 0] = ignore
        return laid


def lay_grids(case: str, thin: Grid, thick: Grid, *, axis: int | None = None, thickness: float | None = None) -> Laying:
    """Find the slabs of an annotation on the grid `thick` along an image on the grid `thin`.

    Within the slices the annotation may have another grid of the same field of view: a voxel of the image takes the
    label of the annotation's voxel that holds its centre.

    Args:
        case: its name, for messages.
        thin: grid of the image.
        thick: grid of the annotation.
        axis: array axis of the slices; by default the one axis along which the annotation is coarser.
        thickness: of the annotated slices in mm; by default their spacing, also where it differs by less than 1 %.

    Raises:
        InputError: grids that do not fit each other, with the case and the numbers.
    """
    turned = np.abs(np.subtract(thin.direction, thick.direction)).max()
    if turned > 1e-3:
        names = [sitk.DICOMOrientImageFilter_GetOrientationFromDirectionCosines(g.direction) for g in (thick, thin)]
        raise InputError(
            f"an annotation of orientation {names[0]} for an image of orientation {names[1]} in case {case} (direction "
            f"{listed(thick.direction)} instead of {listed(thin.direction)})",
            "one orientation",
            f"reorient the annotation, for instance with SimpleITK's DICOMOrient(annotation, '{names[1]}')",
        )
    spacing, pitch = (np.array(grid.spacing[::-1]) for grid in (thin, thick))
    axis = _slice_axis(case, spacing, pitch, axis)
    # Edges along each array axis of the image, counted from its own outer edge.
    shift = (np.reshape(thin.direction, (3, 3)).T @ np.subtract(thick.origin, thin.origin))[::-1]
    begin = shift + (spacing - pitch) / 2
    end = begin + pitch * thick.size[::-1]
    extent = spacing * thin.size[::-1]
    fields_of_view = (
        f"{' x '.join(_interval(*pair) for pair in zip(begin, end, strict=True))} mm (z, y, x) of the annotation, "
        f"{' x '.join(_interval(0, length) for length in extent)} mm of the image in case {case}"
    )
    within = [k for k in range(3) if k != axis]
    if np.any((end <= 0) | (begin >= extent)):
        raise InputError(fields_of_view, "volumes that overlap in space", "check that the two belong together")
    # Half a voxel is what confusing a voxel's corner and its centre makes.
    beside = np.maximum(np.abs(begin), np.abs(end - extent)) >= spacing / 2 * (1 - SAME)
    if beside[within].any():
        raise InputError(
            fields_of_view,
            f"one field of view within the slices (array axes {within[0]}, {within[1]}) to half a voxel of the image",
            "resample the annotation within its slices to the image",
        )
    slabs = _slabs(case, int(thick.size[2 - axis]), float(pitch[axis]), float(begin[axis]), thickness, spacing[axis])
    slices = slice_edges(thin.size[2 - axis], float(spacing[axis]))
    if not covered(slab_matrix(slabs, slices)).any():
        raise InputError(
            f"{len(slabs)} annotated slices over {_interval(slabs[0, 0], slabs[-1, 1])} mm and an image over "
            f"{_interval(0, extent[axis])} mm in case {case}",
            "at least one annotated slice wholly in the image",
            "check that the two belong together, or leave the case out",
        )
    indices = [
        np.clip(np.floor(((np.arange(count) + 0.5) * fine - first) / coarse + SAME).astype(int), 0, number - 1)
        for count, fine, first, coarse, number in zip(
            thin.size[::-1], spacing, begin, pitch, thick.size[::-1], strict=True
        )
    ]
    indices[axis] = holding_slabs(slabs, slices)
    return Laying(axis, slabs, (indices[0], indices[1], indices[2]))


def _slice_axis(case: str, spacing: np.ndarray, pitch: np.ndarray, axis: int | None) -> int:
    """The array axis of the slices, after checking that the annotation is coarser along it."""
    ratio = pitch / spacing
    numbers = f"spacing {listed(pitch)} mm (z, y, x) of the annotation and {listed(spacing)} mm of the image"
    coarser = np.flatnonzero(ratio > 1 + TOLERANCE)
    if axis is None and len(coarser) > 1:
        raise InputError(
            f"{numbers} in case {case}, coarser along the array axes {listed(coarser)}",
            "one axis of thick slices",
            "say which with the slice axis (--slice-axis)",
        )
    checked = ratio if axis is None else ratio[[axis]]
    if not (checked > 1 + TOLERANCE).any():
        along = "" if axis is None else f", compared along the array axis {axis},"
        _refuse_thin(f"{numbers}{along} in case {case}", finer=bool((checked < 1 - TOLERANCE).any()))
    return int(coarser[0]) if axis is None else axis


def _slabs(case: str, count: int, pitch: float, begin: float, thickness: float | None, spacing: float) -> np.ndarray:
    """Edges (T, 2) of the annotated slices, after checking their thickness."""
    if thickness is None or abs(thickness - pitch) <= TOLERANCE * pitch:
        thickness = pitch
    numbers = f"annotated slices {thickness:g} mm thick every {pitch:g} mm"
    if thickness > pitch:
        raise InputError(
            f"{numbers} in case {case}, which overlap",
            "slabs beside each other",
            "choose a slice thickness (--slice-thickness) no larger than the spacing, or leave out every other slice",
        )
    if thickness <= spacing * (1 + TOLERANCE):
        finer = thickness < spacing * (1 - TOLERANCE)
        _refuse_thin(f"{numbers} and an image with slices every {spacing:g} mm in case {case}", finer=finer)
    # A tenth of a micrometre: headers hold rounded numbers, and + 0 turns -0 into 0.
    return np.round(slice_edges(count, pitch, origin=begin, thickness=thickness), 4) + 0.0


def _refuse_thin(got: str, *, finer: bool) -> None:
    if finer:
        raise InputError(
            f"{got}: the annotation is finer than the image",
            "thick annotated slices and thin images",
            "check that the folders are not interchanged, or resample the annotation and train plainly",
        )
    raise InputError(
        f"{got}: the annotation is as thin as the image",
        "slices of the annotation thicker than the image's",
        "make an ordinary data set of it, plain training is the thing there",
    )


def _interval(begin: float, end: float) -> str:
    return f"[{begin:.6g}, {end:.6g})"
