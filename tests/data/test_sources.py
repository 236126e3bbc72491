"""Finding volumes in folders and pairing them by name."""

import shutil
from pathlib import Path

import pytest
import SimpleITK as sitk

from nnunetv2_ext.data.sources import find_volumes, open_volume, pair_by_name
from nnunetv2_ext.errors import InputError


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        if "." in name:
            sitk.WriteImage(sitk.Image([2, 2, 2], sitk.sitkUInt8), str(folder / name))
        else:
            (folder / name).mkdir()
    return folder


@pytest.mark.parametrize(
    ("images", "labels", "pairs", "unmatched"),
    [
        pytest.param(["a.nii.gz", "b.mha"], ["a.nrrd", "b.nii"], {"a": ["a"], "b": ["b"]}, [], id="same name"),
        pytest.param(
            ["a_0000.nii.gz", "a_0001.nrrd", "b_0000.mha", "b_0001"],
            ["a.nii.gz", "b.mha"],
            {"a": ["a_0000", "a_0001"], "b": ["b_0000", "b_0001"]},
            [],
            id="channels",
        ),
        pytest.param(
            ["a_0001.mha", "a_0002.mha"],
            ["a_0001.mha", "a_0002.mha"],
            {"a_0001": ["a_0001"], "a_0002": ["a_0002"]},
            [],
            id="numbers that are no channels",
        ),
        pytest.param(["a.1.mha", "b"], ["a.1.nii.gz", "b.mha"], {"a.1": ["a.1"], "b": ["b"]}, [], id="dots, folders"),
        pytest.param(
            ["a.mha", "c.mha"], ["a.mha", "d.mha"], {"a": ["a"]}, ["images/c.mha", "labels/d.mha"], id="unmatched"
        ),
        pytest.param(["a_000.mha"], ["a.mha"], {}, ["images/a_000.mha", "labels/a.mha"], id="three digits"),
    ],
)
def test_pairs(tmp_path, images, labels, pairs, unmatched):
    found, left = pair_by_name(touch(tmp_path / "images", *images), touch(tmp_path / "labels", *labels))
    assert {pair.name: [path.name.split(".m")[0].split(".n")[0] for path in pair.images] for pair in found} == pairs
    assert [str(path.relative_to(tmp_path)) for path in left] == unmatched


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (["a.mha", "a.nrrd"], "a.mha and a.nrrd in .*images; expected one volume of a name"),
        (["a.mha", "a_0000.mha"], "a.mha and a_0000.mha for channel 0 of case a"),
        (["a_0000.mha", "a_0002.mha"], "the channels 0, 2 of case a in .*images"),
        (["a_0001.mha"], "the channels 1 of case a in .*images"),
    ],
)
def test_ambiguous_pairs(tmp_path, images, sentence):
    with pytest.raises(InputError, match=sentence):
        pair_by_name(touch(tmp_path / "images", *images), touch(tmp_path / "labels", "a.mha"))


def test_files_that_are_no_volumes(tmp_path):
    folder = touch(tmp_path / "images", "a.mhd", "b.hdr", "c.gipl", "e.hdr.gz")
    for name in ("notes.txt", "table.csv", "dataset.json"):
        (folder / name).write_text("1")
    shutil.copy(folder / "c.gipl", folder / ".hidden.gipl")
    (folder / "d.nii.gz").write_bytes(b"")
    (folder / "f.nii.gz").symlink_to("nowhere")
    assert {name: path.name for name, path in find_volumes(folder).items()} == {
        "a": "a.mhd",
        "b": "b.hdr",
        "c": "c.gipl",
        "d": "d.nii.gz",
        "e": "e.hdr.gz",
        "f": "f.nii.gz",
    }
    for name in ("d.nii.gz", "f.nii.gz"):
        with pytest.raises(InputError, match=f"unreadable file .*{name}"):
            open_volume(folder / name)


def test_missing_folder(tmp_path):
    with pytest.raises(InputError, match=r"no folder .*nowhere"):
        find_volumes(tmp_path / "nowhere")
