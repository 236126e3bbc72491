"""`doctor`: each fault that an installation or a training can have is told in a line, with what to do about it.

The folders are made by hand and each row damages one thing in them; nothing is planned, preprocessed or trained.
"""

import importlib.metadata
import json
import os
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from nnunetv2_ext import DISCOVERY_FOLDER, doctor, doctor_training, registry
from nnunetv2_ext.cli import main
from nnunetv2_ext.doctor.examination import FAIL, OK, SKIP, WARN, Check, Examination, Subject, examine
from nnunetv2_ext.entry import Entry
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.training.checkpoints import REQUIRED_KEYS

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
DATASET = "Dataset901_Boxes"
CASES = [f"case_{n}" for n in range(5)]
ENDING = ".nii.gz"
DATASET_JSON = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "left": 1, "right": 2},
    "numTraining": len(CASES),
    "file_ending": ENDING,
}
STOCK = ("-d", "901", "-c", "3d_fullres", "-device", "cpu")
OURS = (*STOCK, "-tr", "MNetTrainer", "-p", "MNetPlans")
PAR = (*STOCK, "-tr", "PaRTrainer", "-p", "PaRPlans")


def configuration(patch: list[int], architecture: dict) -> dict:
    return {
        "data_identifier": f"nnUNetPlans_{len(patch)}d",
        "patch_size": patch,
        "batch_size": 2,
        "spacing": [1.0] * len(patch),
        "architecture": architecture,
    }


def unet(dimension: int) -> dict:
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 2,
            "features_per_stage": [4, 8],
            "conv_op": f"torch.nn.modules.conv.Conv{dimension}d",
            "kernel_sizes": [[3] * dimension] * 2,
            "strides": [[1] * dimension, [2] * dimension],
            "n_conv_per_stage": [1, 1],
            "n_conv_per_stage_decoder": [1],
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimension}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


MNET = {
    "network_class_name": "nnunetv2_ext.architectures.MNet",
    "arch_kwargs": {"features_per_stage": [2, 3, 4, 5, 6]},
    "_kw_requires_import": [],
}


def par(patch: list[int], backbone: str = "PlainConvUNet", kwargs: dict | None = None) -> dict:
    kwargs = unet(3)["arch_kwargs"] if kwargs is None else kwargs
    return {
        "network_class_name": "nnunetv2_ext.architectures.PaRNetwork",
        "arch_kwargs": {"backbone": backbone, "spatial_shape": patch, "backbone_kwargs": kwargs},
        "_kw_requires_import": [],
    }


def plans(name: str, configurations: dict) -> dict:
    return {
        "dataset_name": DATASET,
        "plans_name": name,
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "configurations": configurations,
    }


class Prepared:
    """nnU-Net's three folders with one preprocessed data set, and ways to damage them."""

    def __init__(self, root: Path):
        self.raw, self.preprocessed, self.results = (root / name / DATASET for name in FOLDERS)
        for folder in (self.raw, self.preprocessed, self.results):
            folder.mkdir(parents=True)
        self.data = self.preprocessed / "nnUNetPlans_3d"
        for case in CASES:
            self.write(self.preprocessed / "gt_segmentations" / f"{case}{ENDING}", "labels")
        self.write_cases(".b2nd", "_seg.b2nd", ".pkl")
        for folder in (self.raw, self.preprocessed):
            self.write(folder / "dataset.json", DATASET_JSON)
        self.write(self.preprocessed / "dataset_fingerprint.json", {"spacings": []})
        self.write(
            self.preprocessed / "nnUNetPlans.json",
            plans(
                "nnUNetPlans", {"2d": configuration([32, 32], unet(2)), "3d_fullres": configuration([16] * 3, unet(3))}
            ),
        )
        self.write(
            self.preprocessed / "MNetPlans.json",
            plans("MNetPlans", {"3d_fullres": configuration([8, 32, 32], MNET) | {"training": {"epochs": 7}}}),
        )
        self.write(
            self.preprocessed / "PaRPlans.json",
            plans("PaRPlans", {"3d_fullres": configuration([16] * 3, par([16] * 3))}),
        )

    def write_cases(self, *parts: str) -> None:
        for case in CASES:
            for part in parts:
                self.write(self.data / f"{case}{part}", "data")

    @staticmethod
    def write(file: Path, content: object) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content if isinstance(content, str) else json.dumps(content))

    def change_plans(self, name: str, **changes: object) -> None:
        """Change entries of the plans' 3d_fullres."""
        file = self.preprocessed / f"{name}.json"
        content = json.loads(file.read_text())
        content["configurations"]["3d_fullres"].update(changes)
        self.write(file, content)

    def write_splits(self, content: object) -> None:
        self.write(self.preprocessed / "splits_final.json", content)

    def model(self, trainer: str = "nnUNetTrainer", plans_name: str = "nnUNetPlans", name: str = "3d_fullres") -> Path:
        return self.results / f"{trainer}__{plans_name}__{name}"


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


