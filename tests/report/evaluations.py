"""Small evaluations: predictions of boxes beside references, measured, in the files that `evaluate` writes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunetv2_ext.evaluation.metrics import Settings, measure
from nnunetv2_ext.evaluation.scores import Score, Scores, write_scores
from nnunetv2_ext.evaluation.summary import Summary, write_summary

LABELS = {"organ": (1,), "lesion": (2,)}
SHAPE, SPACING = (6, 16, 20), (4.0, 1.0, 1.5)


def boxes(shift: int = 0, *, lesion: bool = True) -> np.ndarray:
    """An organ with a lesion in it, shifted along x."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:5, 3:13, 2 + shift : 12 + shift] = 1
    if lesion:
        labels[2:4, 6:9, 5 + shift : 8 + shift] = 2
    return labels


def write(values: np.ndarray, path: Path, spacing: Sequence[float] = SPACING) -> Path:
    """A volume; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(values)
    image.SetSpacing([float(step) for step in spacing[::-1]])
    sitk.WriteImage(image, str(path))
    return path


def write_evaluation(
    root: Path,
    models: Mapping[str, Sequence[np.ndarray]],
    *,
    cases: Sequence[str] | None = None,
    output: str = "evaluation",
    labels: Mapping[str, tuple[int, ...]] = LABELS,
    folders: Mapping[str, Path] | None = None,
    images: bool = True,
    metrics: Sequence[str] = ("Dice", "HD", "NSD"),
    settings: Settings | None = None,
) -> Path:
    """An evaluation folder, and beside it labelsTs, imagesTs and a folder of predictions for each model.

    Args:
        models: predictions of the cases, by model; references are `boxes()`.
        folders: of the trained models.
        metrics: those of metrics.csv, each a chart to draw.
    """
    settings = settings or Settings()
    lines: list[Score] = []
    evaluation = root / output
    for order, (model, predictions) in enumerate(models.items()):
        names = cases or [f"case_{number}" for number in range(len(predictions))]
        files: dict[str, tuple[Path, Path]] = {}
        measured: dict[str, dict[str, dict[str, float]]] = {}
        for case, prediction in zip(names, predictions, strict=True):
            reference = boxes()
            name = case.replace("/", "_")
            files[case] = (
                write(reference, root / "labelsTs" / f"{name}.nii.gz"),
                write(prediction, root / f"predictions_{output}_{order}" / f"{name}.nii.gz"),
            )
            if images:
                noise = np.random.default_rng(1).normal(100 * (reference > 0), 10).astype(np.float32)
                write(noise, root / "imagesTs" / f"{name}_0000.nii.gz")
            measured[case] = {}
            for label, values in labels.items():
                of = measure(
                    np.isin(reference, values), np.isin(prediction, values), SPACING, label=label, settings=settings
                )
                lines += [
                    Score(model, case, label, metric, one.value, settings.how(metric, label), one.note)
                    for metric, one in of.items()
                    if metric in metrics
                ]
                measured[case][label] = {metric: one.value for metric, one in of.items()}
        summary = Summary(model, files, dict(labels), settings=settings)
        if folders is not None and model in folders:
            summary = summary._replace(model_folders=(folders[model],))
        path = evaluation / (f"{order}" if len(models) > 1 else "") / "summary.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        keys = {label: str(values[0] if len(values) == 1 else values) for label, values in labels.items()}
        write_summary(path, summary, measured, keys=keys)
    write_scores(Scores(tuple(lines)), evaluation / "metrics.csv")
    return evaluation
