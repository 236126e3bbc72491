"""`plan_and_preprocess`: what it refuses before anything is computed or removed, each in one sentence."""

import gzip
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnunetv2_ext.cli import main
from tests.planning.conftest import NAME, Described


@pytest.fixture
def described(nnunet_folders: Path) -> Described:
    return Described(nnunet_folders).write()


def run(*arguments: str) -> int:
    return main(["plan_and_preprocess", "--no_pbar", *arguments])


def unset(variable: str) -> Callable[[Described, pytest.MonkeyPatch], object]:
    return lambda _, monkeypatch: monkeypatch.delenv(variable)


def truncate(path: str) -> Callable[[Described, pytest.MonkeyPatch], object]:
    def change(data: Described, _: pytest.MonkeyPatch) -> None:
        file = data.raw.parents[1] / path
        content = file.read_text() if file.exists() else '{"configurations": {}}'
        file.write_text(content[:-5])

    return change


def copy(data: Described, _: pytest.MonkeyPatch) -> None:
    shutil.copytree(data.raw, data.raw.with_name("Dataset901_Other"))


def remove_raw(data: Described, _: pytest.MonkeyPatch) -> None:
    shutil.rmtree(data.raw)


def nothing(*_: object) -> None:
    pass


def write(path: str, content: Any) -> Callable[[Described, pytest.MonkeyPatch], object]:
    """Write JSON into a file below nnU-Net's folders."""
    return lambda data, _: (data.raw.parents[1] / path).write_text(json.dumps(content))


def describe(**entries: Any) -> Callable[[Described, pytest.MonkeyPatch], object]:
    """Change entries of the raw dataset.json; those of None are taken out."""

    def change(data: Described, _: pytest.MonkeyPatch) -> None:
        path = data.raw / "dataset.json"
        content = {**json.loads(path.read_text()), **entries}
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return change


def overwrite_image(keep: Callable[[bytes], bytes]) -> Callable[[Described, pytest.MonkeyPatch], object]:
    def change(data: Described, _: pytest.MonkeyPatch) -> None:
        path = data.raw / "imagesTr" / "case_0000.nii.gz"
        path.write_bytes(keep(path.read_bytes()))

    return change


def cut_off(content: bytes) -> bytes:
    """A whole gzip file whose voxels end early."""
    return gzip.compress(gzip.decompress(content)[:-100])


def read_only(data: Described, monkeypatch: pytest.MonkeyPatch) -> None:
    # permissions do not stop root, so that they are simulated
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != data.preprocessed and access(path, mode))


def without_monai(_: Described, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == "monai"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "monai", None)


PAR = ["-d", "901", "--no_pp", "-pl", "PaRPlanner"]
CONVFREE = ["-d", "901", "--no_pp", "-pl", "ConvFreePlanner"]


