"""`list` prints every registered name with its line."""

import pytest

from nnunetv2_ext.cli import list as list_command
from nnunetv2_ext.cli import main
from nnunetv2_ext.registry import KINDS, Entry


@pytest.mark.parametrize("entry", [entry for entries in KINDS.values() for entry in entries], ids=lambda e: e.name)
def test_one_line_for_each_entry(entry, capsys):
    assert main(["list"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert lines.count([entry.name, entry.summary]) == 1


def test_names_the_extra_without_importing_anything(monkeypatch, capsys):
    needy = Entry("NeedyTrainer", "a_module_nobody_has.NeedyTrainer", "needs more", extra="needy")
    monkeypatch.setattr(list_command, "GROUPS", (("trainers", (needy,)),))
    assert main(["list"]) == 0
    assert "NeedyTrainer  needs more [needs pip install 'nnunetv2_ext[needy]']" in capsys.readouterr().out
