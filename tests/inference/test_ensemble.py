"""Ensembles of saved probabilities: nnU-Net's labels to the last voxel, whole files only, and little memory."""

import json
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nnunetv2.ensembling.ensemble import ensemble_folders as nnunet_ensemble

from nnunetv2_ext.data import volumes
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.inference import ensemble, record, saved
from nnunetv2_ext.inference.ensemble import ensemble_folders
from nnunetv2_ext.inference.record import RECORD
from tests.inference.predictions import CASES, SHAPE, Predictions, label_files, names

REGIONS = {
    "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "inner": 3},
    "regions_class_order": [1, 2, 3],
}
MANY = {"labels": {"background": 0, **{f"label {number}": number for number in range(1, 300)}}}
KINDS: list[tuple[str, int, dict[str, Any]]] = [
    ("labels", 3, {}),
    ("regions", 3, REGIONS),
    ("ignore", 3, {"labels": {"background": 0, "ignore": 3, "right": 2, "left": 1}}),
    ("many", 300, MANY),
    ("nrrd", 3, {"file_ending": ".nrrd"}),
    ("mha", 3, {"file_ending": ".mha"}),
    ("nibabel", 3, {"image_reader_writer": "NibabelIO"}),
    ("nibabel_turned", 3, {"image_reader_writer": "NibabelIOWithReorient"}),
    ("png", 3, {"file_ending": ".png", "image_reader_writer": "NaturalImage2DIO"}),
    ("tif", 3, {"file_ending": ".tif", "image_reader_writer": "Tiff3DIO"}),
]


