"""`list` prints every registered name with its line."""

from importlib.util import find_spec

import pytest

from nnunetv2_ext.cli import list as list_command
from nnunetv2_ext.cli import main
from nnunetv2_ext.entry import Entry
from nnunetv2_ext.registry import KINDS

HEADINGS = {"trainer": "trainers,", "planner": "planners,", "architecture": "architectures,", "backbone": "backbones,"}


@pytest.mark.parametrize("kind", KINDS)
def test_one_line_for_each_entry_under_its_heading(kind, capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (start,) = [number for number, line in enumerate(lines) if line.startswith(HEADINGS[kind])]
    told = [line.split(maxsplit=1) for line in lines[start + 1 :][: len(KINDS[kind])]]
    for entry, (name, line) in zip(KINDS[kind], told, strict=True):
        there = find_spec("monai") is not None
        needs = "" if not entry.extra else " [installed]" if there else " [needs pip install 'nnunetv2_ext[monai]']"
        assert (name, line) == (entry.name, entry.summary + needs)


def test_names_the_extra_without_importing_anything(monkeypatch, capsys):
    needy = Entry("NeedyTrainer", "a_module_nobody_has.NeedyTrainer", "needs more", extra="needy")
    monkeypatch.setattr(list_command, "GROUPS", (("trainers", (needy,)),))
    assert main(["list"]) == 0
    assert "NeedyTrainer  needs more [needs pip install 'nnunetv2_ext[needy]']" in capsys.readouterr().out


def test_an_extra_that_is_there_is_told_without_importing_it(tmp_path, monkeypatch, capsys):
    (tmp_path / "a_module_that_fails.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    there = Entry("ServedTrainer", "nnunetv2_ext.inner.ServedTrainer", "has all", extra="a_module_that_fails")
    monkeypatch.setattr(list_command, "GROUPS", (("trainers", (there,)),))
    assert main(["list"]) == 0
    assert "ServedTrainer  has all [installed]" in capsys.readouterr().out
