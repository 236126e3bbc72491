"""Statistics against values made by hand, by scipy and by enumeration; what two models must share to be compared."""

import math
from itertools import product

import numpy as np
import pytest
import scipy.stats

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation.comparison import (
    MEAN,
    compare,
    compare_pair,
    comparison_notes,
    comparison_table,
    holm,
    least_p,
    together,
    wilcoxon,
)
from nnunetv2_ext.evaluation.intervals import interval, interval_of_labels
from nnunetv2_ext.evaluation.scores import Score, Scores, dice_scores

NAN = math.nan


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.2, 0.2, 0.2], (0.2, 0.2, 0.2, 3)),
        ([0.3, NAN], (0.3, NAN, NAN, 1)),
        ([NAN], (NAN, NAN, NAN, 0)),
        ([], (NAN, NAN, NAN, 0)),
        # of two values a quarter of the resamples has the mean of each, and half of them that between
        ([0.0, 1.0], (0.5, 0.0, 1.0, 2)),
    ],
)
def test_interval_of_few_and_equal_values(values, expected):
    assert interval(values) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([0.25, 0.25], "0.250 [0.250, 0.250]"),
        ([0.25], "0.250"),
        ([NAN], "-"),
        ([-1e-5, -1e-5], "0.000 [0.000, 0.000]"),
    ],
)
def test_interval_in_words(values, text):
    assert str(interval(values)) == text


def test_interval_is_that_of_the_normal_distribution():
    values = np.random.default_rng(1).normal(0.01, 0.05, 400)
    found = interval(values)
    half = 1.96 * values.std() / math.sqrt(400)
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=0.05 * half)
    assert interval(values) == found


def test_interval_holds_the_true_mean_as_often_as_it_says():
    samples = np.random.default_rng(2).exponential(1.0, (400, 40))
    found = [interval(sample, resamples=1000) for sample in samples]
    covered = np.mean([one.low <= 1.0 <= one.high for one in found])
    # skewed values and 40 cases: percentile intervals are known to cover some percent less than they say
    assert 0.90 < covered < 0.965


@pytest.mark.parametrize(
    ("values", "mean", "bounds"),
    [
        # over labels of the means over cases, not 0.625 over the means of cases
        ([[0.5, NAN], [0.5, 1.0]], 0.75, (0.5, 0.75)),
        # a resample of the second case alone has its mean 0.5, one of the first alone 0
        ([[0.0, 0.0], [1.0, 0.0]], 0.25, (0.0, 0.5)),
        ([[0.0, NAN], [NAN, NAN]], 0.0, (NAN, NAN)),
        ([[0.0, math.inf], [1.0, 1.0]], math.inf, (NAN, NAN)),
    ],
)
def test_interval_of_labels(values, mean, bounds):
    found = interval_of_labels(np.array(values))
    assert found.mean == pytest.approx(mean)
    assert (found.low, found.high) == pytest.approx(bounds, nan_ok=True)


def test_interval_of_one_label_is_that_of_its_values():
    values = np.random.default_rng(5).normal(0.8, 0.1, 30)
    assert interval_of_labels(values[:, None]) == pytest.approx(interval(values))


