"""Thick-slice data sets: average intensity projection of neighbouring slices over a whole nnU-Net raw data set.

Slices are averaged in slabs of `factor` slices, a whole number or not, from the volume's first slice on; what fills no
slab is dropped at the end. Axes are array axes as nnU-Net's readers see them (SimpleITK's order, z, y, x): axis 0 is
SimpleITK's last index axis. All headers are checked before the first voxel is read, and the new data set appears under
its name only when it is complete.
"""

import copy
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.utilities.utils import (
    create_paths_fn,
    get_filenames_of_train_images_and_targets,
    get_identifiers_from_splitted_dataset_folder,
)

from nnunetv2_ext.data.dataset import for_each, write_dataset_json
from nnunetv2_ext.data.label_counts import LabelCount, added, count_labels
from nnunetv2_ext.data.nifti import TWO_PLACES
from nnunetv2_ext.data.splits import SPLITS
from nnunetv2_ext.data.volumes import (
    TOLERANCE,
    VOLUME_ENDINGS,
    Grid,
    read_grid,
    read_labels,
    read_volume,
    refuse_differences,
    refuse_doubt,
    write_volume,
)
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import (
    dataset_name,
    new_dataset_name,
    nnunet_folder,
    read_json,
)
from nnunetv2_ext.geometry.slabs import average, majority, slab_matrix, slice_edges
from nnunetv2_ext.locks import complete_or_absent, remove_left_behind
from nnunetv2_ext.text import counted

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


def thick_grid(grid: Grid, *, axis: int, factor: float) -> Grid:
    """The grid of slabs of `factor` slices along array axis `axis`; the origin is the first slab's centre."""
    index = 2 - axis
    size, spacing = list(grid.size), list(grid.spacing)
    size[index] = slab_count(size[index], factor)
    spacing[index] *= factor
    step = np.reshape(grid.direction, (3, 3))[:, index] * grid.spacing[index]
    origin = np.asarray(grid.origin) + step * (factor - 1) / 2
    return Grid(tuple(size), tuple(spacing), tuple(origin.tolist()), grid.direction, grid.doubt)


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
    labels: dict[int, LabelCount] = field(default_factory=dict)
    """By value, in all labelled cases."""
    names: dict[int, str] = field(default_factory=dict)
    """Of the labels, as far as dataset.json gives one to a single value."""
    left_out: list[str] = field(default_factory=list)
    """Files in the folders of images and labels that belong to no case."""
    removed: list[Path] = field(default_factory=list)
    """What a killed process had left of a data set with this id."""


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
    made = _checked_slabs(factor, thickness)
    target = raw / new_dataset_name(output, source.name.partition("_")[2] + made if name is None else name)
    if axis not in (None, 0, 1, 2):
        raise InputError(f"axis {axis}", "an array axis: 0, 1 or 2", "choose one, or none for the coarsest")

    dataset_json = read_json(source / "dataset.json", "check that nnUNet_raw holds the source data set")
    cases = _cases(source, dataset_json)
    splits = source / SPLITS
    if splits.exists():
        read_json(splits, "restore or remove it", kind=list)

    grids = for_each(_case_grid, cases, processes=processes, label="headers", progress=progress)
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
    outcome.left_out = _left_out(source, cases)
    ending = dataset_json["file_ending"]
    lost = [path for path in outcome.left_out if path.startswith("labelsTr/") and path.endswith(ending)]
    if lost:
        raise InputError(
            f"{counted(lost, 'label file')} without an image",
            "the image of each training case, in imagesTr",
            "restore the image, or remove the label file",
        )
    outcome.names = {value: label for label, value in dataset_json["labels"].items() if isinstance(value, int)}

    outcome.removed = remove_left_behind(target)
    with complete_or_absent(target) as folder:
        outcome.labels = _write_dataset(folder, jobs, dataset_json, processes=processes, progress=progress)
        if splits.exists():
            shutil.copyfile(splits, folder / splits.name)
    return outcome


