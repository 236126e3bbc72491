"""Each fault of an installation is told in a line, with what to do about it."""

import importlib.metadata
import os
from collections import namedtuple
from pathlib import Path

import pytest

from nnunetv2_ext import DISCOVERY_FOLDER, registry
from nnunetv2_ext.doctor import installation
from nnunetv2_ext.doctor.examination import FAIL, OK, SKIP, WARN
from nnunetv2_ext.entry import Entry
from tests.doctor.conftest import FOLDERS, OURS, Gpu, assert_told

ENVIRONMENT_FAULTS = [
    *((name, None, FAIL, name, ("not set", f"export {name}=")) for name in FOLDERS),
    *((name, "", FAIL, name, ("not set",)) for name in FOLDERS),
    *((name, "/no/such/folder", FAIL, name, ("is no folder", "mkdir -p '/no/such/folder'")) for name in FOLDERS),
    ("nnUNet_results", " /data ", FAIL, "nnUNet_results", ("spaces, quotes or ~",)),
    ("nnUNet_results", "'/data'", FAIL, "nnUNet_results", ("spaces, quotes or ~",)),
    ("nnUNet_results", "~/data", FAIL, "nnUNet_results", ("spaces, quotes or ~",)),
    ("nnUNet_extTrainer", None, FAIL, "nnUNet_extTrainer", ("not set", 'eval "$(nnunetv2_ext env)"')),
    ("nnUNet_extTrainer", "/elsewhere", FAIL, "nnUNet_extTrainer", ("lacks", 'eval "$(nnunetv2_ext env)"')),
    ("nnUNet_extTrainer", f"/gone{os.pathsep}{DISCOVERY_FOLDER}", WARN, "nnUNet_extTrainer", ("/gone is no folder",)),
    ("nnUNet_n_proc_DA", "many", FAIL, "data workers", ("nnUNet_n_proc_DA=many", "export nnUNet_n_proc_DA=")),
    ("nnUNet_n_proc_DA", "", FAIL, "data workers", ("a number of processes from 0",)),
    ("nnUNet_n_proc_DA", "-1", FAIL, "data workers", ("nnUNet_n_proc_DA=-1", "export nnUNet_n_proc_DA=")),
    ("nnUNet_n_proc_DA", "0", OK, "data workers", ("nnUNet_n_proc_DA=0",)),
    ("nnUNet_def_n_proc", "0", FAIL, "data workers", ("nnUNet_def_n_proc=0; expected a number of processes from 1",)),
    ("nnUNet_n_proc_DA", "100000", WARN, "data workers", ("nnUNet_n_proc_DA=100000 on",)),
    ("nnUNet_n_proc_DA", None, OK, "data workers", ("not set",)),
]


@pytest.mark.parametrize(("variable", "value", "status", "name", "texts"), ENVIRONMENT_FAULTS)
def test_environment(variable, value, status, name, texts, prepared, diagnose, monkeypatch):
    if value is None:
        monkeypatch.delenv(variable)
    else:
        monkeypatch.setenv(variable, value)
    exit_status, checks = diagnose()
    assert_told(checks, status, name, texts)
    assert exit_status == (1 if status == FAIL else 0)


def test_two_variables_for_one_folder(prepared, diagnose, monkeypatch):
    monkeypatch.setenv("nnUNet_results", f"{os.environ['nnUNet_preprocessed']}/")
    exit_status, checks = diagnose()
    assert exit_status == 0
    assert_told(checks, WARN, "nnUNet_results", ("stands for another",))


@pytest.mark.parametrize(
    ("free_gb", "status", "exit_status"), [(0.5, FAIL, 1), (5.0, WARN, 0), (50.0, OK, 0)], ids=["0.5", "5", "50"]
)
def test_disk(free_gb, status, exit_status, prepared, diagnose, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(installation, "DISK_WARN_GB", 10.0)
    monkeypatch.setattr(installation, "DISK_FAIL_GB", 1.0)
    monkeypatch.setattr(installation.shutil, "disk_usage", lambda _: usage(0, 0, int(free_gb * 2**30)))
    found, checks = diagnose()
    assert found == exit_status
    assert_told(checks, status, "disk", (f"{free_gb:.1f} GiB free in nnUNet_results",))


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="Linux only")
def test_little_shared_memory(prepared, diagnose, monkeypatch):
    monkeypatch.setattr(installation, "SHARED_MEMORY_WARN_GB", 1e9)
    assert_told(diagnose()[1], WARN, "shared memory", ("--ipc=host",))


@pytest.mark.parametrize(
    ("versions", "status", "texts"),
    [
        ({"nnunetv2": "2.7.9"}, FAIL, ("older than 2.8", "pip install --upgrade 'nnunetv2>=2.8'")),
        ({"nnunetv2": "2.10.0"}, OK, ("nnunetv2 2.10.0",)),
        ({"torch": None}, FAIL, ("torch is not installed", "pip install torch")),
    ],
)
def test_versions(versions, status, texts, prepared, diagnose, monkeypatch):
    installed = importlib.metadata.version

    def version(name: str) -> str:
        found = versions[name] if name in versions else installed(name)
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(installation.importlib.metadata, "version", version)
    exit_status, checks = diagnose()
    assert_told(checks, status, "versions", texts)
    assert exit_status == (status == FAIL)
    assert any(found == SKIP and what.startswith("import: ") for found, what in checks) == (status == FAIL)