def by_enumeration(differences) -> float:
    """The signed-rank test's two-sided p: the share of all signs whose rank sum is as far from its mean, or farther."""
    ranks = scipy.stats.rankdata(np.abs(differences))
    of_signs = [
        sum(rank for rank, sign in zip(ranks, signs, strict=True) if sign)
        for signs in product((0, 1), repeat=len(ranks))
    ]
    middle = ranks.sum() / 2
    observed = abs(ranks[np.asarray(differences) > 0].sum() - middle)
    return float(np.mean(np.abs(np.array(of_signs) - middle) >= observed - 1e-9))


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1.0, 2, 3, 4, 5], 2 / 32),
        ([-1.0, -2, -3, -4, -5, -6], 2 / 64),
        ([1.0, 2, 3, -4], by_enumeration([1.0, 2, 3, -4])),
        ([1.0, 1, 1, -2, 3], by_enumeration([1.0, 1, 1, -2, 3])),
        # pairs without a difference are left out
        ([0.0, 0, 1, 2, 3, 4, 5], 2 / 32),
        ([0.0, 0, 0], 1.0),
        ([], NAN),
        ([0.4], 1.0),
        # rounding alone: 0.3 - 0.1 and 0.2 are one rank, and 1e-17 is no difference
        ([0.3 - 0.1, 0.2, 0.2, -0.1, 1e-17], by_enumeration([0.2, 0.2, 0.2, -0.1])),
    ],
)
def test_wilcoxon(differences, p):
    assert wilcoxon(differences) == pytest.approx(p, nan_ok=True)


def test_wilcoxon_of_many_is_scipys():
    differences = np.random.default_rng(3).normal(0.1, 1, 200)
    expected = scipy.stats.wilcoxon(differences, method="asymptotic").pvalue
    assert wilcoxon(differences) == pytest.approx(expected, rel=1e-3)
    assert 0 < wilcoxon(differences) < 1


@pytest.mark.parametrize(("pairs", "p"), [(0, 1.0), (1, 1.0), (2, 0.5), (5, 0.0625), (6, 0.03125)])
def test_no_pairs_give_less(pairs, p):
    assert least_p(pairs) == p
    assert pairs == 0 or wilcoxon([1.0 + n for n in range(pairs)]) == pytest.approx(p)


@pytest.mark.parametrize(
    ("p", "corrected"),
    [
        ([], []),
        ([0.03], [0.03]),
        # 0.01 x 4, 0.02 x 3, 0.03 x 2 = 0.06 as before, 0.04 x 1 below that
        ([0.01, 0.02, 0.03, 0.04], [0.04, 0.06, 0.06, 0.06]),
        ([0.04, 0.01, 0.03, 0.005], [0.06, 0.03, 0.06, 0.02]),
        ([0.5, 0.6], [1.0, 1.0]),
        # no test: not one of the family
        ([0.02, NAN, 0.03], [0.04, NAN, 0.04]),
    ],
)
def test_holm(p, corrected):
    assert holm(p) == pytest.approx(corrected, nan_ok=True)


@pytest.mark.parametrize(
    ("ours", "theirs", "differences", "wins"),
    [
        ({"b": {"1": 0.5}, "a": {"1": 0.9}}, {"a": {"1": 0.8}, "b": {"1": 0.6}}, [0.1, -0.1], (1, 0, 1)),
        # what the second invents: the first is right, (0.6 + 1) / 2
        ({"a": {"1": 0.6, "2": NAN}}, {"a": {"1": 0.5, "2": 0.0}}, [0.55], (1, 0, 0)),
        # a label that one model lacks
        ({"a": {"1": 0.6}}, {"a": {"1": 0.5, "2": 0.0}}, [0.35], (1, 0, 0)),
        ({"a": {"1": NAN}, "b": {"1": 1.0}}, {"a": {"1": NAN}, "b": {"1": 0.5}}, [0.5], (1, 0, 0)),
        ({"a": {"1": 0.3}, "b": {"1": 0.1 + 0.2}}, {"a": {"1": 0.3}, "b": {"1": 0.3}}, [0.0, 0.0], (0, 2, 0)),
    ],
)
def test_means_of_cases_are_paired(ours, theirs, differences, wins):
    found = compare_pair(dice_scores({"ours": ours, "theirs": theirs}), "ours", "theirs")
    assert found.label == MEAN and found.metric == "Dice"
    assert found.difference.mean == pytest.approx(np.mean(differences))
    assert found.difference.cases == len(differences) and found.left_out == len(ours) - len(differences)
    assert (found.wins, found.ties, found.losses) == wins


