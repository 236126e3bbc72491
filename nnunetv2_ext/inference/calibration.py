"""How large a margin a region of interest needs: measured on the validation of the model that draws it.

The cases of a fold's validation were not seen in its training. If each of n needs at most m mm, one more case of the
same kind needs more than m with a probability of at most 1 / (n + 1).
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_ext.data.description import IGNORE
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation.folder import validated
from nnunetv2_ext.files import read_json, read_plans, unwritable, write_json
from nnunetv2_ext.geometry.boxes import Box, component_boxes
from nnunetv2_ext.inference.trained import SUMMARY, lost_predictions
from nnunetv2_ext.text import counted, listed, one_line

MISSED = 0.5
"""A case of which the boxes hold less than this, without a margin, is missed: no margin would mend that."""
MOST_MISSES = 0.05
FEWEST, FEW = 10, 50
"""Cases below which a calibration is refused, and below which it is told that they are few."""
MOST_BOXES = 1000
"""Of a prediction of noise the largest ones count alone: it is to take seconds, and can only need more."""
BLOCK = "roi"
"""The key of a configuration that holds what was measured."""


class Need(NamedTuple):
    """What one case asks of the margin."""

    case: str
    fold: int
    by_label: dict[str, float]
    """mm around the boxes that each label of the case needs."""
    recall: float
    """The share of its foreground that the boxes hold without a margin."""

    @property
    def missed(self) -> bool:
        return self.recall < MISSED

    @property
    def margin(self) -> float:
        """mm that all of its foreground needs."""
        return max(self.by_label.values(), default=0.0)


class Calibration(NamedTuple):
    """What the validated cases of a model ask for."""

    needs: list[Need]
    margin: float
    """mm: the largest need of a case that is not missed, and one voxel of the model."""
    voxel: float
    """mm, its longest side."""

    @property
    def misses(self) -> list[Need]:
        return [need for need in self.needs if need.missed]

    @property
    def fails(self) -> bool:
        """Whether there are too many misses for any margin."""
        return len(self.misses) > MOST_MISSES * len(self.needs)

    def block(self) -> dict[str, Any]:
        """For the configuration in the model folder's plans.json."""
        recall = float(np.mean([need.recall for need in self.needs]))
        return {
            "margin_mm": self.margin,
            "cases": len(self.needs),
            "misses": len(self.misses),
            "recall": round(recall, 6),
        }


def margins_needed(
    predicted: np.ndarray, truth: np.ndarray, spacing: Sequence[float], labels: Mapping[str, Sequence[int]]
) -> tuple[dict[str, float], float]:
    """How far the truth reaches out of the boxes of a prediction.

    Boxes are taken as they are, one per component: merging them can only hold more.

    Args:
        predicted: labels (Z, Y, X); all but 0 are foreground.
        truth: labels of the same shape.
        spacing: mm along its axes.
        labels: the values in `truth` of each label or region.

    Returns:
        mm that each label in `truth` needs, infinite where nothing is predicted, and the share of all their voxels that
        lies in the boxes as they are, 1 where there are none.
    """
    boxes = component_boxes(predicted > 0)
    foreground = np.isin(truth, sorted({value for values in labels.values() for value in values}))
    outside = foreground.copy()
    for box in boxes:
        outside[box.slices] = False
    total = int(foreground.sum())
    places = np.argwhere(outside)
    needed = _distances(places, boxes, spacing)
    of_places = truth[tuple(places.T)]
    by_label = {
        name: float(needed[np.isin(of_places, values)].max(initial=0.0))
        for name, values in labels.items()
        if np.isin(truth, values).any()
    }
    return by_label, 1 - len(places) / total if total else 1.0


def _distances(places: np.ndarray, boxes: Sequence[Box], spacing: Sequence[float]) -> np.ndarray:
    """mm by which the nearest box must grow on every side to hold each voxel: (voxels,)."""
    nearest = np.full(len(places), np.inf)
    for box in sorted(boxes, key=lambda box: -int(np.prod(box.shape)))[:MOST_BOXES]:
        gaps = np.maximum(np.subtract(box.low, places), places - np.array(box.high) + 1)  # (voxels, 3)
        nearest = np.minimum(nearest, (np.maximum(gaps, 0) * np.array(spacing)).max(axis=1))
    return nearest


