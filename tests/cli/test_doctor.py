"""`doctor`: what it prints where all is well, under which headings, and the command that it ends with."""

import importlib.metadata
import shutil
from pathlib import Path

import pytest

from nnunetv2_ext.cli import main
from nnunetv2_ext.doctor.examination import FAIL, GROUPS, OK, WARN
from tests.doctor.conftest import DATASET, OURS, PAR, STOCK, Diagnose, Prepared, assert_told, diagnosis, prepare


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    return prepare(tmp_path, monkeypatch)


@pytest.fixture
def diagnose(capsys: pytest.CaptureFixture[str]) -> Diagnose:
    return diagnosis(capsys)


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


def test_nothing_is_left_behind_or_made(prepared, diagnose, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    diagnose(*STOCK, "-f", "0")
    assert sorted(tmp_path.rglob("*")) == before


def test_lines_stand_under_headings(prepared, capsys):
    assert main(["doctor", *OURS]) == 0
    lines = capsys.readouterr().out.splitlines()
    under: dict[str, list[str]] = {line: [] for line in GROUPS}
    for line in lines:
        if line in under:
            heading = line
        elif line.startswith("  "):
            under[heading].append(line.split()[1])
    assert under["installation"][0] == "python:"
    assert under["data"] == [
        "data",
        "dataset.json:",
        "fingerprint:",
        "preprocessed",
        "slabs:",
        "references:",
        "splits:",
        "previous",
    ]
    assert under["training"][:3] == ["plans:", "trainer:", "configuration:"]
    assert [line for line in lines if line in under] == list(GROUPS)


@pytest.mark.parametrize(
    ("arguments", "last"),
    [
        (OURS, "ready: nnUNetv2_train 901 3d_fullres 0 -tr MNetTrainer -p MNetPlans -device cpu"),
        (
            ["-d", DATASET, "-f", "all", "-device", "cpu"],
            f"ready: nnUNetv2_train {DATASET} 3d_fullres all -tr nnUNetTrainer -p nnUNetPlans -device cpu",
        ),
    ],
)
def test_it_ends_with_the_command_that_trains(arguments, last, prepared, capsys):
    assert main(["doctor", *arguments]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == last


@pytest.mark.parametrize("arguments", [[], [*OURS, "-p", "NoPlans"]], ids=["no training", "a fault"])
def test_it_is_ready_only_for_a_training_without_faults(arguments, prepared, capsys):
    main(["doctor", *arguments])
    out = capsys.readouterr().out
    assert "ready: " not in out
    assert out.splitlines()[-1][0].isdecimal()
