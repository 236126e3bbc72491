"""Which cases are listed, and in which order: planted errors, styles, few and many labels, no evidence."""

import math

import numpy as np
import pytest

from nnunetv2_ext.audit.result import LabelScore, LatentMap
from nnunetv2_ext.audit.styles import limit_of
from nnunetv2_ext.audit.validation import find_validation, score_cases
from nnunetv2_ext.audit.verdicts import evidence, judge
from tests.audit import organs

PLANTED = organs.CASES[3:9]


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    """Of a data set with one case for each kind of planted error."""
    with pytest.MonkeyPatch.context() as patch:
        changed = dict(zip(PLANTED, organs.PLANTED.values(), strict=True))
        organs.write_validated(tmp_path_factory.mktemp("planted"), patch, changed)
        found = find_validation(organs.DATASET)
        return {one.case: one for one in judge(score_cases(found.references, found.predictions, found.labels)[0])}


SENTENCES = {
    "shift": "lies 7.9 mm further to the patient's left than the prediction",
    "half": "of the prediction, towards the patient's left",
    "another": "perhaps another case's label",
    "flip": "if it were mirrored from left to right",
    "every second slice": "slices between slices that have it",
    "eroded": "of the prediction, all around, 95 % of the surfaces within 3.2 mm",
}


@pytest.mark.parametrize("kind", organs.PLANTED)
def test_each_planted_error_ends_in_its_sentence(verdicts, kind):
    case = PLANTED[list(organs.PLANTED).index(kind)]
    assert verdicts[case].wrong
    assert SENTENCES[kind] in verdicts[case].sentence
    assert "(Dice 0." in verdicts[case].sentence


def test_no_other_case_is_listed_and_the_worst_is_first(verdicts):
    assert set(verdicts) == set(PLANTED)
    orders = [one.order for one in verdicts.values()]
    assert orders == sorted(orders, reverse=True)


def scores_of(*disagreements: float, label: str = "liver", sizes: tuple[float, ...] = ()) -> list[LabelScore]:
    """A label of cases named by their numbers."""
    sizes = sizes or (0.0,) * len(disagreements)
    return [
        LabelScore(f"{number:03}", label, 1000, 1000, 0.001, value, size, 2.0, (0.1, 0.0, 0.0), 1, 0, value, (1, 1, 1))
        for number, (value, size) in enumerate(zip(disagreements, sizes, strict=True))
    ]


CLEAN = tuple(0.1 + 0.02 * math.sin(number) for number in range(30))


@pytest.mark.parametrize(
    ("scores", "wrong"),
    [
        pytest.param(scores_of(*CLEAN), [], id="alike"),
        pytest.param(scores_of(*CLEAN, 0.9, 0.3, 0.5), ["030", "032", "031"], id="three, by how far"),
        pytest.param(scores_of(*CLEAN, 1.0), ["030"], id="nothing in common"),
        pytest.param(scores_of(*CLEAN, math.nan), [], id="in neither file"),
        pytest.param(scores_of(*(value / 100 for value in CLEAN), 0.01), [], id="far, but by a hundredth"),
        pytest.param(scores_of(*CLEAN) + scores_of(*CLEAN[:-1], 0.6, label="spleen"), ["029"], id="one of two labels"),
        pytest.param(scores_of(*[math.nan] * 12), [], id="a label that no file has"),
        pytest.param(scores_of(*[1.0] * 12, 0.2), [], id="a label that is never found"),
    ],
)
def test_probably_wrong(scores, wrong):
    assert [one.case for one in judge(scores) if one.wrong] == wrong


def test_further_labels_of_a_wrong_case_are_told():
    scores = scores_of(*CLEAN, 0.9) + scores_of(*CLEAN, 0.6, label="spleen") + scores_of(*CLEAN, 0.1, label="aorta")
    (verdict,) = judge(scores)
    assert verdict.label == "liver"
    assert verdict.sentence.endswith("(Dice 0.10; the others' median 0.90); also spleen (Dice 0.40)")