@pytest.mark.usefixtures("light")
@pytest.mark.parametrize(("heads", "entries"), [kind[1:] for kind in KINDS], ids=[kind[0] for kind in KINDS])
def test_the_labels_are_those_of_nnunet(heads: int, entries: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(saved, "PIECE", 50)
    members = [Predictions(tmp_path / str(seed), seed, heads=heads, **entries) for seed in range(3)]
    folders = [member.folder for member in members]
    outcome = ensemble_folders(folders, tmp_path / "ours", probabilities=True, processes=2, progress=False)
    assert (outcome.written, outcome.kept, outcome.failed) == ([*CASES], [], {})
    nnunet_ensemble([str(folder) for folder in folders], str(tmp_path / "theirs"), True, 1)
    ending = members[0].description["file_ending"]
    ours, theirs = (label_files(tmp_path / name, ending) for name in ("ours", "theirs"))
    assert list(ours) == list(theirs) == [f"{case}{ending}" for case in CASES]
    for name, labels in ours.items():
        assert np.array_equal(labels, theirs[name]) and labels.max() > 0
    for case in CASES:
        ours_, theirs_ = (np.load(tmp_path / name / f"{case}.npz")["probabilities"] for name in ("ours", "theirs"))
        assert ours_.dtype == theirs_.dtype == np.float32 and np.array_equal(ours_, theirs_)
        assert (tmp_path / "ours" / f"{case}.pkl").read_bytes() == members[0].path(f"{case}.pkl").read_bytes()
    others = {"dataset.json", "plans.json", RECORD}
    assert others < {*names(tmp_path / "ours")} and ".unfinished" not in names(tmp_path / "ours")
    assert {*names(tmp_path / "ours")} - others == {*names(tmp_path / "theirs")} - others
    assert json.loads((tmp_path / "ours" / "dataset.json").read_text()) == members[0].description


@pytest.mark.parametrize(
    ("write", "heads"),
    [
        (lambda path, values: np.savez(path, probabilities=values), 3),
        (lambda path, values: np.savez(path, probabilities=np.asfortranarray(values)), 3),
        (lambda path, values: np.savez(path, probabilities=values.astype(">f8")), 3),
        (
            lambda path, values: np.savez(
                path, probabilities=values.transpose(0, 3, 2, 1).copy().transpose(0, 3, 2, 1)
            ),
            1,
        ),
    ],
    ids=["unpacked", "fortran", "double", "turned"],
)
def test_files_as_numpy_writes_them(write: Callable[..., Any], heads: int, tmp_path: Path) -> None:
    entries: dict[str, Any] = {"labels": {"background": 0, "whole": [1, 2]}, "regions_class_order": [1]}
    one, other = (Predictions(tmp_path / n, 3, heads=heads, **(entries if heads == 1 else {})) for n in ("1", "2"))
    for case in CASES:
        write(other.path(f"{case}.npz"), one.probabilities(case))
    ensemble_folders([one.folder], tmp_path / "alone", progress=False)
    ensemble_folders([one.folder, other.folder], tmp_path / "both", progress=False)
    alone, both = label_files(tmp_path / "alone"), label_files(tmp_path / "both")
    assert all(np.array_equal(both[name], labels) for name, labels in alone.items()) and len(both) == 3


@pytest.mark.parametrize("weights", [[3, 1], [0.5, 2], [1e-3, 1]])
def test_weights(weights: list[float], tmp_path: Path) -> None:
    members = [Predictions(tmp_path / str(seed), seed) for seed in range(2)]
    ensemble_folders(
        [member.folder for member in members], tmp_path / "out", weights=weights, probabilities=True, progress=False
    )
    for case in CASES:
        averaged = np.average([member.probabilities(case).astype(float) for member in members], 0, weights)
        written = np.load(tmp_path / "out" / f"{case}.npz")["probabilities"]
        assert np.allclose(written, averaged, atol=1e-6)
        labels = np.asarray(label_files(tmp_path / "out")[f"{case}.nii.gz"][: np.prod(SHAPE)]).reshape(SHAPE[::-1]).T
        assert np.array_equal(labels, averaged.argmax(0))


def test_equal_weights_are_no_weights(tmp_path: Path) -> None:
    folders = [Predictions(tmp_path / str(seed), seed).folder for seed in range(3)]
    for name, weights in {"none": None, "equal": [0.3] * 3}.items():
        ensemble_folders(folders, tmp_path / name, weights=weights, probabilities=True, progress=False)
    for case in CASES:
        values = [np.load(tmp_path / name / f"{case}.npz")["probabilities"] for name in ("none", "equal")]
        assert np.array_equal(*values)


def test_a_second_run_makes_only_what_is_not_there(tmp_path: Path) -> None:
    members = [Predictions(tmp_path / str(seed), seed) for seed in range(2)]
    folders, out = [member.folder for member in members], tmp_path / "out"
    ensemble_folders(folders, out, progress=False)
    before = label_files(out)

    def again(**options: Any) -> tuple[list[str], list[str]]:
        outcome = ensemble_folders(folders, out, progress=False, **options)
        assert all(np.array_equal(labels, before[name]) for name, labels in label_files(out).items())
        return outcome.written, outcome.kept

    assert again() == ([], [*CASES])
    (out / "b.nii.gz").unlink()
    assert again() == (["b"], ["a", "c"])
    (out / "b.nii.gz").write_bytes((out / "b.nii.gz").read_bytes()[:-9])
    assert again() == (["b"], ["a", "c"])
    assert again(probabilities=True) == ([*CASES], [])
    assert again() == ([], [*CASES])
    (out / ".unfinished").mkdir()  # after a kill
    assert again(overwrite=True) == ([*CASES], [])
    members[1].write("c", members[0].probabilities("c"))
    outcome = ensemble_folders(folders, out, progress=False)
    assert (outcome.written, outcome.kept) == (["c"], ["a", "b"])
    assert ".unfinished" not in names(out)


def test_a_full_disk_leaves_whole_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders, out = [Predictions(tmp_path / str(seed), seed).folder for seed in range(2)], tmp_path / "out"
    write, calls = volumes.sitk.WriteImage, []

    def full(image: Any, name: str, packed: bool) -> None:
        """What ITK does on a full disk: a short file, and no error."""
        write(image, name, packed)
        calls.append(name)
        if Path(name).name == "b.nii.gz":
            Path(name).write_bytes(Path(name).read_bytes()[:40])

    monkeypatch.setattr(volumes.sitk, "WriteImage", full)
    with pytest.raises(InputError, match=rf"^got an error on writing {out} \(.*; make room there\.$"):
        ensemble_folders(folders, out, processes=1, progress=False)
    assert names(out) == ["a.nii.gz", "dataset.json", "plans.json", RECORD]
    monkeypatch.setattr(volumes.sitk, "WriteImage", write)
    outcome = ensemble_folders(folders, out, progress=False)
    assert (outcome.written, outcome.kept) == (["b", "c"], ["a"])


def test_no_label_file_appears_without_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders, out = [Predictions(tmp_path / str(seed), seed).folder for seed in range(2)], tmp_path / "out"

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(record, "write_json", full)
        with pytest.raises(InputError, match="No space left on device"):
            ensemble_folders(folders, out, processes=1, progress=False)
    assert names(out) == ["dataset.json", "plans.json"]
    assert ensemble_folders(folders, out, progress=False).written == [*CASES]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_ended_from_outside_nothing_half_made_stays(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders, out = [Predictions(tmp_path / str(seed), seed).folder for seed in range(2)], tmp_path / "out"
    write = ensemble.write_label_file

    def end(writer: Any, labels: np.ndarray, path: Path, properties: Any) -> None:
        if path.name == "b.nii.gz":
            path.write_bytes(b"half")
            raise error
        write(writer, labels, path, properties)

    monkeypatch.setattr(ensemble, "write_label_file", end)
    with pytest.raises(error):
        ensemble_folders(folders, out, processes=1, progress=False)
    assert names(out) == ["a.nii.gz", "dataset.json", "plans.json", RECORD]
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]


def test_memory_grows_neither_with_members_nor_with_labels(tmp_path: Path) -> None:
    shape = (40, 128, 128)
    voxels = np.prod(shape)
    peaks = {}
    for members, heads in ((2, 2), (6, 2), (2, 8)):
        labels = {"background": 0, **{f"label {number}": number for number in range(1, heads)}}
        made = Predictions(tmp_path / f"{members}_{heads}", 0, heads=heads, cases=(), labels=labels)
        made.write("a", np.ones((heads, *shape), np.float16) / heads)
        with_links = [made.folder]
        for number in range(1, members):
            other = Predictions(tmp_path / f"{members}_{heads}_{number}", 0, heads=heads, cases=(), labels=labels)
            for name in ("a.npz", "a.pkl"):
                other.path(name).hardlink_to(made.path(name))
            with_links.append(other.folder)
        out = tmp_path / f"out_{members}_{heads}"
        tracemalloc.start()
        ensemble_folders(with_links, out, probabilities=True, processes=1, progress=False)
        peaks[members, heads] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # the highest probability and the label of each voxel, and what belongs to no voxel
    assert max(peaks.values()) < 5 * voxels + (12 << 20), peaks
    assert max(peaks.values()) < 1.3 * peaks[2, 2], peaks
