"""What the command prints and writes, for architectures and trainings, and what it refuses."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nnunetv2_ext.cli import main
from nnunetv2_ext.cli.profile import MEBIBYTE
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.profiling import backbones as profiled_backbones
from nnunetv2_ext.profiling import step as profiled_step
from nnunetv2_ext.profiling.backbones import NAMES
from nnunetv2_ext.profiling.step import Measured
from nnunetv2_ext.registry import BACKBONES
from tests.training.conftest import DATASET, LABELS, MNET, UNET, hand_made_plans

REFERENCE = Path(__file__).parents[2] / "docs" / "reference-profile.md"
SMALL = ["--patch-size", "4", "32", "32"]
NET = ["--architecture", "MNet", *SMALL]
PAR = ["--architecture", "PaR:none", "--patch-size", "96", "96", "96", "--classes", "5", "--no-time"]
TRAINING = ["-d", "901", "-c", "3d_fullres"]


def cells(printed: str) -> dict[str, list[str]]:
    """The table's rows by their first cell."""
    lines = [line.strip("|").split("|") for line in printed.splitlines() if line.startswith("|")]
    return {line[0].strip(): [cell.strip() for cell in line[1:]] for line in lines}


@pytest.fixture
def preprocessed(nnunet_folders) -> Path:
    """A data set whose plans hold a U-Net (nnUNetPlans) and MNet (MNetPlans)."""
    folder = nnunet_folders / "nnUNet_preprocessed" / DATASET
    folder.mkdir()
    dataset_json = {"channel_names": {"0": "T1", "1": "T2"}, "numTraining": 5, "file_ending": ".nii.gz", **LABELS}
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    for architecture in (UNET, MNET):
        plans = hand_made_plans(architecture)
        (folder / f"{plans['plans_name']}.json").write_text(json.dumps(plans))
    return folder


def test_the_columns_of_the_paper(capsys):
    assert main(["profile", *PAR, "--depth", "1"]) == 0
    printed = capsys.readouterr().out
    assert cells(printed)["PaR"][:3] == ["168,053", "5.97", "7.71"]
    documented = cells(REFERENCE.read_text().partition("PaR:none, 5 classes")[2].partition("```")[0])
    assert list(cells(printed)) == list(documented) == ["module", "-" * 6, "PaR", "pdi", "sai"]
    for name in ("PaR", "pdi", "sai"):
        *counts, kept = cells(printed)[name]
        assert documented[name][:3] == counts
        # what autograd saves changes a little between releases of PyTorch
        assert float(documented[name][3]) == pytest.approx(float(kept), rel=0.1)


def test_counts_of_an_architecture(tmp_path, capsys):
    file = tmp_path / "figures.json"
    options = ["--classes", "3", "--kwargs", '{"features_per_stage": [2, 3, 4, 5, 6]}', "--no-time"]
    assert main(["profile", *NET, *options, "--json", str(file)]) == 0
    table, content = cells(capsys.readouterr().out), json.loads(file.read_text())
    assert content["subject"]["shape"] == [1, 4, 32, 32] and "step" not in content
    assert table["module"] == ["parameters", "multiply-adds, G", "+ attention, G", "kept, MiB"]
    assert table["heads"][0] == str(3 * (2 + 3 + 3 + 4 + 4 + 5 + 5))
    whole, *modules = content["modules"]
    assert table["MNet"][0] == f"{whole['parameters']:,}" and whole["name"] == ""
    below = [module for module in modules if "." not in module["name"]]
    for key in ("parameters", "multiply_adds", "multiply_adds_with_attention"):
        assert sum(module[key] for module in below) == whole[key]
    assert 0 < sum(module["kept_bytes"] for module in below) < whole["kept_bytes"]


@pytest.mark.parametrize("name", [entry.name for entry in BACKBONES if entry.extra] + ["MNet"])
def test_backbones_get_the_patch(name, capsys):
    kwargs = json.dumps({"backbone": name})
    options = ["--patch-size", "32", "64", "64", "--no-time", "--depth", "0"]
    counts = []
    refined = ["--architecture", f"PaR:{name}"]
    for chosen in (["--architecture", name], ["--architecture", "PaRNetwork", "--kwargs", kwargs], refined):
        assert main(["profile", *chosen, *options]) == 0
        (row,) = list(cells(capsys.readouterr().out).values())[2:]
        counts.append(float(row[2]))
    assert counts[0] < counts[1] == counts[2]


