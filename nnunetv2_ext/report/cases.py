"""The cases of folders for a picture: paired by name, read upright, scored where there is a truth, chosen."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import SimpleITK as sitk
import tifffile

from nnunetv2_ext.data.dataset import for_each
from nnunetv2_ext.data.sources import find_volumes, open_volume, pair_by_name
from nnunetv2_ext.data.volumes import Grid, Volume, check_labels
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation.metrics import MM3_PER_ML
from nnunetv2_ext.evaluation.scores import nan_mean
from nnunetv2_ext.evaluation.segmentations import (
    Label,
    Labels,
    certain_differences,
    count,
    is_tiff,
    masks,
    tiff_spacing,
)
from nnunetv2_ext.files import unwritable
from nnunetv2_ext.report.figure import Shown, save_cases
from nnunetv2_ext.text import counted, listed, one_line

ORIENTATION = "LPS"
"""Of what is read: columns run to the patient's left, rows to the back, slices to the head."""

UNPLACED = Grid((0, 0, 0), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0), "no place in TIFF")

LABELS_TOLD = 8
"""In a case's title."""


class Files(NamedTuple):
    """Those of a case."""

    image: Path
    prediction: Path
    truth: Path | None = None


class Read(NamedTuple):
    """A case on one grid. Arrays are (Z, Y, X), the spacing in mm in that order."""

    image: np.ndarray
    prediction: np.ndarray
    truth: np.ndarray | None
    spacing: tuple[float, float, float]

    def values(self) -> set[int]:
        """The label values in it."""
        return _values(self.prediction) | (set() if self.truth is None else _values(self.truth))


def _values(labels: np.ndarray) -> set[int]:
    return {int(value) for value in pd.unique(labels.ravel())}


def all_labels(labels: Labels, values: set[int]) -> dict[str, Label]:
    """The labels by name; of the values, those that have no name are called by their number."""
    return dict(labels.of) | {f"label {value}": value for value in sorted(values - labels.known - {0})}


def find_cases(images: Path, predictions: Path, truths: Path | None = None, *, channel: int = 0) -> dict[str, Files]:
    """The cases that every folder holds, by name: predictions are called as the image without its channel's number.

    Raises:
        InputError: no such folder, an empty one, no case in common, or an image without that channel.
    """
    folders = [folder for folder in (images, predictions, truths) if folder is not None]
    names = {folder: list(find_volumes(folder)) for folder in folders}
    for folder, of_folder in names.items():
        if not of_folder:
            raise InputError(f"no volume in {folder}", "one file per case", "check the path")
    pairs, _ = pair_by_name(images, predictions)
    of_truths = {} if truths is None else find_volumes(truths)
    shared = [pair for pair in pairs if truths is None or pair.name in of_truths]
    if not shared:
        told = listed((f"{listed(of, shown=2)} in {folder}" for folder, of in names.items()), separator="; ")
        raise InputError(
            f"no case in common ({told})",
            "CASE_0000.nii.gz or CASE.nii.gz among the images and CASE.nii.gz among the labels",
            "check the folders, or rename the files",
        )
    for pair in shared:
        if not 0 <= channel < len(pair.images):
            got = f"--channel {channel}, where {pair.name} has {len(pair.images)}"
            raise InputError(got, f"a number from 0 to {len(pair.images) - 1}", "correct it")
    return {pair.name: Files(pair.images[channel], pair.label, of_truths.get(pair.name)) for pair in shared}


def read_case(files: Files) -> Read:
    """The volumes of a case, turned so that planes show it upright.

    Raises:
        InputError: an unreadable file, no volume, grids that differ, labels that are no whole numbers.
    """
    volumes = _opened(files)
    arrays = [volumes[0].read(), *map(_labels, volumes[1:])]
    images = [_upright(array, volumes[0]) for array in arrays]
    spacing = images[0].GetSpacing()[::-1]
    image, prediction, *truth = map(sitk.GetArrayFromImage, images)
    return Read(image, prediction, truth[0] if truth else None, (spacing[0], spacing[1], spacing[2]))


