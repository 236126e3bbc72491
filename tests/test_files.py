"""Names of data sets, those there and new ones; files and folders that are there whole or not at all."""

import os
import pickle
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import (
    dataset_name,
    file_state,
    is_unchanged,
    new_dataset_name,
    read_json,
    read_pickle,
    write_beside,
)


@pytest.mark.parametrize(("dataset", "found"), [(42, "Dataset042_Liver"), ("Dataset004_Other", "Dataset004_Other")])
def test_a_data_set_is_found_in_any_folder(nnunet_folders, dataset, found):
    (nnunet_folders / "nnUNet_raw" / "Dataset042_Liver").mkdir()
    (nnunet_folders / "nnUNet_results" / "Dataset004_Other").mkdir()
    assert dataset_name(dataset) == found


@pytest.mark.parametrize(
    ("dataset", "got"),
    [
        (43, "no data set 43; expected one folder Dataset043_\\*"),
        ("Dataset042_Lver", "no data set Dataset042_Lver; expected a folder Dataset042_Lver"),
        ("Liver", "the data set 'Liver'; expected an id of 0 to 999 or a name like Dataset004_Hippocampus"),
    ],
)
def test_an_unknown_data_set_is_told_the_known_ones(nnunet_folders, dataset, got):
    with pytest.raises(InputError, match=f"{got}.*; check the id and the nnU-Net variables"):
        dataset_name(dataset)
    (nnunet_folders / "nnUNet_raw" / "Dataset042_Liver").mkdir()
    (nnunet_folders / "nnUNet_results" / "Dataset004_Other").mkdir()
    (nnunet_folders / "nnUNet_raw" / "Dataset005_File").touch()
    known = "choose one of Dataset004_Other, Dataset042_Liver, or check the nnU-Net variables"
    with pytest.raises(InputError, match=f"{got}.*; {known}"):
        dataset_name(dataset)


@pytest.mark.parametrize(
    ("output", "name", "made"),
    [
        (4, "Liver", "Dataset004_Liver"),
        ("042", "Liver_3.7mm", "Dataset042_Liver_3.7mm"),
        (999, "a+b-c", "Dataset999_a+b-c"),
    ],
)
def test_new_name(nnunet_folders, output, name, made):
    # Neither files nor other data sets have the id.
    (nnunet_folders / "nnUNet_raw" / f"{made}.zip").touch()
    (nnunet_folders / "nnUNet_raw" / "Dataset005_Liver").mkdir()
    assert new_dataset_name(output, name) == made


@pytest.mark.parametrize(
    ("output", "name", "sentence"),
    [
        ("Dataset004", "Liver", "output data set 'Dataset004'; expected an id of 0 to 999"),
        (1000, "Liver", "output data set '1000'"),
        (-1, "Liver", "output data set '-1'"),
        ("", "Liver", "output data set ''"),
        (4, "", "name ''; expected what follows DatasetXXX_"),
        (4, "../x", "name '../x'"),
        (4, "two words", "name 'two words'"),
        (4, "Dataset004_Liver", "name 'Dataset004_Liver'"),
    ],
)
def test_no_name(nnunet_folders, output, name, sentence):
    with pytest.raises(InputError, match=sentence):
        new_dataset_name(output, name)


@pytest.mark.parametrize("variable", ["nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"])
def test_id_of_another_data_set(nnunet_folders, variable):
    (nnunet_folders / variable / "Dataset004_Other").mkdir()
    with pytest.raises(InputError, match=f"output id 4, which .*{variable}/Dataset004_Other has"):
        new_dataset_name(4, "Liver")


def raising(error: BaseException) -> Callable[[Path], None]:
    """A writer that stops half-way."""

    def write(part: Path) -> None:
        part.write_bytes(b"half")
        raise error

    return write


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(28, "No space left on device"), OSError),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), OSError),
        (RuntimeError("basic_ios::clear: iostream error"), OSError),
        (RuntimeError("a shape mismatch"), RuntimeError),
        (ValueError("anything"), ValueError),
    ],
    ids=str,
)
@pytest.mark.parametrize("keep", [False, True])
def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, error: BaseException, raised: type[BaseException], keep: bool
) -> None:
    path, previous = tmp_path / "latest", tmp_path / "previous"
    path.write_text("old")
    with pytest.raises(raised):
        write_beside(raising(error), path, keep_as=previous if keep else None)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["latest"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="writes to /dev/full")
