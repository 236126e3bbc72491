"""`summary.json` of evaluated predictions: in nnU-Net's layout, with our metrics and what they were computed of."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnunetv2_ext import __version__
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation.metrics import Settings
from nnunetv2_ext.evaluation.scores import FILE as SCORES
from nnunetv2_ext.evaluation.scores import nan_mean
from nnunetv2_ext.files import read_json, write_json

FILE = "summary.json"
OURS = "nnunetv2_ext"
"""The key beside nnU-Net's."""
REMEDY = "give the folder that nnunetv2_ext evaluate wrote"
AGAIN = "evaluate again, with --overwrite"


class Summary(NamedTuple):
    """What a model's scores were computed of."""

    model: str
    files: dict[str, tuple[Path, Path]]
    """Reference and prediction, by case."""
    labels: dict[str, tuple[int, ...]]
    """The values of each label or region by its name, without background and ignore label."""
    ignore_label: int | None = None
    settings: Settings = Settings()
    model_folders: tuple[Path, ...] = ()
    """Of the trained models, where they are known."""
    folds: tuple[str, ...] = ()
    images: Path | None = None
    """The folder of the images, where it is known."""


def write_summary(
    path: Path,
    summary: Summary,
    metrics: Mapping[str, Mapping[str, Mapping[str, float]]],
    *,
    keys: Mapping[str, str],
) -> float:
    """Write a `summary.json`, whole or not at all.

    As nnU-Net does, a mean over cases passes over NaN, and the mean over labels does not.

    Args:
        metrics: by case, label and name of the metric.
        keys: what nnU-Net calls each label, by its name: `1`, or `(1, 2)` for a region.

    Returns:
        The mean Dice over labels.

    Raises:
        OSError: as `files.write_json`.
    """
    means: dict[str, dict[str, float]] = {}
    for label, key in keys.items():
        of_cases = [of_case[label] for of_case in metrics.values()]
        means[key] = {name: nan_mean(of_case[name] for of_case in of_cases) for name in of_cases[0]}
    names = next(iter(means.values()))
    foreground = {name: float(np.mean([of_label[name] for of_label in means.values()])) for name in names}
    cases = [
        {
            "case": case,
            "reference_file": str(summary.files[case][0]),
            "prediction_file": str(summary.files[case][1]),
            "metrics": {keys[label]: dict(of_label) for label, of_label in of_case.items()},
        }
        for case, of_case in metrics.items()
    ]
    labels = {name: values[0] if keys[name].isdecimal() else list(values) for name, values in summary.labels.items()}
    ours = {
        "version": __version__,
        "model": summary.model,
        "model_folders": [str(folder.absolute()) for folder in summary.model_folders],
        "folds": list(summary.folds),
        "labels": labels,
        "ignore_label": summary.ignore_label,
        "settings": asdict(summary.settings),
        "images": None if summary.images is None else str(summary.images.absolute()),
    }
    write_json(path, {"foreground_mean": foreground, "mean": means, "metric_per_case": cases, OURS: ours})
    return foreground["Dice"]


def read_summaries(folder: Path) -> dict[str, Summary]:
    """The summaries of an evaluation, by model: of its one model in the folder itself, of several in a folder each.

    Args:
        folder: what `nnunetv2_ext evaluate` wrote into, or `metrics.csv` in it.

    Raises:
        InputError: no summary, or another one than ours.
    """
    folder = folder.parent if folder.is_file() else folder
    paths = paths_in(folder)
    if (one := folder / FILE) in paths:
        paths = [one]
    if not paths and one.is_file():
        paths = [one]  # tells whose it is
    if not paths:
        raise InputError(f"no {FILE} in {folder}", "the summary of an evaluation", REMEDY)
    summaries = [_read(path) for path in paths]
    return {summary.model: summary for summary in summaries}


def paths_in(folder: Path) -> list[Path]:
    """The summaries of an evaluation, of one model or of several.

    Those of another one have `metrics.csv` beside; nnU-Net's, as with predictions in the same folder, are passed over.
    """
    several = (path for path in sorted(folder.glob(f"*/{FILE}")) if not path.with_name(SCORES).exists())
    return [path for path in (folder / FILE, *several) if path.is_file() and is_ours(path)]


def is_ours(path: Path) -> bool:
    """Whether a summary is one of an evaluation, be it damaged, and not nnU-Net's."""
    try:
        return OURS in read_json(path, REMEDY)
    except InputError:
        return True


def _read(path: Path) -> Summary:
    content = read_json(path, AGAIN)
    if OURS not in content:
        raise InputError(f"{path} without {OURS}, which nnU-Net wrote", "a summary of nnunetv2_ext evaluate", REMEDY)
    try:
        ours: dict[str, Any] = content[OURS]
        values = {name: value if isinstance(value, list) else [value] for name, value in ours["labels"].items()}
        return Summary(
            model=str(ours["model"]),
            files={
                str(case["case"]): (Path(case["reference_file"]), Path(case["prediction_file"]))
                for case in content["metric_per_case"]
            },
            labels={name: tuple(map(int, numbers)) for name, numbers in values.items()},
            ignore_label=None if ours["ignore_label"] is None else int(ours["ignore_label"]),
            settings=Settings(**ours["settings"]),
            model_folders=tuple(map(Path, ours["model_folders"])),
            folds=tuple(map(str, ours["folds"])),
            images=None if ours["images"] is None else Path(ours["images"]),
        )
    except (LookupError, TypeError, ValueError, AttributeError):
        raise InputError(f"a damaged file {path}", "a summary of nnunetv2_ext evaluate", AGAIN) from None
