"""Thick-slice data sets: average intensity projection of neighbouring slices over a whole nnU-Net raw data set.

Slices are averaged in slabs of `factor` slices, a whole number or not, from the volume's first slice on; what fills no
slab is dropped at the end. Axes are array axes as nnU-Net's readers see them (SimpleITK's order, z, y, x): axis 0 is
SimpleITK's last index axis. All headers are checked before the first voxel is read, and the new data set appears under
its name only when it is complete.
"""

import copy
import gzip
import json
import math
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, TypeVar

import nibabel
import numpy as np
import SimpleITK as sitk
from nnunetv2.utilities.utils import (
    create_paths_fn,
    get_filenames_of_train_images_and_targets,
    get_identifiers_from_splitted_dataset_folder,
)
from tqdm import tqdm

from nnunetv2_ext.data.slabs import average, majority, slab_matrix, slice_edges
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.paths import FOLDER_VARIABLES, dataset_name, nnunet_folder, read_json

VOLUME_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl")
TOLERANCE = 0.01
"""Relative: spacings that differ by less count as equal, and a thickness this near a multiple of the spacing as one."""

NIBABEL_ERRORS = (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError)
Item = TypeVar("Item")
Result = TypeVar("Result")


# Slabs over arrays.


def slab_count(slices: int, factor: float) -> int:
    """Slabs of `factor` slices that fit into `slices`; rounding in a header costs none."""
    return int(slices / factor + 1e-4)


def thick_matrix(slices: int, factor: float) -> np.ndarray:
    """The operator of slabs of `factor` slices beside each other, from the first slice on: (slabs, slices)."""
    # In units of a slice, so that whole factors are exact.
    slabs = slice_edges(slab_count(slices, factor), factor)
    return slab_matrix(np.minimum(slabs, slices), slice_edges(slices, 1))


def average_slabs(volume: np.ndarray, *, axis: int, factor: float) -> np.ndarray:
    """`average` over slabs of `factor` slices along `axis`: (Z, Y, X) -> float32 (Z // factor, Y, X) for axis 0."""
    return average(volume, thick_matrix(volume.shape[axis], factor), axis=axis)


def majority_slabs(labels: np.ndarray, *, axis: int, factor: float) -> np.ndarray:
    """`majority` over slabs of `factor` slices along `axis`, shape as `average_slabs`, type as `labels`."""
    return majority(labels, thick_matrix(labels.shape[axis], factor), axis=axis)


# Volumes in files.


@dataclass(frozen=True)
class Grid:
    """A volume's voxel grid in SimpleITK's order (x, y, z): spacing and origin in mm, direction row by row."""

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    def thick(self, *, axis: int, factor: float) -> "Grid":
        """The grid of slabs of `factor` slices along array axis `axis`; the origin is the first slab's centre."""
        index = 2 - axis
        size, spacing = list(self.size), list(self.spacing)
        size[index] = slab_count(size[index], factor)
        spacing[index] *= factor
        step = np.reshape(self.direction, (3, 3))[:, index] * self.spacing[index]
        origin = np.asarray(self.origin) + step * (factor - 1) / 2
        return Grid(tuple(size), tuple(spacing), tuple(origin.tolist()), self.direction)

    def differences(self, other: "Grid") -> list[str]:
        """What differs by more than a thousandth of this grid's spacing (direction: by 1e-3), in words."""
        limit = 1e-3 * np.asarray(self.spacing)
        limits = {"size": 0.0, "spacing": limit, "origin": limit, "direction": 1e-3}
        return [
            f"{name} {getattr(other, name)} instead of {getattr(self, name)}"
            for name, allowed in limits.items()
            if np.any(np.abs(np.subtract(getattr(self, name), getattr(other, name))) > allowed)
        ]

    def file_axis(self, axis: int, *, reorient: bool) -> int:
        """The array axis in the file of nnU-Net's array axis: another one only where nnU-Net's reader reorients."""
        if not reorient:
            return axis
        letters = sitk.DICOMOrientImageFilter_GetOrientationFromDirectionCosines(self.direction)
        pair = ("SI", "AP", "LR")[axis]
        return 2 - next(index for index, letter in enumerate(letters) if letter in pair)


