"""What is kept of fingerprint, data and references, and what is made anew, after changes of the raw data."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunetv2_ext.planning.record import FINGERPRINT, RECORD, find_sources, read_record, recording
from tests.planning.conftest import CASES, Blocks, faults


def correct_with_old_time(blocks: Blocks) -> None:
    blocks.put("c0", 0, width=4)
    for path in (blocks.image("c0"), blocks.label("c0")):
        os.utime(path, (1e9, 1e9))


def change_under_the_same_size_and_time(blocks: Blocks) -> None:
    path = blocks.image("c0")
    nibabel.save(nibabel.load(path), plain := path.with_name("plain.nii"))
    content, status = bytearray(plain.read_bytes()), path.stat()
    plain.unlink()
    for seed in range(999):  # compressed, one of them has the size
        content[-4:] = np.float32(200 + seed / 7).tobytes()
        plain.write_bytes(content)
        nibabel.save(nibabel.load(plain), path)
        plain.unlink()
        if path.stat().st_size == status.st_size:
            break
    assert path.stat().st_size == status.st_size
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def swap(blocks: Blocks) -> None:
    for file in (blocks.image, blocks.label):
        file("c0").rename(blocks.raw / "x")
        file("c1").rename(file("c0"))
        (blocks.raw / "x").rename(file("c1"))


def rename(blocks: Blocks) -> None:
    for file in (blocks.image, blocks.label):
        file("c2").rename(file("d"))


def remove(blocks: Blocks) -> None:
    for file in (blocks.image, blocks.label):
        file("c2").unlink()
    blocks.describe(numTraining=2)


def add(blocks: Blocks) -> None:
    blocks.put("d", 9)
    blocks.describe(numTraining=4)


def retarget(blocks: Blocks) -> None:
    blocks.label("c0").unlink()
    blocks.put("elsewhere", 5, width=3)
    blocks.image("elsewhere").unlink()
    target = blocks.label("elsewhere").rename(blocks.raw / "elsewhere.nii.gz")
    os.utime(target, (1e9, 1e9))
    blocks.label("c0").symlink_to(target)


def touch(blocks: Blocks) -> None:
    for case in CASES:
        blocks.image(case).touch()
        blocks.label(case).touch()


def relabel(**changes: Any) -> Callable[[Blocks], None]:
    return lambda blocks: blocks.describe(**changes)


def truncate(name: str) -> Callable[[Blocks], None]:
    return lambda blocks: os.truncate(blocks.data / name, (blocks.data / name).stat().st_size - 20)


def interrupt(blocks: Blocks) -> None:
    """As a kill in the midst of preprocessing leaves it."""
    for path in blocks.data.glob("c2*"):
        path.unlink()
    record = json.loads((blocks.preprocessed / RECORD).read_text())
    del record[blocks.data.name]
    (blocks.preprocessed / RECORD).write_text(json.dumps(record))


def forget(blocks: Blocks) -> None:
    """No record, and by their times the raw files may have come later."""
    (blocks.preprocessed / RECORD).unlink()


def age_reference(blocks: Blocks) -> None:
    shutil.copy(blocks.label("c1"), blocks.preprocessed / "gt_segmentations" / "c0.nii.gz")
    path = blocks.preprocessed / "gt_segmentations" / "c0.nii.gz"
    path.write_bytes(path.read_bytes()[:-9])


KEPT, NEW = False, True
# the change, whether the fingerprint and the data are new then, the cases, what fails in doctor before
CHANGES: dict[str, tuple[Callable[[Blocks], None], bool, bool, list[str], str]] = {
    "nothing": (lambda blocks: None, KEPT, KEPT, CASES, ""),
    "times alone": (touch, KEPT, KEPT, CASES, ""),
    "corrected, with an old time": (correct_with_old_time, NEW, NEW, CASES, "preprocessed data"),
    "same size and time": (change_under_the_same_size_and_time, NEW, NEW, CASES, "preprocessed data"),
    "two cases swapped": (swap, NEW, NEW, CASES, "preprocessed data"),
    "a case renamed": (rename, NEW, NEW, ["c0", "c1", "d"], "preprocessed data"),
    "a case removed": (remove, NEW, NEW, ["c0", "c1"], "preprocessed data"),
    "a case added": (add, NEW, NEW, [*CASES, "d"], "preprocessed data"),
    "a link to another file": (retarget, NEW, NEW, CASES, "preprocessed data"),
    "a class ignored": (relabel(labels={"background": 0, "a": 1, "ignore": 2}), KEPT, NEW, CASES, "dataset.json"),
    "a class added": (relabel(labels={"background": 0, "a": 1, "b": 2, "c": 3}), KEPT, NEW, CASES, "dataset.json"),
    "regions": (
        relabel(labels={"background": 0, "all": [1, 2], "b": 2}, regions_class_order=[1, 2]),
        KEPT, NEW, CASES, "dataset.json",
    ),
    "names of classes swapped": (relabel(labels={"background": 0, "b": 1, "a": 2}), KEPT, KEPT, CASES, "dataset.json"),
    "another normalisation": (relabel(channel_names={"0": "CT"}), KEPT, NEW, CASES, "dataset.json"),
    "another name": (relabel(channel_names={"0": "T2"}, description="x"), KEPT, KEPT, CASES, "dataset.json"),
    "another description": (relabel(description="x"), KEPT, KEPT, CASES, ""),
    "another reader": (relabel(overwrite_image_reader_writer="NibabelIO"), NEW, NEW, CASES, "dataset.json"),
    "half preprocessed": (interrupt, KEPT, NEW, CASES, "preprocessed data"),
    "a truncated image": (truncate("c1.b2nd"), KEPT, NEW, CASES, "preprocessed data"),
    "truncated labels": (truncate("c1_seg.b2nd"), KEPT, NEW, CASES, "preprocessed data"),
    "truncated properties": (truncate("c1.pkl"), KEPT, NEW, CASES, "preprocessed data"),
    "another reference": (age_reference, KEPT, KEPT, CASES, "references"),
    "no record": (forget, NEW, NEW, CASES, ""),
}  # fmt: skip


@pytest.mark.parametrize(("change", "fingerprint", "data", "cases", "fault"), CHANGES.values(), ids=CHANGES)
def test_planned_again(
    change: Callable[[Blocks], None], fingerprint: bool, data: bool, cases: list[str], fault: str, blocks: Blocks
) -> None:
    change(blocks)
    assert ", ".join(faults()) == fault
    before = {path: path.stat().st_mtime_ns for path in blocks.preprocessed.rglob("*") if path.is_file()}

    def is_new(path: Path) -> bool:
        return before.get(path) != path.stat().st_mtime_ns

    blocks.plan()
    assert is_new(blocks.preprocessed / FINGERPRINT) is fingerprint
    assert {is_new(path) for path in blocks.data.glob("*.b2nd")} == {data}
    assert len(json.loads((blocks.preprocessed / FINGERPRINT).read_text())["spacings"]) == len(cases)
    blocks.assert_as_raw(blocks.standard(*cases))
    assert not faults()


@pytest.mark.parametrize(
    ("options", "kept", "identifier"),
    [
        ({}, True, "nnUNetPlans_3d_fullres"),
        ({"clean": True}, False, "nnUNetPlans_3d_fullres"),
        ({"plans_name": "Mine", "gpu_memory_target": 4}, True, "nnUNetPlans_3d_fullres"),
        ({"target_spacing": (4, 2, 2)}, False, "MNetPlans_3d_fullres"),
    ],
)
def test_data_are_kept_for_plans_that_agree(
    options: dict[str, Any], kept: bool, identifier: str, blocks: Blocks, capsys: pytest.CaptureFixture[str]
) -> None:
    for again in (kept, "clean" not in options):  # data of its own are kept, too
        blocks.plan(**options)
        told = f"3d_fullres: the 3 cases in {identifier} agree with the plans and are kept"
        assert (told in capsys.readouterr().out) == again


def test_sources_that_the_description_names(blocks: Blocks) -> None:
    """Cases renamed in `dataset.json` alone, then one of its files changed, which lies elsewhere."""
    elsewhere = blocks.raw.parent / "elsewhere.nii.gz"
    blocks.label("c0").rename(elsewhere)
    listing = {
        case.upper(): {"images": [f"imagesTr/{case}_0000.nii.gz"], "label": f"labelsTr/{case}.nii.gz"} for case in CASES
    }
    listing["C0"]["label"] = "$nnUNet_raw/elsewhere.nii.gz"
    blocks.describe(dataset=listing)
    sources = {case.upper(): (blocks.image(case), blocks.label(case)) for case in CASES}
    sources["C0"] = (blocks.image("c0"), elsewhere)
    blocks.plan()
    blocks.assert_as_raw(sources)
    blocks.put("c0", 0, width=3)
    blocks.label("c0").replace(elsewhere)
    os.utime(elsewhere, (1e9, 1e9))
    blocks.plan()
    blocks.assert_as_raw(sources)


def test_another_file_ending(blocks: Blocks) -> None:
    for file in (*map(blocks.image, CASES), *map(blocks.label, CASES)):
        nibabel.save(nibabel.load(file), file.with_suffix(""))
        file.unlink()
    blocks.describe(file_ending=".nii")
    blocks.plan()
    sources = {case: (blocks.image(case).with_suffix(""), blocks.label(case).with_suffix("")) for case in CASES}
    blocks.assert_as_raw(sources, ending=".nii")


def test_data_of_which_no_record_tells(nnunet_folders: Path, light: None, capsys: pytest.CaptureFixture[str]) -> None:
    """As nnU-Net's own command leaves them: kept where every time is older, until a file comes later."""
    blocks = Blocks(nnunet_folders)
    for seed, case in enumerate(CASES):
        blocks.put(case, seed)
    blocks.describe()
    blocks.plan()
    (blocks.preprocessed / RECORD).unlink()
    capsys.readouterr()
    blocks.plan()
    assert "the 3 cases in nnUNetPlans_3d_fullres agree with the plans and are kept" in capsys.readouterr().out
    correct_with_old_time(blocks)
    blocks.plan()
    blocks.assert_as_raw(blocks.standard())
    told = capsys.readouterr().out
    assert "made anew: images or labels of 1 case (c0) came after it, by their time of change" in told