@pytest.mark.parametrize("elements", [10, 10_000_000])
def test_a_disk_that_is_really_full(tmp_path: Path, elements: int) -> None:
    path = tmp_path / "latest"
    path.write_text("old")
    with pytest.raises(OSError, match="could not write"):
        write_beside(lambda _: torch.save({"weights": torch.zeros(elements)}, "/dev/full"), path)
    assert path.read_text() == "old"


def test_the_new_file_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "latest"
    for text in ("one", "two"):
        write_beside(partial(Path.write_text, data=text), path)
        assert path.read_text() == text
    assert names(tmp_path) == ["latest"]


@pytest.mark.parametrize("hard_links", [True, False])
def test_the_replaced_file_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard_links: bool) -> None:
    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    if not hard_links:
        monkeypatch.setattr(os, "link", refuse)
    path, previous = tmp_path / "latest", tmp_path / "previous"
    (tmp_path / "previous.part").write_text("left by a kill")
    for text in ("one", "two", "three"):
        write_beside(partial(Path.write_text, data=text), path, keep_as=previous)
    assert (path.read_text(), previous.read_text()) == ("three", "two")
    assert names(tmp_path) == ["latest", "previous"]
    if hard_links:  # a kill between keeping the old file and replacing it leaves two names of one file
        previous.unlink()
        os.link(path, previous)
        write_beside(partial(Path.write_text, data="four"), path, keep_as=previous)
        assert (path.read_text(), previous.read_text()) == ("four", "three")
        assert names(tmp_path) == ["latest", "previous"]


def test_a_full_disk_while_keeping_the_old_file_leaves_all_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        (tmp_path / "previous.part").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr("shutil.copyfile", full)
    path, previous = tmp_path / "latest", tmp_path / "previous"
    path.write_text("old")
    previous.write_text("older")
    with pytest.raises(OSError, match="No space"):
        write_beside(lambda part: part.write_text("new"), path, keep_as=previous)
    assert (path.read_text(), previous.read_text()) == ("old", "older")
    assert names(tmp_path) == ["latest", "previous"]


@pytest.mark.parametrize(("text", "got"), [("[]", "a list"), ("3", "a number"), ("null", "null"), ('"a"', "a text")])
def test_json_of_another_kind(tmp_path, text, got):
    path = tmp_path / "plans.json"
    path.write_text(text)
    with pytest.raises(InputError, match=f"got {got} in .*plans.json; expected an object; mend it"):
        read_json(path, "mend it")


def test_a_pickle_of_data_is_read(tmp_path):
    content = {"spacing": [1.0, np.float64(2.5)], "bbox": np.arange(6).reshape(3, 2), "locations": {(-1, 0): "a"}}
    for protocol in range(3, pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "case.pkl").write_bytes(pickle.dumps(content, protocol))
        held = read_pickle(tmp_path / "case.pkl", "preprocess again")
        assert held["spacing"] == content["spacing"] and held["locations"] == content["locations"]
        np.testing.assert_array_equal(held["bbox"], content["bbox"])


RAN: list[str] = []


class _Marker:
    def __reduce__(self):
        return _run, ("marker",)


def _run(what):
    RAN.append(what)


def test_a_pickle_that_names_code_is_refused_and_not_run(tmp_path):
    (tmp_path / "case.pkl").write_bytes(pickle.dumps({"a": _Marker()}))
    with pytest.raises(InputError, match=r"could run code.*; preprocess again"):
        read_pickle(tmp_path / "case.pkl", "preprocess again")
    assert not RAN


@pytest.mark.parametrize("content", [b"", b"\x80\x04", pickle.dumps({"a": 1})[:-3]])
def test_a_damaged_pickle(tmp_path, content):
    (tmp_path / "case.pkl").write_bytes(content)
    with pytest.raises(InputError, match=r"unreadable file .*case\.pkl"):
        read_pickle(tmp_path / "case.pkl", "preprocess again")


def test_a_file_is_known_by_its_content(tmp_path):
    path = tmp_path / "label.nii.gz"
    path.write_bytes(b"one")
    state = file_state(path)
    assert state.size == 3 and is_unchanged(path, state)
    os.utime(path, (1, 1))  # another time, the same content
    assert is_unchanged(path, state)
    time.sleep(0.02)  # the times of a file system have a grain
    path.write_bytes(b"two")  # another content under an old time
    os.utime(path, ns=(state.mtime, state.mtime))
    assert not is_unchanged(path, state)
    path.unlink()
    assert not is_unchanged(path, state)
