"""Data sets with labels that are known to be wrong: six kinds of errors, and labels that are one voxel thicker."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from nnunetv2_ext.data.cases import IMAGES, LABELS, Case, find_cases
from nnunetv2_ext.data.dataset import for_each, write_dataset_json
from nnunetv2_ext.data.volumes import read_grid, read_labels, write_volume
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import read_json, write_json
from nnunetv2_ext.geometry.boxes import bounding_box

SHIFT = 4
"""Voxels."""
EROSIONS = 2


class Truth(NamedTuple):
    """What was planted in a data set; it is kept outside of it."""

    cases: list[str]
    """All of the data set."""
    wrong: dict[str, str]
    """Kind of error by case."""
    dilated: list[str]
    unseen: list[str]
    """Cases of the source that the data set does not hold."""


def shifted(labels: np.ndarray, other: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """All of it 4 voxels away along one axis."""
    way = np.zeros(labels.ndim, int)
    way[random.integers(labels.ndim)] = random.choice([-SHIFT, SHIFT])
    return ndimage.shift(labels, way, order=0)


def halved(labels: np.ndarray, other: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Without what lies on one side of the middle of its box, along one axis."""
    box = bounding_box(labels > 0)
    assert box is not None, "a label map without labels cannot be halved"
    axis = random.integers(labels.ndim)
    middle = (box.low[axis] + box.high[axis]) // 2
    kept = np.moveaxis(labels.copy(), axis, 0)
    kept[slice(middle, None) if random.integers(2) else slice(0, middle)] = 0
    return np.moveaxis(kept, 0, axis)


def of_another(labels: np.ndarray, other: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Another case's label map, the middle of its image on the middle of this one."""
    laid = np.zeros_like(labels)
    here, there = [], []
    for own, its in zip(labels.shape, other.shape, strict=True):
        length = min(own, its)
        here.append(slice((own - length) // 2, (own - length) // 2 + length))
        there.append(slice((its - length) // 2, (its - length) // 2 + length))
    laid[tuple(here)] = other[tuple(there)]
    return laid


def flipped(labels: np.ndarray, other: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Mirrored along one axis, within the image."""
    return np.flip(labels, int(random.integers(labels.ndim))).copy()


def every_second(labels: np.ndarray, other: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Only every second slice annotated."""
    kept = labels.copy()
    kept[int(random.integers(2)) :: 2] = 0
    return kept


def eroded(labels: np.ndarray, other: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Without the two outer layers of voxels of the whole foreground."""
    return np.where(ndimage.binary_erosion(labels > 0, iterations=EROSIONS), labels, 0).astype(labels.dtype)


def dilated(labels: np.ndarray) -> np.ndarray:
    """One layer of voxels thicker, each of them with the nearest label."""
    foreground = labels > 0
    nearest = ndimage.distance_transform_edt(~foreground, return_distances=False, return_indices=True)
    return np.where(ndimage.binary_dilation(foreground), labels[tuple(nearest)], 0).astype(labels.dtype)


Damage = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
KINDS: dict[str, Damage] = {
    f"shift by {SHIFT} voxels": shifted,
    "half of the label": halved,
    "another case's label": of_another,
    "flip": flipped,
    "every 2nd slice": every_second,
    "eroded twice": eroded,
}
"""Each takes the label map (Z, Y, X), that of another case, and random numbers."""


def plant(
    source: Path, folder: Path, truth: Path, *, cases: int, seed: int, wrong: int = 0, share_dilated: float = 0.0
) -> Truth:
    """Make a raw data set of some cases of another one, with errors in their labels.

    Args:
        source: folder of a raw data set, which stays as it is.
        folder: the new one's, `DatasetXXX_Name`; made whole or not at all.
        truth: a JSON file outside of it, for what was planted.
        cases: how many of the source are taken, drawn by the seed.
        wrong: so many of them get an error, the kinds of `KINDS` in turns.
        share_dilated: of the cases, none of them wrong, that are dilated by one voxel.

    Raises:
        InputError: the source has too few cases, or cannot be read.
    """
    description = read_json(source / "dataset.json", "name the folder of a raw data set")
    found, faults = find_cases(source, description)
    thick = round(share_dilated * cases)
    if faults or len(found) < cases or cases < wrong + thick:
        raise InputError(f"{len(found)} whole cases in {source}", f"{cases} or more", "choose fewer")
    random = np.random.default_rng(seed)
    order = [str(name) for name in random.permutation(sorted(found))]
    taken = order[:cases]
    kinds = dict(zip(taken[:wrong], [list(KINDS)[number % len(KINDS)] for number in range(wrong)], strict=True))
    told = Truth(sorted(taken), kinds, sorted(taken[wrong : wrong + thick]), sorted(order[cases:]))
    making = folder.with_name(folder.name + "_making")
    shutil.rmtree(making, ignore_errors=True)
    for name in (IMAGES, LABELS):
        (making / name).mkdir(parents=True)
    seeds = dict(zip(taken, random.integers(2**31, size=cases), strict=True))

    def write(name: str) -> None:
        another = taken[(taken.index(name) + wrong + 1) % cases]
        _write(making, found, name, another, told, int(seeds[name]), description)

    for_each(write, told.cases, processes=2, label="planting", progress=False)
    write_dataset_json(making, description, training=cases)
    write_json(truth, told._asdict())
    shutil.rmtree(folder, ignore_errors=True)
    making.rename(folder)
    return told


def _write(
    folder: Path,
    found: Mapping[str, Case],
    name: str,
    another: str,
    told: Truth,
    seed: int,
    description: Mapping[str, Any],
) -> None:
    ending, case = description["file_ending"], found[name]
    for number, image in enumerate(case.images):
        shutil.copyfile(image, folder / IMAGES / f"{name}_{number:04d}{ending}")
    if name not in told.wrong and name not in told.dilated:
        shutil.copyfile(case.label, folder / LABELS / f"{name}{ending}")
        return
    labels = read_labels(case.label)
    if name in told.dilated:
        changed = dilated(labels)
    else:
        changed = KINDS[told.wrong[name]](labels, read_labels(found[another].label), np.random.default_rng(seed))
    write_volume(changed, read_grid(case.label), folder / LABELS / f"{name}{ending}")


def read_truth(path: Path) -> Truth:
    """What `plant` wrote."""
    return Truth(**read_json(path, "make the data set again"))


def without(wrong: Sequence[str], cases: Sequence[str]) -> list[str]:
    """The cases that are left."""
    return [case for case in cases if case not in set(wrong)]