def test_a_failure_leaves_no_record(blocks: Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api

    def fail(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "preprocess_dataset", fail)
    blocks.put("c0", 0, width=4)
    with pytest.raises(KeyboardInterrupt):
        blocks.plan()
    assert json.loads((blocks.preprocessed / RECORD).read_text()).keys() == {FINGERPRINT}


def test_files_of_one_size_and_time_are_told_apart(tmp_path: Path) -> None:
    paths = {case: (tmp_path / f"{case}_label", tmp_path / f"{case}_image") for case in CASES}
    for case, files in paths.items():
        for file in files:
            file.write_text(f"{case} and {file.name[3:5]}")
            os.utime(file, (1e9, 1e9))
    with recording(tmp_path, paths, {"first": {}}, progress=False):
        pass
    with recording(tmp_path, paths, {"second": {}}, progress=False):
        pass
    first, second = (read_record(tmp_path)[name].sources for name in ("first", "second"))
    assert first == second
    for case, files in paths.items():
        expected = [hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest() for file in files]
        assert [state.digest for state in first[case]] == expected


@pytest.mark.parametrize("content", ["{", "[]", '{"nnUNetPlans_3d_fullres": {"settings": 3}}'])
def test_a_damaged_record(content: str, blocks: Blocks) -> None:
    (blocks.preprocessed / RECORD).write_text(content)
    blocks.plan()
    blocks.assert_as_raw(blocks.standard())
    assert json.loads((blocks.preprocessed / RECORD).read_text()).keys() == {FINGERPRINT, blocks.data.name}


def test_sources_are_those_that_nnunet_finds(tmp_path: Path) -> None:
    for name in ("b_0000", "b_0001", "a_b_0000", "a_0000", "a_0001"):
        for path in (tmp_path / "imagesTr" / f"{name}.nii.gz", tmp_path / "labelsTr" / f"{name[:-5]}.nii.gz"):
            path.parent.mkdir(exist_ok=True)
            path.touch()
    (tmp_path / "imagesTr" / "notes.txt").touch()
    description = {"file_ending": ".nii.gz"}
    theirs = get_filenames_of_train_images_and_targets(str(tmp_path), dict(description))
    assert {case: [*map(str, paths)] for case, paths in find_sources(tmp_path, description).items()} == {
        case: [of["label"], *of["images"]] for case, of in theirs.items()
    }
    assert find_sources(tmp_path / "nowhere", description) == {}
