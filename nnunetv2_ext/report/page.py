"""All of an evaluation in one HTML file, which loads nothing from anywhere."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata, resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from nnunetv2_ext import __version__
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation.comparison import LEVEL, Comparison, compare, least_p, together
from nnunetv2_ext.evaluation.metrics import METRICS, Settings
from nnunetv2_ext.evaluation.palette import COLOURS
from nnunetv2_ext.evaluation.scores import Scores, nan_mean, read_scores
from nnunetv2_ext.evaluation.summary import Summary, read_summaries
from nnunetv2_ext.files import check_output_file, unwritable, write_beside
from nnunetv2_ext.report.charts import HATCHES, box_chart, curves_chart, letter
from nnunetv2_ext.report.models import Trained, describe_model
from nnunetv2_ext.report.pictures import Read, around, planes, read_case
from nnunetv2_ext.report.tables import (
    all_cases,
    compared,
    failed_predictions,
    headed,
    means,
    metric_of,
    number,
    one_sided,
    weakest,
)
from nnunetv2_ext.text import listed

FEW = 6
"""Pairs below which the test can show nothing: 5 pairs never give a p below 0.0625."""


class Chosen(NamedTuple):
    """A case to show, and why."""

    case: str
    rank: str
    value: float
    """Its mean over labels and models of the metric by which cases are ranked."""


class Shown(NamedTuple):
    """The pictures of a case, one for each model."""

    chosen: Chosen
    value: str
    rows: Sequence[Mapping[str, Any]]
    note: str


def write_report(
    evaluations: Sequence[Path],
    output: Path,
    *,
    images: Path | None = None,
    title: str | None = None,
    cases: int = 3,
    viewer: int = 3,
    tell: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """Write the page, whole or not at all.

    Args:
        evaluations: folders that `nnunetv2_ext evaluate` wrote, or their metrics.csv.
        output: an HTML file; one that is there is replaced.
        images: folder of the images, named as in imagesTr; None: where the evaluation or its labels tell.
        title: by default the data set's name.
        cases: how many of the worst cases have pictures, beside the median and the best one.
        viewer: how many cases can be turned in the viewer.
        tell: called with what is at work.

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
    tell("scores")
    scores, summaries, lacking = _read(evaluations)
    tell("models")
    trained = _trained(summaries)
    ranked = rank_cases(scores)
    content = {
        "title": title or _title(evaluations, trained),
        "made": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "versions": [f"nnunetv2_ext {__version__}", f"nnunetv2 {metadata.version('nnunetv2')}"],
        "scores": scores,
        "settings": _settings(summaries, scores),
        "models": [_model(scores, summaries, order) for order in range(len(scores.models))],
        "trained": trained,
        "trained_rows": _side_by_side(trained),
        "curves": [(one, Markup(_curves(one))) for one in trained if any(fold.curves for fold in one.folds)],
        "failed": failed_predictions(summaries),
        "one_sided": one_sided(scores),
        "weakest": [(metric, rows) for metric in ("Dice", "HD") if (rows := weakest(scores, metric))],
        "means": means(scores),
        "boxes": list(_boxes(scores)),
        "all_cases": all_cases(scores),
        "headed": [headed(metric, scores) for metric in scores.metrics],
        "meanings": [(metric, METRICS[metric]) for metric in scores.metrics if metric in METRICS],
        "rank_metric": _rank_metric(scores),
    }
    content |= _comparison(scores)
    tell("pictures")
    shown, viewed = _pictures(scores, summaries, ranked, images, cases, viewer)
    content |= {"shown": shown, **_viewer(viewed, viewer), "lacking": lacking}
    tell("page")
    page = render(content)
    try:
        write_beside(lambda beside: beside.write_text(page, encoding="utf-8"), output)
    except OSError as error:
        raise unwritable(output, error) from None
    return [*lacking, *(fault for one in trained for fault in one.faults), *(one.note for one in shown if one.note)]