def read_black(files: Files) -> Read:
    """A case whose image cannot be read, with a black one; as `read_case` otherwise."""
    of = read_case(files._replace(image=files.prediction))
    return of._replace(image=np.zeros_like(of.image))


def _opened(files: Files) -> list[Volume]:
    """The volumes of a case, image first, on one grid; where a file leaves its place in doubt, size and spacing count.

    Raises:
        InputError: as `read_case`.
    """
    image, *others = (_open(path) for path in files if path is not None)
    for other in others:
        if different := certain_differences(image.grid, other.grid):
            what = f"{other.path} with {listed(different)}"
            raise InputError(what, f"the grid of {image.path}", "give the files that belong together")
    return [image, *others]


def _open(path: Path) -> Volume:
    return _open_tiff(path) if is_tiff(path) else open_volume(path)


class _Tiff(Volume):
    """A volume in TIFF."""

    def read(self) -> np.ndarray:
        with _readable(self.path):
            return np.asarray(tifffile.imread(self.path))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of a damaged file anything
        raise InputError(f"an unreadable file {path} ({one_line(error)})", "TIFF", "restore it") from None


def _open_tiff(path: Path) -> Volume:
    """TIFF as nnU-Net has it: a file beside it tells the spacing, that of an image without the channel's number."""
    beside = path.with_suffix(".json")
    of_image = path.with_name(re.sub(r"_\d{4}$", "", path.stem) + ".json")
    z, y, x = tiff_spacing(path, of_image if of_image.is_file() or not beside.is_file() else beside)
    with _readable(path), tifffile.TiffFile(path) as file:
        shape = file.series[0].shape
    if len(shape) != 3:
        raise InputError(f"{path} of {len(shape)} dimensions", "3D volumes of one value per voxel", "convert it")
    return _Tiff(path, replace(UNPLACED, size=shape[::-1], spacing=(x, y, z)))


def _labels(volume: Volume) -> np.ndarray:
    values = volume.read()
    check_labels(values, volume.path)
    return values.astype(np.int32) if values.dtype.kind == "f" else values


def _upright(voxels: np.ndarray, volume: Volume) -> sitk.Image:
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(volume.grid.spacing)
    image.SetDirection(volume.grid.direction)
    return sitk.DICOMOrient(image, ORIENTATION)


def dice(truth: np.ndarray | None, prediction: np.ndarray, labels: Labels) -> dict[str, float]:
    """Dice by label, NaN where neither holds it; nothing without a truth."""
    if truth is None:
        return {}
    named = all_labels(labels, _values(truth) | _values(prediction))
    return {name: count(both)["Dice"] for name, both in masks(truth, prediction, named, labels.ignore)}


def choose(
    cases: Mapping[str, Files], labels: Labels, number: int, *, processes: int, progress: bool
) -> dict[str, str]:
    """Some cases by name, with what they are among all: by mean Dice from best to worst, or spread over the folder."""
    names = list(cases)
    if next(iter(cases.values())).truth is not None:

        def mean(name: str) -> float:
            _, prediction, truth = _opened(cases[name])
            return nan_mean(dice(_labels(truth), _labels(prediction), labels).values())

        means = for_each(mean, names, processes=processes, label="score", progress=progress)
        scored = sorted((of, name) for name, of in zip(names, means, strict=True) if not math.isnan(of))
        if scored:
            return _ranked([name for _, name in reversed(scored)], number)
    return {names[index]: "" for index in _spread(len(names), number)}


def _ranked(names: Sequence[str], number: int) -> dict[str, str]:
    """Some of the cases, which stand from best to worst."""
    if len(names) == 1:
        return {names[0]: ""}
    picked = _spread(len(names), number)
    told = {0: "Best case", len(names) - 1: "Worst case"}
    told.setdefault(len(names) - 1 - median_place(len(names)), "Median case")
    return {names[index]: told.get(index, f"Case {index + 1} of {len(names)} by Dice") for index in picked}


