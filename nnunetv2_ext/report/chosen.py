"""The cases that a page shows: the worst, the median and the best one, in pictures and in the viewer."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from nnunetv2_ext.data.sources import find_volumes
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation.scores import Scores, nan_mean
from nnunetv2_ext.evaluation.summary import Summary
from nnunetv2_ext.report.cases import Files, Read, median_place, read_black, read_case
from nnunetv2_ext.report.charts import letter
from nnunetv2_ext.report.pictures import around, planes
from nnunetv2_ext.report.tables import metric_of, number
from nnunetv2_ext.report.viewer import ViewedCase
from nnunetv2_ext.text import listed


class Chosen(NamedTuple):
    """A case to show, and why."""

    case: str
    rank: str
    """In words."""
    value: float
    """Its mean over labels and models of the metric by which cases are ranked."""


class Picture(NamedTuple):
    """A case as one model sees it."""

    model: str
    letter: str
    values: Sequence[tuple[str, str]]
    """Of each label by name, in words."""
    address: str
    """Of the PNG, which stands in it."""
    alt: str


class Pictured(NamedTuple):
    """A case with a picture for each model."""

    chosen: Chosen
    value: str
    pictures: Sequence[Picture]
    notes: Sequence[str]
    """What is missing, and why."""


def rank_metric(scores: Scores) -> str:
    """The metric by which cases are ranked: Dice, or else the first that has a better and a worse."""
    directed = [metric for metric in scores.metrics if metric_of(metric).better in ("higher", "lower")]
    return "Dice" if "Dice" in directed else (directed or scores.metrics)[0]


def rank_cases(scores: Scores) -> list[tuple[str, float]]:
    """Cases with their mean over labels and models, worst first; of equal ones the first by name.

    A case that never counts is left out.
    """
    metric = rank_metric(scores)
    sign = 1 if metric_of(metric).better == "higher" else -1
    values = {case: nan_mean(scores.case_mean(model, case, metric) for model in scores.models) for case in scores.cases}
    known = [(case, value) for case, value in values.items() if not math.isnan(value)]
    return sorted(known, key=lambda item: (sign * item[1], item[0]))


def worst_median_best(ranked: Sequence[tuple[str, float]], worst: int) -> list[Chosen]:
    """So many of the worst cases, the median and the best one, each once; none where `worst` is 0."""
    if not worst or not ranked:
        return []
    places = {place: f"worst, no. {place + 1}" for place in range(min(worst, len(ranked)))}
    places |= {median_place(len(ranked)): "median", len(ranked) - 1: "best", 0: "worst"}
    if len(ranked) == 1:
        places = {0: "the only case"}
    return [Chosen(ranked[place][0], rank, ranked[place][1]) for place, rank in places.items()]


def choose_few(ranked: Sequence[tuple[str, float]], count: int) -> list[Chosen]:
    """The worst, the median and the best case, and the next worst where more are asked for."""
    first = worst_median_best(ranked, min(count, 1))
    more = [one for one in worst_median_best(ranked, count) if one.case not in {held.case for held in first}]
    return [*first, *more][:count]


def picture_case(scores: Scores, summaries: Mapping[str, Summary], chosen: Chosen, images: Path | None) -> Pictured:
    """The pictures of a case, all of the same planes.

    Args:
        images: the folder of the images; None: where the summaries or the place of the labels tell.
    """
    metric = rank_metric(scores)
    known, notes = _read(summaries, chosen.case, images)
    pictures = []
    if known:
        first = next(iter(known.values()))
        box = around([first.truth, *(of.prediction for of in known.values())], first.spacing)
        for model, of in known.items():
            values = []
            for label in summaries[model].labels:
                value = scores.values(model, label, metric).get(chosen.case, math.nan)
                values.append((label, number(value, metric)))
            told = f"{chosen.case} by {model} in three planes; {metric}: {listed(' '.join(pair) for pair in values)}"
            address = planes(of, summaries[model].labels, box)
            pictures.append(Picture(model, letter(scores.models.index(model)), values, address, told))
    return Pictured(chosen, number(chosen.value, metric), pictures, notes)


def view_case(summaries: Mapping[str, Summary], chosen: Chosen, images: Path | None) -> ViewedCase | None:
    """A case for the viewer, with the prediction of the first model that has one; None where none can be read."""
    known, _ = _read(summaries, chosen.case, images, enough=1)
    for model, of in known.items():
        return ViewedCase(
            f"{chosen.case} by {model} ({chosen.rank})",
            of.image,
            of.truth,
            of.prediction,
            of.spacing,
            dict(summaries[model].labels),
        )
    return None


def _read(
    summaries: Mapping[str, Summary], case: str, images: Path | None, *, enough: int | None = None
) -> tuple[dict[str, Read], list[str]]:
    """The volumes of a case by model, all on one grid, and what is missing; an image that is, is black."""
    known: dict[str, Read] = {}
    notes: dict[str, None] = {}
    for model, summary in summaries.items():
        if case in summary.files and len(known) != enough:
            reference, prediction = summary.files[case]
            try:
                try:
                    of = read_case(Files(_image(summary, case, images), prediction, reference))
                except InputError as error:
                    of = read_black(Files(reference, prediction, reference))
                    notes[f"{case} is shown without its image: {error}"] = None
            except InputError as error:
                notes[f"No picture of {case} by {model}: {error}"] = None
            else:
                if of.image.shape == next(iter(known.values()), of).image.shape:
                    known[model] = of
    return known, list(notes)


def _image(summary: Summary, case: str, images: Path | None) -> Path:
    """The image of a case, its first channel: where it is told, or beside the labels, as in nnU-Net's raw data.

    Raises:
        InputError: there is none.
    """
    labels = summary.files[case][0]
    beside = labels.parent.with_name(labels.parent.name.replace("labels", "images"))
    folders = [folder for folder in (images, summary.images, beside) if folder is not None]
    names = (f"{case}_0000", case)
    for folder in folders:
        if folder.is_dir() and folder != labels.parent:
            volumes = find_volumes(folder)
            if found := [volumes[name] for name in names if name in volumes]:
                return found[0]
    got = f"no volume {listed(names, separator=' or ')} in {folders[0]}"
    raise InputError(got, "the image of the case", "name the folder of the images with -i")