def test_every_case_has_its_evidence():
    found = evidence(scores_of(*CLEAN, 0.9, math.nan))
    assert len(found) == 32
    assert found["030"].order == max(one.order for one in found.values() if not math.isnan(one.order))
    assert found["031"].labels == ()


def test_the_limit_grows_with_the_labels():
    assert limit_of(1) == pytest.approx(3)
    assert limit_of(2) == pytest.approx(3.205, abs=1e-3)
    assert limit_of(100) == pytest.approx(4.2, abs=0.02)


SIZES = tuple(0.05 * math.sin(number) for number in range(30))


@pytest.mark.parametrize(
    ("disagreements", "sizes", "styles"),
    [
        pytest.param(CLEAN, SIZES, [], id="alike"),
        pytest.param(CLEAN, (*SIZES[:-2], 0.3, -0.5), ["029", "028"], id="one larger, one smaller"),
        pytest.param(CLEAN, (*SIZES[:-8], *(0.35 + size for size in SIZES[-8:])), list("12345678"), id="a quarter"),
        pytest.param(CLEAN, (*SIZES[:-4], *(0.35 + size for size in SIZES[-4:])), list("6789"), id="four, beyond all"),
        pytest.param(CLEAN, tuple(size / 20 for size in (*SIZES[:-1], 0.8)), [], id="all alike but by 4 %"),
        pytest.param((*CLEAN[:-1], 0.8), (*SIZES[:-1], 0.5), [], id="wrong"),
    ],
)
def test_other_styles_by_size(disagreements, sizes, styles):
    found = [one for one in judge(scores_of(*disagreements, sizes=sizes)) if not one.wrong]
    if len(styles) in (4, 8):
        assert {one.case for one in found} == {f"{number:03}" for number in range(30 - len(styles), 30)}
    else:
        assert [one.case for one in found] == styles
    assert all("than the prediction (the others' median: " in one.sentence for one in found)


RANDOM = np.random.default_rng(0)
BELL, OTHER_BELL = RANDOM.normal(0, 0.1, (2, 60))
EVEN = np.linspace(-0.17, 0.17, 60)


@pytest.mark.parametrize(
    ("first", "second", "listed"),
    [
        pytest.param(BELL, OTHER_BELL, 0, id="two bell curves"),
        pytest.param(BELL, BELL + OTHER_BELL / 10, 0, id="that go together"),
        pytest.param(EVEN, EVEN + OTHER_BELL / 10, 0, id="evenly spread, that go together"),
        pytest.param(BELL, None, 0, id="of one label"),
        pytest.param(BELL + 0.4 * (np.arange(60) < 15), OTHER_BELL + 0.4 * (np.arange(60) < 15), 15, id="a quarter"),
        pytest.param(BELL + 0.8 * (np.arange(60) < 20), None, 20, id="a third, of one label"),
    ],
)
def test_groups_of_sizes(first, second, listed):
    disagreements = tuple(0.1 + 0.02 * math.sin(number) for number in range(60))
    scores = scores_of(*disagreements, sizes=tuple(first))
    scores += [] if second is None else scores_of(*disagreements, label="spleen", sizes=tuple(second))
    found = [one for one in judge(scores) if "lie apart" in one.sentence or one.order > 3]
    assert {one.case for one in found} == {f"{number:03}" for number in range(listed)}


@pytest.mark.parametrize("clustered", [0, 3])
def test_other_styles_by_the_smaller_cluster_of_the_map(clustered):
    scores = scores_of(*CLEAN)
    larger = [score._replace(voxels=3 * score.voxels // 2) for score in scores[:clustered]]
    scores = [*larger, *scores[clustered:]]
    cases = tuple(score.case for score in scores)
    clusters = np.array([int(number < clustered) for number in range(30)])
    latents = LatentMap(cases, np.zeros((30, 2)), clusters, 0.7 if clustered else math.nan, np.ones(30))
    found = judge(scores, latents)
    assert [one.case for one in found] == list(cases[:clustered])
    assert not any(one.wrong for one in found)
    assert all("50 % larger than that of the others" in one.sentence for one in found)