def render(content: Mapping[str, Any]) -> str:
    """The page; every text in it is escaped but what is Markup."""
    files = resources.files(__package__)
    page, style, script = (files.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(page).render(style=Markup(style), script=Markup(script), letter=letter, colours=COLOURS, **content)


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
    for path in evaluations:
        try:
            summaries.update(read_summaries(path))
        except InputError as error:
            lacking.append(f"Models and pictures of {path} are missing: {error}")
    return scores, {model: summaries[model] for model in scores.models if model in summaries}, lacking


def rank_cases(scores: Scores) -> list[tuple[str, float]]:
    """Cases with their mean over labels and models, worst first; of equal ones the first by name.

    By Dice, or the first metric that has a better and a worse; a case that never counts is left out.
    """
    metric = _rank_metric(scores)
    sign = 1 if metric_of(metric).better == "higher" else -1
    values = {
        case: nan_mean(scores.case_mean(model, case, metric) for model in scores.models) for case in scores.cases
    }
    known = [(case, value) for case, value in values.items() if value == value]
    return sorted(known, key=lambda item: (sign * item[1], item[0]))


def _rank_metric(scores: Scores) -> str:
    directed = [metric for metric in scores.metrics if metric_of(metric).better in ("higher", "lower")]
    return "Dice" if "Dice" in directed or not directed else directed[0]


def choose(ranked: Sequence[tuple[str, float]], worst: int) -> list[Chosen]:
    """The worst cases, the median and the best one, each once."""
    chosen = {}
    names = [(place, "worst" if place == 0 else f"{place + 1}. worst") for place in range(min(worst, len(ranked)))]
    if worst and ranked:
        names += [((len(ranked) - 1) // 2, "median"), (len(ranked) - 1, "best")]
    for place, rank in names:
        case, value = ranked[place]
        chosen.setdefault(case, Chosen(case, "the only case" if len(ranked) == 1 else rank, value))
    return list(chosen.values())


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
    folders = summary.model_folders if summary else ()
    of = listed(folder.name.replace("__", ":") for folder in folders)
    folds = f", folds {listed(summary.folds)}" if summary and summary.folds else ""
    hatch = HATCHES[order % len(HATCHES)]
    return {
        "letter": letter(order),
        "name": name,
        "of": of + folds if of else "",
        "colour": COLOURS[order % len(COLOURS)],
        "hatch": {"": "", "/": "slash", ".": "dots", "\\": "backslash", "x": "cross", "-": "rows", "|": "columns"}[
            hatch[:1]
        ],
    }


def _trained(summaries: Mapping[str, Summary]) -> list[Trained]:
    """Each model folder once, with the folds that any of the evaluated models uses."""
    folders: dict[Path, dict[str, None]] = {}
    for summary in summaries.values():
        for folder in summary.model_folders:
            folders.setdefault(folder, {}).update(dict.fromkeys(summary.folds))
    return [describe_model(folder, tuple(sorted(folds))) for folder, folds in folders.items()]


def _side_by_side(trained: Sequence[Trained]) -> list[tuple[str, list[str], bool]]:
    """Settings, with the values of each model and whether these differ."""
    keys = dict.fromkeys(key for one in trained for key in one.settings)
    rows = [(key, [one.settings.get(key, "–") for one in trained]) for key in keys]
    return [(key, values, len(set(values)) > 1) for key, values in rows]


def _curves(trained: Trained) -> str:
    ends = [
        f"fold {fold.name} ends after {fold.epochs} epochs at a pseudo Dice of {fold.curves['ema_fg_dice'][-1]:.3f}"
        for fold in trained.folds
        if "ema_fg_dice" in fold.curves
    ]
    return curves_chart(trained.folds, f"Training curves of {trained.name}: {listed(ends, separator='; ')}")


def _boxes(scores: Scores) -> Any:
    """A chart of each metric that has a better and a worse."""
    for metric in scores.metrics:
        if not metric_of(metric).better:
            continue
        values, medians = {}, []
        for label in scores.labels:
            lines = [scores.of(model, label, metric).values() for model in scores.models]
            known = [[line for line in of_model if line.value == line.value] for of_model in lines]
            values[label] = [
                ([line.value for line in of_model if not line.note], [line.value for line in of_model if line.note])
                for of_model in known
            ]
            for order, (measured, decided) in enumerate(values[label]):
                if both := sorted([*measured, *decided]):
                    medians.append(f"{label} {letter(order)} {number(both[len(both) // 2], metric)}")
        if medians:
            of = metric_of(metric)
            alt = f"Box plot of {metric}, medians: {listed(medians)}"
            chart = box_chart(values, alt, unit=of.unit, bounded=not of.unit, zero=of.better == "lower")
            yield headed(metric, scores), of, Markup(chart)


def _comparison(scores: Scores) -> dict[str, Any]:
    found: list[Comparison] = []
    why = ""
    try:
        if len(scores.models) > 1:
            found = compare(scores)
    except InputError as error:
        why = str(error)
    least = min((least_p(one.difference.cases) * len(found) for one in found), default=0.0)
    return {
        "compared": compared(found, scores.models, LEVEL),
        "not_compared": why,
        "tests": len(found),
        "level": LEVEL,
        "powerless": least >= LEVEL,
        "pairs": max((one.difference.cases for one in found), default=0),
    }


def _image_folder(summary: Summary, case: str, images: Path | None) -> Path | None:
    """Where the images are: as given, as the evaluation tells, or beside the labels, as in nnU-Net's raw data."""
    labels = summary.files[case][0].parent
    beside = labels.with_name(labels.name.replace("labels", "images"))
    candidates = (images, summary.images, beside if beside != labels else None)
    return next((folder for folder in candidates if folder is not None and folder.is_dir()), None)


def _pictures(
    scores: Scores,
    summaries: Mapping[str, Summary],
    ranked: Sequence[tuple[str, float]],
    images: Path | None,
    worst: int,
    viewer: int,
) -> tuple[list[Shown], list[tuple[Chosen, str, Read, Mapping[str, Sequence[int]]]]]:
    """Pictures of the chosen cases, and the cases of the viewer with the first model's prediction."""
    metric = _rank_metric(scores)
    turned = [one.case for one in _spread(ranked, viewer)]
    shown, viewed = [], []
    chosen = {one.case: one for one in (*choose(ranked, worst), *_spread(ranked, viewer))}
    pictured = {one.case for one in choose(ranked, worst)}
    for case, one in chosen.items():
        rows, notes, read = [], [], {}
        for model in scores.models:
            summary = summaries.get(model)
            if summary is None or case not in summary.files:
                continue
            try:
                read[model] = read_case(summary, case, _image_folder(summary, case, images))
            except InputError as error:
                notes.append(f"No picture of {case} by {model}: {error}")
        if not read:
            if summaries and not notes:
                notes.append(f"No picture of {case}: no summary tells of it")
            if notes and case in pictured:
                shown.append(Shown(one, number(one.value, metric), [], " ".join(notes)))
            continue
        first = next(iter(read.values()))
        same = {model: of for model, of in read.items() if of.reference.shape == first.reference.shape}
        box = around([first.reference, *(of.prediction for of in same.values())], first.spacing)
        notes += dict.fromkeys(of.note for of in read.values() if of.note)
        if not any(of.note for of in read.values()) and first.image is None:
            notes.append(f"{case} is shown without its image: name the folder of the images with -i.")
        for model, of in same.items():
            labels = summaries[model].labels
            values = [
                (label, number(scores.values(model, label, metric).get(case, float("nan")), metric)) for label in labels
            ]
            rows.append(
                {
                    "letter": letter(scores.models.index(model)),
                    "model": model,
                    "values": values,
                    "picture": planes(of, labels, box) if case in pictured else "",
                    "alt": f"{case} by {model}, three planes; {metric} " + listed(f"{a} {b}" for a, b in values),
                }
            )
            if case in turned and not any(held[0].case == case for held in viewed):
                viewed.append((one, model, of, labels))
        if case in pictured:
            shown.append(Shown(one, number(one.value, metric), rows, " ".join(notes)))
    return shown, viewed


def _spread(ranked: Sequence[tuple[str, float]], count: int) -> list[Chosen]:
    """The worst, the median and the best case, and, where more are asked for, the next worst."""
    if not ranked or not count:
        return []
    chosen = choose(ranked, 1)
    more = [one for one in choose(ranked, count) if one.case not in {held.case for held in chosen}]
    return [*chosen, *more][:count]


def _viewer(viewed: Sequence[tuple[Chosen, str, Read, Mapping[str, Sequence[int]]]], count: int) -> dict[str, Any]:
    return {"viewer": None, "viewer_asked": count > 0, "how_to_add_viewer": ""}
