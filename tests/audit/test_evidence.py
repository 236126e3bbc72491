"""Evidence of a map: what its readings say together takes the place of what the last one says."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nnunetv2_ext.audit.evidence import _over_readings
from nnunetv2_ext.audit.result import LabelScore
from nnunetv2_ext.audit.sentences import explain


def of_last(disagreement: float, moved: float) -> LabelScore:
    mirrored = (moved, 1.0, 1.0)
    return LabelScore(
        "one", "liver", 900, 1000, 0.001, disagreement, -0.1, moved=moved, mirrored=mirrored, shift=(3, 0, 0)
    )


@pytest.mark.parametrize(
    ("last", "told"),
    [
        (of_last(0.5, 0.12), "lies 3.0 mm further to the patient's left"),
        (of_last(0.12, 0.1), "lacks 38 % of the prediction"),  # the last prediction draws the error too
    ],
    ids=["a shift", "no shift"],
)
def test_a_shift_is_a_cause_where_it_mends_the_last_prediction(last: LabelScore, told: str) -> None:
    result: Any = SimpleNamespace(
        map=SimpleNamespace(cases=("none", "one")),
        labels=("lesion", "liver"),
        disagreement=np.array([[0.0, 0.0], [0.0, 0.35]]),
        ranks=np.array([[0.0, 0.0], [0.0, 0.9]]),
    )
    (score,) = _over_readings([last], result)
    assert (score.disagreement, score.rank) == (0.35, 0.9)
    assert score.moved == pytest.approx(0.35 * last.moved / last.disagreement)
    assert told in explain(score, usual=0.1)
