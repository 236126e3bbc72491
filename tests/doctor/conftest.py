"""nnU-Net's folders made by hand, for tests that damage one thing in them; nothing is planned or trained."""

import functools
import json
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import blosc2
import nibabel
import numpy as np
import pytest
import torch
from nnunetv2.utilities import find_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_ext import DISCOVERY_FOLDER
from nnunetv2_ext.cli import main
from nnunetv2_ext.doctor import installation
from nnunetv2_ext.doctor.examination import FAIL, GROUPS
from nnunetv2_ext.doctor.installation import find_trainer
from nnunetv2_ext.weights.checkpoint import EVERY_EPOCH

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
        "preprocessor_name": "DefaultPreprocessor",
        "spacing": [1.0] * len(patch),
        "normalization_schemes": ["ZScoreNormalization"],
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
        "transpose_forward": [0, 1, 2],
        "label_manager": "LabelManager",
        "configurations": configurations,
    }


SHAPE = (16, 16, 16)


@functools.cache
def file_of_a_case(part: str) -> bytes:
    """What nnU-Net's preprocessing leaves of a case, or its reference, by the end of the name."""
    properties = {
        "spacing": [1.0, 1.0, 1.0],
        "shape_before_cropping": SHAPE,
        "bbox_used_for_cropping": [[0, size] for size in SHAPE],
        "shape_after_cropping_and_before_resampling": SHAPE,
        "class_locations": {1: np.zeros((1, 4), int), 2: []},
    }
    image, segmentation = np.zeros((1, *SHAPE), np.float32), np.zeros((1, *SHAPE), np.int16)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"case{part}")
        if part == ".pkl":
            file.write_bytes(pickle.dumps(properties))
        elif part == ".npz":
            np.savez_compressed(file, data=image, seg=segmentation)
        elif part == ENDING:
            nibabel.save(nibabel.Nifti1Image(segmentation[0], np.eye(4)), file)
        else:
            array = segmentation if part.startswith("_seg") else image
            if part.endswith(".npy"):
                np.save(file, array)
            else:
                blosc2.asarray(array, urlpath=str(file))
        return file.read_bytes()


class Prepared:
    """nnU-Net's three folders with one preprocessed data set, and ways to damage them."""

    def __init__(self, root: Path):
        self.raw, self.preprocessed, self.results = (root / name / DATASET for name in FOLDERS)
        for folder in (self.raw, self.preprocessed, self.results):
            folder.mkdir(parents=True)
        self.data = self.preprocessed / "nnUNetPlans_3d"
        for case in CASES:
            self.write(self.preprocessed / "gt_segmentations" / f"{case}{ENDING}", file_of_a_case(ENDING))
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
                self.write(self.data / f"{case}{part}", file_of_a_case(part))

    def write_images(self) -> None:
        """Raw images and labels, without which no data set can be planned."""
        image, affine = np.zeros((4, 4, 4), np.uint8), np.diag([1.0, 1, 4, 1])
        image[1, 1, :2] = 1, 2
        for case in CASES:
            for path in (f"imagesTr/{case}_0000{ENDING}", f"labelsTr/{case}{ENDING}"):
                (self.raw / path).parent.mkdir(exist_ok=True)
                nibabel.Nifti1Image(image, affine).to_filename(self.raw / path)

    @staticmethod
    def write(file: Path, content: object) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
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


def checkpoint_of(prepared: Prepared, trainer: str, plans_name: str) -> dict[str, Any]:
    """What a training of three epochs writes, with the planned network in it."""
    content = json.loads((prepared.preprocessed / f"{plans_name}.json").read_text())
    manager = PlansManager(content)
    build = find_trainer(trainer).build_network_architecture
    network = build(manager, manager.get_configuration("3d_fullres"), 1, 3, True)
    return {
        "network_weights": network.state_dict(),
        "optimizer_state": torch.optim.SGD(network.parameters(), 0.01).state_dict(),
        "current_epoch": 3,
        "logging": {key: [0.1, 0.2, 0.3] for key in EVERY_EPOCH},
        "init_args": {"plans": content, "configuration": "3d_fullres", "dataset_json": DATASET_JSON},
        "trainer_name": trainer,
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


@functools.cache
def lies_in(file: str, folder: str) -> bool:
    return Path(file).absolute().is_relative_to(Path(folder).absolute())


def originates_from(
    module: Any, folder: str, nnunet: Callable[[Any, str], bool] = find_class_by_name._module_originates_from_path
) -> bool:
    """nnU-Net's function of that name, which every lookup of a trainer asks twice about every imported module."""
    file = getattr(module, "__file__", None)
    return nnunet(module, folder) if file is None else lies_in(file, folder)


def prepare(root: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    """A data set in folders of this test, and an environment that holds nothing of the machine's."""
    for name in FOLDERS:
        monkeypatch.setenv(name, str(root / name))
    monkeypatch.setenv("nnUNet_extTrainer", str(DISCOVERY_FOLDER))
    monkeypatch.setattr(find_class_by_name, "_module_originates_from_path", originates_from)
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    monkeypatch.delenv("nnUNet_compile", raising=False)
    # what the machine at hand has is no matter of these tests
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(installation, "DISK_WARN_GB", 0.0)
    monkeypatch.setattr(installation, "DISK_FAIL_GB", 0.0)
    monkeypatch.setattr(installation, "SHARED_MEMORY_WARN_GB", 0.0)
    return Prepared(root)


Diagnose = Callable[..., tuple[int, list[tuple[str, str]]]]


def diagnosis(capsys: pytest.CaptureFixture[str]) -> Diagnose:
    """Runs the command; returns its exit status and (status, line with remedy) of each check."""

    def run(*arguments: str) -> tuple[int, list[tuple[str, str]]]:
        capsys.readouterr()
        exit_status = main(["doctor", *arguments])
        checks: list[tuple[str, str]] = []
        for line in capsys.readouterr().out.splitlines():
            if line.startswith("          -> "):
                checks[-1] = (checks[-1][0], f"{checks[-1][1]}\n{line.strip()}")
            elif line.startswith("  "):
                status, what = line.split(maxsplit=1)
                checks.append((status, what))
            else:
                assert line in ("", *GROUPS) or line.startswith("ready: ") or line[0].isdecimal(), line
        return exit_status, checks

    return run


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    return prepare(tmp_path, monkeypatch)


@pytest.fixture
def diagnose(capsys: pytest.CaptureFixture[str]) -> Diagnose:
    return diagnosis(capsys)


def assert_told(checks: list[tuple[str, str]], status: str, name: str, texts: tuple[str, ...]) -> None:
    told = [what for found, what in checks if found == status and what.startswith(f"{name}: ")]
    assert any(all(text in what for text in texts) for what in told), checks
    if status == FAIL:
        assert all("\n-> " in what for what in told), "each fault has its remedy"


class Gpu:
    """Stands for torch.cuda on a machine with one GPU of 24 GiB."""

    properties = SimpleNamespace(name="A GPU", total_memory=24 * 2**30)

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


def assert_only_fault(
    diagnosed: tuple[int, list[tuple[str, str]]], status: str, name: str, texts: tuple[str, ...]
) -> None:
    """The fault is told, in the exit status, too; and once, where it lies: what builds on it is left out."""
    exit_status, checks = diagnosed
    assert_told(checks, status, name, texts)
    assert exit_status == (1 if status == FAIL else 0), checks
    assert {what.partition(":")[0] for found, what in checks if found == FAIL} <= {name}
