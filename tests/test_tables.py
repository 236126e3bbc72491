"""The reference tables of docs/ are those that the code makes, and what the records say of their networks is true."""

import re
import sys
import warnings
from pathlib import Path

import pytest
import torch

from docs import tables
from nnunetv2_ext.architectures import BackboneNetwork
from nnunetv2_ext.architectures.backbones import BACKBONES
from nnunetv2_ext.architectures.backbones.record import Backbone, size_rule


def test_the_committed_tables_are_up_to_date() -> None:
    assert [page.name for page in tables.stale_pages()] == [], "run python docs/tables.py"


def test_every_table_stands_on_one_page() -> None:
    found = [name for page in tables.FOLDER.glob("*.md") for _, name, _ in tables.TABLE.findall(page.read_text())]
    without_flags = {"flags of env", "flags of list"}
    assert sorted(found) == sorted(tables.TABLES.keys() - without_flags)


def test_a_stale_page_is_named_and_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: toy -->\nold\n<!-- end -->\nafter\n")
    monkeypatch.setattr(tables, "FOLDER", tmp_path)
    monkeypatch.setattr(tables, "TABLES", {"toy": lambda: "new"})
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    assert tables.main() == 1
    assert "page.md: stale" in capsys.readouterr().out
    assert "old" in page.read_text()
    monkeypatch.setattr(sys, "argv", ["tables.py"])
    assert tables.main() == 0
    assert page.read_text() == "before\n<!-- table: toy -->\n\nnew\n\n<!-- end -->\nafter\n"
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    assert tables.main() == 0


def test_a_backbone_is_one_row() -> None:
    assert len(tables.backbones().splitlines()) == 2 + len(BACKBONES)


@pytest.mark.parametrize(
    "record", [record for record in BACKBONES if record.parameters != "by the plans"], ids=lambda record: record.name
)
def test_the_number_of_parameters_and_outputs(record: Backbone) -> None:
    patch = record.parameters_patch or size_rule(record)[1]
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # initialising what has no values
        network = BackboneNetwork(1, 3, backbone=record.name, spatial_shape=patch)
    million = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert record.parameters == f"{million:.2f} M"
    (row,) = [line for line in tables.backbones().splitlines() if line.startswith(f"| `{record.name}` |")]
    assert re.split(r" *\| *", row)[7] == str(len(network.deep_supervision_shapes(patch)))


def test_backbones_without_a_number_are_planned() -> None:
    assert all(record.planned for record in BACKBONES if record.parameters == "by the plans")
