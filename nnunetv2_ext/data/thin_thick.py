"""Thin-thick data sets: thick annotations laid on the grid of thin images, as an nnU-Net raw data set.

Each thin slice whose centre lies in a slab, the extent of an annotated slice, takes that slab's labels; the others take
the ignore label. The side-car `slabs.json` (`nnunetv2_ext.data.sidecar`) keeps the slabs in millimetres. Axes are array
axes in the order of nnU-Net's readers (z, y, x). All headers and annotations are checked before the first image is
read, and the new data set appears under its name only when it is complete.
"""

import csv
import json
import math
import re
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunetv2_ext.data.sidecar import CaseSlabs, Sidecar, write_sidecar
from nnunetv2_ext.data.slabs import covered, slab_matrix, slice_edges
from nnunetv2_ext.data.thick import (
    TOLERANCE,
    VOLUME_ENDINGS,
    Grid,
    _each,
    _output_name,
    _unreadable,
    _unwritable,
    read_grid,
    read_volume,
    write_volume,
)
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.paths import nnunet_folder

ENDING = ".nii.gz"
"""Of the files of a new data set."""
IGNORE = "ignore"
"""nnU-Net's name of the label that training leaves out."""
TIED = 1e-3
"""Share of a slice's thickness: distances that differ by less are equal, which rounding in headers must not decide."""
UNEVEN = 0.1
"""Share of the slice spacing by which a DICOM slice may lie beside its place."""
SHOWN_VALUES = 5


# Slices and slabs.


def centre_slices(slabs: np.ndarray, slices: np.ndarray) -> np.ndarray:
    """The slice nearest each slab's centre, where the slab's annotation is read from a laid label map.

    Where the centre lies between two slices, the later one: the rule of `nnunetv2_ext.data.slabs.majority`.

    Args:
        slabs: (T, 2), edges in mm.
        slices: (S, 2), edges in mm, ascending.

    Returns:
        int64 (T,). A slab whose centre lies outside all slices gets the first or last one: see `covered`.
    """
    distance = np.abs(np.mean(slabs, axis=1)[:, None] - np.mean(slices, axis=1))
    tolerance = TIED * np.diff(slices).T
    tied = distance <= distance.min(axis=1, keepdims=True) + tolerance
    return len(slices) - 1 - tied[:, ::-1].argmax(axis=1)


def holding_slabs(slabs: np.ndarray, slices: np.ndarray) -> np.ndarray:
    """The slab that holds each slice's centre, -1 where none does: int64 (S,).

    Args:
        slabs: (T, 2), edges in mm, ascending and without overlap. A centre on the edge of two belongs to the later one.
        slices: (S, 2), edges in mm.
    """
    centre = np.mean(slices, axis=1) + TIED * np.diff(slices)[:, 0]
    slab = np.searchsorted(slabs[:, 0], centre, side="right") - 1
    return np.where((slab >= 0) & (centre < slabs[slab, 1]), slab, -1)


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
            f"{_listed(thick.direction)} instead of {_listed(thin.direction)})",
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
    beside = np.maximum(np.abs(begin), np.abs(end - extent)) >= spacing / 2 * (1 - TIED)
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
        np.clip(np.floor(((np.arange(count) + 0.5) * fine - first) / coarse + TIED).astype(int), 0, number - 1)
        for count, fine, first, coarse, number in zip(
            thin.size[::-1], spacing, begin, pitch, thick.size[::-1], strict=True
        )
    ]
    indices[axis] = holding_slabs(slabs, slices)
    return Laying(axis, slabs, (indices[0], indices[1], indices[2]))