@pytest.mark.parametrize(
    ("options", "network", "heads"),
    [([], "PlainConvUNet", "decoder.seg_layers"), (["-tr", "MNetTrainer", "-p", "MNetPlans"], "MNet", "heads")],
)
def test_counts_of_a_training(preprocessed, options, network, heads, capsys, monkeypatch):
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    assert main(["profile", *TRAINING, *options, "--no-time"]) == 0
    printed = capsys.readouterr().out
    assert "3 classes, patch 8 x 32 x 32, 2 input channels" in printed
    assert network in cells(printed) and heads in cells(printed)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_times_are_printed_and_written(device, tmp_path, capsys, monkeypatch):
    def measure(subject, *, depth, **options):
        assert (depth, options) == (1, {"batch_size": 3, "rounds": 5, "device": device, "progress": True})
        return Measured({"": 2.0, "blocks": 1.25, "heads": 0.001}, [4.0, 3.0, 9.0], 300 * MEBIBYTE)

    monkeypatch.setattr(profiled_step, "measure", measure)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    file = tmp_path / "figures.json"
    options = ["--depth", "1", "--batch-size", "3", "--rounds", "5", "-device", device, "--json", str(file)]
    assert main(["profile", *NET, *options]) == 0
    printed, step = capsys.readouterr().out, json.loads(file.read_text())["step"]
    assert [cells(printed)[name][-1] for name in ("MNet", "blocks", "heads")] == ["2,000.0", "1,250.0", "1.0"]
    assert "training step, batch 3: 4.000 s, peak memory 300 MiB" in printed
    assert (step["seconds"], step["rounds"], step["peak_bytes"]) == (4.0, [4.0, 3.0, 9.0], 300 * MEBIBYTE)
    assert ("Some GPU" in printed) == (step["device"] == "Some GPU") == (device == "cuda")


def test_a_training_is_measured(preprocessed, capsys):
    """All of it, the process that measures memory too: it has to find the same plans."""
    options = ["--batch-size", "1", "--rounds", "1", "--depth", "1"]
    assert main(["profile", *TRAINING, "-tr", "MNetTrainer", "-p", "MNetPlans", *options]) == 0
    printed = capsys.readouterr().out
    whole, blocks = (float(cells(printed)[name][-1].replace(",", "")) for name in ("MNet", "blocks"))
    assert whole > blocks > 0
    found = re.search(r"batch 1: ([\d.]+) s, peak memory (\d+) MiB", printed)
    assert found is not None
    seconds, peak = found.groups()
    assert float(seconds) > 0 and 0 < int(peak) < 500


