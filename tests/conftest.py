"""Shared fixtures: where real data and the published networks' outputs lie, when they are at hand."""

import locale
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.warm import WarmProcess, light_nnunet

# each worker of nnU-Net's imports nnU-Net for five seconds, longer than it works here
os.environ.update(nnUNet_n_proc_DA="1", nnUNet_def_n_proc="1")
# read when PyTorch is imported: with threads of its own, a process could not fork (and tests share few cores)
os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
ENVIRONMENT = dict(os.environ)  # before the imports of the tests add to it

BESIDE = Path(__file__).parents[2] / "shared"


def _folder(variable: str, beside: Path, name: str) -> Path:
    folder = Path(os.environ.get(variable, beside)) / name
    if not folder.exists():
        pytest.skip(f"{folder} is not there: set {variable} to the folder that holds it")
    return folder


@pytest.fixture(scope="session")
def hippocampus() -> Path:
    """The raw data set (nnU-Net format) Hippocampus of the Medical Segmentation Decathlon."""
    return _folder("NNUNETV2_EXT_DATA", BESIDE / "data", "hippocampus")


@pytest.fixture(scope="session")
def golden() -> Path:
    """Outputs of the published networks, with their weights."""
    return _folder("NNUNETV2_EXT_GOLDEN", BESIDE, "golden")


@pytest.fixture(autouse=True)
def process_as_before() -> Iterator[None]:
    """What a test leaves behind in the process of all: SimpleITK's locale (after DICOM), more threads of PyTorch."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    if locale.setlocale(locale.LC_ALL) != before:
        locale.setlocale(locale.LC_ALL, before)
    if (torch := sys.modules.get("torch")) is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def warm() -> Iterator[WarmProcess]:
    """A process that has imported PyTorch and nnU-Net, to fork commands from."""
    process = WarmProcess(environment=ENVIRONMENT)
    yield process
    process.close()


@pytest.fixture
def light() -> Iterator[None]:
    """What nnU-Net does in this process costs less, see `light_nnunet`."""
    with light_nnunet():
        yield


@pytest.fixture
def nnunet_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds empty nnUNet_raw, nnUNet_preprocessed and nnUNet_results, set for this test."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return tmp_path


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first, so that no process is left with one of them alone at the end."""
    items.sort(key=lambda item: item.get_closest_marker("pipeline") is None)
