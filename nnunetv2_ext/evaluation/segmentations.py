"""Label files of one case, reference and prediction: what their values mean, read on one grid, counted and measured."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from tifffile import TiffFile

from nnunetv2_ext.data.description import BACKGROUND, IGNORE, ending_faults, label_faults, overwriting_reader
from nnunetv2_ext.data.volumes import (
    VOLUME_ENDINGS,
    Grid,
    check_labels,
    read_grid,
    read_labels,
)
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation.metrics import Measured, Settings, measure
from nnunetv2_ext.files import read_json
from nnunetv2_ext.geometry.boxes import around_all, value_boxes
from nnunetv2_ext.text import listed, one_line

Label = int | tuple[int, ...]
"""A value, or those of a region, as nnU-Net has them."""
REMEDY = "predict the case again from its image, or give the labels that belong to it"


@dataclass(frozen=True)
class Labels:
    """What the values of label files mean."""

    of: Mapping[str, Label]
    """By name, without background and ignore label."""
    ignore: int | None = None
    known: frozenset[int] = frozenset()
    """All values that may occur."""
    ending: str = ".nii.gz"
    """Of the files."""
    reader: type[BaseReaderWriter] | None = None
    """nnU-Net's, where dataset.json asks for one."""
    told: str = "dataset.json"
    """Where this stands."""

    @property
    def keys(self) -> dict[str, str]:
        """What nnU-Net's summaries call each label."""
        return {name: str(value) for name, value in self.of.items()}

    @property
    def values(self) -> dict[str, tuple[int, ...]]:
        return {name: value if isinstance(value, tuple) else (value,) for name, value in self.of.items()}


def labels_of(content: Mapping[str, Any], path: Path) -> Labels:
    """The labels that a dataset.json names; regions are such where nnU-Net takes them so.

    Args:
        path: its own, for messages.

    Raises:
        InputError: labels or a file ending that nnU-Net refuses.
    """
    for fault in (*label_faults(content, path), *ending_faults(content, path)):
        if fault.fatal:
            raise InputError(fault.got, fault.expected, fault.remedy)
    lists = {name: value if isinstance(value, list) else [value] for name, value in content["labels"].items()}
    regions = any(len(values) > 1 for values in lists.values())
    of: dict[str, Label] = {}
    for name, values in lists.items():
        if name not in (BACKGROUND, IGNORE) and set(values) != {0}:
            whole = regions and isinstance(content["labels"][name], list)
            of[name] = tuple(map(int, values)) if whole else int(values[0])
    known = frozenset(int(value) for values in lists.values() for value in values)
    ignore = int(lists[IGNORE][0]) if IGNORE in lists else None
    return Labels(of, ignore, known | {0}, content["file_ending"], overwriting_reader(content), str(path))


def descriptions(predictions: Sequence[Path], references: Path) -> list[Path]:
    """Every dataset.json that tells of label files: with predictions, beside the folder of the references, in it."""
    folders = (*predictions, references.resolve().parent, references)
    return [folder / "dataset.json" for folder in dict.fromkeys(folders) if (folder / "dataset.json").is_file()]


class Pair(NamedTuple):
    """The two files of a case."""

    case: str
    reference: Path
    prediction: Path

    @property
    def files(self) -> tuple[Path, ...]:
        """All that is read; a file beside TIFF tells the spacing."""
        both = (self.reference, self.prediction)
        return (*both, *(path.with_suffix(".json") for path in both if is_tiff(path)))


class Voxels(NamedTuple):
    """A label map."""

    values: np.ndarray
    """(Z, Y, X), whole numbers."""
    spacing: tuple[float, ...]
    """In mm, in the order of the axes."""

    def __str__(self) -> str:
        return f"{' x '.join(map(str, self.values.shape))} voxels of {listed(self.spacing, separator=' x ')} mm"


def is_volume(path: Path) -> bool:
    """Whether headers tell the grid; of other files nnU-Net's readers tell it with the voxels."""
    return path.name.lower().endswith(VOLUME_ENDINGS)


