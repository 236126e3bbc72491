"""Whether the preprocessed cases still hold the labels of the raw data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from scipy import ndimage

from nnunetv2_ext.audit.result import Finding
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation.segmentations import Labels, read_segmentation
from nnunetv2_ext.files import file_state, read_plans
from nnunetv2_ext.geometry.boxes import value_boxes
from nnunetv2_ext.text import listed, one_line

KIND = "preprocessed unlike raw"
REACH = 2
"""Voxels of the label map that resampling reaches by: linear interpolation by one, and rounding to the nearest."""
LEAST = 0.01
"""Share of a label that differs; with fewer voxels nothing is told."""
AGAIN = "preprocess again, or a training learns the old label"


def changed_since(case: str, raw: Path, reference: Path, labels: Labels) -> Finding | None:
    """Compare a raw label file with the copy that preprocessing left in gt_segmentations.

    Raises:
        InputError: one of them cannot be read.
    """
    try:
        if raw == reference or file_state(raw).digest == file_state(reference).digest:
            return None
    except OSError:  # reading tells why
        pass
    one, other = (read_segmentation(path, labels).values for path in (raw, reference))
    if one.shape != other.shape:
        sizes = " and ".join(listed(values.shape, separator=" x ") for values in (one, other))
        return Finding((case,), KIND, f"the raw label map and its preprocessed copy have {sizes} voxels: {AGAIN}")
    number = int(np.count_nonzero(one != other))
    told = f"{number} voxels of the raw label map have changed since it was preprocessed: {AGAIN}"
    return Finding((case,), KIND, told) if number else None


class Preprocessed:
    """The cases of a configuration, and how their axes lie.

    Args:
        folder: of the configuration's data, in that of the preprocessed data set.
    """

    def __init__(self, folder: Path):
        self.data = infer_dataset_class(str(folder))(str(folder))
        self.cases = frozenset(self.data.identifiers)
        self.transpose = _transpose(folder)

    def differing(self, case: str, label: Path, labels: Labels) -> Finding | None:
        """Compare a case with its label map, as far as resampling leaves no doubt.

        A preprocessed voxel has a label only where the map has it within two voxels, and must have it where the map has
        nothing else within two.

        Raises:
            InputError: the label file cannot be read.
        """
        if self.transpose is None or case not in self.cases:
            return None
        try:
            _, opened, _, properties = self.data.load_case(case)
            stored = np.asarray(opened[0])
        except Exception as error:  # of damaged files anything
            told = f"the preprocessed case cannot be read ({one_line(error, last=True)}): preprocess again"
            return Finding((case,), KIND, told)
        crop = properties.get("bbox_used_for_cropping")
        if crop is None:  # of a preprocessor that is not nnU-Net's own
            return None
        values = read_segmentation(label, labels).values.transpose(self.transpose)
        if tuple(properties["shape_before_cropping"]) != values.shape:
            sizes = listed(values.shape, separator=" x ")
            told = f"the label map has {sizes} voxels, the image that was preprocessed has not: {AGAIN}"
            return Finding((case,), KIND, told)
        values = values[tuple(slice(first, last) for first, last in crop)]
        return _compare(case, values, stored, labels)


def _compare(case: str, values: np.ndarray, stored: np.ndarray, labels: Labels) -> Finding | None:
    """The label that differs most in place, as a share of its preprocessed voxels."""
    size = zip(values.shape, stored.shape, strict=True)
    places = [((np.arange(new) + 0.5) * old / new).astype(int) for old, new in size]
    reach = 0 if values.shape == stored.shape else REACH
    names = {value: name for name, of_it in labels.values.items() for value in of_it}
    boxes = value_boxes(values)
    worst, told = 0.0, ""
    for value in sorted(names.keys() & (boxes.keys() | set(pd.unique(stored.ravel()).tolist())) - {0}):
        number = int(np.count_nonzero(stored == value))
        may = must = both = 0
        box = boxes[value].grown([reach] * 3).clipped(values.shape) if value in boxes else None
        if box is not None:
            of_raw = values[box.slices] == value
            inside = [np.flatnonzero((at >= low) & (at < high)) for at, low, high in zip(places, *box, strict=True)]
            sampled = np.ix_(*(at[those] - low for at, those, low in zip(places, inside, box.low, strict=True)))
            there = stored[np.ix_(*inside)] == value
            may = int(np.count_nonzero(there & ndimage.maximum_filter(of_raw, 2 * reach + 1)[sampled]))
            certain = ndimage.minimum_filter(of_raw, 2 * reach + 1)[sampled]
            must, both = int(np.count_nonzero(certain)), int(np.count_nonzero(certain & there))
        added, lacking = number - may, must - both
        share = (added + lacking) / max(1, number + lacking)
        if share >= LEAST and share > worst:
            worst = share
            told = f"the preprocessed case has {added} voxels of {names[value]} that its label map has not, and lacks"
            told = f"{told} {lacking} that it has ({share:.0%} of both)"
    return Finding((case,), KIND, f"{told}: {AGAIN}") if told else None


def _transpose(folder: Path) -> tuple[int, ...] | None:
    """Which axis of the label maps each axis of the preprocessed cases is, as the plans beside tell it."""
    for path in sorted(folder.parent.glob("*.json")):
        try:
            plans: Mapping[str, Any] = read_plans(path, "")
        except InputError:  # dataset.json and others
            continue
        if folder.name in {of_it.get("data_identifier") for of_it in plans["configurations"].values()}:
            forward = plans.get("transpose_forward")
            return tuple(forward) if isinstance(forward, list) else None
    return None