def _slice_axis(case: str, spacing: np.ndarray, pitch: np.ndarray, axis: int | None) -> int:
    """The array axis of the slices, after checking that the annotation is coarser along it."""
    ratio = pitch / spacing
    numbers = f"spacing {_listed(pitch)} mm (z, y, x) of the annotation and {_listed(spacing)} mm of the image"
    coarser = np.flatnonzero(ratio > 1 + TOLERANCE)
    if axis is None and len(coarser) > 1:
        raise InputError(
            f"{numbers} in case {case}, coarser along the array axes {_listed(coarser)}",
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


# Volumes as users keep them.


@dataclass(frozen=True)
class Volume:
    """A volume in one file, or in the files of a DICOM series."""

    path: Path
    grid: Grid
    files: tuple[Path, ...] = ()
    """Of a DICOM series, one slice each, in the order of the slices."""
    thickness: float | None = None
    """Slice thickness in mm where the file tells it, as DICOM does."""

    def read(self) -> np.ndarray:
        """The voxels (Z, Y, X).

        Raises:
            InputError: unreadable or truncated file.
        """
        if not self.files:
            return read_volume(self.path)
        slices = []
        for path in self.files:
            try:
                slices.append(sitk.GetArrayFromImage(sitk.ReadImage(str(path))))
            except RuntimeError as error:
                raise _unreadable(path, error) from None
        # Each file may scale its values by another factor, and then has another type.
        return np.concatenate(slices)


def find_volumes(folder: Path) -> dict[str, Path]:
    """Every volume of a folder by its name: files that SimpleITK reads, without their ending, and subfolders (DICOM).

    Raises:
        InputError: no such folder, or two volumes of one name.
    """
    if not folder.is_dir():
        raise InputError(f"no folder {folder}", "a folder of volumes", "correct the path")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not (path.is_dir() or _is_volume(path)):
            continue
        name = path.name if path.is_dir() else Path(path.name.removesuffix(".gz")).stem
        if name in found:
            raise InputError(f"{found[name].name} and {path.name} in {folder}", "one volume of a name", "remove one")
        found[name] = path
    return found


def _is_volume(path: Path) -> bool:
    if path.suffix == ".img" and path.with_suffix(".hdr").exists():
        return False
    # By its ending even where it is too damaged to be recognised, so that it is not left out silently.
    return path.name.endswith(VOLUME_ENDINGS) or bool(sitk.ImageFileReader.GetImageIOFromFileName(str(path)))


def open_volume(path: Path) -> Volume:
    """Read the header of a volume: a file, or a folder that holds one DICOM series at any depth.

    Raises:
        InputError: missing or unreadable file, no volume of one value per voxel, a folder without exactly one series, a
            series that is no stack of evenly spaced slices, a DICOM object that holds no image.
    """
    if path.is_dir():
        return _open_series(path)
    thickness = None
    if _is_dicom(path):
        header = _dicom_header(path)
        thickness = _thickness(header)
        if header.GetSize()[2:] == (1,):
            raise InputError(f"one DICOM slice {path}", "a volume", "put each series into a folder named as its case")
    return Volume(path, read_grid(path), thickness=thickness)


def _open_series(folder: Path) -> Volume:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "DICOMDIR"]
    series = defaultdict(list)
    for path in filter(_is_dicom, files):
        header = _dicom_header(path)
        series[header.GetMetaData("0020|000e") if header.HasMetaDataKey("0020|000e") else ""].append((path, header))
    if len(series) != 1:
        counts = _listed([f"{len(found)} files" for found in series.values()])
        raise InputError(
            f"{len(series)} DICOM series in {folder}" + (f" ({counts})" if series else ""),
            "one in the folder of a case",
            "remove the others" if series else "put the series there, or a file beside the folder instead of it",
        )
    (stack,) = series.values()
    if len(stack) == 1:
        return open_volume(stack[0][0])
    return _stack(folder, stack)