def is_tiff(path: Path) -> bool:
    return path.suffix.lower() in Tiff3DIO.supported_file_endings


def check_headers(pair: Pair) -> None:
    """Refuse a case whose files lie on different grids, as far as headers tell.

    Where the place of one of them is in doubt, as without qform and sform, only size and spacing are compared.

    Raises:
        InputError: a file is missing or unreadable, is no volume, or differs from the other.
    """
    for path in (pair.reference, pair.prediction):
        if is_tiff(path):
            tiff_spacing(path, path.with_suffix(".json"))
            dimensions = 0
            with suppress(OSError, ValueError, LookupError), TiffFile(path) as file:
                dimensions = file.series[0].ndim
            if dimensions == 2:  # a damaged one is told when it is read
                raise _picture(path)
        elif not is_volume(path):
            raise _picture(path)
    if is_tiff(pair.reference) or is_tiff(pair.prediction):
        return
    reference, prediction = read_grid(pair.reference), read_grid(pair.prediction)
    if different := certain_differences(reference, prediction):
        what = f"the prediction {pair.prediction} with {listed(different)}"
        raise InputError(what, f"the grid of {pair.reference}", REMEDY)


def certain_differences(one: Grid, other: Grid) -> list[str]:
    """In what two grids differ, in words; where a file leaves its place in doubt, size and spacing alone count."""
    different = one.differences(other)
    if one.doubt or other.doubt:
        return [told for told in different if told.startswith(("size", "spacing"))]
    return different


def tiff_spacing(path: Path, beside: Path) -> tuple[float, float, float]:
    """The spacing of TIFF along its axes (Z, Y, X) in mm, from the file that tells it.

    Raises:
        InputError: no such file, a damaged one, or no spacing in it.
    """
    remedy = f'write {{"spacing": [Z, Y, X]}} in mm into {beside.name} beside it'
    if not beside.is_file():
        raise InputError(f"no spacing of {path}", "a file beside TIFF that tells it, as for nnU-Net", remedy)
    spacing = read_json(beside, remedy).get("spacing")
    given = spacing if isinstance(spacing, list) else []
    numbers = [float(one) for one in given if isinstance(one, int | float) and not isinstance(one, bool)]
    if len(given) != 3 or len(numbers) != 3 or not all(0 < number < math.inf for number in numbers):
        what = "no spacing" if spacing is None else f"the spacing {json.dumps(spacing)[:100]}"
        raise InputError(f"{what} in {beside}", "three numbers of mm above 0", remedy)
    return numbers[0], numbers[1], numbers[2]


def _picture(path: Path) -> InputError:
    return InputError(f"{path}, a picture of two dimensions", "3D volumes", "use nnUNetv2_evaluate_folder for pictures")


def read_segmentation(path: Path, labels: Labels) -> Voxels:
    """A label map as nnU-Net reads it.

    Raises:
        InputError: an unreadable file, no volume, or values that are no whole numbers or not among the labels.
    """
    if is_volume(path):
        values, spacing = read_labels(path), read_grid(path).spacing[::-1]
        if labels.reader is NibabelIOWithReorient:  # its axes are those that slabs.json tells of
            values, spacing = _read_as_nnunet(path, labels.reader)
    else:
        values, spacing = _read_as_nnunet(path, labels.reader or Tiff3DIO)
        check_labels(values, path)
    found = {int(value) for value in pd.unique(values.ravel())}
    if odd := sorted(found - labels.known):
        raise InputError(
            f"the label value {listed(odd, shown=5)} in {path}",
            f"those of {labels.told}: {listed(sorted(labels.known))}",
            "correct the file, or the dataset.json that names its labels",
        )
    return Voxels(values, tuple(map(float, spacing)))