def _checked_slabs(factor: Any, thickness: Any) -> str:
    """What the data set's name tells of its slabs, such as Thick4, after checking the two numbers."""
    if (factor is None) == (thickness is None):
        got = "neither factor nor thickness" if factor is None else "both factor and thickness"
        raise InputError(got, "one of the two", "choose the number of slices per slab or the millimetres")
    if factor is not None and (not isinstance(factor, Integral) or factor < 2):
        raise InputError(f"factor {factor}", "a whole number of 2 or more slices per slab", "choose one")
    if thickness is not None and not (isinstance(thickness, int | float) and 0 < thickness < math.inf):
        raise InputError(f"thickness {thickness}", "millimetres above 0", "choose more than the slice spacing")
    return f"Thick{factor}" if factor is not None else f"Thick{thickness:g}mm"


def _cases(source: Path, dataset_json: Any) -> list[Case]:
    """The training cases, then the test cases, with their files (not yet known to exist)."""
    keys = ("channel_names", "labels", "numTraining", "file_ending")
    if not isinstance(dataset_json, dict) or any(key not in dataset_json for key in keys):
        raise InputError(f"the file {source / 'dataset.json'}", f"one with {', '.join(keys)}", "complete it")
    for key in ("channel_names", "labels"):
        if not isinstance(dataset_json[key], dict):
            raise InputError(
                f"{key} {dataset_json[key]!r} in {source / 'dataset.json'}", "names by number", "correct it"
            )
    ending = dataset_json["file_ending"]
    if ending not in VOLUME_ENDINGS:
        meant = next((known for known in VOLUME_ENDINGS if known.strip(".") == str(ending).strip(".").lower()), None)
        raise InputError(
            f"{source.name} with files {ending}",
            f"volumes ({', '.join(VOLUME_ENDINGS)})",
            f"write {meant} into dataset.json, and into the names of the files" if meant else "convert it to .nii.gz",
        )
    cases = _listed_cases(source, dataset_json) if "dataset" in dataset_json else _cases_in_folder(source, "Tr", ending)
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


def _listed_cases(source: Path, dataset_json: dict) -> list[Case]:
    """The training cases whose files dataset.json names itself."""
    try:
        # nnU-Net makes the paths absolute in place.
        files = get_filenames_of_train_images_and_targets(str(source), copy.deepcopy(dataset_json))
        names = [(case, dataset_json["dataset"][case]["images"]) for case in files]
        if not all(isinstance(paths, list) for _, paths in names):
            raise TypeError
    except (AttributeError, KeyError, TypeError):
        raise InputError(
            f"a faulty 'dataset' entry in {source / 'dataset.json'}",
            '{"CASE": {"images": [one path per channel], "label": path}, ...}',
            "correct it",
        ) from None
    for case in files:
        # Files are written under the cases' names.
        if Path(case).name != case or case.startswith("."):
            where = f"'dataset' of {source / 'dataset.json'}"
            raise InputError(f"the case '{case}' in {where}", "the name of a case, without a folder", "rename it there")
    return [Case(case, "Tr", tuple(map(Path, paths["images"])), Path(paths["label"])) for case, paths in files.items()]


def _cases_in_folder(source: Path, part: str, ending: str) -> list[Case]:
    images, labels = source / f"images{part}", source / f"labels{part}"
    if not images.is_dir():
        if images.is_symlink() or images.exists():
            raise InputError(f"no folder {images}, but a file or a dead link", "a folder there", "restore or remove it")
        return []
    cases = []
    names = sorted(path.name for path in images.iterdir())
    for name in names:
        if name.startswith(".") or not name.endswith(ending):
            continue
        # nnU-Net leaves such a case out without a word.
        if not (images / name).is_file():
            what = "a folder" if (images / name).is_dir() else "no file but a link or a pipe,"
            raise InputError(f"{what} {images / name}", "a file there", "put the image there, or remove its case")
        if not re.fullmatch(r".+_\d{4}", name.removesuffix(ending)):
            raise InputError(
                f"the image {images / name}",
                f"a name that ends in the channel's number, CASE_0000{ending}",
                "rename it",
            )
    for case in get_identifiers_from_splitted_dataset_folder(str(images), ending):
        label = labels / f"{case}{ending}"
        files = create_paths_fn(str(images), names, ending, case)
        # Training needs every label, so a missing one is found later; test cases often have none.
        cases.append(Case(str(case), part, tuple(map(Path, files)), label if part == "Tr" or label.exists() else None))
    return cases