def scores(model="one", metric="Dice", values=(0.5, 0.6, 0.7), *, label="liver", how="", note="") -> Scores:
    return Scores(
        tuple(Score(model, case, label, metric, value, how, note) for case, value in zip("abc", values, strict=False))
    )


@pytest.mark.parametrize(
    ("metric", "ours", "theirs", "difference", "wins"),
    [
        ("Dice", (0.9, 0.8, 0.7), (0.8, 0.8, 0.8), 0.0, (1, 1, 1)),
        ("HD95", (1.0, 2.0, 3.0), (2.0, 2.0, 2.0), 0.0, (1, 1, 1)),
        ("HD95", (1.0, 1.0, 1.0), (2.0, 3.0, 4.0), -2.0, (3, 0, 0)),
        # as far from 0 is as good: sizes are compared, not signs
        ("volume error", (-1.0, -2.0, 4.0), (1.0, 3.0, -3.0), 0.0, (1, 1, 1)),
    ],
)
def test_the_better_one_wins(metric, ours, theirs, difference, wins):
    (found,) = compare(scores("ours", metric, ours) + scores("theirs", metric, theirs))
    assert (found.wins, found.ties, found.losses) == wins
    assert found.difference.mean == pytest.approx(difference)
    assert found.model_mean - found.reference_mean == pytest.approx(difference)


def test_all_tests_of_a_call_are_one_family():
    random = np.random.default_rng(4)
    lines = []
    for model, better in (("a", 0.02), ("b", 0.01), ("c", 0.0)):
        for case in range(12):
            for label in ("liver", "tumour"):
                for metric in ("Dice", "HD95", "volume"):
                    lines.append(Score(model, f"{case}", label, metric, 0.5 + better + 0.01 * random.normal()))
    every = compare(Scores(tuple(lines)))
    assert [(one.model, one.reference) for one in every[:3]] == [("a", "b"), ("a", "c"), ("b", "c")]
    # three pairs, two labels, the two metrics of those that are compared unless told
    assert len(every) == 12
    for one in every:
        ours, theirs = (
            [line.value for line in lines if (line.model, line.label, line.metric) == (model, one.label, one.metric)]
            for model in (one.model, one.reference)
        )
        assert one.p == pytest.approx(scipy.stats.wilcoxon(ours, theirs).pvalue)
        assert one.difference.mean == pytest.approx(np.mean(ours) - np.mean(theirs))
    smallest = min(every, key=lambda one: one.p)
    assert smallest.corrected_p == pytest.approx(12 * smallest.p)
    few = compare(Scores(tuple(lines)), reference="c", metrics=["Dice"], labels=[MEAN])
    assert [(one.model, one.reference, one.label) for one in few] == [("a", "c", MEAN), ("b", "c", MEAN)]


def test_what_does_not_count_and_what_was_decided_is_counted():
    ours = scores("ours", "HD95", (1.0, NAN), note="both empty") + Scores(
        (Score("ours", "c", "liver", "HD95", 40.0, "", "no prediction"),)
    )
    theirs = scores("theirs", "HD95", (2.0, NAN, 2.0))
    (found,) = compare(
        Scores(tuple(line._replace(note="") if line.value == 1.0 else line for line in ours.lines)) + theirs
    )
    assert (found.left_out, found.decided, found.difference.cases) == (1, 1, 2)
    assert found.difference.mean == pytest.approx(np.mean([-1.0, 38.0]))


