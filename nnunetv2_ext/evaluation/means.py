"""The means of an evaluation as a table to read."""

import math
from collections.abc import Sequence

from nnunetv2_ext.evaluation.metrics import ALL_METRICS, DISTANCES, LESIONS
from nnunetv2_ext.evaluation.scores import Scores
from nnunetv2_ext.text import listed, markdown_table, shortened

SHOWN = ("Dice", "NSD", "HD95", "HD", "ASSD", "lesion F1", "volume error", "Dice of slabs")
"""The metrics of the table; the files hold all."""
COUNTS = "decided: one of both masks is empty; not counted: both are, or the one whose lesions are counted."
"""What `beside` means."""


FEW = ("Dice", "NSD", "HD95")
"""Those that a narrow terminal has room for."""


def few_means(scores: Scores) -> str:
    """The means of each model alone, over its labels, in few columns."""
    metrics = [metric for metric in FEW if metric in scores.metrics]
    rows = [[model, *(shown(scores.mean_of_labels(model, one), one) for one in metrics)] for model in scores.models]
    return markdown_table(["mean of labels", *map(_titled, metrics)], rows)


def means_table(scores: Scores) -> str:
    """The means over cases of each model and label, in Markdown, and what they depend on.

    Beside a mean stands how many of its cases were decided, since one of both masks is empty, and how many do not
    count, since both are.
    """
    metrics = [metric for metric in SHOWN if metric in scores.metrics]
    rows = []
    for model in scores.models:
        for label in scores.labels:
            rows.append([model, shortened(label, 60), *(_cell(scores, model, label, metric) for metric in metrics)])
        if len(scores.labels) > 1:
            means = [_mean_of_labels(scores, model, metric) for metric in metrics]
            rows.append([model, "mean of labels", *means])
    header = ["model", "label", *map(_titled, metrics)]
    paragraphs = [markdown_table(header, rows), *_depends_on(scores)]
    if any("(" in cell for row in rows for cell in row[2:]):
        paragraphs.append(COUNTS)
    return "\n\n".join(paragraphs)


def _titled(metric: str) -> str:
    return f"{metric} ({ALL_METRICS[metric].unit})" if ALL_METRICS[metric].unit else metric


def shown(value: float, metric: str) -> str:
    """A value of a metric with a sensible number of digits; `-` where there is none."""
    if value != value:
        return "-"
    sign = "+" if ALL_METRICS[metric].better == "nearer 0" else ""
    return f"{value:{sign}.{2 if ALL_METRICS[metric].unit else 3}f}"


def beside(scores: Scores, model: str, labels: Sequence[str], metric: str) -> str:
    """How many values of a mean were decided, and how many do not count; empty if there are none."""
    decided = sum(scores.decided(model, label, metric) for label in labels)
    left_out = sum(math.isnan(value) for label in labels for value in scores.values(model, label, metric).values())
    return listed([f"{decided} decided"] * bool(decided) + [f"{left_out} not counted"] * bool(left_out))


def with_counts(mean: str, counts: str) -> str:
    """A mean with what `beside` tells of it."""
    return f"{mean} ({counts})" if counts else mean


def _cell(scores: Scores, model: str, label: str, metric: str) -> str:
    return with_counts(shown(scores.mean(model, label, metric), metric), beside(scores, model, [label], metric))


def _mean_of_labels(scores: Scores, model: str, metric: str) -> str:
    if ALL_METRICS[metric].better == "nearer 0":
        return "-"  # signed errors of two labels would cancel
    mean = shown(scores.mean_of_labels(model, metric), metric)
    return with_counts(mean, beside(scores, model, scores.labels, metric))


def _depends_on(scores: Scores) -> list[str]:
    """What the values of a metric depend on, in a paragraph."""
    how: dict[str, dict[str, list[str]]] = {}
    for line in scores.lines:
        if line.metric in ("NSD", DISTANCES[0], LESIONS[-1]) and line.model == scores.models[0]:
            labels = how.setdefault(line.metric, {}).setdefault(line.how, [])
            labels += [line.label] * (line.label not in labels)
    named = {"NSD": "NSD", DISTANCES[0]: listed(DISTANCES), LESIONS[-1]: "lesions"}
    told = []
    for metric, by_how in how.items():
        of_labels = (f"{one} ({listed(labels)})" if len(by_how) > 1 else one for one, labels in by_how.items())
        told.append(f"{named[metric]}: {listed(of_labels)}")
    return ["; ".join(told) + "."] * bool(told)
