"""The doctor on broken raw data sets: the fault is named, its remedy applied as printed, and the data pass."""

import json
from pathlib import Path

import pytest

from nnunetv2_ext.cli import main
from nnunetv2_ext.data.raw import examine
from nnunetv2_ext.data.voxels import RECORD, keep_voxels, look_at_all
from nnunetv2_ext.doctor import raw as doctor_raw
from nnunetv2_ext.doctor.examination import FAIL, OK, WARN, Check, Subject
from nnunetv2_ext.doctor.raw import check_raw
from tests.data.broken import BROKEN, apply
from tests.data.raw_dataset import CASES, NAME, RawDataset, put


@pytest.fixture
def data(nnunet_folders: Path) -> RawDataset:
    return RawDataset(nnunet_folders / "nnUNet_raw")


def checks_of(*, deep: bool = True) -> list[Check]:
    return list(check_raw(Subject("901", deep=deep)))


@pytest.mark.parametrize("name", BROKEN)
def test_a_fault_is_named_and_mended(data: RawDataset, name: str) -> None:
    broken = BROKEN[name]
    broken.change(data)
    status = FAIL if broken.fatal else WARN
    told = [check for check in checks_of() if check.status == status]
    assert any(all(text in f"{check.what} {check.remedy}" for text in broken.texts) for check in told), told
    assert all(check.remedy for check in told)
    if broken.mend:
        broken.mend(data)
    else:
        apply(told[0].remedy, data)
    assert [check.status for check in checks_of() if check.status == FAIL or not broken.fatal] == [OK] * (
        not broken.fatal
    )


def test_the_command_tells_raw_faults_also_where_nothing_is_preprocessed(
    data: RawDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    data.describe(labels={"0": "background", "1": "organ", "2": "lesion"}, numTraining=9)
    assert main(["doctor", "-d", "901", "-device", "cpu"]) == 1
    out = capsys.readouterr().out
    assert out.count("FAIL  raw data: ") == 2
    assert '-> write "labels": {"background": 0, "organ": 1, "lesion": 2}' in out
    assert '-> write "numTraining": 5' in out


@pytest.mark.parametrize(
    ("fewest", "broken", "pointed"),
    [(5, None, True), (6, None, False), (5, next(name for name in BROKEN if not BROKEN[name].fatal), False)],
)
def test_data_that_nothing_is_wrong_with_are_to_be_audited(
    data: RawDataset, monkeypatch: pytest.MonkeyPatch, fewest: int, broken: str | None, pointed: bool
) -> None:
    monkeypatch.setattr(doctor_raw, "FEWEST", fewest)
    if broken:
        BROKEN[broken].change(data)
    last = checks_of()[-1]
    assert last.status == OK
    assert last.what.endswith("nnunetv2_ext audit -d 901 tells which of their labels are probably wrong") == pointed


def preprocessed(data: RawDataset) -> Path:
    folder = data.folder.parents[1] / "nnUNet_preprocessed" / NAME
    folder.mkdir()
    return folder


def test_labels_are_read_without_deep_and_images_only_with_it(data: RawDataset) -> None:
    preprocessed(data)
    put(7)(data)
    status, what, remedy, _ = checks_of(deep=False)[0]
    assert (status, remedy) == (FAIL, "correct the label files")
    assert "the label value 7" in what
    unread = [check for check in checks_of(deep=False) if check.status == WARN]
    assert len(unread) == 1
    assert f"{len(CASES)} files (a_0000.nii.gz, " in unread[0].what
    assert "--deep" in unread[0].remedy
    assert not [check for check in checks_of(deep=True) if check.status == WARN]


def test_many_labels_are_left_to_deep(data: RawDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    preprocessed(data)
    put(7)(data)
    monkeypatch.setattr(doctor_raw, "QUICK_VOXELS", 100)
    assert [check.status for check in checks_of(deep=False)] == [WARN, OK]
    assert FAIL in [check.status for check in checks_of(deep=True)]


def test_what_planning_has_recorded_is_known(data: RawDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = preprocessed(data)
    put(float("nan"), float, "imagesTr/a_0000.nii.gz")(data)
    raw = examine(data.folder)
    keep_voxels(raw, look_at_all(raw, {}, processes=1, progress=False), folder)
    before = sorted(folder.parent.rglob("*"))
    monkeypatch.setattr("nnunetv2_ext.data.voxels.look_at", None)
    checks = checks_of(deep=False)
    assert [check.status for check in checks] == [WARN, OK]
    assert "NaN" in checks[0].what
    assert sorted(folder.parent.rglob("*")) == before == [folder, folder / RECORD]


@pytest.mark.parametrize("removed", ["all", "images"])
def test_a_machine_without_raw_data_trains_all_the_same(data: RawDataset, removed: str) -> None:
    preprocessed(data)
    data.folder.rename(data.folder.with_name("elsewhere"))
    if removed == "images":
        data.folder.mkdir()
        data.path("dataset.json").write_text(json.dumps({"labels": {}}))
    assert [check.status for check in checks_of()] == [OK]