def _read_as_nnunet(path: Path, reader: type[BaseReaderWriter]) -> tuple[np.ndarray, tuple[float, ...]]:
    try:
        values, properties = reader().read_seg(str(path))
    except Exception as error:  # of a damaged file anything
        what = f"an unreadable file {path} ({one_line(error, last=True)})"
        raise InputError(what, f"what nnU-Net's {reader.__name__} reads", "restore the file") from None
    if values.ndim != 4 or len(values) != 1 or len(properties["spacing"]) != 3:
        raise _picture(path)
    return values[0], tuple(properties["spacing"])


class Masks(NamedTuple):
    """The voxels of one label."""

    reference: np.ndarray
    """(Z, Y, X) of bool, without the voxels that are ignored, cut to a box that holds the label in both."""
    prediction: np.ndarray
    """Likewise."""
    counted: int
    """Voxels of the whole image that are not ignored."""


def masks(
    reference: np.ndarray, prediction: np.ndarray, labels: Mapping[str, Label], ignore: int | None
) -> Iterator[tuple[str, Masks]]:
    """For each label by name its masks.

    Args:
        reference: label values (Z, Y, X); where they say to ignore, nothing counts, as in nnU-Net.
        prediction: likewise.
    """
    boxes = [value_boxes(voxels) for voxels in (reference, prediction)]
    ignored = ignore is not None and ignore in boxes[0]
    counted = int(np.count_nonzero(reference != ignore)) if ignored else reference.size
    for name, label in labels.items():
        values = label if isinstance(label, tuple) else (label,)
        box = around_all(of[value] for of in boxes for value in values if value in of)
        cut = (slice(0),) if box is None else box.slices
        one, other = (_is_one_of(voxels[cut], values) for voxels in (reference, prediction))
        if ignored:
            kept = reference[cut] != ignore
            one, other = one & kept, other & kept
        yield name, Masks(one, other, counted)


def _is_one_of(voxels: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Where a label map has one of some values."""
    found = voxels == values[0]
    for value in values[1:]:
        found |= voxels == value
    return found


def count(of: Masks) -> dict[str, float]:
    """What nnU-Net's summaries tell of two masks; Dice and IoU are NaN where both are empty."""
    both, reference, prediction = (
        int(np.count_nonzero(mask)) for mask in (of.reference & of.prediction, of.reference, of.prediction)
    )
    either = reference + prediction - both
    return {
        "Dice": 2 * both / (reference + prediction) if either else math.nan,
        "IoU": both / either if either else math.nan,
        "TP": both,
        "FP": prediction - both,
        "FN": reference - both,
        "TN": of.counted - either,
        "n_pred": prediction,
        "n_ref": reference,
    }


class Result(NamedTuple):
    """What became of one label of a case."""

    counts: dict[str, float]
    """See `count`."""
    metrics: dict[str, Measured]


def read_pair(pair: Pair, labels: Labels) -> tuple[Voxels, Voxels]:
    """The label maps of a case, reference and prediction.

    Raises:
        InputError: as `read_segmentation`, or the two are of other shapes or spacings.
    """
    reference, prediction = (read_segmentation(path, labels) for path in (pair.reference, pair.prediction))
    refuse_other_grid(pair, reference, prediction)
    return reference, prediction


def refuse_other_grid(pair: Pair, reference: Voxels, prediction: Voxels) -> None:
    """Refuse a case whose label maps, once they are read, are of other shapes or spacings.

    Raises:
        InputError: they are.
    """
    same = reference.values.shape == prediction.values.shape
    if not same or not np.allclose(reference.spacing, prediction.spacing, rtol=1e-3, atol=0):
        raise InputError(
            f"the prediction {pair.prediction} with {prediction}", f"the {reference} of {pair.reference}", REMEDY
        )


def measure_pair(reference: Voxels, prediction: Voxels, labels: Labels, settings: Settings) -> dict[str, Result]:
    """All metrics of each label of a case, by its name.

    Raises:
        InputError: settings that no metric can follow.
    """
    spacing, shape = reference.spacing, reference.values.shape
    return {
        name: Result(
            count(of), measure(of.reference, of.prediction, spacing, label=name, settings=settings, shape=shape)
        )
        for name, of in masks(reference.values, prediction.values, labels.of, labels.ignore)
    }
