"""Failures of nnU-Net are told in one sentence; raw data are read once, and refused before anything is removed."""

import inspect
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

from nnunetv2_ext.data import voxels
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.planning.guards import check_raw, nnunet_step, refuse_workers
from nnunetv2_ext.planning.planner import ExtPlanner
from tests.data.raw_dataset import NAME, RawDataset, put, write_back

LOG = "plan_and_preprocess_error.txt"


def fail(error: BaseException, folder: Path, *, verbose: bool = False) -> None:
    with nnunet_step("the plans", folder, verbose=verbose):
        raise error


@pytest.mark.parametrize(
    ("error", "texts"),
    [
        (
            RuntimeError("Some background worker is 6 feet under. Yuck. \nOK jokes aside.\n"),
            ("a worker that was killed while nnU-Net made the plans, probably for memory", "try -np 1 -npfp 1"),
        ),
        (MemoryError(), ("probably for memory", "try -np 1 -npfp 1")),
        (RuntimeError("Error while creating the NDArray"), ("GiB free in", "make room there, then run the same")),
        (OSError(28, "No space left on device"), ("No space left on device", "GiB free in", "make room there")),
        (PermissionError(13, "Permission denied"), ("Permission denied", "see to its permissions")),
        (UnicodeDecodeError("ascii", b"\xc3", 0, 1, "ordinal not in range"), ("run export PYTHONUTF8=1",)),
        (KeyError("numTraining"), ("an error in nnU-Net while it made the plans (KeyError: 'numTraining')",)),
        (AssertionError(), ("(AssertionError)",)),
        (IndexError("\nindex 2 is out of bounds\n"), ("(IndexError: index 2 is out of bounds)",)),
    ],
)
def test_a_failure_is_one_sentence(tmp_path: Path, error: Exception, texts: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as told:
        fail(error, tmp_path)
    sentence = str(told.value)
    assert "\n" not in sentence
    assert all(text in sentence for text in (*texts, str(tmp_path / LOG))), sentence
    assert type(error).__name__ in (tmp_path / LOG).read_text()


def test_nnunet_still_tells_of_killed_workers_in_these_words() -> None:
    for function in (DefaultPreprocessor.run, DatasetFingerprintExtractor.run):
        assert "background worker" in inspect.getsource(function)


@pytest.mark.parametrize(
    ("planner", "workers", "refused"),
    [(ExperimentPlanner, "0", True), (ExperimentPlanner, "1", False), (ExtPlanner, "0", False)],
)
def test_nnunets_planners_need_a_data_worker(
    planner: type[ExperimentPlanner], workers: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", workers)
    with pytest.raises(InputError, match="nnUNet_n_proc_DA=0 with") if refused else nullcontext():
        refuse_workers(planner)


def test_nnunets_planner_still_takes_workers_for_threads() -> None:
    source = inspect.getsource(ExperimentPlanner.static_estimate_VRAM_usage)
    assert "torch.set_num_threads(get_allowed_n_proc_DA())" in source


def test_verbose_prints_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="KeyError"):
        fail(KeyError("a"), tmp_path, verbose=True)
    assert "Traceback" in capsys.readouterr().out
    assert not (tmp_path / LOG).exists()


def test_a_folder_that_nnunet_made_for_a_failure_goes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--verbose shows"), nnunet_step("the plans", tmp_path / "new", verbose=False):
        (tmp_path / "new").mkdir()
        raise KeyError("a")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), InputError("a", "b", "c")])
def test_what_is_no_failure_of_nnunet_passes(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as told:
        fail(error, tmp_path)
    assert told.value is error


def test_voxels_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = RawDataset(tmp_path)
    read: list[str] = []
    original = voxels.look_at

    def look_at(path: Path, *rest: Any, **more: Any) -> Any:
        read.append(path.name)
        return original(path, *rest, **more)

    monkeypatch.setattr(voxels, "look_at", look_at)

    def check() -> list[str]:
        read.clear()
        check_raw(data.folder, tmp_path / "preprocessed", processes=2, progress=False, spacing=None)
        return sorted(read)

    put(3)(data)
    with pytest.raises(InputError, match="the label value 3"):
        check()
    assert not (tmp_path / "preprocessed").exists()
    write_back("labelsTr/a.nii.gz")(data)
    assert len(check()) == 10
    assert check() == []
    put(3)(data)
    with pytest.raises(InputError, match=f"the label value 3 in 1 label file .*{NAME}"):
        check()
    assert read == ["a.nii.gz"]
    write_back("labelsTr/a.nii.gz")(data)
    assert check() == ["a.nii.gz"]


def test_warnings_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = RawDataset(tmp_path)
    data.describe(labels={"background": 0, "organ": 1, "lesion": 2, "other": 3})
    check_raw(data.folder, tmp_path / "preprocessed", processes=1, progress=False, spacing=None)
    assert "warning: no voxel of the label value 3 in any case; expected" in capsys.readouterr().out
