"""The side-car: what is written comes back, and nothing else is taken for it."""

import json
import re

import numpy as np
import pytest

from nnunetv2_ext.data.sidecar import SIDECAR, Sidecar, read_sidecar, write_sidecar
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.geometry.slabs import CaseSlabs

DATASET = "Dataset042_Liver"
SLABS = np.array([[-1.1, 2.6], [2.6, 6.3], [7.0, 10.7]])


def sidecar(*, slabs=SLABS, axis=1) -> Sidecar:
    return Sidecar(DATASET, axis, {"a": CaseSlabs(0.7, 12, slabs), "b": CaseSlabs(1.0, 3, SLABS[:1])})


def test_what_is_written_comes_back(tmp_path):
    write_sidecar(tmp_path, Sidecar(DATASET, 0, {}))
    assert write_sidecar(tmp_path, sidecar()) == tmp_path / SIDECAR
    assert [path.name for path in tmp_path.iterdir()] == [SIDECAR]
    read = read_sidecar(tmp_path, DATASET)
    assert (read.dataset, read.axis, [*read.cases]) == (DATASET, 1, ["a", "b"])
    here = read.case("a")
    assert (here.thin_spacing, here.thin_slices) == (0.7, 12)
    np.testing.assert_array_equal(here.slabs, SLABS)
    np.testing.assert_allclose(here.slices[[0, -1]], [[0, 0.7], [7.7, 8.4]])


def test_a_copy_in_another_layout_is_the_same_sidecar(tmp_path):
    write_sidecar(tmp_path, sidecar())
    entries = json.loads((tmp_path / SIDECAR).read_text())
    (tmp_path / SIDECAR).write_text(json.dumps(dict(reversed(entries.items()))))
    assert read_sidecar(tmp_path, DATASET).axis == 1


def edit(**changes):
    def change(path):
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


REFUSED = {
    "missing": (lambda path: path.unlink(), "no file .*slabs.json.*convert_thin_thick"),
    "truncated": (lambda path: path.write_text(path.read_text()[:100]), "damaged file .*slabs.json"),
    "no object": (lambda path: path.write_text("[]"), "a list in .*slabs.json"),
    "no digest": (lambda path: path.write_text("{}"), "slabs.json without digest"),
    "axis edited": (edit(axis=0), "an edited file .*slabs.json, whose digest"),
    "data set edited": (edit(dataset="Dataset001_Other"), "an edited file"),
    "slab edited": (lambda path: path.write_text(path.read_text().replace("10.7", "10.8")), "an edited file"),
    "version": (edit(version=2), "version 2 in .*; expected version 1"),
}


@pytest.mark.parametrize(("change", "sentence"), REFUSED.values(), ids=REFUSED)
def test_another_file_is_refused(tmp_path, change, sentence):
    change(write_sidecar(tmp_path, sidecar()))
    with pytest.raises(InputError, match=sentence):
        read_sidecar(tmp_path, DATASET)


def test_sidecar_of_another_data_set_is_refused(tmp_path):
    write_sidecar(tmp_path, sidecar())
    with pytest.raises(InputError, match=r"side-car of Dataset042_Liver in .*expected that of Dataset043_Liver"):
        read_sidecar(tmp_path, "Dataset043_Liver")


def test_unknown_case_is_refused():
    with pytest.raises(InputError, match=r"no slabs of case c in the slabs.json of Dataset042_Liver"):
        sidecar().case("c")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"axis": 3}, "slice axis 3"),
        ({"slabs": np.array([[0.0, 4], [3.9, 8]])}, r"slabs \[0, 4\) and \[3.9, 8\) mm of case a"),
        ({"slabs": np.array([[4.0, 8], [0, 4]])}, r"slabs \[4, 8\) and \[0, 4\) mm of case a"),
        ({"slabs": np.array([[4.0, 4]])}, "slabs of case a without extent"),
        ({"slabs": np.array([[4.0, np.nan]])}, "slabs of case a without extent"),
        ({"slabs": np.zeros((0, 2))}, re.escape("slabs of shape (0, 2) for case a")),
    ],
)
def test_bad_slabs_are_not_written(tmp_path, changes, sentence):
    with pytest.raises(InputError, match=sentence):
        write_sidecar(tmp_path, sidecar(**changes))
    assert not [*tmp_path.iterdir()]