def read_grid(path: Path) -> Grid:
    """The voxel grid from a volume's header.

    Raises:
        InputError: missing or unreadable file, or no volume of one value per voxel.
    """
    if not path.is_file():
        raise InputError(f"no file {path}", "every image and label of the data set", "restore it or remove its case")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, error) from None
    if reader.GetDimension() != 3 or reader.GetNumberOfComponents() != 1:
        shape = f"{reader.GetDimension()} dimensions and {reader.GetNumberOfComponents()} values per voxel"
        raise InputError(f"{path} with {shape}", "3D volumes of one value per voxel", "choose a data set of volumes")
    return Grid(reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())


def read_volume(path: Path) -> np.ndarray:
    """The voxels (Z, Y, X) of a volume in the file's own type.

    Raises:
        InputError: unreadable or truncated file.
    """
    try:
        # ITK reads truncated NIfTI and GIPL files without an error, the missing voxels as 0.
        if path.name.endswith((".nii", ".nii.gz")):
            header: Any = nibabel.load(path).header
            voxels = math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize
            _check_length(path, header.get_data_offset() + voxels)
        image = sitk.ReadImage(str(path))
        if path.name.endswith(".gipl"):
            _check_length(path, image.GetNumberOfPixels() * image.GetSizeOfPixelComponent())
    except (RuntimeError, OSError, EOFError, zlib.error, *NIBABEL_ERRORS) as error:
        raise _unreadable(path, error) from None
    return sitk.GetArrayFromImage(image)


def write_volume(array: np.ndarray, grid: Grid, path: Path) -> None:
    """Write voxels (Z, Y, X) with their grid, compressed where the format can.

    Raises:
        InputError: the file cannot be written, for instance on a full disk.
    """
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    try:
        sitk.WriteImage(image, str(path), True)
        # On a full disk ITK writes half a file without an error.
        read_volume(path)
    except (RuntimeError, InputError) as error:
        raise _unwritable(path, error) from None


def _check_length(path: Path, needed: int) -> None:
    length = path.stat().st_size
    if path.suffix == ".gz":
        length = 0
        with gzip.open(path) as stream:
            while block := stream.read(1 << 20):
                length += len(block)
    if length < needed:
        raise EOFError(f"{length} bytes of {needed}")


def _last_line(error: Exception) -> str:
    text = error.args[0] if isinstance(error, InputError) else str(error)
    return text.strip().rpartition("\n")[2]


def _unwritable(path: Path, error: Exception) -> InputError:
    return InputError(
        f"an error on writing {path} ({_last_line(error)})", "a writable folder with free space", "make room there"
    )


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(
        f"an unreadable file {path} ({_last_line(error)})", "a complete volume", "restore the file or remove its case"
    )


# Data sets.


@dataclass(frozen=True)
class Case:
    """One case of a raw data set: a file per channel and, for training cases and some test cases, a label map."""

    name: str
    part: str
    """`Tr` or `Ts`."""
    images: tuple[Path, ...]
    label: Path | None


@dataclass
class ThickDataset:
    """What `make_thick` wrote."""

    folder: Path
    axis: int
    factors: dict[str, float] = field(default_factory=dict)
    """Slices per slab, a whole number or not, by `imagesTr/CASE` or `imagesTs/CASE`."""
    dropped: dict[str, float] = field(default_factory=dict)
    """Slices, and parts of one, dropped at the end, by the same keys; cases without any are left out."""
    labels_left_out: list[str] = field(default_factory=list)
    """Label files without an image."""


