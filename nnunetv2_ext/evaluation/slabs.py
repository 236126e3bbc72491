"""Scores of thin predictions on a thin-thick data set: averaged to slabs, and against a thin truth.

Both are summaries in nnU-Net's layout. Its own, `summary.json`, compares with the annotation laid on the thin grid,
in which every slice of a slab is alike: a thin prediction that is right differs from it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.configuration import default_num_processes

from nnunetv2_ext.data.dataset import for_each
from nnunetv2_ext.data.sidecar import Sidecar
from nnunetv2_ext.evaluation.metrics import SLAB_METRICS, Measured
from nnunetv2_ext.evaluation.scores import BOTH_EMPTY
from nnunetv2_ext.evaluation.segmentations import Label, Labels, Pair, Voxels, count, masks, refuse_other_grid
from nnunetv2_ext.evaluation.summary import Summary, write_summary
from nnunetv2_ext.geometry.slabs import centre_slices, covered, majority, slab_matrix

SLAB_SUMMARY, THIN_SUMMARY = "summary_slabs.json", "summary_thin.json"
THIN_TRUTH = "labelsTr_thin"
"""Folder of a raw data set that may hold thin label maps, named as those in `labelsTr`; never read in training."""


def to_slabs(labels: np.ndarray, sidecar: Sidecar, case: str, *, annotation: bool, first: int = 0) -> np.ndarray:
    """Labels as one slice per whole slab along the slice axis: an annotation at its centre, a prediction by majority.

    Args:
        labels: on the thin grid.
        first: the array axis that the side-car counts from.
    """
    slabs, axis = sidecar.case(case), first + sidecar.axis
    matrix = slab_matrix(slabs.slabs, slabs.slices)
    whole = covered(matrix)
    if annotation:
        return labels.take(centre_slices(slabs.slabs[whole], slabs.slices), axis=axis)
    return majority(labels, matrix[whole], axis=axis)


def count_slabs(
    reference: np.ndarray, prediction: np.ndarray, sidecar: Sidecar, case: str, labels: Labels
) -> dict[str, dict[str, float]]:
    """What `count` tells of the slabs of a case, by label.

    Args:
        reference: (Z, Y, X), the annotation laid on the thin grid.
        prediction: (Z, Y, X).
    """
    of_reference = to_slabs(reference, sidecar, case, annotation=True)
    of_prediction = to_slabs(prediction, sidecar, case, annotation=False)
    return {name: count(of) for name, of in masks(of_reference, of_prediction, labels.of, labels.ignore)}


def of_slabs(counts: Mapping[str, float] | None) -> dict[str, Measured]:
    """`SLAB_METRICS` of what `count_slabs` gave; none where there is nothing."""
    if counts is None:
        return {}
    reference, prediction = counts["n_ref"], counts["n_pred"]
    note = "" if reference and prediction else "no prediction" if reference else "no reference"
    note = note if reference or prediction else BOTH_EMPTY
    return {name: Measured(counts[name.partition(" ")[0]], note) for name in SLAB_METRICS}


class SlabReader:
    """Reads label maps as one slice per whole slab, see `to_slabs`.

    Args:
        reader: nnU-Net's, for the files themselves.
        truth: folder of the annotations.
        file_ending: with its dot.
    """

    def __init__(self, reader: Any, sidecar: Sidecar, truth: Path, file_ending: str):
        self.reader, self.sidecar, self.truth, self.file_ending = reader, sidecar, truth, file_ending

    def read_seg(self, file: str) -> tuple[np.ndarray, dict[str, Any]]:
        """The label map (1, slabs, ...) along the slice axis, and the properties of the file's grid."""
        path = Path(file)
        labels, properties = self.reader.read_seg(file)
        case, annotation = path.name.removesuffix(self.file_ending), path.parent == self.truth
        return to_slabs(labels, self.sidecar, case, annotation=annotation, first=1), properties


def summarize_slabs(
    truth: Path,
    predictions: Path,
    sidecar: Sidecar,
    *,
    reader: Any,
    file_ending: str,
    labels: Sequence[Any],
    ignore_label: int | None,
) -> float:
    """Write `summary_slabs.json` beside the predictions: they averaged to slabs, against the thick annotations.

    Args:
        truth: folder of the annotations laid on the thin grid.
        reader: nnU-Net's for these files.
        labels: labels or regions.

    Returns:
        The mean Dice over labels.
    """
    pairs = [
        Pair(path.name.removesuffix(file_ending), truth / path.name, path) for path in _files(predictions, file_ending)
    ]
    of_slabs = SlabReader(reader, sidecar, truth, file_ending)
    return _summarize(pairs, of_slabs, labels, ignore_label, predictions / SLAB_SUMMARY)


def summarize_thin(
    truth: Path, predictions: Path, *, reader: Any, file_ending: str, labels: Sequence[Any], ignore_label: int | None
) -> tuple[float, int] | None:
    """Write `summary_thin.json` beside the predictions: against thin label maps, of the cases that have one.

    Args:
        truth: folder of the thin label maps, named as the predictions.

    Returns:
        The mean Dice over labels and the number of cases; None, and no file, where no case has a label map.

    Raises:
        ValueError, RuntimeError: a label map of another grid, or one that cannot be read.
    """
    files = [path for path in _files(predictions, file_ending) if (truth / path.name).is_file()]
    if not files:
        return None
    pairs = [Pair(path.name.removesuffix(file_ending), truth / path.name, path) for path in files]
    return _summarize(pairs, reader, labels, ignore_label, predictions / THIN_SUMMARY), len(files)


def _files(folder: Path, ending: str) -> list[Path]:
    return sorted(folder.glob(f"*{ending}"))


def _summarize(
    pairs: Sequence[Pair], reader: Any, labels: Sequence[Label], ignore_label: int | None, output: Path
) -> float:
    """Count the voxels of every label in every case, and write a summary of that.

    Returns:
        The mean Dice over labels.
    """
    # nnU-Net's label manager gives numpy's numbers
    plain: list[Label] = [tuple(map(int, one)) if isinstance(one, tuple) else int(one) for one in labels]
    named = {str(label): label for label in plain}

    def counted(pair: Pair) -> dict[str, dict[str, float]]:
        both = []
        for path in (pair.reference, pair.prediction):
            voxels, properties = reader.read_seg(str(path))
            both.append(Voxels(voxels[0], tuple(map(float, properties["spacing"]))))
        refuse_other_grid(pair, *both)
        return {name: count(of) for name, of in masks(both[0].values, both[1].values, named, ignore_label)}

    metrics = for_each(counted, pairs, processes=default_num_processes, label="", progress=False)
    summary = Summary(
        str(output.parent),
        {pair.case: (pair.reference, pair.prediction) for pair in pairs},
        {name: label if isinstance(label, tuple) else (label,) for name, label in named.items()},
        None if ignore_label is None else int(ignore_label),
    )
    of_cases = {pair.case: of_case for pair, of_case in zip(pairs, metrics, strict=True)}
    return write_summary(output, summary, of_cases, keys={name: name for name in named})