def median_place(count: int) -> int:
    """The place of the median among so many cases from worst to best: of two in the middle it is the worse."""
    return (count - 1) // 2


def _spread(count: int, number: int) -> list[int]:
    """So many of `count` places, or all of them, from the first to the last, the middle one where they are odd."""
    number = min(number, count)
    middle = count - 1 - median_place(count)
    last = number - 1
    return [middle if 2 * place == last else round(place * (count - 1) / last) for place in range(number)]


def named(cases: Mapping[str, Files], names: Sequence[str]) -> dict[str, str]:
    """Cases asked for by name.

    Raises:
        InputError: one that is not there.
    """
    if unknown := [name for name in names if name not in cases]:
        got = f"{counted(unknown, 'case')} that not every folder holds"
        raise InputError(got, f"some of {listed(cases, shown=5)}", "correct --cases")
    return dict.fromkeys(names, "")


def draw(
    cases: Mapping[str, Files],
    chosen: Mapping[str, str],
    labels: Labels,
    path: Path,
    *,
    heading: str = "",
    note: str = "",
    window: tuple[float, float] | None = None,
) -> None:
    """Write a picture of some cases.

    Args:
        chosen: their names, with a line above each: what `choose` or `named` gave.
        labels: what values mean; `Labels({})` where nothing is known.
        path: of the PNG.
        heading, note: see `save_cases`.
        window: values shown as black and white; by default the 1st and 99.5th percentile of each image.

    Raises:
        InputError: as `read_case`, or the picture cannot be written.
    """
    read = {name: read_case(cases[name]) for name in chosen}
    drawn = all_labels(labels, set[int]().union(*(case.values() for case in read.values())))
    shown = [described(name, chosen[name], case, labels, drawn) for name, case in read.items()]
    try:
        save_cases(shown, drawn, path, heading=heading, note=note, window=window)
    except OSError as error:
        raise unwritable(path, error) from None


def described(
    name: str, rank: str, case: Read, labels: Labels, drawn: Mapping[str, Label], *, word: str = "truth"
) -> Shown:
    """A case with its title: name, Dice where there is a truth, volumes.

    Args:
        word: what the title calls the truth.
    """
    scores = dice(case.truth, case.prediction, labels)
    lines = [rank] * bool(rank) + [name, ""]
    if any(not math.isnan(value) for value in scores.values()):
        lines.append(f"mean Dice {nan_mean(scores.values()):.2f}")
    ml = math.prod(case.spacing) / MM3_PER_ML
    both = (case.prediction if case.truth is None else case.truth, case.prediction)
    counts = {label: count(of) for label, of in masks(*both, drawn, None)}
    volumes = {label: [ml * of["n_pred"], ml * of["n_ref"]] for label, of in counts.items()}
    there = [label for label in drawn if any(volumes[label])]
    # the worst, or the largest
    weights = {label: scores[label] if label in scores else -volumes[label][0] for label in there}
    told = set(sorted(there, key=weights.__getitem__)[:LABELS_TOLD])
    for label in [label for label in there if label in told]:
        score = f" {scores[label]:.2f}," if label in scores else ""
        truth = f" ({word} {_digits(volumes[label][1])})" if case.truth is not None else ""
        lines.append(f"{label}:{score} {_digits(volumes[label][0])} ml{truth}")
    if more := len(there) - len(told):
        lines.append(f"and {more} {'better' if case.truth is not None else 'smaller'} ones")
    if not case.prediction.any():
        lines.append("nothing predicted")
    return Shown("\n".join(lines), case.image, case.truth, case.prediction, case.spacing)


def _digits(volume: float) -> str:
    """Three digits, or all before the point."""
    return f"{volume:.{max(0, 2 - int(math.log10(max(volume, 1))))}f}"