def make_thick(
    dataset: int | str,
    output: int | str,
    *,
    factor: int | None = None,
    thickness: float | None = None,
    axis: int | None = None,
    name: str | None = None,
    processes: int = 8,
    progress: bool = True,
) -> ThickDataset:
    """Write a thick-slice copy of a raw data set into `nnUNet_raw`.

    Images are averaged over slabs and stored as float32, label maps take the majority by overlap (`majority`). Files
    of one case all get the grid of its first channel. Test images, their labels and `splits_final.json` come along.

    Args:
        dataset: id or name of the source.
        output: id of the new data set.
        factor: slices per slab; or
        thickness: mm per slab, more than each case's slice spacing. Within 1 % of a whole multiple of it, the multiple.
        axis: array axis of the slices, the same for all cases. By default the first one whose median spacing over the
            training cases is within 1 % of the coarsest: the slice axis of anisotropic data, axis 0 of isotropic data.
        name: what follows `DatasetXXX_`; by default the source's name with `Thick4` or `Thick5mm`.
        processes: cases worked on at the same time (in threads: the work is reading, compressing and averaging, all
            outside Python's lock).
        progress: show progress bars.

    Raises:
        InputError: any of these is unusable, the data set is damaged or not of volumes. Nothing is left behind then.
    """
    raw = nnunet_folder("nnUNet_raw")
    source = raw / dataset_name(dataset)
    target = raw / _output_name(source.name, output, factor=factor, thickness=thickness, name=name)
    if axis not in (None, 0, 1, 2):
        raise InputError(f"axis {axis}", "an array axis: 0, 1 or 2", "choose one, or none for the coarsest")
    if processes < 1:
        raise InputError(f"{processes} processes", "1 or more", "choose 1 or more")

    dataset_json = read_json(source / "dataset.json", "check that nnUNet_raw holds the source data set")
    cases = _cases(source, dataset_json)
    splits = source / "splits_final.json"
    if splits.exists():
        read_json(splits, "restore or remove it")

    grids = _each(_case_grid, cases, processes=processes, label="headers" if progress else None)
    reorient = str(dataset_json.get("overwrite_image_reader_writer")).endswith("WithReorient")
    if axis is None:
        axis = _coarsest_axis([grid for case, grid in zip(cases, grids, strict=True) if case.part == "Tr"], reorient)
    outcome = ThickDataset(target, axis)
    jobs = []
    for case, grid in zip(cases, grids, strict=True):
        file_axis = grid.file_axis(axis, reorient=reorient)
        case_factor = _case_factor(case, grid, file_axis, factor=factor, thickness=thickness)
        key = f"images{case.part}/{case.name}"
        outcome.factors[key] = case_factor
        slices = grid.size[2 - file_axis]
        # Rounded, and not below 0, for what `slab_count` lets pass.
        if (rest := round(slices - slab_count(slices, case_factor) * case_factor, 2)) > 0:
            outcome.dropped[key] = rest
        jobs.append((case, grid, file_axis, case_factor))
    outcome.labels_left_out = _labels_without_image(source, cases, dataset_json["file_ending"])

    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}_", dir=raw) as parent:
            unfinished = Path(parent, target.name)
            _write_dataset(unfinished, jobs, dataset_json, processes=processes, progress=progress)
            if splits.exists():
                shutil.copyfile(splits, unfinished / splits.name)
            unfinished.rename(target)
    except OSError as error:
        raise _unwritable(target, error) from None
    return outcome