def test_a_second_nnunet_and_v1(prepared, diagnose, monkeypatch, tmp_path):
    other = tmp_path / "other" / "nnunetv2-2.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: nnunetv2\nVersion: 2.0\n")
    (other.parent / "nnunet").mkdir()
    (other.parent / "nnunet" / "__init__.py").touch()
    monkeypatch.syspath_prepend(other.parent)
    monkeypatch.setattr(installation.importlib.metadata, "version", lambda name: "2.8.1")
    exit_status, checks = diagnose()
    assert exit_status == 0
    assert_told(checks, WARN, "import", ("several nnunetv2", str(other.parent), "uninstall all but one"))
    assert_told(checks, WARN, "import", ("nnU-Net v1", "nnUNetv2_"))


@pytest.mark.parametrize(("arguments", "status"), [((), WARN), (("-device", "cuda"), FAIL), (("-device", "cpu"), OK)])
def test_no_cuda(arguments, status, prepared, diagnose):
    exit_status, checks = diagnose(*arguments)
    assert exit_status == (status == FAIL)
    assert_told(checks, status, "CUDA", () if status == OK else ("-device cpu",))


def test_a_training_without_a_gpu_needs_another_device(prepared, diagnose):
    exit_status, checks = diagnose("-d", "901")
    assert exit_status == 1
    assert_told(checks, FAIL, "CUDA", ("add -device cpu to this and to nnU-Net's commands",))


def test_cuda(prepared, diagnose, monkeypatch):
    Gpu(monkeypatch)
    exit_status, checks = diagnose()
    assert exit_status == 0
    assert_told(checks, OK, "CUDA", ("A GPU, 24.0 GiB",))


def test_a_gpu_that_does_not_compute(prepared, diagnose, monkeypatch):
    Gpu(monkeypatch, computes=False)
    exit_status, checks = diagnose()
    assert exit_status == 1
    assert_told(checks, FAIL, "CUDA", ("no kernel image", "install a torch built for this GPU"))


@pytest.mark.parametrize(
    ("setting", "compiler", "triton", "status", "texts"),
    [
        (None, "/usr/bin/cc", True, OK, ("on, with", "nnUNet_compile=f")),
        (None, None, True, FAIL, ("no a C compiler", "export nnUNet_compile=f")),
        (None, "/usr/bin/cc", False, FAIL, ("no triton", "export nnUNet_compile=f")),
        ("f", None, False, OK, ("off",)),
        ("T", None, True, FAIL, ("C compiler",)),
    ],
)
def test_compile(setting, compiler, triton, status, texts, prepared, diagnose, monkeypatch):
    Gpu(monkeypatch)
    if setting is not None:
        monkeypatch.setenv("nnUNet_compile", setting)
    find_spec = installation.importlib.util.find_spec
    monkeypatch.setattr(installation.shutil, "which", lambda name, path=None: compiler if path is None else name)
    monkeypatch.setattr(
        installation.importlib.util,
        "find_spec",
        lambda name, *more: (True if triton else None) if name == "triton" else find_spec(name, *more),
    )
    exit_status, checks = diagnose()
    assert_told(checks, status, "torch.compile", texts)
    assert exit_status == (status == FAIL)


def foreign_trainer(folder: Path, source: str) -> str:
    folder.mkdir()
    (folder / "foreign.py").write_text(source)
    return f"{folder}{os.pathsep}{DISCOVERY_FOLDER}"


@pytest.mark.parametrize(
    ("source", "texts"),
    [
        ("import a_module_nobody_has", ("does not find MNetTrainer", "a_module_nobody_has", "stops nnU-Net's search")),
        (
            "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
            "class MNetTrainer(nnUNetTrainer): ...",
            ("another MNetTrainer, from foreign", "rename that one"),
        ),
    ],
)
def test_another_folder_disturbs_our_trainers(source, texts, prepared, diagnose, monkeypatch, tmp_path):
    monkeypatch.setenv("nnUNet_extTrainer", foreign_trainer(tmp_path / "foreign", source))
    exit_status, checks = diagnose()
    assert exit_status == 1
    assert_told(checks, FAIL, "trainers", texts)


def test_a_missing_optional_dependency_only_warns(prepared, diagnose, monkeypatch, tmp_path):
    (tmp_path / "needy_for_doctor.py").write_text("import a_module_nobody_has")
    monkeypatch.syspath_prepend(tmp_path)
    needy = Entry("NeedyTrainer", "needy_for_doctor.NeedyTrainer", "", extra="needy")
    monkeypatch.setattr(registry, "TRAINERS", (needy, *registry.TRAINERS))
    exit_status, checks = diagnose(*OURS)
    assert exit_status == 0
    assert_told(checks, WARN, "trainers", ("NeedyTrainer", "pip install 'nnunetv2_ext[needy]'"))
    assert_told(checks, OK, "trainers", ("MNetTrainer",))