@pytest.fixture
def prepared(tmp_path, monkeypatch) -> Prepared:
    for name in FOLDERS:
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("nnUNet_extTrainer", str(DISCOVERY_FOLDER))
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    monkeypatch.delenv("nnUNet_compile", raising=False)
    # what the machine at hand has is no matter of these tests
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "DISK_WARN_GB", 0.0)
    monkeypatch.setattr(doctor, "DISK_FAIL_GB", 0.0)
    monkeypatch.setattr(doctor, "SHARED_MEMORY_WARN_GB", 0.0)
    return Prepared(tmp_path)


@pytest.fixture
def diagnose(capsys):
    """Run the command; returns its exit status and (status, line with remedy) of each check."""

    def run(*arguments: str) -> tuple[int, list[tuple[str, str]]]:
        capsys.readouterr()
        exit_status = main(["doctor", *arguments])
        checks: list[tuple[str, str]] = []
        for line in capsys.readouterr().out.splitlines()[:-1]:
            if line.startswith("        -> "):
                checks[-1] = (checks[-1][0], f"{checks[-1][1]}\n{line.strip()}")
            else:
                status, what = line.split(maxsplit=1)
                checks.append((status, what))
        return exit_status, checks

    return run


def assert_told(checks: list[tuple[str, str]], status: str, name: str, texts: tuple[str, ...]) -> None:
    told = [what for found, what in checks if found == status and what.startswith(f"{name}: ")]
    assert any(all(text in what for text in texts) for what in told), checks
    if status == FAIL:
        assert all("\n-> " in what for what in told), "each fault has its remedy"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        STOCK,
        (*STOCK, "-f", "0"),
        (*STOCK, "-c", "2d"),
        OURS,
        (*OURS, "-f", "all"),
        PAR,
        (*STOCK, "-tr", "PaRTrainer"),
        (*PAR, "-tr", "BackboneTrainer"),
    ],
)
def test_nothing_to_complain_of(arguments, prepared, diagnose):
    shutil.copytree(prepared.data, prepared.preprocessed / "nnUNetPlans_2d")
    exit_status, checks = diagnose(*arguments)
    assert exit_status == 0, [what for status, what in checks if status == FAIL]
    expected = {OK} if arguments else {OK, WARN}  # without -device cpu the absent CUDA is remarked
    assert {status for status, _ in checks} == expected
    assert_told(checks, OK, "trainers", ("MNetTrainer is found by nnU-Net",))
    assert_told(checks, OK, "versions", (f"nnunetv2 {importlib.metadata.version('nnunetv2')}",))


def test_the_training_is_described(prepared, diagnose):
    _, checks = diagnose(*OURS)
    for name, texts in {
        "data set": (DATASET,),
        "configuration": ("patch [8, 32, 32]", "batch 2"),
        "training block": ("epochs 7",),
        "preprocessed data": ("5 cases",),
        "network": ("MNet", "7 outputs"),
        "memory": ("GB of GPU memory at batch 2",),
    }.items():
        assert_told(checks, OK, name, texts)


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
    ("nnUNet_n_proc_DA", "", FAIL, "data workers", ("no number",)),
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
    monkeypatch.setattr(doctor, "DISK_WARN_GB", 10.0)
    monkeypatch.setattr(doctor, "DISK_FAIL_GB", 1.0)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage(0, 0, int(free_gb * 2**30)))
    found, checks = diagnose()
    assert found == exit_status
    assert_told(checks, status, "disk", (f"{free_gb:.1f} GiB free in nnUNet_results",))


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="Linux only")
def test_little_shared_memory(prepared, diagnose, monkeypatch):
    monkeypatch.setattr(doctor, "SHARED_MEMORY_WARN_GB", 1e9)
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

    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
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
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: "2.8.1")
    exit_status, checks = diagnose()
    assert exit_status == 0
    assert_told(checks, WARN, "import", ("several nnunetv2", str(other.parent), "uninstall all but one"))
    assert_told(checks, WARN, "import", ("nnU-Net v1", "nnUNetv2_"))


