"""All of an evaluation in one HTML file, which loads nothing from anywhere."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation.comparison import (
    LEVEL,
    Comparison,
    check_settings,
    compare,
    comparison_notes,
    counts_of,
    together,
)
from nnunetv2_ext.evaluation.means import COUNTS
from nnunetv2_ext.evaluation.metrics import ALL_METRICS, Metric, Settings
from nnunetv2_ext.evaluation.palette import COLOURS
from nnunetv2_ext.evaluation.scores import FILE as SCORES
from nnunetv2_ext.evaluation.scores import Scores, read_scores
from nnunetv2_ext.evaluation.summary import Summary, read_summaries
from nnunetv2_ext.files import check_output_file
from nnunetv2_ext.report.charts import HATCHES, box_chart, curves_chart, is_wide, letter
from nnunetv2_ext.report.chosen import choose_few, picture_case, rank_cases, rank_metric, view_case, worst_median_best
from nnunetv2_ext.report.html import render, viewed, write_page
from nnunetv2_ext.report.models import Trained, describe_model, model_folders
from nnunetv2_ext.report.tables import (
    NONE,
    all_cases,
    compared,
    failed_predictions,
    headed,
    means,
    metric_of,
    number,
    one_sided,
    weakest,
    with_unit,
)
from nnunetv2_ext.text import counted, listed

GLANCE = ("Dice", "HD95", "NSD")
"""The metrics that stand beside the names of the models, over all labels."""
PLACES = 64
"""Of boxes and gaps in a chart, at most."""


def write_report(
    evaluations: Sequence[Path],
    output: Path,
    *,
    images: Path | None = None,
    title: str | None = None,
    note: str = "",
    cases: int = 3,
    viewer_cases: int = 3,
) -> list[str]:
    """Write the page, whole or not at all.

    Args:
        evaluations: folders that `nnunetv2_ext evaluate` wrote, or their metrics.csv.
        output: an HTML file; one that is there is replaced.
        images: folder of the images, named as in imagesTr; None: where the evaluation or its labels tell.
        title: by default the data set's name.
        note: what a reader must know first, below the heading.
        cases: how many of the worst cases have pictures, beside the median and the best one.
        viewer_cases: how many cases are in the interactive viewer.

    Returns:
        What the page lacks, a sentence each.

    Raises:
        InputError: no evaluation, several that do not fit together, or an output that cannot be written.
    """
    check_output_file(output, "-o")
    if output.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"-o {output}", "a file .html", "choose another name")
    if images is not None and not images.is_dir():
        raise InputError(f"-i {images}", "a folder of images named as in imagesTr", "check the path")
    scores, summaries, lacking = _read(evaluations)
    trained = _trained(summaries)
    ranked, groups = rank_cases(scores), means(scores)
    content = {
        "note": note,
        "title": title or _title(evaluations, trained),
        "scores": scores,
        "settings": _settings(summaries, scores),
        "models": [_model(scores, summaries, order) for order in range(len(scores.models))],
        "trained": trained,
        "trained_rows": _side_by_side(trained),
        "curves": [(one, Markup(_curves(one))) for one in trained if any(fold.curves for fold in one.folds)],
        "failed": failed_predictions(summaries),
        "one_sided": one_sided(scores),
        "counts": bool(ranked),
        "weakest": [(metric, rows) for metric in ("Dice", "HD") if (rows := weakest(scores, metric))],
        "means": groups,
        "beside": COUNTS.capitalize(),
        "glance": [line for line in groups[0][1] if line.metric in map(with_unit, GLANCE)],
        "boxes": _boxes(scores),
        "all_cases": all_cases(scores),
        "columns": [(with_unit(metric), headed(metric, scores)) for metric in scores.metrics],
        "meanings": [(metric, ALL_METRICS[metric]) for metric in scores.metrics if metric in ALL_METRICS],
        "rank_metric": rank_metric(scores),
    }
    content |= _comparison(scores)
    chosen = worst_median_best(ranked, cases) if summaries else []
    shown = [picture_case(scores, summaries, one, images) for one in chosen]
    views = [view_case(summaries, one, images) for one in choose_few(ranked, viewer_cases)]
    content |= {"shown": shown, "lacking": lacking, **viewed([view for view in views if view is not None])}
    write_page(render("page.html", content), output)
    return [
        *lacking,
        *(fault for one in trained for fault in one.faults),
        *(note for one in shown for note in one.notes),
    ]


def _read(evaluations: Sequence[Path]) -> tuple[Scores, dict[str, Summary], list[str]]:
    """Scores and summaries of all evaluations, and what is not known.

    Raises:
        InputError: see `write_report`.
    """
    parts = [(str(path), read_scores(path)) for path in evaluations]
    for name, part in parts[1:]:
        if set(part.labels) != set(parts[0][1].labels):
            raise InputError(
                f"the labels {listed(parts[0][1].labels)} in {parts[0][0]} and {listed(part.labels)} in {name}",
                "the same labels in all",
                "make a report of each",
            )
    scores, summaries, lacking = together(parts), {}, []
    remedy = "evaluate all with the same flags, or make a report of each"
    check_settings(scores, remedy, labels=scores.labels, metrics=scores.metrics)
    for path in evaluations:
        try:
            summaries.update(read_summaries(path))
        except InputError as error:
            lacking.append(f"Models and pictures of {path} are missing: {error}")
    if summaries and (without := [model for model in scores.models if model not in summaries]):
        lacking.append(f"No summary.json of {listed(without)}: models and pictures of it are missing; evaluate again.")
    for path, (_, part) in zip(evaluations, parts, strict=True):
        lacking += _changed_since(path, [summaries[model] for model in part.models if model in summaries])
    return scores, {model: summaries[model] for model in scores.models if model in summaries}, lacking


def _changed_since(evaluation: Path, summaries: Sequence[Summary]) -> list[str]:
    """A sentence where masks are newer than the scores of their evaluation, so that pictures show something else."""
    path = evaluation / SCORES if evaluation.is_dir() else evaluation
    measured = path.stat().st_mtime_ns
    files = {file for summary in summaries for both in summary.files.values() for file in both}
    newer = sorted(str(file) for file in files if file.is_file() and file.stat().st_mtime_ns > measured)
    told = f"{counted(newer, 'file')} newer than {path}: pictures may show what was not measured; evaluate again."
    return [told] * bool(newer)


def _title(evaluations: Sequence[Path], trained: Sequence[Trained]) -> str:
    names = dict.fromkeys(one.settings["data set"] for one in trained if "data set" in one.settings)
    return f"Evaluation: {listed(names or [evaluations[0].resolve().name])}"


def _settings(summaries: Mapping[str, Summary], scores: Scores) -> list[tuple[str, str]]:
    """What the metrics depend on, by the summaries or else by the scores."""
    if not summaries:
        hows = dict.fromkeys(f"{line.metric}: {line.how}" for line in scores.lines if line.how)
        return [(metric, how) for metric, _, how in (text.partition(": ") for text in hows)]
    settings: Settings = next(iter(summaries.values())).settings
    own = listed(f"{label} {value:g} mm" for label, value in settings.tolerances.items())
    empty = "the diagonal of the image" if settings.empty is None else f"{settings.empty:g} mm"
    return [
        ("tolerance of NSD", f"{settings.tolerance:g} mm" + (f" ({own})" if own else "")),
        ("distance where one mask alone is empty", empty),
        ("voxels of a component touch in", f"{settings.connectivity} neighbours"),
        ("a component is found from an IoU of", f"{settings.lesion_iou:g}"),
    ]


def _model(scores: Scores, summaries: Mapping[str, Summary], order: int) -> dict[str, Any]:
    """A model of the evaluation: its letter, its mark in charts, and what it is made of."""
    name = scores.models[order]
    summary = summaries.get(name)
    folders = model_folders(summary) if summary else {}
    told = [
        folder.name.replace("__", ":") + (f", fold{'s' * (len(folds) > 1)} {listed(folds)}" if folds else "")
        for folder, folds in folders.items()
    ]
    hatch = HATCHES[order % len(HATCHES)]
    return {
        "order": order,
        "letter": letter(order),
        "name": name,
        "of": listed(told, separator=" and "),
        "colour": COLOURS[order % len(COLOURS)],
        "hatch": {"": "", "/": "slash", ".": "dots", "\\": "backslash", "x": "cross", "-": "rows", "|": "columns"}[
            hatch[:1]
        ],
    }


def _trained(summaries: Mapping[str, Summary]) -> list[Trained]:
    """Each model folder once, with the folds that any of the evaluated models uses."""
    folders: dict[Path, dict[str, None]] = {}
    for summary in summaries.values():
        for folder, folds in model_folders(summary).items():
            folders.setdefault(folder, {}).update(dict.fromkeys(folds))
    return [describe_model(folder, tuple(sorted(folds))) for folder, folds in folders.items()]


def _side_by_side(trained: Sequence[Trained]) -> list[tuple[str, list[str]]]:
    """Settings, with the value of each model."""
    keys = dict.fromkeys(key for one in trained for key in one.settings)
    return [(key, [one.settings.get(key, NONE) for one in trained]) for key in keys]


def _curves(trained: Trained) -> str:
    ends = [
        f"fold {fold.name} ends after {fold.epochs} epochs at a pseudo Dice of {fold.curves['ema_fg_dice'][-1]:.3f}"
        for fold in trained.folds
        if "ema_fg_dice" in fold.curves
    ]
    return curves_chart(trained.folds, f"Training curves of {trained.name}: {listed(ends, separator='; ')}")


def _boxes(scores: Scores) -> list[tuple[str, Metric, bool, Markup]]:
    """Charts of each metric that has a better and a worse, of so many labels as one has room for."""
    size = max(5, PLACES // (len(scores.models) + 1))
    parts = [scores.labels[first : first + size] for first in range(0, len(scores.labels), size)]
    directed = [metric for metric in scores.metrics if metric_of(metric).better]
    charts = [(metric, len(part), _box(scores, metric, part)) for metric in directed for part in parts]
    return [
        (headed(metric, scores), metric_of(metric), is_wide(labels, len(scores.models)), Markup(chart))
        for metric, labels, chart in charts
        if chart
    ]


def _box(scores: Scores, metric: str, labels: Sequence[str]) -> str:
    """One chart, nothing where no value counts."""
    values, medians = {}, []
    for label in labels:
        lines = [scores.of(model, label, metric).values() for model in scores.models]
        known = [[line for line in of_model if not math.isnan(line.value)] for of_model in lines]
        values[label] = [
            ([line.value for line in of_model if not line.note], [line.value for line in of_model if line.note])
            for of_model in known
        ]
        for order, (measured, decided) in enumerate(values[label]):
            if both := [*measured, *decided]:
                medians.append(f"{label} {letter(order)} {number(statistics.median(both), metric)}")
    if not medians:
        return ""
    of = metric_of(metric)
    alt = f"Box plot of {metric}, medians: {listed(medians)}"
    return box_chart(values, alt, unit=of.unit, bounded=not of.unit, zero=of.better == "lower")


def _comparison(scores: Scores) -> dict[str, Any]:
    found: list[Comparison] = []
    why = ""
    try:
        if len(scores.models) > 1:
            found = compare(scores)
    except InputError as error:
        why = str(error)
    return {
        "compared": compared(found, scores.models, LEVEL),
        "comparison_counts": counts_of(found),
        "comparison_notes": comparison_notes(found) if found else [],
        "not_compared": why,
        "level": LEVEL,
    }
