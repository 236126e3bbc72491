"""Models compared case by case: the mean difference with its interval, a test, Holm's correction, wins and losses.

- Interval of a mean: see `intervals`.
- p: the two-sided signed-rank test over the pairs (Wilcoxon, Biometrics Bulletin 1, 1945), which leaves out pairs
  without a difference, as Wilcoxon did.
- Corrected p: Holm, Scandinavian Journal of Statistics 6, 1979, over all tests of a call.

All of them hold the chance in the cases, not that in the training.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import NamedTuple

import numpy as np

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation.intervals import RESAMPLES, Interval, interval
from nnunetv2_ext.evaluation.metrics import ALL_METRICS
from nnunetv2_ext.evaluation.pairs import cases_of, pair
from nnunetv2_ext.evaluation.scores import Score, Scores, nan_mean
from nnunetv2_ext.text import counted, listed, markdown_table, shortened

LEVEL = 0.05
"""What a p is called significant below."""
MEAN = "mean"
"""Stands for the mean of a case over its labels, unless a label has that name."""
DEFAULT_METRICS = ("Dice", "HD95", "NSD")
DIGITS = 9
"""Differences are the same, or none, where these digits behind the point are: the rest is rounding."""


class Comparison(NamedTuple):
    """One test: two models, one label, one metric. `nearer 0` metrics are compared by their absolute values."""

    model: str
    reference: str
    label: str
    metric: str
    model_mean: float
    reference_mean: float
    """Both means are over the pairs."""
    difference: Interval
    """Model less reference, over the pairs: the cases that count for both."""
    p: float
    """1 where no pair differs, NaN where there is none."""
    least_p: float
    """The smallest p that so many differing pairs can give, 2 / 2^n."""
    wins: int
    """Pairs in which the model is better."""
    ties: int
    losses: int
    left_out: int
    """Cases that do not count for one of both or for both, such as those where neither finds what is not there."""
    decided: int
    """Pairs with a value that was decided, since one of both masks is empty."""
    rightly_empty: int
    """Pairs with a perfect value of one model, which finds nothing where the other invents something."""
    corrected_p: float = math.nan
    """By Holm, over all tests of the same call that have pairs; NaN for one without."""


def wilcoxon(differences: Sequence[float] | np.ndarray) -> float:
    """The p of the two-sided signed-rank test, which leaves out differences of 0: 1 where all are, NaN of none.

    Exact up to 50 differences, with equal ones among them up to 13; else by the normal distribution.
    """
    from scipy.stats import wilcoxon as signed_rank

    rounded = np.round(np.asarray(differences, dtype=np.float64), DIGITS)
    if not rounded.size:
        return math.nan
    differing = rounded[rounded != 0]
    return float(signed_rank(differing, zero_method="wilcox").pvalue) if differing.size else 1.0


def least_p(pairs: int) -> float:
    """The smallest p that `wilcoxon` can give over so many differing pairs: 5 give 0.0625 at the least."""
    return min(1.0, 2.0 ** (1 - pairs))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's corrected p, in the order given: the k-th smallest of m times m - k + 1, never below the one before.

    NaN stands for no test, and stays.
    """
    corrected, most = [math.nan] * len(p), 0.0
    tests = sorted((index for index, value in enumerate(p) if not math.isnan(value)), key=lambda index: p[index])
    for done, index in enumerate(tests):
        most = max(most, min(1.0, p[index] * (len(tests) - done)))
        corrected[index] = most
    return corrected


def together(parts: Sequence[tuple[str, Scores]]) -> Scores:
    """The scores of several evaluations in one; a model that stands in several with the same values counts once.

    Args:
        parts: each with its name for messages, such as its path.

    Raises:
        InputError: two models of one name.
    """
    held: dict[str, tuple[str, set[Score]]] = {}
    lines: list[Score] = []
    for name, scores in parts:
        for model in scores.models:
            of_model = [line for line in scores.lines if line.model == model]
            # NaN is not equal to itself
            told = {line._replace(value=-1.0, note="NaN") if math.isnan(line.value) else line for line in of_model}
            if model not in held:
                held[model] = (name, told)
                lines += of_model
            elif held[model][1] != told:
                raise InputError(
                    f"two models called {model}, in {held[model][0]} and in {name}",
                    "a name for each",
                    "evaluate one again with another of --names, or rename it in the first column of its file",
                )
    return Scores(tuple(lines))