def _stack(folder: Path, stack: Sequence[tuple[Path, sitk.ImageFileReader]]) -> Volume:
    """The volume of a series of single slices, from their own positions."""
    for path, header in stack:
        if not header.HasMetaDataKey("0020|0032") or not header.HasMetaDataKey("0020|0037") or header.GetSize()[2] != 1:
            raise InputError(f"a DICOM file {path} without a slice's position", "slices of a volume", "remove it")
    first = stack[0][1]
    for path, header in stack:
        if header.GetSize() != first.GetSize() or not np.allclose(
            (*header.GetSpacing()[:2], *header.GetDirection()),
            (*first.GetSpacing()[:2], *first.GetDirection()),
            atol=1e-3 * min(first.GetSpacing()[:2]),
        ):
            raise InputError(
                f"{path.name} with size {header.GetSize()[:2]}, spacing {_listed(header.GetSpacing()[:2])} mm and "
                f"direction {_listed(header.GetDirection())} beside {stack[0][0].name} with {first.GetSize()[:2]}, "
                f"{_listed(first.GetSpacing()[:2])} mm and {_listed(first.GetDirection())} in {folder}",
                "slices of one grid",
                "remove those of another volume",
            )
    normal = np.reshape(first.GetDirection(), (3, 3))[:, 2]
    origins = np.array([header.GetOrigin() for _, header in stack])
    order = np.argsort(origins @ normal, kind="stable")
    positions, origins = (origins @ normal)[order], origins[order]
    spacing = (positions[-1] - positions[0]) / (len(stack) - 1)
    beside = positions - np.linspace(positions[0], positions[-1], len(positions))
    if spacing <= 0 or np.abs(beside).max() > UNEVEN * spacing:
        gaps = np.diff(positions)
        widest = int(gaps.argmax())
        raise InputError(
            f"uneven slice spacing in {folder}: from {gaps.min():g} to {gaps[widest]:g} mm (between "
            f"{stack[order[widest]][0].name} and {stack[order[widest + 1]][0].name})",
            "evenly spaced slices",
            "restore missing slices, or remove those of another volume",
        )
    tilt = np.abs(origins - origins[0] - np.outer(positions - positions[0], normal)).max()
    if tilt > min(first.GetSpacing()[:2]) / 2:
        raise InputError(
            f"slices in {folder} that are shifted by up to {tilt:g} mm against each other (gantry tilt)",
            "slices above each other",
            "resample the series to a volume first",
        )
    grid = Grid(
        (*first.GetSize()[:2], len(stack)),
        (*first.GetSpacing()[:2], float(spacing)),
        tuple(origins[0].tolist()),
        first.GetDirection(),
    )
    return Volume(folder, grid, tuple(stack[index][0] for index in order), _thickness(first))


def _is_dicom(path: Path) -> bool:
    # A truncated file is none to GDCM, but must not be left out silently.
    if path.suffix.lower() == ".dcm":
        return True
    with path.open("rb") as stream:
        if stream.read(132)[128:] == b"DICM":
            return True
    return sitk.ImageFileReader.GetImageIOFromFileName(str(path)) == "GDCMImageIO"


def _dicom_header(path: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, error) from None
    modality = reader.GetMetaData("0008|0060").strip() if reader.HasMetaDataKey("0008|0060") else ""
    if modality in ("SEG", "RTSTRUCT"):
        raise InputError(
            f"a DICOM object of modality {modality} in {path}",
            "a volume that holds the label of each voxel",
            "convert it to NIfTI or NRRD first",
        )
    return reader


def _thickness(header: sitk.ImageFileReader) -> float | None:
    try:
        thickness = float(header.GetMetaData("0018|0050"))
    except (RuntimeError, ValueError):
        return None
    return thickness if 0 < thickness < math.inf else None


# Cases.


@dataclass(frozen=True)
class Pair:
    """The images of a case, one per channel, and its annotation."""

    name: str
    images: tuple[Path, ...]
    label: Path