@pytest.mark.parametrize(
    ("arguments", "change", "message"),
    [
        (["-d", "901"], unset("nnUNet_raw"), "no value of nnUNet_raw; expected the path of a folder in it; run export"),
        (["-d", "901"], unset("nnUNet_preprocessed"), "no value of nnUNet_preprocessed"),
        (["-d", "902"], nothing, "no data set 902; expected one folder Dataset902_*"),
        (["-d", "Boxes"], nothing, "the data set 'Boxes'; expected an id of 0 to 999"),
        (["-d", "901"], copy, "2 data sets with id 901 (Dataset901_Boxes, Dataset901_Other)"),
        (["-d", "901"], remove_raw, "dataset.json; expected a JSON file there; put the data set into nnUNet_raw"),
        (["-d", "901"], truncate(f"nnUNet_raw/{NAME}/dataset.json"), "a damaged file"),
        (
            ["-d", "901"],
            truncate(f"nnUNet_preprocessed/{NAME}/dataset_fingerprint.json"),
            "expected valid JSON; run again with --clean",
        ),
        (["-d", "901", "--no_pp"], truncate(f"nnUNet_preprocessed/{NAME}/MNetPlans.json"), "MNetPlans.json"),
        (["-d", "901", "--no_pp"], truncate(f"nnUNet_preprocessed/{NAME}/nnUNetPlans.json"), "nnUNetPlans.json"),
        (["-d", "901", "-pl", "NoPlanner"], nothing, "the planner 'NoPlanner'; expected one of MNetPlanner"),
        (
            ["-d", "901", "-np", "1", "2", "3"],
            nothing,
            "3 numbers of processes; expected 1 or 2, one per configuration",
        ),
        (["-d", "901", "-fpe", "NoExtractor"], nothing, "the fingerprint extractor 'NoExtractor'"),
        (["-d", "901", "--epochs", "0"], nothing, "training.epochs = 0"),
        (["-d", "901", "-pl", "ExperimentPlanner", "--epochs", "3"], nothing, "a training block for nnU-Net's"),
        (["-d", "901", "--no_pp", "-gpu_memory_target", "0.001"], nothing, "for the smallest patch"),
        (["-d", "901", "-overwrite_target_spacing", "5", "0", "1"], nothing, "a target spacing of (5.0, 0.0, 1.0)"),
        (["-d", "901", "--backbone", "UNETR"], nothing, "the option --backbone for MNetPlanner"),
        (["-d", "901", "-pl", "BackbonePlanner", "--axis", "1"], nothing, "the option --axis for BackbonePlanner"),
        (
            ["-d", "901", "-pl", "ExperimentPlanner", "--patch-size", "8", "32", "32"],
            nothing,
            "--patch-size for nnU-Net",
        ),
        ([*PAR, "--backbone", "nnUNext"], nothing, "the backbone 'nnUNext'; expected one of PlainConvUNet"),
        ([*PAR, "--variant", "code"], nothing, "variant='code'; expected one of paper, published_code"),
        ([*PAR, "--fusion", "mean"], nothing, "fusion='mean'; expected one of add, multiply, concat"),
        ([*PAR, "--axis", "3"], nothing, "axis=3; expected 0, 1 or 2"),
        (
            [*PAR, "--patch-size", "12", "42", "40"],
            nothing,
            "a patch of [12, 42, 40]; expected a size that the network",
        ),
        ([*PAR, "--backbone", "VNet"], without_monai, "run pip install 'nnunetv2_ext[monai]'"),
        ([*PAR, "--size", "B"], nothing, "the option --size for PaRPlanner"),
        (["-d", "901", "--post-norm"], nothing, "the option --post-norm for MNetPlanner"),
        ([*CONVFREE, "--size", "XL"], nothing, "the size 'XL'; expected one of S, B, L, paper"),
        ([*CONVFREE, "--context", "volume"], nothing, "context = 'volume'; expected patch or block"),
        ([*CONVFREE, "--block-tokens", "2"], nothing, "block_tokens = 2; expected an odd number"),
        ([*CONVFREE, "--token-size", "0", "8", "8"], nothing, "token_size = [0, 8, 8]; expected three whole numbers"),
        (
            [*CONVFREE, "--token-size", "2", "8", "8", "--patch-size", "12", "44", "40"],
            nothing,
            "a patch of [12, 44, 40]; expected a size that the network takes, [12, 40, 40] or [12, 48, 40]",
        ),
        ([*CONVFREE, "-gpu_memory_target", "0.3"], nothing, "of which weights and optimizer take 0.3"),
        # typed wrongly
        (
            ["-d", "901", "-c", "3d_fulres"],
            nothing,
            "the configuration '3d_fulres' for MNetPlanner; expected some",
        ),
        (
            ["-d", "901", "-c", "2d"],
            nothing,
            "'2d' for MNetPlanner; expected some of 3d_fullres, 3d_lowres,",
        ),
        (["-d", "901", "-pl", "ExperimentPlanner", "-c", "3d"], nothing, "'3d' for ExperimentPlanner"),
        (["-d", "901", "-np", "0", "--clean"], nothing, "-np 0; expected 1 process or more; correct -np"),
        (["-d", "901", "-np", "-3", "--clean"], nothing, "-np -3; expected 1 process or more"),
        (["-d", "901", "-npfp", "-3", "--clean"], nothing, "-npfp -3; expected 1 process or more; correct -npfp"),
        (["-d", "901", "-npfp", "0", "--clean"], nothing, "-npfp 0; expected 1 process or more"),
        (["-d", "901", "-overwrite_target_spacing", "nan", "1", "1"], nothing, "(nan, 1.0, 1.0); expected mm above 0"),
        (
            ["-d", "901", "-overwrite_target_spacing", "1e9", "1", "1"],
            nothing,
            "0 x 40 x 40 voxels in the largest case; expected one that leaves 4 voxels along each axis",
        ),
        (
            ["-d", "901", "-overwrite_target_spacing", "1e-4", "1e-4", "1e-4"],
            nothing,
            "1.3e+17 voxels in the largest case; expected one that makes at most 1e+09 voxels of a case",
        ),
        (["-d", "901", "-gpu_memory_target", "nan"], nothing, "-gpu_memory_target nan; expected GB above 0"),
        (["-d", "901", "-preprocessor_name", "None"], nothing, "the preprocessor 'None'; expected one of nnU-Net's"),
        (["-d", "901", "--epochs", "1000000000000"], nothing, "expected a whole number from 1 to 1000000"),
        (["-d", "901", "902"], nothing, "no data set 902"),
        # plans of another name
        (["-d", "901", "-overwrite_plans_name", "../evil"], nothing, "../evil; expected a name of letters, digits"),
        (["-d", "901", "-overwrite_plans_name", "a/b"], nothing, "a/b; expected a name of letters"),
        (["-d", "901", "-overwrite_plans_name", "dataset"], nothing, "not dataset, dataset_fingerprint, splits_final"),
        (["-d", "901", "-overwrite_plans_name", "My__Plans"], nothing, "no two _ beside each other"),
        (
            ["-d", "901", "-overwrite_plans_name", "nnUNetPlans"],
            nothing,
            "the name of nnU-Net's own plans, for MNetPlanner; expected a name of its own",
        ),
        (
            ["-d", "901", "-pl", "ExperimentPlanner", "-overwrite_plans_name", "MNetPlans"],
            write(f"nnUNet_preprocessed/{NAME}/MNetPlans.json", {"experiment_planner_used": "MNetPlanner"}),
            "for ExperimentPlanner, the name of plans that MNetPlanner made",
        ),
        # JSON of another kind
        (["-d", "901"], write(f"nnUNet_raw/{NAME}/dataset.json", []), "got a list in"),
        (["-d", "901"], write(f"nnUNet_preprocessed/{NAME}/dataset_fingerprint.json", []), "got a list in"),
        (["-d", "901"], write(f"nnUNet_preprocessed/{NAME}/dataset_fingerprint.json", {}), "run again with --clean"),
        # raw data
        (["-d", "901"], describe(numTraining=None), "no numTraining in"),
        (["-d", "901"], describe(labels={"0": "background", "1": "organ"}), "as nnU-Net v1 had it"),
        (["-d", "901"], describe(numTraining=7, labels={"background": 0, "organ": 1, "a": 3}), "(1 of 2 faults; the"),
        (["-d", "901", "--clean"], describe(labels={"background": 0, "organ": 1}), "the label value 2 in 1 label file"),
        (["-d", "901", "--clean"], overwrite_image(cut_off), "508 bytes of 608"),
        (["-d", "901", "--clean", "--verify_dataset_integrity"], overwrite_image(lambda _: b""), "(empty, 0 bytes)"),
        (["-d", "901", "--clean"], read_only, "which cannot be written (no permission to write)"),
    ],
)
def test_refused(
    described: Described,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    change: Callable[[Described, pytest.MonkeyPatch], object],
    message: str,
) -> None:
    change(described, monkeypatch)
    before = sorted(described.preprocessed.iterdir())
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err
    written = {"dataset.json", "raw_checked.json"}  # nnU-Net's copy, and what the raw data are known to be
    assert [path for path in sorted(described.preprocessed.iterdir()) if path.name not in written] == before