def _left_out(source: Path, cases: Sequence[Case]) -> list[str]:
    used = {path for case in cases for path in (*case.images, case.label)}
    folders = [source / f"{kind}{part}" for kind in ("images", "labels") for part in ("Tr", "Ts")]
    found = sorted(path for folder in folders if folder.is_dir() for path in folder.iterdir())
    return [str(path.relative_to(source)) for path in found if path not in used and not path.name.startswith(".")]


def _case_grid(case: Case) -> Grid:
    """The grid of the case's first channel, which all its files must share."""
    first = case.images[0]
    grid = read_grid(first)
    # Averaging needs no place in space, but what is written must not choose one of two.
    if grid.doubt.startswith(TWO_PLACES):
        refuse_doubt(grid, first)
    for path in (*case.images[1:], *filter(None, [case.label])):
        kind, other = "label map" if path == case.label else "channel", read_grid(path)
        if bool(grid.doubt) != bool(other.doubt):
            with_place, without = (path, first) if grid.doubt else (first, path)
            raise InputError(
                f"{without} with {grid.doubt or other.doubt} beside {with_place}, which has a place in space",
                "files of a case that all have one",
                "where their voxels are the same, copy it: with image = nibabel.load(one without), "
                "image.set_sform(nibabel.load(one with it).affine, 1)",
            )
        if not grid.doubt:
            refuse_doubt(other, path)
        refuse_differences(grid, other, of=f"the {kind} {path}", beside=first.name)
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
        # A thickness this near a multiple of the spacing is the multiple.
        per_slab = whole if abs(whole * spacing - thickness) <= TOLERANCE * thickness else thickness / spacing
        if per_slab <= 1:
            raise InputError(
                f"thickness {thickness:g} mm for case {case.name} with slices every {spacing:g} mm",
                "slabs thicker than the slices",
                f"choose more than {spacing / (1 - TOLERANCE):g} mm",
            )
    if slab_count(slices, per_slab) < 1:
        raise InputError(
            f"slabs of {per_slab:g} slices for case {case.name}, which has {slices} along its array axis {file_axis}",
            "slabs no larger than the volume",
            "choose thinner slabs, another axis, or remove the case",
        )
    return per_slab


Job = tuple[Case, Grid, int, float]
"""A case, its grid, the array axis of its slices in the file, and slices per slab."""


def _write_dataset(
    folder: Path, jobs: Sequence[Job], dataset_json: dict, *, processes: int, progress: bool
) -> dict[int, LabelCount]:
    """Write all cases; returns what is left of every label."""
    for case, *_ in jobs:
        for kind in ("images", "labels") if case.label else ("images",):
            (folder / f"{kind}{case.part}").mkdir(exist_ok=True)

    def write(job: Job) -> dict[int, LabelCount]:
        return _write_case(*job, folder=folder, ending=dataset_json["file_ending"])

    counts = for_each(write, jobs, processes=processes, label="cases", progress=progress)
    write_dataset_json(folder, dataset_json, training=sum(case.part == "Tr" for case, *_ in jobs))
    return added(counts)


def _write_case(
    case: Case, grid: Grid, axis: int, factor: float, *, folder: Path, ending: str
) -> dict[int, LabelCount]:
    thick = thick_grid(grid, axis=axis, factor=factor)
    for channel, path in enumerate(case.images):
        mean = average_slabs(read_volume(path), axis=axis, factor=factor)
        if not np.isfinite(mean).all():
            raise InputError(
                f"NaN or infinite voxels in {path}", "a number in every voxel", "write one there, such as 0"
            )
        write_volume(mean, thick, folder / f"images{case.part}" / f"{case.name}_{channel:04d}{ending}")
    if not case.label:
        return {}
    labels = read_labels(case.label)
    made = majority_slabs(labels, axis=axis, factor=factor)
    write_volume(made, thick, folder / f"labels{case.part}" / f"{case.name}{ending}")
    millilitres = math.prod(grid.spacing) / 1000
    return count_labels(labels, made, case=case.name, axis=axis, factor=factor, millilitres=millilitres)