def _output_name(source: str, output: int | str, *, factor: Any, thickness: Any, name: str | None) -> str:
    """The new data set's folder name, after checking everything that needs no look at the source."""
    if (factor is None) == (thickness is None):
        got = "neither factor nor thickness" if factor is None else "both factor and thickness"
        raise InputError(got, "one of the two", "choose the number of slices per slab or the millimetres")
    if factor is not None and (not isinstance(factor, Integral) or factor < 2):
        raise InputError(f"factor {factor}", "a whole number of 2 or more slices per slab", "choose one")
    if thickness is not None and not (isinstance(thickness, int | float) and 0 < thickness < math.inf):
        raise InputError(f"thickness {thickness}", "millimetres above 0", "choose more than the slice spacing")
    if not str(output).isdecimal() or int(output) > 999:
        raise InputError(f"the output data set '{output}'", "an id of 0 to 999", "choose a free id, such as 104")
    made = f"Thick{factor}" if factor is not None else f"Thick{thickness:g}mm"
    name = source.partition("_")[2] + made if name is None else name
    if not re.fullmatch(r"[\w.+-]+", name) or re.match(r"Dataset\d{3}_", name):
        raise InputError(f"the name '{name}'", "what follows DatasetXXX_: letters, digits, _ . + -", "choose another")
    prefix = f"Dataset{int(output):03d}_"
    # One id with two names, wherever they are, makes nnU-Net refuse both.
    for folder in filter(None, map(os.environ.get, FOLDER_VARIABLES)):
        if taken := sorted(path for path in Path(folder).glob(f"{prefix}*") if path.is_dir()):
            raise InputError(
                f"the output id {output}, which {taken[0]} has", "an id without data", "choose another id or remove it"
            )
    return prefix + name


def _cases(source: Path, dataset_json: Any) -> list[Case]:
    """The training cases, then the test cases, with their files (not yet known to exist)."""
    keys = ("channel_names", "labels", "numTraining", "file_ending")
    if not isinstance(dataset_json, dict) or any(key not in dataset_json for key in keys):
        raise InputError(f"the file {source / 'dataset.json'}", f"one with {', '.join(keys)}", "complete it")
    ending = dataset_json["file_ending"]
    if ending not in VOLUME_ENDINGS:
        raise InputError(
            f"{source.name} with files {ending}", f"volumes ({', '.join(VOLUME_ENDINGS)})", "convert it to .nii.gz"
        )
    if "dataset" in dataset_json:
        try:
            # nnU-Net makes the paths absolute in place.
            files = get_filenames_of_train_images_and_targets(str(source), copy.deepcopy(dataset_json))
        except (AttributeError, KeyError, TypeError):
            raise InputError(
                f"a faulty 'dataset' entry in {source / 'dataset.json'}",
                '{"CASE": {"images": [one path per channel], "label": path}, ...}',
                "correct it",
            ) from None
        cases = [
            Case(case, "Tr", tuple(map(Path, paths["images"])), Path(paths["label"])) for case, paths in files.items()
        ]
    else:
        cases = _cases_in_folder(source, "Tr", ending)
    if not cases:
        raise InputError(f"no training case in {source}", f"files imagesTr/*_0000{ending}", "check the file ending")
    cases += _cases_in_folder(source, "Ts", ending)
    channels = dataset_json["channel_names"]
    for case in cases:
        if len(case.images) != len(channels):
            raise InputError(
                f"{len(case.images)} image files for case {case.name} in images{case.part} of {source.name}",
                f"{len(channels)}, one per channel of dataset.json",
                "restore the missing files or correct dataset.json",
            )
    return cases


def _cases_in_folder(source: Path, part: str, ending: str) -> list[Case]:
    images, labels = source / f"images{part}", source / f"labels{part}"
    if not images.is_dir():
        return []
    cases = []
    names = sorted(path.name for path in images.iterdir())
    for case in get_identifiers_from_splitted_dataset_folder(str(images), ending):
        label = labels / f"{case}{ending}"
        files = create_paths_fn(str(images), names, ending, case)
        # Training needs every label, so a missing one is found later; test cases often have none.
        cases.append(Case(str(case), part, tuple(map(Path, files)), label if part == "Tr" or label.exists() else None))
    return cases


def _labels_without_image(source: Path, cases: Sequence[Case], ending: str) -> list[str]:
    used = {case.label for case in cases}
    found = sorted(path for part in ("Tr", "Ts") for path in (source / f"labels{part}").glob(f"*{ending}"))
    return [str(path.relative_to(source)) for path in found if path not in used]


