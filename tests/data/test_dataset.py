"""A new data set is there when it is complete, or not at all."""

import errno
import json
import threading

import pytest

from nnunetv2_ext.data.dataset import for_each, write_dataset_json
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import complete_or_absent


def test_complete_folder_takes_its_place(tmp_path):
    target = tmp_path / "Dataset001_A"
    with complete_or_absent(target) as folder:
        (folder / "file").write_text("1")
        assert folder.name == target.name
        assert not target.exists()
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == [
        "Dataset001_A",
        "Dataset001_A/file",
    ]
    # As any other new folder, not only for its owner.
    (tmp_path / "ordinary").mkdir()
    assert target.stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize(
    ("error", "raised", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left"), InputError, "on writing .*Dataset001_A .*No space left"),
        (InputError("a", "b", "c"), InputError, "got a; expected b; c"),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
    ],
)
def test_nothing_is_left_of_an_incomplete_folder(tmp_path, error, raised, sentence):
    with pytest.raises(raised, match=sentence), complete_or_absent(tmp_path / "Dataset001_A") as folder:
        (folder / "file").write_text("1")
        raise error
    assert not [*tmp_path.iterdir()]


def test_folder_made_meanwhile_is_kept(tmp_path):
    target = tmp_path / "Dataset001_A"
    with pytest.raises(InputError, match="on writing"), complete_or_absent(target):
        target.mkdir()
        (target / "other").write_text("1")
    assert [path.name for path in tmp_path.rglob("*")] == ["Dataset001_A", "other"]


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