def test_every_backbone_on_one_patch(tmp_path, capsys):
    """Two rows each, alone and refined; where the patch does not suit, on the nearest that does."""
    names = [name for name in NAMES if name not in ("VNet", "SwinUNETR")]  # large ones take long
    files = ["--csv", str(tmp_path / "table.csv"), "--json", str(tmp_path / "table.json")]
    options = ["--patch-size", "20", "64", "64", "--classes", "3", "--no-time", *files]
    assert main(["profile", "--all", *names, *options]) == 0
    printed = capsys.readouterr().out
    assert "patch 20 x 64 x 64, spacing 1 x 1 x 1 mm, 1 input channels, 3 classes" in printed
    table, content = cells(printed), json.loads((tmp_path / "table.json").read_text())
    assert list(table)[2:] == [one for name in names for one in (name, f"PaR:{name}")]
    assert "step, s" not in table["network"]
    assert table["UNETR"][0] == "16 x 64 x 64" and table["UNETR"][-1] == "nearest patch to 20 x 64 x 64"
    assert table["MNet"][0] == "20 x 64 x 64" and table["MNet"][-1] == ""
    rows = {row["name"]: row for row in content["backbones"]}
    with (tmp_path / "table.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [row["name"] for row in written] == list(rows)
    assert all(int(row["parameters"]) == rows[row["name"]]["parameters"] for row in written)
    assert written[0]["patch"].split() == list(map(str, rows[written[0]["name"]]["patch"]))


@pytest.mark.parametrize("name", ["MNet", "UNETR"])
def test_a_refined_row_holds_what_the_whole_network_costs(name, tmp_path):
    files = [tmp_path / "all.json", tmp_path / "one.json"]
    shape = ["--patch-size", "16", "32", "32", "--classes", "3", "--no-time"]
    assert main(["profile", "--all", name, *shape, "--json", str(files[0])]) == 0
    assert main(["profile", "--architecture", f"PaR:{name}", *shape, "--json", str(files[1])]) == 0
    row, whole = json.loads(files[0].read_text())["backbones"][1], json.loads(files[1].read_text())["modules"][0]
    assert row["name"] == f"PaR:{name}"
    for key in ("parameters", "multiply_adds", "multiply_adds_with_attention"):
        assert row[key] == whole[key]


def test_steps_of_backbones_are_measured_and_one_that_fails_is_told(capsys, monkeypatch):
    def measured(subject, batch_size, *, rounds, device):
        assert (batch_size, rounds, device) == (3, 2, "cpu")
        if subject.description["architecture"] == "PaRNetwork":
            raise InputError("a process that ended with -9", "0", "lower the batch or the patch")
        return [4.0, 3.0, 9.0], 300 * MEBIBYTE

    monkeypatch.setattr(profiled_backbones, "measured_alone", measured)
    options = ["--patch-size", "5", "33", "32", "--batch-size", "3", "--rounds", "2"]
    assert main(["profile", "--all", "MNet", "BasicUNet", *options]) == 0
    printed = capsys.readouterr().out
    assert "step and peak of a batch of 3 (cpu, " in printed
    table = cells(printed)
    assert table["MNet"][4:6] == table["BasicUNet"][4:6] == ["4.000", "300"]
    assert table["PaR:MNet"][4:6] == ["-", "-"]
    assert "not measured: got a process that ended with -9" in table["PaR:MNet"][-1]
    assert table["PaR:MNet"][1] != "-"
    assert table["PaR:BasicUNet"][-1].startswith("nearest patch to 5 x 33 x 32; not measured")


def test_a_backbone_is_measured_in_a_process_of_its_own(capsys):
    assert main(["profile", "--all", "BasicUNet", "--patch-size", "16", "16", "32", "--rounds", "1"]) == 0
    table = cells(capsys.readouterr().out)
    for name in ("BasicUNet", "PaR:BasicUNet"):
        seconds, peak = table[name][4:6]
        assert float(seconds) > 0 and 2 * 4 * 5.75e6 / MEBIBYTE < float(peak.replace(",", "")) < 1000


def test_a_backbone_without_its_extra_has_a_row_that_says_so(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.networks.nets.unet", None)
    assert main(["profile", "--all", "UNet", "MNet", *SMALL, "--no-time"]) == 0
    table = cells(capsys.readouterr().out)
    for name in ("UNet", "PaR:UNet"):
        assert table[name][:-1] == ["-"] * 6 and "nnunetv2_ext[monai]" in table[name][-1]
    assert table["MNet"][1] != "-"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "neither -d nor --architecture"),
        (["--all", *NET], "both --architecture and --all"),
        (["--all", "--depth", "1"], "no --patch-size"),
        (["--all", *SMALL, "--kwargs", "{}"], "--kwargs beside --all; expected only --patch-size, --channels"),
        ([*NET, "--spacing", "1", "1", "1"], "--spacing beside --architecture"),
        ([*TRAINING, "--csv", "table.csv"], "--csv beside -d"),
        (["--all", "Nothing", *SMALL], "the backbone 'Nothing'"),
        (["--all", "--patch-size", "32", "32"], "three axes"),
        (["--all", *SMALL, "--classes", "0"], "numbers of at least 1"),
        (["--all", *SMALL, "--spacing", "0", "1", "1"], "mm above 0"),
        (["--all", *SMALL, "-device", "cuda"], "cuda where PyTorch sees a GPU"),
        (["--all", *SMALL, "--csv", "no/such/folder/table.csv"], "a file in an existing folder"),
        ([*TRAINING, *NET], "both -d and --architecture"),
        (
            [*TRAINING, "--patch-size", "8", "32", "32", "--kwargs", "{}"],
            "--patch-size beside -d; expected only -c, -tr, -p",
        ),
        ([*NET, "-tr", "MNetTrainer"], "-tr beside --architecture"),
        (["--architecture", "MNet"], "no --patch-size"),
        (["--architecture", "Nothing", *SMALL], "expected one of MNet, BackboneNetwork"),
        (["--architecture", "Nothing", *SMALL], "SwinUNETR"),
        (["--architecture", "Nothing", *SMALL], "PaR:BACKBONE, ConvFreeTransformer:block"),
        (["--architecture", "PaR:Nothing", *SMALL], "the backbone 'Nothing'"),
        ([*NET, "--kwargs", "{merge}"], "a JSON object"),
        ([*NET, "--kwargs", "[1]"], "a JSON object; correct it (put it into braces)"),
        ([*NET, "--kwargs", '{"colour": 1}'], "the argument 'colour' of MNet; expected one of features_per_stage"),
        ([*NET, "--kwargs", '{"num_classes": 4}'], "the argument 'num_classes'"),
        ([*NET, "--kwargs", '{"merge": "product"}'], "one of difference, sum, concat"),
        ([*NET, "--kwargs", '{"features_per_stage": 3}'], "which it refuses"),
        (["--architecture", "MNet", "--patch-size", "4", "8", "8"], "at least 1 slice and 16 voxels"),
        (["--architecture", "MNet", "--patch-size", "32", "32"], "three axes"),
        (["--architecture", "UNet", "--patch-size", "4", "30", "32"], "a patch of (4, 30, 32) for UNet"),
        (["--architecture", "PaRNetwork", *SMALL], "no 'backbone' of PaRNetwork"),
        (["--architecture", "PaRNetwork", *SMALL, "--kwargs", '{"backbone": "Nothing"}'], "'Nothing'"),
        (["--architecture", "UNet", *SMALL, "--kwargs", '{"backbone": "VNet"}'], "the argument 'backbone' of UNet"),
        (["--architecture", "PaR:none", *SMALL, "--kwargs", '{"spatial_shape": [4, 32, 16]}'], "(2, 4, 32, 16)"),
        (["--architecture", "MNet", "--patch-size", "0", "32", "32"], "numbers of at least 1"),
        ([*NET, "--classes", "0"], "numbers of at least 1"),
        ([*NET, "--channels", "-1"], "numbers of at least 1"),
        ([*NET, "--depth", "-1"], "a depth of at least 0"),
        ([*NET, "--rounds", "0"], "rounds of at least 1"),
        ([*NET, "--batch-size", "0"], "a batch and rounds of at least 1"),
        ([*NET, "-device", "cuda"], "cuda where PyTorch sees a GPU"),
        ([*NET, "--json", "no/such/folder/file.json"], "a file in an existing folder"),
        (["-d", "999"], "no data set 999"),
        ([*TRAINING, "-c", "2d_fullres"], "choose -c from"),
        ([*TRAINING, "-p", "NoPlans"], "choose -p from MNetPlans, nnUNetPlans"),
        ([*TRAINING, "-tr", "NoTrainer"], "no trainer NoTrainer"),
        ([*TRAINING, "-p", "MNetPlans"], "nnUNetTrainer cannot train"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_a_sentence(arguments, told, preprocessed, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["profile", *arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("nnunetv2_ext profile: got ") and "; expected " in error
    assert told in error


def test_help_is_light():
    """The columns are defined there, and it imports no torch."""
    program = (
        "import sys\nfrom nnunetv2_ext.cli import main\n"
        "try: main(['profile', '--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[-1] == "False"
    for told in ("168,053", "5.97 G", "7.71 G", "multiply-adds, G", "kept, MiB", "norms and pooling are not counted"):
        assert told in printed
