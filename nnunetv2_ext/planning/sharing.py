"""Preprocessed data that several plans read: when they may, and which cases lie there."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_ext.files import read_json

STOCK_PLANS = "nnUNetPlans"
# where two configurations agree on these, they read the same preprocessed data
_PREPROCESSING_KEYS = (
    "preprocessor_name",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_seg",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg_kwargs",
)


def agree(configuration: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two configurations ask for the same preprocessed data."""
    return all(
        np.allclose(configuration[key], other[key]) if key == "spacing" else configuration[key] == other[key]
        for key in _PREPROCESSING_KEYS
    )


def preprocessed_cases(plans_file: Path, configuration: str, *, newer_than: Iterable[Path] = ()) -> set[str]:
    """The cases that lie whole (data, segmentation, properties) in a configuration's preprocessed folder.

    Args:
        newer_than: files that the data were made from; cases written before one of them changed do not count.
    """
    changed = max((path.stat().st_mtime_ns for path in newer_than if path.is_file()), default=0)
    planned = read_json(plans_file, "plan again")["configurations"][configuration]
    folder = plans_file.parent / planned.get("data_identifier", "")
    properties = {path.stem for path in folder.glob("*.pkl") if path.stat().st_mtime_ns >= changed}
    blosc = {path.stem for path in folder.glob("*.b2nd")}
    packed = {path.stem for path in folder.glob("*.npz")}
    return {case for case in properties if case in packed or {case, f"{case}_seg"} <= blosc}
