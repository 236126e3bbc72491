"""`list` prints every registered name with its line."""

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
        needs = f" [needs pip install 'nnunetv2_ext[{entry.extra}]']" if entry.extra else ""
        assert (name, line) == (entry.name, entry.summary + needs)


def test_names_the_extra_without_importing_anything(monkeypatch, capsys):
    needy = Entry("NeedyTrainer", "a_module_nobody_has.NeedyTrainer", "needs more", extra="needy")
    monkeypatch.setattr(list_command, "GROUPS", (("trainers", (needy,)),))
    assert main(["list"]) == 0
    assert "NeedyTrainer  needs more [needs pip install 'nnunetv2_ext[needy]']" in capsys.readouterr().out