def pair_by_name(images: Path, labels: Path) -> tuple[list[Pair], list[Path]]:
    """Pair the volumes of two folders.

    The annotation of an image has the image's name, or the image's name without an underscore and four digits at its
    end, which then are the number of the channel.

    Returns:
        The pairs by name, and the volumes that are left over.

    Raises:
        InputError: no such folder, two volumes of one name or channel, channels that are not numbered 0000, 0001, ...
    """
    annotations = find_volumes(labels)
    channels: dict[str, dict[int, Path]] = defaultdict(dict)
    unmatched = []
    for name, path in find_volumes(images).items():
        numbered = re.fullmatch(r"(.+)_(\d{4})", name)
        if name in annotations:
            case, channel = name, 0
        elif numbered and numbered[1] in annotations:
            case, channel = numbered[1], int(numbered[2])
        else:
            unmatched.append(path)
            continue
        if channel in channels[case]:
            raise InputError(
                f"{channels[case][channel].name} and {path.name} for channel {channel} of case {case} in {images}",
                "one image per channel",
                "remove one or number them _0000, _0001, ...",
            )
        channels[case][channel] = path
    for case, found in channels.items():
        if sorted(found) != list(range(len(found))):
            raise InputError(
                f"the channels {_listed(sorted(found))} of case {case} in {images}",
                "channels 0 (_0000), 1 (_0001), ...",
                "restore the missing one or number them anew",
            )
    unmatched += [path for name, path in annotations.items() if name not in channels]
    pairs = [
        Pair(case, tuple(found[channel] for channel in sorted(found)), annotations[case])
        for case, found in sorted(channels.items())
    ]
    return pairs, unmatched


@dataclass(frozen=True)
class ConvertedCase:
    """The report on one case; lengths in mm along the slice axis."""

    case: str
    thin_spacing: float
    thick_spacing: float
    thickness: float
    ratio: float
    """Slice spacing of the annotation over that of the image."""
    thin_slices: int
    slabs: int
    """Annotated slices that touch the image."""
    covered: int
    """Those that lie wholly in it."""
    ignored: int
    """Thin slices in no slab."""
    resampled: bool
    """The annotation has another grid within the slices."""


@dataclass
class ThinThickDataset:
    """What `convert_thin_thick` wrote."""

    folder: Path
    axis: int
    cases: list[ConvertedCase]
    ignore_label: int | None
    """None where no case has a thin slice without annotation."""
    left_out: list[Path] = field(default_factory=list)
    """Volumes without a partner."""


@dataclass(frozen=True)
class _Job:
    name: str
    images: tuple[Volume, ...]
    label: Volume
    laying: Laying

    @property
    def case_slabs(self) -> CaseSlabs:
        axis, grid = 2 - self.laying.axis, self.images[0].grid
        thin = CaseSlabs(grid.spacing[axis], grid.size[axis], self.laying.slabs)
        touching = slab_matrix(thin.slabs, thin.slices).any(axis=1)
        return CaseSlabs(thin.thin_spacing, thin.thin_slices, thin.slabs[touching])

    @property
    def ignored(self) -> int:
        return int(np.count_nonzero(self.laying.indices[self.laying.axis] < 0))

    def report(self) -> ConvertedCase:
        axis, thin, thick = self.laying.axis, self.images[0].grid, self.label.grid
        thin_spacing, thick_spacing = thin.spacing[2 - axis], thick.spacing[2 - axis]
        here = self.case_slabs
        return ConvertedCase(
            case=self.name,
            thin_spacing=thin_spacing,
            thick_spacing=thick_spacing,
            thickness=float(here.slabs[0, 1] - here.slabs[0, 0]),
            ratio=thick_spacing / thin_spacing,
            thin_slices=here.thin_slices,
            slabs=len(here.slabs),
            covered=int(covered(slab_matrix(here.slabs, here.slices)).sum()),
            ignored=self.ignored,
            resampled=any(
                not np.array_equal(self.laying.indices[k], np.arange(thick.size[2 - k])) for k in range(3) if k != axis
            ),
        )