class Gpu:
    """Stands for torch.cuda on a machine with one GPU of 24 GiB."""

    properties = namedtuple("properties", "name total_memory")("A GPU", 24 * 2**30)

    def __init__(self, monkeypatch, computes: bool = True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: self.properties)
        ones = torch.ones

        def on_the_gpu(*size, device=None):
            if not computes:
                raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")
            return ones(*size)

        monkeypatch.setattr(torch, "ones", on_the_gpu)


@pytest.mark.parametrize(("arguments", "status"), [((), WARN), (("-device", "cuda"), FAIL), (("-device", "cpu"), OK)])
def test_no_cuda(arguments, status, prepared, diagnose):
    exit_status, checks = diagnose(*arguments)
    assert exit_status == (status == FAIL)
    assert_told(checks, status, "CUDA", () if status == OK else ("-device cpu",))


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
    find_spec = doctor.importlib.util.find_spec
    monkeypatch.setattr(doctor.shutil, "which", lambda _: compiler)
    monkeypatch.setattr(
        doctor.importlib.util,
        "find_spec",
        lambda name, *more: (True if triton else None) if name == "triton" else find_spec(name, *more),
    )
    exit_status, checks = diagnose()
    assert_told(checks, status, "torch.compile", texts)
    assert exit_status == (status == FAIL)


def test_more_memory_than_the_gpu_has(prepared, diagnose, monkeypatch):
    Gpu(monkeypatch)
    prepared.change_plans("nnUNetPlans", patch_size=[512, 512, 512])
    exit_status, checks = diagnose("-d", "901")
    assert exit_status == 0
    assert_told(checks, WARN, "memory", ("the GPU has 24.0 GiB", "-gpu_memory_target 24"))


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


def second_dataset(prepared: Prepared) -> None:
    (prepared.raw.parent / "Dataset901_Other").mkdir()


def two_layouts(prepared: Prepared) -> None:
    prepared.write_cases(".npz")


def drop_case(prepared: Prepared) -> None:
    for file in prepared.data.glob("case_3*"):
        file.unlink()


def drop_case_and_reference(prepared: Prepared) -> None:
    drop_case(prepared)
    (prepared.preprocessed / "gt_segmentations" / f"case_3{ENDING}").unlink()


def keep_two_cases(prepared: Prepared) -> None:
    for file in [*prepared.data.iterdir(), *(prepared.preprocessed / "gt_segmentations").iterdir()]:
        if not file.name.startswith(("case_0", "case_1")):
            file.unlink()
    for folder in (prepared.raw, prepared.preprocessed):
        prepared.write(folder / "dataset.json", {**DATASET_JSON, "numTraining": 2})


def cascade(prepared: Prepared) -> None:
    content = json.loads((prepared.preprocessed / "nnUNetPlans.json").read_text())
    content["configurations"]["3d_lowres"] = configuration([16] * 3, unet(3)) | {"next_stage": "3d_fullres"}
    content["configurations"]["3d_fullres"]["previous_stage"] = "3d_lowres"
    prepared.write(prepared.preprocessed / "nnUNetPlans.json", content)


CHECKPOINT = {key: {"a": torch.zeros(100)} for key in REQUIRED_KEYS}