def compare(
    scores: Scores,
    *,
    reference: str | None = None,
    metrics: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
) -> list[Comparison]:
    """Every pair of models for every label and metric, with Holm's correction over all of them.

    Args:
        reference: a model that the others are compared with, instead of each with each.
        metrics: those to compare; by default those of `DEFAULT_METRICS` that the scores have.
        labels: likewise, `MEAN` for the mean of each case over its labels; by default every label.

    Raises:
        InputError: one model alone, unknown names, or models of other cases, labels, references or settings.
    """
    if len(scores.models) < 2:
        raise InputError(
            f"the scores of {scores.models[0]} alone", "those of two models or more", "give the file of another too"
        )
    if reference is not None:
        _known([reference], scores.models, "model")
    labels = _known(labels or scores.labels, (*scores.labels, MEAN), "label")
    metrics = _known(metrics or _default_metrics(scores), scores.metrics, "metric")
    for metric in metrics:
        if metric not in ALL_METRICS or not ALL_METRICS[metric].better:
            directed = [name for name in scores.metrics if name in ALL_METRICS and ALL_METRICS[name].better]
            raise InputError(
                f"the metric {metric}, of which neither more nor less is better",
                f"some of {listed(directed)}",
                "leave it out",
            )
    _check_comparable(scores, labels, metrics)
    others = [(model, reference) for model in scores.models if model != reference]
    pairs = list(combinations(scores.models, 2)) if reference is None else others
    found = [
        compare_pair(scores, model, other, label, metric)
        for metric in metrics
        for label in labels
        for model, other in pairs
        if other is not None
    ]
    corrected = holm([one.p for one in found])
    return [one._replace(corrected_p=p) for one, p in zip(found, corrected, strict=True)]


def compare_pair(scores: Scores, model: str, reference: str, label: str = MEAN, metric: str = "Dice") -> Comparison:
    """One test, without correction.

    Raises:
        InputError: the two hold different cases.
    """
    of_labels = scores.labels if _is_mean(scores, label) else (label,)
    _check_cases({name: cases_of(scores, name, of_labels, metric) for name in (model, reference)})
    pairs = pair(scores, model, reference, of_labels, metric)
    differences = pairs.values[:, 0] - pairs.values[:, 1]
    better = np.round(differences, DIGITS) * (1 if ALL_METRICS[metric].better == "higher" else -1)
    wins, losses = int((better > 0).sum()), int((better < 0).sum())
    return Comparison(
        model,
        reference,
        label,
        metric,
        nan_mean(pairs.values[:, 0]),
        nan_mean(pairs.values[:, 1]),
        interval(differences),
        wilcoxon(differences),
        least_p(wins + losses),
        wins,
        len(differences) - wins - losses,
        losses,
        pairs.left_out,
        pairs.decided,
        pairs.rightly_empty,
    )


def _is_mean(scores: Scores, label: str) -> bool:
    return label == MEAN and MEAN not in scores.labels


def _default_metrics(scores: Scores) -> list[str]:
    usual = [metric for metric in DEFAULT_METRICS if metric in scores.metrics]
    return usual or [metric for metric in scores.metrics if metric in ALL_METRICS and ALL_METRICS[metric].better]


def _known(names: Sequence[str], known: Sequence[str], noun: str) -> list[str]:
    """The names, each once.

    Raises:
        InputError: one is not known.
    """
    unknown = [name for name in names if name not in known]
    if unknown:
        got = f"the {noun} {unknown[0]}"
        raise InputError(got, f"one of {listed(dict.fromkeys(known))}", "choose one of these")
    return list(dict.fromkeys(names))


def _check_cases(cases: Mapping[str, set[str]]) -> None:
    (first, of_first), *others = cases.items()
    for other, of_other in others:
        if differing := sorted(of_first ^ of_other):
            raise InputError(
                f"{counted(differing, 'case')} that only one of {first} and {other} has",
                "the same cases for both",
                "predict the missing ones, or evaluate both on those that they share",
            )


def _check_comparable(scores: Scores, labels: Sequence[str], metrics: Sequence[str]) -> None:
    """Refuse models that were scored on other cases, labels or references, or with other settings."""
    cases = {model: {line.case for line in scores.lines if line.model == model} for model in scores.models}
    _check_cases(cases)
    single = dict.fromkeys(one for label in labels for one in (scores.labels if _is_mean(scores, label) else [label]))
    first, *others = scores.models
    for label in single:
        for other in others:
            _check_references(scores, label, first, other)
        for metric in metrics:
            lines = {model: scores.of(model, label, metric) for model in scores.models}
            for model, of_model in lines.items():
                if lacking := cases[model] - of_model.keys():
                    raise InputError(
                        f"no {metric} of {label} for {counted(sorted(lacking), 'case')} of {model}",
                        "the same labels and metrics for every model",
                        "evaluate it again as the others, or choose labels and metrics that all have",
                    )
    check_settings(scores, "evaluate both with the same flags", labels=list(single), metrics=metrics)


def check_settings(scores: Scores, remedy: str, *, labels: Sequence[str], metrics: Sequence[str]) -> None:
    """Refuse values of one metric and label that depend on other settings, by model.

    Raises:
        InputError: there are some; ends with `remedy`.
    """
    for metric, label in product(metrics, labels):
        hows: dict[str, str] = {}
        for model in scores.models:
            for line in scores.of(model, label, metric).values():
                hows.setdefault(line.how, model)
        if len(hows) > 1:
            told = listed((f"{how or 'no setting'} for {model}" for how, model in hows.items()), separator=" and with ")
            raise InputError(f"{metric} of {label} with {told}", "the same settings for all", remedy)