def convert_thin_thick(
    images: Path,
    labels: Path,
    output: int | str,
    *,
    name: str,
    label_names: Sequence[str],
    channel_names: Sequence[str] | None = None,
    slice_axis: int | None = None,
    slice_thickness: float | None = None,
    skip_unmatched: bool = False,
    processes: int = 8,
    progress: bool = True,
) -> ThinThickDataset:
    """Write a raw data set of thin images with thick annotations into `nnUNet_raw`, with its side-car and a report.

    Args:
        images: folder of thin images, one per case and channel (`pair_by_name`).
        labels: folder of thick annotations.
        output: id of the new data set.
        name: what follows `DatasetXXX_`.
        label_names: of the values 0, 1, 2, ...; "background" first; "ignore", if given, last.
        channel_names: as nnU-Net wants them, which normalises the channel "CT" as such; by default "image", or
            "channel_0", "channel_1", ..., all normalised by mean and standard deviation of each image.
        slice_axis: array axis of the slices, 0, 1 or 2 in nnU-Net's order z, y, x. By default the one along which the
            annotation is coarser than the image.
        slice_thickness: of all annotated slices in mm; by default what DICOM tells, else the spacing of the slices.
        skip_unmatched: leave out volumes without a partner in place of refusing them.
        processes: cases worked on at the same time, in threads.
        progress: show progress bars.

    Raises:
        InputError: any of these is unusable, a volume is damaged, or a case's volumes do not fit each other. Nothing is
            left behind then.
    """
    raw = nnunet_folder("nnUNet_raw")
    # The factor is of no meaning here: only the id and the name are checked.
    target = raw / _output_name("", output, factor=2, thickness=None, name=name)
    _check_options(label_names, slice_axis, slice_thickness, processes)
    pairs, unmatched = pair_by_name(images, labels)
    if not pairs or (unmatched and not skip_unmatched):
        _refuse_unmatched(images, labels, unmatched, any_pair=bool(pairs))
    channel_names = _channel_names(pairs, channel_names)

    def check(pair: Pair) -> _Job:
        return _check_case(pair, label_names, axis=slice_axis, thickness=slice_thickness)

    jobs = _each(check, pairs, processes=processes, label="checks" if progress else None)
    axis = jobs[0].laying.axis
    for job in jobs:
        if job.laying.axis != axis:
            raise InputError(
                f"slices along array axis {axis} in case {jobs[0].name} and along {job.laying.axis} in case {job.name}",
                "one slice axis",
                "reorient the cases, or make a data set for each axis",
            )
    values = {label: value for value, label in enumerate(label_names)}
    if any(job.ignored for job in jobs):
        values.setdefault(IGNORE, len(values))
    outcome = ThinThickDataset(target, axis, [job.report() for job in jobs], values.get(IGNORE), unmatched)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}_", dir=raw) as parent:
            unfinished = Path(parent, target.name)
            _write_dataset(unfinished, jobs, outcome, values, channel_names, processes=processes, progress=progress)
            unfinished.rename(target)
    except OSError as error:
        raise _unwritable(target, error) from None
    return outcome


def _check_options(names: Sequence[str], axis: int | None, thickness: float | None, processes: int) -> None:
    labels = names[:-1] if list(names[-1:]) == [IGNORE] else names
    if len(labels) < 2 or labels[0] != "background" or len(set(labels)) < len(labels) or IGNORE in labels:
        raise InputError(
            f"the label names {' '.join(names)}",
            "background first, then each label once, ignore only at the end",
            "name the values 0, 1, 2, ... in their order",
        )
    if axis not in (None, 0, 1, 2):
        raise InputError(f"slice axis {axis}", "an array axis: 0, 1 or 2", "choose one, or none for the coarser one")
    if thickness is not None and not 0 < thickness < math.inf:
        raise InputError(f"slice thickness {thickness}", "millimetres above 0", "correct it")
    if processes < 1:
        raise InputError(f"{processes} processes", "1 or more", "choose 1 or more")


def _refuse_unmatched(images: Path, labels: Path, unmatched: Sequence[Path], *, any_pair: bool) -> None:
    kinds = {
        "images without annotation": [path.name for path in unmatched if path.parent == images],
        "annotations without image": [path.name for path in unmatched if path.parent != images],
    }
    found = "; ".join(f"{len(names)} {kind} ({_listed(names)})" for kind, names in kinds.items() if names)
    raise InputError(
        found or f"no volume in {images} nor {labels}",
        "annotations named as their images, or as these without a channel's _0000",
        "rename them" + (", or leave them out (--skip-unmatched)" if any_pair else ""),
    )


