"""Which cases are shown, and where their images are found."""

import math

import numpy as np
import pytest

from nnunetv2_ext.evaluation.segmentations import Labels
from nnunetv2_ext.report.cases import choose, find_cases
from nnunetv2_ext.report.chosen import worst_median_best
from nnunetv2_ext.report.page import write_report
from tests.report.evaluations import SHAPE, boxes, write, write_evaluation


@pytest.mark.parametrize(
    ("cases", "worst", "ranks"),
    [
        (1, 3, ["the only case"]),
        (2, 3, ["worst", "best"]),
        (3, 3, ["worst", "median", "best"]),
        (5, 3, ["worst", "worst, no. 2", "median", "best"]),
        (9, 2, ["worst", "worst, no. 2", "median", "best"]),
        (9, 0, []),
    ],
)
def test_each_case_is_headed_by_what_it_is(cases, worst, ranks):
    assert [one.rank for one in worst_median_best([(f"{n}", n / 10) for n in range(cases)], worst)] == ranks


@pytest.mark.parametrize("count", range(1, 8))
def test_the_median_is_the_same_for_look_and_the_report(tmp_path, count):
    """Of two in the middle it is the worse; of equal cases, too, both take the same."""
    shifts = {f"{name}": min(shift, 4) for shift, name in enumerate("hgabcdf"[:count])}
    for name, shift in shifts.items():
        write(boxes(), tmp_path / "labels" / f"{name}.nii.gz")
        write(boxes(shift), tmp_path / "predictions" / f"{name}.nii.gz")
        write(np.zeros(SHAPE, np.float32), tmp_path / "images" / f"{name}_0000.nii.gz")
    cases = find_cases(*(tmp_path / name for name in ("images", "predictions", "labels")))
    looked = choose(cases, Labels({}), 3, processes=1, progress=False)
    worst_first = sorted((-shift, name) for name, shift in shifts.items())
    reported = {one.rank: one.case for one in worst_median_best([(name, math.nan) for _, name in worst_first], 1)}
    ranks = {"Worst case": "worst", "Median case": "median", "Best case": "best", "": "the only case"}
    assert {ranks[rank]: name for name, rank in looked.items()} == reported
    if count > 2:
        assert shifts[reported["median"]] == sorted(shifts.values())[count // 2]


@pytest.mark.parametrize("name", ["case_0_0000.nii.gz", "case_0_0000.mha", "case_0.nrrd"])
def test_an_image_is_found_as_look_finds_it(tmp_path, name):
    evaluation = write_evaluation(tmp_path, {"ours": [boxes(3)]}, images=False)
    write(np.zeros(SHAPE, np.float32), tmp_path / "elsewhere" / name)
    write(np.zeros(SHAPE, np.float32), tmp_path / "elsewhere" / "case_0_0001.nii.gz")
    assert write_report([evaluation], tmp_path / "page.html", images=tmp_path / "elsewhere", viewer_cases=0) == []