def _check_references(scores: Scores, label: str, first: str, other: str) -> None:
    """Two models were scored against the same masks where these have the same volumes, if they were measured."""
    ours, theirs = (scores.values(model, label, "reference volume") for model in (first, other))
    for case in ours.keys() & theirs.keys():
        measured = not (math.isnan(ours[case]) or math.isnan(theirs[case]))
        if measured and not math.isclose(ours[case], theirs[case], rel_tol=1e-6, abs_tol=1e-9):
            raise InputError(
                f"a reference of {label} in case {case} of {ours[case]:g} ml for {first} and of {theirs[case]:g} ml "
                f"for {other}",
                "the same references for both",
                "evaluate both against the same folder of labels",
            )


def counts_of(comparisons: Sequence[Comparison]) -> dict[str, list[int]]:
    """Numbers of cases that were left out, and of pairs that were not measured, by heading, where there are any."""
    names = {"left out": "left_out", "decided": "decided", "rightly empty": "rightly_empty"}
    counts = {heading: [getattr(one, field) for one in comparisons] for heading, field in names.items()}
    return {heading: numbers for heading, numbers in counts.items() if any(numbers)}


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    """The tests as a Markdown table; `comparison_notes` says what they are."""
    shown = counts_of(comparisons)
    header = [
        "models",
        "label",
        "metric",
        "first",
        "second",
        "difference [95 %]",
        "p",
        "Holm's p",
        "win/tie/loss",
        "cases",
    ]
    rows = []
    for index, one in enumerate(comparisons):
        metric = ALL_METRICS[one.metric]
        size, unit = (", size" * (metric.better == "nearer 0"), f" ({metric.unit})" * bool(metric.unit))
        means = [f"{mean:.3f}" if one.difference.cases else "-" for mean in (one.model_mean, one.reference_mean)]
        record = f"{one.wins}/{one.ties}/{one.losses}"
        rows.append(
            [
                f"{one.model} less {one.reference}",
                shortened(one.label, 60),
                f"{one.metric}{size}{unit}",
                *means,
                str(one.difference),
            ]
            + ["-" if math.isnan(p) else f"{p:.3g}" for p in (one.p, one.corrected_p)]
            + [record, str(one.difference.cases)]
            + [str(numbers[index]) for numbers in shown.values()]
        )
    return markdown_table([*header, *shown], rows)


def comparison_notes(comparisons: Sequence[Comparison]) -> list[str]:
    """Sentences that say what was tested, and what so few cases cannot show."""
    tested = [one for one in comparisons if one.difference.cases]
    tests = len(tested)
    better = dict.fromkeys(f"{one.metric} {ALL_METRICS[one.metric].better}" for one in comparisons)
    notes = [
        "Difference: the first model less the second, over the cases that count for both, with the 95 % interval "
        f"(percentiles) of {RESAMPLES} bootstrap samples of these cases.",
        "p: Wilcoxon's signed-rank test, two-sided, without the pairs that do not differ; Holm's p: corrected over the "
        f"{tests} test{'s' * (tests != 1)} of this table.",
        "Pairs are cases, since over five folds no p falls below 0.0625.",
        f"Wins are those of the first: {listed(better)} is better.",
        "Interval and p hold the chance in the cases. That in the training is not in them, and takes more trainings.",
    ]
    if any(one.label == MEAN for one in comparisons):
        notes.append(
            "mean: first of each case over its labels that count, to pair cases, then over cases. The mean over labels "
            "of evaluate and report is another figure where a label does not count in every case."
        )
    if any(one.difference.cases < 2 for one in comparisons):
        notes.append("Below two cases there is no interval.")
    if tests < len(comparisons):
        notes.append("Without a case that counts for both there is no test.")
    if weak := [one for one in tested if one.least_p > LEVEL]:
        pairs = max(one.wins + one.losses for one in weak)
        never = f"{pairs} never give{'s' * (pairs == 1)} less than {least_p(pairs):.4g}"
        notes.append(f"Too few pairs that differ for a p below {LEVEL:g}, in {len(weak)} of {tests} tests: {never}.")
    least = min((one.least_p for one in tested), default=1.0)
    if tests > 1 and least <= LEVEL < (corrected := least * tests):
        notes.append(f"Corrected over {tests} tests, no p can fall below {corrected:.4g} with so few pairs.")
    told = {
        "left out": "cases that do not count for one of both, such as those where neither finds what is not there.",
        "decided": "pairs with a value that was set and not measured, as one of both masks is empty.",
        "rightly empty": "pairs in which one finds nothing where nothing is, and counts as perfect, since the other "
        "invents something.",
    }
    notes += [f"{heading.capitalize()}: {told[heading]}" for heading in counts_of(comparisons)]
    return notes
