"""Voxels are read once: what is on record is read again only where a file has changed."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_ext.data import voxels
from nnunetv2_ext.data.raw import Raw, examine
from nnunetv2_ext.data.voxels import RECORD, keep_voxels, known_voxels, look_at, look_at_all, voxel_faults
from tests.data.raw_dataset import CASES, RawDataset, put

FILES = 2 * len(CASES)


@pytest.fixture
def data(tmp_path: Path) -> RawDataset:
    return RawDataset(tmp_path)


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """The folder of the preprocessed data set, where the record lies."""
    (tmp_path / "preprocessed").mkdir()
    return tmp_path / "preprocessed"


def keep(data: RawDataset, record: Path) -> Raw:
    raw = examine(data.folder)
    keep_voxels(raw, look_at_all(raw, {}, processes=2, progress=False), record)
    return raw


@pytest.mark.parametrize(
    ("value", "seen"),
    [(3, (0, 0, 0)), (np.nan, (0, 0, 1)), (np.inf, (0, 0, 1)), (-np.inf, (0, 0, 1))],
)
def test_what_a_label_file_holds(data: RawDataset, value: float, seen: tuple[int, int, int]) -> None:
    put(value, np.float32)(data)
    found = look_at(data.path("labelsTr/a.nii.gz"), SimpleITKIO, label=True)
    assert (found.nan, found.infinite, found.nan_read_as_0) == seen
    array = np.asarray(nibabel.load(data.path("labelsTr/a.nii.gz")).dataobj)
    assert found.values == tuple(sorted(set(array[np.isfinite(array)].tolist())))


def test_an_image_among_the_labels_does_not_fill_the_record(data: RawDataset) -> None:
    shutil.copy(data.path("imagesTr/a_0000.nii.gz"), data.path("labelsTr/a.nii.gz"))
    found = look_at(data.path("labelsTr/a.nii.gz"), SimpleITKIO, label=True)
    assert len(found.values) == voxels.VALUES


def test_what_is_kept_is_known(data: RawDataset, record: Path) -> None:
    raw = keep(data, record)
    assert known_voxels(raw, record) == look_at_all(raw, {}, processes=2, progress=False)


@pytest.mark.parametrize(
    ("change", "read"),
    [
        (lambda _: None, []),
        (lambda data: put(3)(data), ["a.nii.gz"]),
        # another content with the time and size that it had, as `cp -p` and `rsync -a` make
        (lambda data: same_time(data, "labelsTr/c.nii.gz"), ["c.nii.gz"]),
        (lambda data: os.utime(data.path("labelsTr/c.nii.gz")), []),
    ],
)
def test_only_what_has_changed_is_read(
    data: RawDataset, record: Path, monkeypatch: pytest.MonkeyPatch, change, read: list[str]
) -> None:
    keep(data, record)
    change(data)
    paths: list[str] = []
    original = voxels.look_at

    def look_at(path: Path, *rest: Any, **more: Any) -> Any:
        paths.append(path.name)
        return original(path, *rest, **more)

    monkeypatch.setattr(voxels, "look_at", look_at)
    raw = examine(data.folder)
    look_at_all(raw, known_voxels(raw, record), processes=1, progress=False)
    assert paths == read


def same_time(data: RawDataset, name: str) -> None:
    path = data.path(name)
    before, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:9] + bytes([content[9] ^ 1]) + content[10:])  # where gzip names the operating system
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.update(version=0),
        lambda record: record.update(reader="NibabelIO"),
        lambda record: record.update(files=[1]),
        lambda record: record.pop("files"),
        lambda record: [entry.pop("state") for entry in record["files"].values()],
        lambda record: [entry.update(other=1) for entry in record["files"].values()],
    ],
)
def test_a_record_of_another_kind_is_not_read(data: RawDataset, record: Path, change) -> None:
    raw = keep(data, record)
    content = json.loads((record / RECORD).read_text())
    change(content)
    (record / RECORD).write_text(json.dumps(content))
    assert known_voxels(raw, record) == {}


def test_damaged_files_are_not_kept(data: RawDataset, record: Path) -> None:
    raw = examine(data.folder)
    data.path("imagesTr/a_0000.nii.gz").write_bytes(b"")
    seen = look_at_all(raw, {}, processes=1, progress=False)
    assert [fault.got for fault in voxel_faults(raw, seen)] == [
        f"voxels that cannot be read in 1 file ({seen[data.path('imagesTr/a_0000.nii.gz')].damaged})".replace(
            f"{data.folder}/", ""
        )
    ]
    keep_voxels(raw, seen, record)
    assert len(known_voxels(raw, record)) == FILES - 1
