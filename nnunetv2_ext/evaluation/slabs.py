"""Scores of thin predictions on a thin-thick data set: averaged to slabs, and against a thin truth.

Both are summaries as nnU-Net writes them. Its own, `summary.json`, compares with the annotation laid on the thin grid,
in which every slice of a slab is alike: a thin prediction that is right differs from it.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from nnunetv2.configuration import default_num_processes
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder, save_summary_json

from nnunetv2_ext.data.sidecar import Sidecar
from nnunetv2_ext.geometry.slabs import centre_slices, covered, majority, slab_matrix

SLAB_SUMMARY, THIN_SUMMARY = "summary_slabs.json", "summary_thin.json"
THIN_TRUTH = "labelsTr_thin"
"""Folder of a raw data set that may hold thin label maps, named as those in `labelsTr`; never read in training."""


class SlabReader:
    """Reads label maps as one slice per whole slab: annotations at the slab's centre, predictions by majority.

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
        case = self.sidecar.case(path.name.removesuffix(self.file_ending))
        axis = 1 + self.sidecar.axis
        matrix = slab_matrix(case.slabs, case.slices)
        whole = covered(matrix)
        if path.parent == self.truth:
            return labels.take(centre_slices(case.slabs[whole], case.slices), axis=axis), properties
        return majority(labels, matrix[whole], axis=axis), properties


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
    of_slabs = SlabReader(reader, sidecar, truth, file_ending)
    metrics = _metrics(truth, predictions, of_slabs, file_ending, labels, ignore_label)
    save_summary_json(metrics, str(predictions / SLAB_SUMMARY))
    return float(metrics["foreground_mean"]["Dice"])


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
    files = [path for path in predictions.glob(f"*{file_ending}") if (truth / path.name).is_file()]
    if not files:
        return None
    output = predictions / THIN_SUMMARY
    with TemporaryDirectory() as folder:  # nnU-Net scores whole folders
        for path in files:
            shutil.copy(path, folder)
        metrics = _metrics(truth, Path(folder), reader, file_ending, labels, ignore_label)
    for case in metrics["metric_per_case"]:
        case["prediction_file"] = str(predictions / Path(case["prediction_file"]).name)
    save_summary_json(metrics, str(output))
    return float(metrics["foreground_mean"]["Dice"]), len(files)


def _metrics(
    truth: Path, predictions: Path, reader: Any, file_ending: str, labels: Sequence[Any], ignore_label: int | None
) -> Any:
    return compute_metrics_on_folder(
        str(truth), str(predictions), None, reader, file_ending, labels, ignore_label, default_num_processes
    )
