"""The side-car `slabs.json`: where each case's thick annotation lies along the slice axis of its thin image.

It stands in the raw and in the preprocessed data set folder, which nnU-Net leaves alone; a model folder, which travels,
does not hold it. Millimetres are counted from the outer edge of the first slice of the thin image as it is stored, so
that thin slice s covers [s * spacing, (s + 1) * spacing).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import read_json, write_json
from nnunetv2_ext.geometry.slabs import COVERED, CaseSlabs

SIDECAR = "slabs.json"
VERSION = 1
REMEDY = "make the data set with `nnunetv2_ext convert_thin_thick` and plan it again"


@dataclass(frozen=True)
class Sidecar:
    """The content of a side-car."""

    dataset: str
    """The data set's folder name, `Dataset042_Name`."""
    axis: int
    """Array axis of the slices, 0, 1 or 2 in the order of nnU-Net's readers (z, y, x), before nnU-Net's transpose."""
    cases: Mapping[str, CaseSlabs]

    @property
    def digest(self) -> str:
        """Of its content, as the file tells it."""
        return str(_entries(self)["digest"])

    def case(self, name: str) -> CaseSlabs:
        """The slabs of a case.

        Raises:
            InputError: the side-car does not hold it.
        """
        if name not in self.cases:
            raise InputError(f"no slabs of case {name} in the {SIDECAR} of {self.dataset}", "every case in it", REMEDY)
        return self.cases[name]


def write_sidecar(folder: Path, content: Sidecar) -> Path:
    """Write `slabs.json` into a data set folder, replacing an older one in one step.

    Returns:
        The file.

    Raises:
        InputError: an axis that is none, slabs that overlap or are not in ascending order; nothing is written then.
    """
    if content.axis not in (0, 1, 2):
        raise InputError(f"slice axis {content.axis}", "an array axis: 0, 1 or 2", "correct it")
    for name, case in content.cases.items():
        _check_slabs(name, case)
    path = folder / SIDECAR
    write_json(path, _entries(content), indent=1)
    return path


def read_sidecar(folder: Path, dataset: str) -> Sidecar:
    """Read the `slabs.json` of a raw or preprocessed data set folder.

    Args:
        folder: the data set folder.
        dataset: the name that the data set has, `Dataset042_Name`.

    Raises:
        InputError: no side-car, a damaged or edited one, one of another data set or of another version.
    """
    path = folder / SIDECAR
    entries = read_json(path, REMEDY)
    if "digest" not in entries:
        raise InputError(f"a file {path} without digest", f"a side-car as it was written, version {VERSION}", REMEDY)
    if entries.get("version") != VERSION:
        raise InputError(
            f"version {entries.get('version')} in {path}", f"version {VERSION}", "update this package, or " + REMEDY
        )
    if entries["digest"] != _digest(entries):
        raise InputError(f"an edited file {path}, whose digest does not match", "one as it was written", REMEDY)
    if entries["dataset"] != dataset:
        raise InputError(
            f"the side-car of {entries['dataset']} in {path}",
            f"that of {dataset}",
            "put the right one back, or " + REMEDY,
        )
    cases = {
        name: CaseSlabs(case["thin_spacing"], case["thin_slices"], np.array(case["slabs"], np.float64).reshape(-1, 2))
        for name, case in entries["cases"].items()
    }
    return Sidecar(entries["dataset"], entries["axis"], cases)


def _entries(content: Sidecar) -> dict[str, Any]:
    """What the file holds."""
    entries: dict[str, Any] = {
        "version": VERSION,
        "dataset": content.dataset,
        "axis": content.axis,
        "cases": {
            name: {
                "thin_spacing": float(case.thin_spacing),
                "thin_slices": int(case.thin_slices),
                "slabs": np.asarray(case.slabs, np.float64).tolist(),
            }
            for name, case in content.cases.items()
        },
    }
    entries["digest"] = _digest(entries)
    return entries


def _digest(entries: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in entries.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _check_slabs(name: str, case: CaseSlabs) -> None:
    slabs = np.asarray(case.slabs, np.float64)
    if slabs.ndim != 2 or slabs.shape[1] != 2 or not len(slabs):
        raise InputError(f"slabs of shape {slabs.shape} for case {name}", "(1 or more, 2)", "give two edges each")
    length = slabs[:, 1] - slabs[:, 0]
    if not (np.isfinite(slabs).all() and (length > 0).all()):
        raise InputError(f"slabs of case {name} without extent", "an upper edge above the lower", "correct them")
    overlap = slabs[:-1, 1] - slabs[1:, 0]
    if (overlap > COVERED * length[:-1]).any():
        number = int(overlap.argmax())
        (a, b), (c, d) = slabs[number : number + 2]
        raise InputError(
            f"slabs [{a:.12g}, {b:.12g}) and [{c:.12g}, {d:.12g}) mm of case {name}",
            "slabs in ascending order that do not overlap",
            "correct the slice thickness",
        )


def refuse_thin_annotations(sidecar: Sidecar) -> None:
    """Refuse a data set whose annotations are all as thin as the images.

    Raises:
        InputError: in no case is a slab thicker than the slices.
    """
    ratios = [float(np.diff(case.slabs).max()) / case.thin_spacing for case in sidecar.cases.values()]
    if max(ratios, default=1.0) < 1 + 1e-2:
        raise InputError(
            f"annotations of {sidecar.dataset} as thin as the images (ratio {max(ratios, default=1.0):.3g})",
            "thicker ones",
            "train it with any other trainer; MNetTrainer, for instance",
        )
