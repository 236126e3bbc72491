"""The means of an evaluation as a table to read."""

import math

from nnunetv2_ext.evaluation.metrics import DISTANCES, LESIONS
from nnunetv2_ext.evaluation.metrics import KNOWN as KNOWN
from nnunetv2_ext.evaluation.scores import Scores
from nnunetv2_ext.text import listed, markdown_table, shortened

SHOWN = ("Dice", "NSD", "HD95", "HD", "ASSD", "lesion F1", "volume error", "Dice of slabs")
"""The metrics of the table; the files hold all."""


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
            # signed errors of two labels would cancel
            signed = [KNOWN[metric].better == "nearer 0" for metric in metrics]
            means = [
                math.nan if of else scores.mean_of_labels(model, one) for one, of in zip(metrics, signed, strict=True)
            ]
            rows.append([model, "mean of labels", *map(shown, means, metrics)])
    header = ["model", "label"]
    header += [f"{metric} ({KNOWN[metric].unit})" if KNOWN[metric].unit else metric for metric in metrics]
    paragraphs = [markdown_table(header, rows), *_depends_on(scores)]
    if any("(" in cell for row in rows for cell in row[2:]):
        paragraphs.append("decided: one of both masks is empty; not counted: both are.")
    return "\n\n".join(paragraphs)


def shown(value: float, metric: str) -> str:
    """A value of a metric with a sensible number of digits; `-` where there is none."""
    if value != value:
        return "-"
    sign = "+" if KNOWN[metric].better == "nearer 0" else ""
    return f"{value:{sign}.{2 if KNOWN[metric].unit else 3}f}"


def _cell(scores: Scores, model: str, label: str, metric: str) -> str:
    decided = scores.decided(model, label, metric)
    left_out = sum(value != value for value in scores.values(model, label, metric).values())
    beside = [f"{decided} decided"] * bool(decided) + [f"{left_out} not counted"] * bool(left_out)
    return shown(scores.mean(model, label, metric), metric) + f" ({listed(beside)})" * bool(beside)


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