def _case_grid(case: Case) -> Grid:
    """The grid of the case's first channel, which all its files must share."""
    grid = read_grid(case.images[0])
    for path in (*case.images[1:], *filter(None, [case.label])):
        if different := grid.differences(read_grid(path)):
            kind = "label map" if path == case.label else "channel"
            raise InputError(
                f"the {kind} {path} with {', '.join(different)}",
                f"the grid of its image {case.images[0].name}",
                "resample it to the image or correct its header",
            )
    return grid


def _coarsest_axis(grids: Sequence[Grid], reorient: bool) -> int:
    spacings = [[grid.spacing[2 - grid.file_axis(axis, reorient=reorient)] for axis in range(3)] for grid in grids]
    median = np.median(spacings, axis=0)
    return int(np.argmax(median >= median.max() * (1 - TOLERANCE)))


def _case_factor(case: Case, grid: Grid, file_axis: int, *, factor: int | None, thickness: float | None) -> float:
    """Slices per slab of one case, checked against its slice spacing and its number of slices."""
    slices, spacing = grid.size[2 - file_axis], grid.spacing[2 - file_axis]
    per_slab: float
    if factor is not None:
        per_slab = factor
    else:
        assert thickness is not None
        whole = round(thickness / spacing)
        per_slab = whole if abs(whole * spacing - thickness) <= TOLERANCE * thickness else thickness / spacing
        if per_slab <= 1:
            raise InputError(
                f"thickness {thickness:g} mm for case {case.name} with slices every {spacing:g} mm",
                "slabs thicker than the slices",
                f"choose more than {spacing * (1 + TOLERANCE):g} mm",
            )
    if slab_count(slices, per_slab) < 1:
        raise InputError(
            f"slabs of {per_slab:g} slices for case {case.name}, which has {slices} along its array axis {file_axis}",
            "slabs no larger than the volume",
            "choose thinner slabs, another axis, or remove the case",
        )
    return per_slab


def _write_dataset(
    folder: Path, jobs: Sequence[tuple[Case, Grid, int, float]], dataset_json: dict, *, processes: int, progress: bool
) -> None:
    for case, *_ in jobs:
        for kind in ("images", "labels") if case.label else ("images",):
            (folder / f"{kind}{case.part}").mkdir(parents=True, exist_ok=True)

    def write(job: tuple[Case, Grid, int, float]) -> None:
        _write_case(*job, folder=folder, ending=dataset_json["file_ending"])

    _each(write, jobs, processes=processes, label="cases" if progress else None)
    # The files now lie in the ordinary layout, whatever paths the source spelt out under "dataset".
    entries = {key: value for key, value in dataset_json.items() if key != "dataset"}
    entries["numTraining"] = sum(case.part == "Tr" for case, *_ in jobs)
    (folder / "dataset.json").write_text(json.dumps(entries, indent=4))


def _write_case(case: Case, grid: Grid, axis: int, factor: float, *, folder: Path, ending: str) -> None:
    thick = grid.thick(axis=axis, factor=factor)
    for channel, path in enumerate(case.images):
        mean = average_slabs(read_volume(path), axis=axis, factor=factor)
        write_volume(mean, thick, folder / f"images{case.part}" / f"{case.name}_{channel:04d}{ending}")
    if case.label:
        labels = majority_slabs(read_volume(case.label), axis=axis, factor=factor)
        write_volume(labels, thick, folder / f"labels{case.part}" / f"{case.name}{ending}")


def _each(
    function: Callable[[Item], Result], items: Sequence[Item], *, processes: int, label: str | None
) -> list[Result]:
    """`function` of each item in threads, with a progress bar where `label` is given; the first error ends it."""
    with ThreadPoolExecutor(processes) as pool:
        return list(tqdm(pool.map(function, items), total=len(items), desc=label, disable=label is None))
