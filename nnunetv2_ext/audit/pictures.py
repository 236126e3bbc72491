"""Pictures of listed cases: image, label and prediction in the planes where label and prediction differ most."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nnunetv2_ext.audit.result import Audit
from nnunetv2_ext.audit.tables import listed_as
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation.segmentations import Label
from nnunetv2_ext.files import unwritable
from nnunetv2_ext.report.cases import Files, Read, all_labels, described, read_black, read_case
from nnunetv2_ext.report.figure import label_styles, save_cases, telling_index, telling_place
from nnunetv2_ext.report.pictures import around, planes
from nnunetv2_ext.report.viewer import ViewedCase

FOLDER = "cases"
"""Of the pictures, in that of the audit."""
RIGHT = "The patient's right is on the left of axial and coronal planes."
DIFFER, LARGEST = "Where label and prediction differ most.", "Where the label is largest."
"""What the planes are."""


class Shown(NamedTuple):
    """A case of the lists with its volumes, (Z, Y, X) on one grid and upright."""

    case: str
    rank: str
    """Its number, and as what it is listed."""
    image: np.ndarray
    label: np.ndarray
    prediction: np.ndarray
    spacing: tuple[float, float, float]
    """In mm, in the order of the axes."""
    place: tuple[int, int, int]
    """The planes of its pictures."""
    predicted: bool = True
    """Whether there is a prediction; otherwise it is empty."""

    def cropped(self) -> "Shown":
        """Cut to label and prediction, with a margin."""
        box = around((self.label, self.prediction), self.spacing)
        first, second, third = (at - (of.start or 0) for at, of in zip(self.place, box, strict=True))
        image, label, prediction = self.image[box], self.label[box], self.prediction[box]
        return self._replace(image=image, label=label, prediction=prediction, place=(first, second, third))

    @property
    def read(self) -> Read:
        """As a picture of label beside prediction takes it; of the label alone where there is no prediction."""
        if self.predicted:
            return Read(self.image, self.prediction, self.label, self.spacing)
        return Read(self.image, self.label, None, self.spacing)


def cases_to_show(audit: Audit) -> dict[str, tuple[str, str]]:
    """The listed cases in their order, then those that findings are about: why they are shown, and the worst label."""
    listed = listed_as(audit)
    shown = {of.case: (f"{rank}. {listed[of.case]}", of.label) for rank, of in enumerate(audit.verdicts, start=1)}
    for finding in audit.findings:
        for case in finding.cases:
            shown.setdefault(case, (finding.kind, ""))
    return {case: why for case, why in shown.items() if case in audit.files}


def read_shown(audit: Audit, case: str, rank: str, label: str) -> tuple[Shown | None, str]:
    """The volumes of a case on one grid, turned upright, and what is missing; an image that is, is black.

    Args:
        label: that of the worst score, whose planes are shown; none: all of them.
    """
    files, note = audit.files[case], ""
    both = Files(files.image or files.label, files.prediction or files.label, files.label)
    try:
        try:
            if files.image is None:
                raise InputError("no image", "one in imagesTr", "check the raw data")
            of = read_case(both)
        except InputError as error:
            of, note = read_black(both), f"{case} is shown without its image: {error}"
    except InputError as error:
        return None, f"No picture of {case}: {error}"
    assert of.truth is not None
    prediction = of.prediction if files.prediction is not None else np.zeros_like(of.truth)
    if files.prediction is None:
        place = telling_place(of.truth, prediction, audit.labels.of)
    else:
        values = {label: audit.labels.of[label]} if label in audit.labels.of else audit.labels.of
        place = worst_place(of.truth, prediction, values, audit.labels.ignore)
    return Shown(case, rank, of.image, of.truth, prediction, of.spacing, place, files.prediction is not None), note


def save_picture(audit: Audit, shown: Shown, path: Path) -> None:
    """Write the picture of a case: image, label and prediction side by side.

    Raises:
        InputError: it cannot be written.
    """
    of = shown.read
    drawn = all_labels(audit.labels, of.values() - {audit.labels.ignore})
    case = replace(described(shown.case, shown.rank, of, audit.labels, drawn, word="label"), place=shown.place)
    note, words = (DIFFER, ("label", "prediction")) if shown.predicted else (LARGEST, ("", "label"))
    try:
        save_cases([case], drawn, path, note=f"{note} {RIGHT}", words=words)
    except OSError as error:
        raise unwritable(path, error) from None


def overlaid(audit: Audit, shown: Shown) -> str:
    """The label as an area and the prediction as a line in each plane, as the address of a PNG."""
    of = Read(shown.image, shown.prediction, shown.label, shown.spacing)
    return planes(of, audit.labels.values, (slice(None),) * 3, place=shown.place)


def worst_place(
    label: np.ndarray, prediction: np.ndarray, values: Mapping[str, Label], ignore: int | None
) -> tuple[int, int, int]:
    """The indices of the planes in which some labels and their predictions differ most.

    Args:
        label: (Z, Y, X); where it says to ignore, nothing counts.
        prediction: likewise.
        values: of the labels by name.
    """
    differs = np.zeros(label.shape, np.uint8)
    for style in label_styles(values).values():
        differs |= np.isin(label, style.values) != np.isin(prediction, style.values)
    if ignore is not None:
        differs &= label != ignore
    if not differs.any():
        return telling_place(label, prediction, values)
    styles = label_styles({"": 1}).values()
    first, second, third = (telling_index(differs, axis, styles) for axis in range(3))
    return first, second, third


def viewed_case(audit: Audit, shown: Shown) -> ViewedCase:
    """The case for the viewer."""
    title = f"{shown.case} ({shown.rank})"
    return ViewedCase(title, shown.image, shown.label, shown.prediction, shown.spacing, audit.labels.values)