def calibrate(
    model: Path, references: Path, folds: Sequence[int], *, commands: str, processes: int = 1, strict: bool = False
) -> Calibration:
    """Measure the margin of a trained model on its validated cases; nothing is predicted or written.

    Args:
        model: its folder, with folds and their validation.
        references: labels of the cases, `gt_segmentations` in the preprocessed data set.
        folds: numbers of the folds.
        commands: the command that trains a fold, with `{fold}` in it, for remedies.
        processes: cases read at the same time.
        strict: refuse at the first miss.

    Raises:
        InputError: a fold without a finished validation, cases without reference or twice, too few cases, a reference
            of another shape or spacing, a missed case where `strict` says so.
    """
    configuration = model.name.rpartition("__")[2]
    plans = read_plans(model / "plans.json", "give the folder of a trained model")
    description = read_json(model / "dataset.json", "train the model again")
    if configuration not in plans["configurations"]:
        what = f"{model / 'plans.json'} without the configuration {configuration}"
        raise InputError(what, "the plans of the training", "keep the name of the folder that training gave it")
    manager = PlansManager(plans)
    labels = _labels(description)
    cases = _validated(model, folds, description["file_ending"], commands)
    reader = manager.image_reader_writer_class()

    def look(named: tuple[str, int]) -> Need:
        case, fold = named
        files = [
            model / f"fold_{fold}" / "validation" / f"{case}{description['file_ending']}",
            references / f"{case}{description['file_ending']}",
        ]
        (predicted, spacing), (truth, other) = (_read(reader, file) for file in files)
        if predicted.shape != truth.shape or not np.allclose(spacing, other, rtol=1e-3):
            told = [
                f"{listed(a.shape)} voxels of {listed(map(float, s))} mm"
                for a, s in ((predicted, spacing), (truth, other))
            ]
            raise InputError(
                f"the case {case} of {told[0]} in {files[0].parent}, and {told[1]} in {references}",
                "the grid of its reference",
                f"validate again: {commands.format(fold=fold)} --val",
            )
        need = Need(case, fold, *margins_needed(predicted, truth, spacing, labels))
        if strict and need.missed:
            raise InputError(
                f"the case {case} of fold {fold}, of whose foreground the boxes hold {need.recall:.1%}",
                f"at least {MISSED:.0%}",
                "look at that case, train the model longer, or drop --strict",
            )
        return need

    with ThreadPoolExecutor(max(1, processes)) as pool:
        needs = list(pool.map(look, cases))
    voxel = float(max(manager.get_configuration(configuration).spacing))
    found = [need.margin for need in needs if not need.missed]
    return Calibration(needs, round(max(found, default=0.0) + voxel, 4), voxel)


def record(model: Path, calibration: Calibration) -> Path:
    """Write what was measured into the configuration of the model folder's plans.json; returns that path.

    A new training writes plans.json anew, without it; an export keeps it.

    Raises:
        InputError: the file cannot be written.
    """
    path = model / "plans.json"
    plans = read_plans(path, "train the model again")
    plans["configurations"][model.name.rpartition("__")[2]][BLOCK] = calibration.block()
    try:
        write_json(path, plans)
    except OSError as error:
        raise unwritable(path, error) from None
    return path


def _labels(description: Mapping[str, Any]) -> dict[str, list[int]]:
    """The values of each label or region but background; what is ignored needs no box."""
    lists = {name: value if isinstance(value, list) else [value] for name, value in description["labels"].items()}
    return {name: values for name, values in lists.items() if name != IGNORE and set(values) != {0}}


def _validated(model: Path, folds: Sequence[int], ending: str, commands: str) -> list[tuple[str, int]]:
    """The cases of the folds' validations."""
    places = {fold: model / f"fold_{fold}" / "validation" for fold in folds}
    lacking = [fold for fold, of in places.items() if not (of / SUMMARY).is_file() or lost_predictions(of)]
    if lacking:
        lines = []
        for fold in lacking:
            trained = (model / f"fold_{fold}" / "checkpoint_final.pth").is_file()
            lines.append(commands.format(fold=fold) + " --val" * trained)
        raise InputError(
            f"no finished validation in {counted([f'fold_{fold}' for fold in lacking], 'fold')} of {model}",
            "validated folds",
            "\n  ".join(["run", *lines]) + "\nand then this command again",
        )
    files = validated(model, folds, ending)
    cases = [(case, int(path.parent.parent.name.removeprefix("fold_"))) for case, path in files.items()]
    if len(cases) < FEWEST:
        raise InputError(
            f"{len(cases)} validated cases in fold{'s' * (len(folds) > 1)} {listed(folds, separator=' ')}",
            f"{FEWEST} or more, best {FEW}",
            "train and validate more folds and name them with -f, or give --roi-margin to predict instead",
        )
    return cases


def _read(reader: Any, path: Path) -> tuple[np.ndarray, Sequence[float]]:
    """Labels (Z, Y, X) as nnU-Net's reader gives them, and their spacing."""
    if not path.is_file():
        raise InputError(f"no file {path}", "the labels of each validated case", "preprocess the data set again")
    try:
        labels, properties = reader.read_seg(str(path))
    except Exception as error:  # of the libraries that read the formats
        raise InputError(f"an unreadable file {path} ({one_line(error, last=True)})", "labels", "restore it") from None
    return labels[0], properties["spacing"]