def _channel_names(pairs: Sequence[Pair], names: Sequence[str] | None) -> Sequence[str]:
    number = len(names) if names is not None else max(len(pair.images) for pair in pairs)
    for pair in pairs:
        if len(pair.images) != number:
            raise InputError(
                f"{len(pair.images)} channels in case {pair.name}",
                f"{number}, " + ("one per channel name" if names is not None else "as in other cases"),
                "restore the missing images or correct the channel names",
            )
    if names is not None:
        return names
    return ["image"] if number == 1 else [f"channel_{channel}" for channel in range(number)]


def _check_case(pair: Pair, label_names: Sequence[str], *, axis: int | None, thickness: float | None) -> _Job:
    """Read a case's headers and annotation and check them against each other."""
    images = tuple(map(open_volume, pair.images))
    for image in images[1:]:
        if different := images[0].grid.differences(image.grid):
            raise InputError(
                f"the channel {image.path} with {', '.join(different)}",
                f"the grid of {images[0].path.name}",
                "resample it or correct its header",
            )
    label = open_volume(pair.label)
    thickness = label.thickness if thickness is None else thickness
    laying = lay_grids(pair.name, images[0].grid, label.grid, axis=axis, thickness=thickness)
    unnamed = [value for value in np.unique(label.read()).tolist() if value not in range(len(label_names))]
    if unnamed:
        more = f" and {len(unnamed) - SHOWN_VALUES} others" if len(unnamed) > SHOWN_VALUES else ""
        raise InputError(
            f"the values {_listed(unnamed[:SHOWN_VALUES])}{more} in the annotation of case {pair.name}",
            f"labels with a name: {', '.join(f'{value} {name}' for value, name in enumerate(label_names))}",
            "name them all (--label-names), or renumber them",
        )
    return _Job(pair.name, images, label, laying)


def _write_dataset(
    folder: Path,
    jobs: Sequence[_Job],
    outcome: ThinThickDataset,
    values: Mapping[str, int],
    channel_names: Sequence[str],
    *,
    processes: int,
    progress: bool,
) -> None:
    for kind in ("imagesTr", "labelsTr"):
        (folder / kind).mkdir(parents=True)
    ignore = 0 if outcome.ignore_label is None else outcome.ignore_label
    dtype = np.dtype(np.uint8 if len(values) <= 256 else np.uint16)

    def write(job: _Job) -> None:
        grid = job.images[0].grid
        for channel, image in enumerate(job.images):
            array = image.read()
            # nnU-Net reads every image as float32 anyway.
            array = array.astype(np.float32) if array.dtype.itemsize > 4 else array
            write_volume(array, grid, folder / "imagesTr" / f"{job.name}_{channel:04d}{ENDING}")
        laid = job.laying.lay(job.label.read(), ignore=ignore, dtype=dtype)
        write_volume(laid, grid, folder / "labelsTr" / f"{job.name}{ENDING}")

    _each(write, jobs, processes=processes, label="cases" if progress else None)
    entries = {
        "channel_names": {str(channel): name for channel, name in enumerate(channel_names)},
        "labels": dict(values),
        "numTraining": len(jobs),
        "file_ending": ENDING,
    }
    (folder / "dataset.json").write_text(json.dumps(entries, indent=4))
    write_sidecar(folder, Sidecar(folder.name, outcome.axis, {job.name: job.case_slabs for job in jobs}))
    with (folder / "conversion.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [column.name for column in fields(ConvertedCase)])
        writer.writeheader()
        writer.writerows(map(asdict, outcome.cases))


def _listed(items: object) -> str:
    return ", ".join(f"{item:g}" if isinstance(item, float) else str(item) for item in items)  # type: ignore[attr-defined]


def _interval(begin: float, end: float) -> str:
    return f"[{begin:.6g}, {end:.6g})"
