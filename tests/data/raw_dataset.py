"""A tiny raw data set in nnU-Net's format, written by nibabel, and ways to damage it."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

NAME = "Dataset901_Raw"
CASES = ("a", "b", "c", "d", "e")
SHAPE = (12, 10, 8)
"""Of nibabel's axes, x, y, z."""
AFFINE = np.diag([1.0, 1.0, 4.0, 1.0])
DESCRIPTION: dict[str, Any] = {
    "channel_names": {"0": "MR"},
    "labels": {"background": 0, "organ": 1, "lesion": 2},
    "numTraining": len(CASES),
    "file_ending": ".nii.gz",
}
Change = Callable[["RawDataset"], object]


class RawDataset:
    """Five cases of one channel with the labels 1 and 2."""

    def __init__(self, root: Path):
        self.folder = root / NAME
        for name in ("imagesTr", "labelsTr"):
            (self.folder / name).mkdir(parents=True)
        for number, case in enumerate(CASES):
            label = self.label_array()
            noise = np.random.default_rng(number).normal(0, 1, SHAPE)
            self.write(f"imagesTr/{case}_0000.nii.gz", (noise + 100 * label + 1).astype(np.float32))
            self.write(f"labelsTr/{case}.nii.gz", label)
        self.describe()

    @staticmethod
    def label_array(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
        label = np.zeros(shape, np.uint8)
        label[2:8, 2:8, 2:6] = 1
        label[4:6, 4:6, 3:5] = 2
        return label

    def path(self, name: str) -> Path:
        return self.folder / name

    def write(self, name: str, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
        nibabel.Nifti1Image(array, affine).to_filename(self.path(name))

    def array(self, name: str) -> np.ndarray:
        return np.asarray(nibabel.load(self.path(name)).dataobj)

    def describe(self, **entries: Any) -> None:
        """Write dataset.json with some entries changed, or taken out where they are None."""
        content = {key: value for key, value in {**DESCRIPTION, **entries}.items() if value is not None}
        self.path("dataset.json").write_text(json.dumps(content))


def describe(**entries: Any) -> Change:
    return lambda data: data.describe(**entries)


def remove(name: str) -> Change:
    return lambda data: data.path(name).unlink()


def rename(name: str, to: str) -> Change:
    return lambda data: data.path(name).rename(data.path(to))


def change_voxels(name: str, change: Callable[[np.ndarray], Any], dtype: type = np.float32) -> Change:
    """Write a volume anew after a change of its voxels in place."""

    def apply(data: RawDataset) -> None:
        array: Any = data.array(name).astype(dtype)
        change(array)
        data.write(name, array)

    return apply


def put(value: float, dtype: type = np.uint8, *names: str) -> Change:
    """Put a value into a voxel of label files, by default that of case a."""

    def apply(data: RawDataset) -> None:
        for name in names or ("labelsTr/a.nii.gz",):
            change_voxels(name, lambda array: array.__setitem__((0, 0, 0), value), dtype)(data)

    return apply


def regrid(name: str, shape: tuple[int, ...] = SHAPE, affine: np.ndarray = AFFINE) -> Change:
    """Write a volume of zeros on another grid."""
    return lambda data: data.write(name, np.zeros(shape, np.uint8 if "labels" in name else np.float32), affine)


def cut_off(name: str, *, keep: int | None = None) -> Change:
    """A file whose voxels end early, by default in the middle, in a whole gzip file."""

    def apply(data: RawDataset) -> None:
        path = data.path(name)
        content = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
        kept = content[: 352 + (len(content) - 352) // 2 if keep is None else keep]
        path.write_bytes(gzip.compress(kept) if name.endswith(".gz") else kept)

    return apply


def cut_bytes(name: str) -> Change:
    """A file that a copy left off in the middle."""
    return lambda data: data.path(name).write_bytes(data.path(name).read_bytes()[: data.path(name).stat().st_size // 2])


def empty(name: str) -> Change:
    return lambda data: data.path(name).write_bytes(b"")


def both(*changes: Change) -> Change:
    return lambda data: [change(data) for change in changes]


def write_back(name: str) -> Change:
    """Restore a file of the ordinary data set."""

    def apply(data: RawDataset) -> None:
        label = data.label_array()
        data.write(name, label if "labels" in name else label.astype(np.float32) + 1)

    return apply