@pytest.mark.parametrize(
    ("metric", "wrong", "difference", "pairs"),
    [
        ("Dice", 0.0, 1.0, 1),
        ("IoU", 0.0, 1.0, 1),
        ("NSD", 0.0, 1.0, 1),
        ("lesion F1", 0.0, 1.0, 1),
        ("Dice of slabs", 0.0, 1.0, 1),
        ("HD", 40.0, -40.0, 1),
        ("HD95", 40.0, -40.0, 1),
        ("ASSD", 40.0, -40.0, 1),
        # of no component there is no share
        ("lesion precision", 0.0, NAN, 0),
        ("lesion recall", NAN, NAN, 0),
    ],
)
def test_who_rightly_finds_nothing_beats_who_invents(metric, wrong, difference, pairs):
    right = scores("right", metric, (NAN,), note="both empty")
    invented = scores("wrong", metric, (wrong,), note="no reference")
    for both, sign in ((right + invented, 1), (invented + right, -1)):
        (found,) = compare(both, metrics=[metric])
        assert found.difference.mean == pytest.approx(sign * difference, nan_ok=True)
        assert (found.wins, found.ties, found.losses) == ((pairs, 0, 0) if sign > 0 else (0, 0, pairs))
        assert (found.left_out, found.decided, found.rightly_empty) == (1 - pairs, pairs, pairs)


def test_invented_lesions_decide():
    """Ten cases with a lesion, which A finds a little worse than B; ten without, in each of which B invents one."""
    lines = []
    for case in range(20):
        for model, dice in (("A", 0.796), ("B", 0.815)):
            there = case < 10
            value = dice + 0.001 * case if there else NAN if model == "A" else 0.0
            note = "" if there else "both empty" if model == "A" else "no reference"
            lines.append(Score(model, f"{case}", "lesion", "Dice", value, "", note))
    (found,) = compare(Scores(tuple(lines)))
    assert (found.wins, found.ties, found.losses, found.rightly_empty) == (10, 0, 10, 10)
    assert found.difference.mean == pytest.approx((10 * (0.796 - 0.815) + 10) / 20)
    table, notes = comparison_table([found]), comparison_notes([found])
    assert "rightly empty" in table.splitlines()[0]
    assert any(note.startswith("Rightly empty: ") for note in notes)


def test_one_model_in_two_files_counts_once():
    one = scores("one", values=(0.5, NAN)) + scores("two", values=(0.5, 0.6))
    both = together([("first.csv", one), ("second.csv", scores("one", values=(0.5, NAN)) + scores("three"))])
    assert both.models == ("one", "two", "three")
    assert len(both.lines) == 7
    with pytest.raises(InputError, match=r"two models called one, in first.csv and in other.csv"):
        together([("first.csv", one), ("other.csv", scores("one", values=(0.5, 0.6)))])


TWO = scores("one") + scores("two")


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (scores("one"), {}, "the scores of one alone"),
        (TWO, {"reference": "three"}, "the model three; expected one of one, two"),
        (TWO, {"metrics": ["HD"]}, "the metric HD; expected one of Dice"),
        (TWO, {"labels": ["lung"]}, "the label lung; expected one of liver, mean"),
        (
            TWO + scores("one", "volume") + scores("two", "volume"),
            {"metrics": ["volume"]},
            "neither more nor less is better",
        ),
        (scores("one") + scores("two", values=(0.5, 0.6)), {}, r"1 case \(c\) that only one of one and two has"),
        (TWO + scores("two", label="lung"), {}, r"no Dice of lung for 3 cases \(a, b, c\) of one"),
        (TWO + scores("two", "HD95"), {"metrics": ["HD95"]}, "no HD95 of liver for 3 cases"),
        (
            scores("one", "NSD", how="tolerance 1 mm") + scores("two", "NSD", how="tolerance 2 mm"),
            {},
            "NSD of liver with tolerance 1 mm for one and with tolerance 2 mm for two; expected the same settings",
        ),
        (
            TWO + scores("one", "reference volume") + scores("two", "reference volume", (0.5, 0.6, 0.8)),
            {},
            "a reference of liver in case c of 0.7 ml for one and of 0.8 ml for two",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(given, options, message):
    with pytest.raises(InputError, match=message):
        compare(given, **options)


def test_labels_that_all_models_have_can_be_chosen():
    (found,) = compare(TWO + scores("two", label="lung"), labels=["liver"])
    assert found.p == 1.0 and found.ties == 3
