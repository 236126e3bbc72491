"""Cases in threads, and the description of a new data set."""

import json
import threading

import pytest

from nnunetv2_ext.data.dataset import for_each, write_dataset_json
from nnunetv2_ext.errors import InputError


def test_items_keep_their_order_and_run_together():
    barrier = threading.Barrier(2, timeout=10)

    def double(item):
        barrier.wait()
        return 2 * item

    assert for_each(double, [1, 2, 3, 4], processes=2, label="items", progress=False) == [2, 4, 6, 8]


def test_first_error_ends_it():
    seen = []

    def fail(item):
        seen.append(item)
        raise InputError(f"item {item}", "b", "c")

    with pytest.raises(InputError, match="got item 0"):
        for_each(fail, range(1000), processes=1, label="items", progress=False)
    assert len(seen) < 1000


@pytest.mark.parametrize(("progress", "printed"), [(True, "items: 100%"), (False, "")])
def test_progress(capsys, progress, printed):
    for_each(str, [1, 2], processes=1, label="items", progress=progress)
    error = capsys.readouterr().err
    assert printed in error if progress else error == ""


def test_no_process():
    with pytest.raises(InputError, match="0 processes; expected 1 or more"):
        for_each(str, [1], processes=0, label="items", progress=False)


def test_dataset_json(tmp_path):
    entries = {"labels": {"background": 0}, "numTraining": 9, "dataset": {"a": {}}, "licence": "CC0"}
    write_dataset_json(tmp_path, entries, training=2)
    found = json.loads((tmp_path / "dataset.json").read_text())
    assert found == {"labels": {"background": 0}, "numTraining": 2, "licence": "CC0"}
    assert entries["numTraining"] == 9