def checkpoints(*names: str, damaged: tuple[str, ...] = (), **model: str):
    def write(prepared: Prepared) -> None:
        fold = prepared.model(**model) / "fold_0"
        fold.mkdir(parents=True)
        for name in names:
            torch.save(CHECKPOINT, fold / f"checkpoint_{name}.pth")
        for name in damaged:
            torch.save(CHECKPOINT, fold / f"checkpoint_{name}.pth")
            truncate(fold / f"checkpoint_{name}.pth")

    return write


def split(train: list[str], val: list[str]) -> dict:
    return {"train": train, "val": val}


GOOD = split(CASES[:4], CASES[4:])
PATCH = {
    "flat": lambda p: p.change_plans("MNetPlans", patch_size=[8, 8, 32]),
    "one slice": lambda p: p.change_plans("MNetPlans", patch_size=[1, 16, 16]),
}
# what is damaged, the arguments, the status and the name of the line, and texts in it
TRAINING_FAULTS = {
    "no such data set": (None, ("-d", "902"), FAIL, "data set", ("no data set 902",)),
    "no such name": (None, ("-d", "Dataset901_Spheres"), FAIL, "data set", ("Dataset901_Spheres",)),
    "no id": (None, ("-d", "boxes"), FAIL, "data set", ("'boxes'",)),
    "an id twice": (second_dataset, STOCK, FAIL, "data set", ("2 data sets with id 901", "Dataset901_Other")),
    "not preprocessed": (
        lambda p: shutil.rmtree(p.preprocessed), STOCK, FAIL, "data set",
        ("was not preprocessed", "nnUNetv2_plan_and_preprocess -d 901"),
    ),
    "not preprocessed for ours": (
        lambda p: shutil.rmtree(p.preprocessed), OURS, FAIL, "data set",
        ("nnunetv2_ext plan_and_preprocess -d 901 -pl MNetPlanner",),
    ),
    "no dataset.json": (
        lambda p: (p.preprocessed / "dataset.json").unlink(), STOCK, FAIL, "dataset.json", ("no file",),
    ),
    "truncated dataset.json": (
        lambda p: truncate(p.preprocessed / "dataset.json"), STOCK, FAIL, "dataset.json", ("damaged",),
    ),
    "incomplete dataset.json": (
        lambda p: p.write(p.preprocessed / "dataset.json", {"labels": {}}), STOCK, FAIL, "dataset.json",
        ("lacks channel_names, numTraining, file_ending",),
    ),
    "dataset.json is a list": (
        lambda p: p.write(p.preprocessed / "dataset.json", []), STOCK, FAIL, "dataset.json", ("lacks",),
    ),
    "raw dataset.json changed": (
        lambda p: p.write(p.raw / "dataset.json", {**DATASET_JSON, "numTraining": 9}), STOCK, WARN, "dataset.json",
        ("differs",),
    ),
    "labels without background": (
        lambda p: p.write(p.preprocessed / "dataset.json", {**DATASET_JSON, "labels": {"left": 1}}), STOCK, FAIL,
        "plans", ("refuses the labels",),
    ),
    "no plans": (
        None, (*STOCK, "-p", "NoPlans"), FAIL, "plans",
        ("NoPlans.json", "choose -p from MNetPlans, PaRPlans, nnUNetPlans"),
    ),
    "truncated plans": (
        lambda p: truncate(p.preprocessed / "nnUNetPlans.json"), STOCK, FAIL, "plans",
        ("damaged file", "nnUNetv2_plan_and_preprocess -d 901"),
    ),
    "plans without content": (
        lambda p: p.write(p.preprocessed / "nnUNetPlans.json", {}), STOCK, FAIL, "plans", ("lacks dataset_name",),
    ),
    "plans of another data set": (
        lambda p: p.write(p.preprocessed / "nnUNetPlans.json", plans("x", {}) | {"dataset_name": "Dataset004_X"}),
        STOCK, FAIL, "plans", ("made for Dataset004_X",),
    ),
    "plans under another name": (
        lambda p: p.write(p.preprocessed / "CopiedPlans.json", (p.preprocessed / "nnUNetPlans.json").read_text()),
        (*STOCK, "-p", "CopiedPlans"), WARN, "plans", ("calls itself nnUNetPlans",),
    ),
    "unknown trainer": (
        None, (*STOCK, "-tr", "NoTrainer"), FAIL, "trainer",
        ("no trainer NoTrainer", "MNetTrainer", "nnU-Net's own, nnUNetTrainer"),
    ),
    "unknown configuration": (
        None, (*STOCK, "-c", "3d_lowres"), FAIL, "configuration", ("no 3d_lowres", "choose -c from 2d, 3d_fullres"),
    ),
    "configuration that inherits from none": (
        lambda p: p.change_plans("nnUNetPlans", inherits_from="gone"), STOCK, FAIL, "configuration", ("gone",),
    ),
    "2d with a trainer of ours": (
        None, (*STOCK, "-tr", "MNetTrainer", "-c", "2d"), FAIL, "configuration",
        ("MNetTrainer needs 3D", "[32, 32]", "choose -c from 3d_fullres"),
    ),
    "2d with a network of ours": (
        lambda p: p.change_plans("MNetPlans", patch_size=[32, 32]), (*STOCK, "-p", "MNetPlans"), FAIL, "configuration",
        ("MNet needs 3D",),
    ),
    "our network with a stock trainer": (
        None, (*STOCK, "-p", "MNetPlans"), FAIL, "configuration",
        ("nnUNetTrainer cannot train nnunetv2_ext.architectures.MNet", "choose -tr MNetTrainer"),
    ),
    "unknown key in training": (
        lambda p: p.change_plans("MNetPlans", training={"epoch": 3}), OURS, FAIL, "training block", ("epoch",),
    ),
    "wrong type in training": (
        lambda p: p.change_plans("MNetPlans", training={"epochs": "many"}), OURS, FAIL, "training block", ("epochs", "many"),
    ),
    "more weights than outputs": (
        lambda p: p.change_plans("MNetPlans", training={"deep_supervision_weights": [1, 0.5]}), OURS, FAIL, "training block",
        ("2 numbers in training.deep_supervision_weights", "7, one per output of MNet"),
    ),
    "nothing to freeze": (
        lambda p: p.change_plans("MNetPlans", training={"freeze_backbone": True}), OURS, FAIL, "training block",
        ("MNet, which has no backbone to freeze", "choose a trainer of one"),
    ),
    "another patch than the refiner's": (
        lambda p: p.change_plans("PaRPlans", patch_size=[16, 16, 32]), PAR, FAIL, "network",
        ("a patch of (16, 16, 32)", "(16, 16, 16), which the refiner was built for"),
    ),
    "a patch that the backbone cannot halve": (
        lambda p: p.change_plans("nnUNetPlans", patch_size=[16, 16, 15]), (*STOCK, "-tr", "PaRTrainer"), FAIL,
        "network", ("a patch of (16, 16, 15) for PlainConvUNet", "[16, 16, 14] or [16, 16, 16]"),
    ),
    "an unknown backbone": (
        lambda p: p.change_plans("PaRPlans", architecture=par([16] * 3, "nnFormer")), PAR, FAIL, "network",
        ("the backbone 'nnFormer'", "one of PlainConvUNet"),
    ),
    "training nobody reads": (
        lambda p: p.change_plans("nnUNetPlans", training={"epochs": 3}), STOCK, WARN, "training block", ("does not read",),
    ),
    "no fingerprint": (
        lambda p: (p.preprocessed / "dataset_fingerprint.json").unlink(), STOCK, FAIL, "fingerprint",
        ("no file", "nnUNetv2_plan_and_preprocess"),
    ),
    "truncated fingerprint": (
        lambda p: truncate(p.preprocessed / "dataset_fingerprint.json"), STOCK, FAIL, "fingerprint", ("damaged",),
    ),
    "no preprocessed data": (
        lambda p: shutil.rmtree(p.data), OURS, FAIL, "preprocessed data",
        ("no folder", "nnUNetv2_preprocess -d 901 -plans_name MNetPlans -c 3d_fullres"),
    ),
    "empty data folder": (
        lambda p: [f.unlink() for f in p.data.iterdir()], STOCK, FAIL, "preprocessed data", ("no cases",),
    ),
    "a stray file among the data": (
        lambda p: p.write(p.data / "notes.txt", "x"), STOCK, FAIL, "preprocessed data", ("several kinds (txt)",),
    ),
    "two layouts": (two_layouts, STOCK, FAIL, "preprocessed data", ("several kinds (b2nd, npz)",)),
    "a case without labels": (
        lambda p: (p.data / "case_1_seg.b2nd").unlink(), STOCK, FAIL, "preprocessed data", ("1 case (case_1)",),
    ),
    "a case without properties": (
        lambda p: (p.data / "case_1.pkl").unlink(), STOCK, FAIL, "preprocessed data", ("1 case (case_1)",),
    ),
    "an empty file": (
        lambda p: (p.data / "case_1.b2nd").write_text(""), STOCK, FAIL, "preprocessed data", ("1 case (case_1)",),
    ),
    "a case not preprocessed": (drop_case, STOCK, FAIL, "preprocessed data", ("1 case (case_3) not preprocessed",)),
    "fewer cases than stated": (
        drop_case_and_reference, STOCK, FAIL, "preprocessed data", ("4 of the 5 cases", "numTraining"),
    ),
    "more cases than stated": (
        lambda p: p.write(p.preprocessed / "dataset.json", {**DATASET_JSON, "numTraining": 3}), STOCK, WARN,
        "preprocessed data", ("more than the 3",),
    ),
    "a reference missing": (
        lambda p: (p.preprocessed / "gt_segmentations" / f"case_2{ENDING}").unlink(), STOCK, FAIL, "references",
        ("1 case (case_2) without a reference",),
    ),
    "no references": (
        lambda p: shutil.rmtree(p.preprocessed / "gt_segmentations"), STOCK, FAIL, "references", ("and 2 more",),
    ),
    "no number of a fold": (None, (*STOCK, "-f", "first"), FAIL, "splits", ("the fold first",)),
    "a fold beyond the default": (None, (*STOCK, "-f", "5"), WARN, "splits", ("fold 5 of 5", "0 to 4")),
    "a fold beyond the splits": (
        lambda p: p.write_splits([GOOD]), (*STOCK, "-f", "1"), WARN, "splits", ("fold 1 of 1",),
    ),
    "too few cases for five folds": (keep_two_cases, STOCK, FAIL, "splits", ("2 cases are too few",)),
    "truncated splits": (
        lambda p: p.write_splits(json.dumps([GOOD])[:-10]), STOCK, FAIL, "splits", ("damaged file", "restore"),
    ),
    "splits of another shape": (lambda p: p.write_splits({"train": []}), STOCK, FAIL, "splits", ("no list of folds",)),
    "a split without val": (lambda p: p.write_splits([{"train": CASES}]), STOCK, FAIL, "splits", ("no list of folds",)),
    "a split without cases": (
        lambda p: p.write_splits([split([], CASES)]), STOCK, FAIL, "splits", ("no cases to train",),
    ),
    "a split with strangers": (
        lambda p: p.write_splits([GOOD, split(["case_9"], CASES)]), STOCK, FAIL, "splits",
        ("fold 1 names 1 case (case_9)",),
    ),
    "a split that overlaps": (
        lambda p: p.write_splits([split(CASES, CASES[:1])]), STOCK, WARN, "splits",
        ("trains and validates with 1 case",),
    ),
    "no first stage": (
        cascade, STOCK, FAIL, "previous stage", ("5 cases", "train all folds of 3d_lowres with -tr nnUNetTrainer"),
    ),
    "results is a file": (
        lambda p: p.write(p.model(), "x"), STOCK, FAIL, "results", ("a file stands in its place",),
    ),
    "a damaged checkpoint": (
        checkpoints("latest", damaged=("final",)), (*STOCK, "-f", "0"), FAIL, "checkpoints",
        ("checkpoint_final.pth cannot be read", "--c then goes on from checkpoint_latest.pth"),
    ),
    "a damaged checkpoint of ours": (
        checkpoints("previous", damaged=("latest",), trainer="MNetTrainer", plans_name="MNetPlans"), (*OURS, "-f", "0"),
        WARN, "checkpoints", ("checkpoint_latest.pth cannot be read", "falls back"),
    ),
    "only a damaged checkpoint": (
        checkpoints(damaged=("latest",)), STOCK, FAIL, "checkpoints", ("train the fold anew",),
    ),
    "a patch too small in plane": (PATCH["flat"], OURS, FAIL, "network", ("8",)),
    "a patch too small to normalise": (PATCH["one slice"], OURS, FAIL, "network", ("16",)),
    "an architecture that does not exist": (
        lambda p: p.change_plans("nnUNetPlans", architecture={**unet(3), "network_class_name": "gone.Network"}), STOCK,
        FAIL, "network", ("cannot build its network",),
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("damage", "arguments", "status", "name", "texts"), TRAINING_FAULTS.values(), ids=TRAINING_FAULTS
)
def test_training(damage, arguments, status, name, texts, prepared, diagnose):
    if damage is not None:
        damage(prepared)
    exit_status, checks = diagnose(*arguments)
    assert_told(checks, status, name, texts)
    assert exit_status == (1 if status == FAIL else 0), checks
    # a fault is told once, where it lies; what builds on it is left out
    assert {what.partition(":")[0] for found, what in checks if found == FAIL} <= {name}


def test_a_backbone_whose_extra_is_missing(prepared, diagnose, monkeypatch):
    for module in [name for name in sys.modules if name.partition(".")[0] == "monai"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "monai", None)
    prepared.change_plans("PaRPlans", architecture=par([16] * 3, "SegResNet", {}))
    exit_status, checks = diagnose(*PAR)
    assert exit_status == 1
    assert_told(checks, FAIL, "network", ("it for SegResNet", "pip install 'nnunetv2_ext[monai]'"))
    assert_told(checks, OK, "trainers", ("PaRTrainer",))


def test_unset_results_are_told_once(prepared, diagnose, monkeypatch):
    monkeypatch.delenv("nnUNet_results")
    _, checks = diagnose(*PAR)
    assert [what.partition(":")[0] for status, what in checks if status == FAIL] == ["nnUNet_results"]
    assert_told(checks, OK, "network", ("PaRNetwork",))


@pytest.mark.parametrize(
    ("plans_name", "command"),
    [
        ("nnUNetPlans", "nnUNetv2_plan_and_preprocess -d 901"),
        ("nnUNetResEncUNetLPlans", "nnUNetv2_plan_and_preprocess -d 901"),
        ("MNetPlans", "nnunetv2_ext plan_and_preprocess -d 901 -pl MNetPlanner"),
        (
            "MNetPlans24GB",
            "nnunetv2_ext plan_and_preprocess -d 901 -pl MNetPlanner -overwrite_plans_name MNetPlans24GB",
        ),
        ("PaRPlans", "nnunetv2_ext plan_and_preprocess -d 901 -pl PaRPlanner"),
        ("PaRSwinUNETRPlans", "nnunetv2_ext plan_and_preprocess -d 901 -pl PaRPlanner --backbone SwinUNETR"),
        ("ThinThickMNetPlans", "nnunetv2_ext plan_and_preprocess -d 901 -pl ThinThickPlanner --backbone MNet"),
        (
            "ThinThickConvFreePlans",
            "nnunetv2_ext plan_and_preprocess -d 901 -pl ThinThickPlanner --backbone ConvFreeTransformer",
        ),
        (
            "ThinThickConvFreeBPlans",
            "nnunetv2_ext plan_and_preprocess -d 901 -pl ThinThickPlanner --backbone ConvFreeTransformer",
        ),
        ("ThinThickPaRPlans", "nnunetv2_ext plan_and_preprocess -d 901 -pl ThinThickPlanner --backbone PaR"),
        ("ThinThickPaRMNetPlans", "nnunetv2_ext plan_and_preprocess -d 901 -pl ThinThickPlanner --backbone PaR:MNet"),
        ("BackboneUNETRPlans", "nnunetv2_ext plan_and_preprocess -d 901 -pl BackbonePlanner --backbone UNETR"),
        (
            "PaRMinePlans",
            "nnunetv2_ext plan_and_preprocess -d 901 -pl PaRPlanner -overwrite_plans_name PaRMinePlans",
        ),
        ("MyPlans", "nnUNetv2_plan_and_preprocess -d 901"),
    ],
)
def test_the_command_that_plans_again(plans_name, command):
    assert doctor_training.replan(Subject(dataset="901", plans=plans_name)) == f"run {command}"


def npz_layout(prepared: Prepared) -> None:
    shutil.rmtree(prepared.data)
    prepared.write_cases(".npz", ".pkl", ".npy", "_seg.npy")


@pytest.mark.parametrize(
    ("change", "name", "texts"),
    [
        (lambda p: p.write_splits([GOOD]), "splits", ("1 folds",)),
        (checkpoints("final", "best"), "checkpoints", ("2 checkpoints, all readable",)),
        (npz_layout, "preprocessed data", ("5 cases",)),
    ],
    ids=["splits", "checkpoints", "npz"],
)
def test_training_in_order(change, name, texts, prepared, diagnose):
    change(prepared)
    exit_status, checks = diagnose(*STOCK)
    assert exit_status == 0, [what for status, what in checks if status == FAIL]
    assert_told(checks, OK, name, texts)


def test_a_cascade_in_order(prepared, diagnose):
    cascade(prepared)
    for case in CASES:
        prepared.write(prepared.model(name="3d_lowres") / "predicted_next_stage" / "3d_fullres" / f"{case}.b2nd", "x")
    exit_status, checks = diagnose(*STOCK)
    assert exit_status == 0, [what for status, what in checks if status == FAIL]
    assert_told(checks, OK, "previous stage", ("predictions of 3d_lowres",))


@pytest.mark.parametrize("how", ["access", "write"])
@pytest.mark.parametrize(("where", "name"), [("fold", "results"), ("root", "nnUNet_results")])
def test_a_read_only_results_folder(how, where, name, prepared, diagnose, monkeypatch):
    # permissions do not stop root, so that they are simulated
    locked = prepared.model() / "fold_0" if where == "fold" else prepared.results.parent
    locked.mkdir(parents=True, exist_ok=True)
    if how == "access":
        access = os.access
        monkeypatch.setattr(doctor.os, "access", lambda path, mode: Path(path) != locked and access(path, mode))
    else:
        temporary_file = doctor.tempfile.TemporaryFile

        def refuse(*arguments, dir=None, **more):
            if Path(dir) == locked:
                raise OSError(30, "Read-only file system")
            return temporary_file(*arguments, dir=dir, **more)

        monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    exit_status, checks = diagnose(*STOCK, "-f", "0")
    assert exit_status == 1
    assert_told(checks, FAIL, name, ("cannot be written", "no permission" if how == "access" else "Read-only"))


def test_nothing_is_left_behind_or_made(prepared, diagnose, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    diagnose(*STOCK, "-f", "0")
    assert sorted(tmp_path.rglob("*")) == before


def boom(subject: Subject):
    yield Check(OK, "so far")
    raise ZeroDivisionError("what\nnobody foresaw")


def refuse(subject: Subject):
    raise InputError("this", "that", "do so")
    yield


def fine(subject: Subject):
    yield Check(OK, "done")


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (boom, [Check(OK, "first: so far"), (FAIL, "first: the check itself failed with ZeroDivisionError: what")]),
        (refuse, [Check(FAIL, "first: this; expected that", "do so")]),
    ],
)
def test_what_fails_leaves_out_what_builds_on_it_and_nothing_else(function, expected):
    examinations = (
        Examination("first", function),
        Examination("second", fine, needs=("first",)),
        Examination("third", fine, needs=("second",)),
        Examination("apart", fine),
    )
    checks = list(examine(examinations, Subject()))
    assert [check[: len(wanted)] for check, wanted in zip(checks, expected, strict=False)] == [
        tuple(e) for e in expected
    ]
    assert checks[-3:] == [
        Check(SKIP, "second: not checked, mend 'first' first"),
        Check(SKIP, "third: not checked, mend 'second' first"),
        Check(OK, "apart: done"),
    ]


def test_every_need_names_an_earlier_examination():
    seen: set[str] = set()
    for examination in (*doctor.INSTALLATION, *doctor_training.TRAINING):
        assert set(examination.needs) <= seen, examination.name
        seen.add(examination.name)
