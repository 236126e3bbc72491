"""The discovery contract: what nnU-Net's own finder gives is the class at home in `nnunetv2_ext.trainers`."""

import importlib
import os
import pickle

import pytest
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

import nnunetv2_ext
from nnunetv2_ext import registry
from nnunetv2_ext.entry import Entry
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.registry import TRAINERS

# nnU-Net's finder imports each of its own trainers, and with them timm, which uses a deprecated part of torch
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
VARIABLE = "nnUNet_extTrainer"
OURS = str(nnunetv2_ext.DISCOVERY_FOLDER)
HELPFUL = Entry("HelpfulTrainer", "trainers_of_a_test.HelpfulTrainer", "for this test")
NEEDY = Entry("NeedyTrainer", "needy_trainer_of_a_test.NeedyTrainer", "for this test", extra="needy")
TRAINER_SOURCE = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

class {name}(nnUNetTrainer): ...
"""


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setenv(VARIABLE, OURS)


@pytest.fixture
def more_trainers(tmp_path, monkeypatch):
    """Two more registered trainers: one that works, one whose optional dependency is missing."""
    (tmp_path / "trainers_of_a_test.py").write_text(TRAINER_SOURCE.format(name="HelpfulTrainer"))
    (tmp_path / "needy_trainer_of_a_test.py").write_text(
        "import a_module_nobody_has\n" + TRAINER_SOURCE.format(name="NeedyTrainer")
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    # the needy one stands first: a finder that imports all in order would stop at it
    monkeypatch.setattr(registry, "TRAINERS", (NEEDY, *TRAINERS, HELPFUL))


@pytest.mark.parametrize("entry", TRAINERS, ids=lambda entry: entry.name)
def test_found_by_nnunet_as_the_same_picklable_object(entry):
    found = recursive_find_trainer_class_by_name(entry.name)
    module, _, name = entry.path.rpartition(".")
    assert found is getattr(importlib.import_module(module), name)
    assert found is recursive_find_trainer_class_by_name(entry.name)
    assert pickle.loads(pickle.dumps(found)) is found


def test_a_missing_optional_dependency_disturbs_no_other_trainer(more_trainers):
    message = r"no module 'a_module_nobody_has'; expected it for NeedyTrainer; .*nnunetv2_ext\[needy\]"
    with pytest.raises(InputError, match=message):
        recursive_find_trainer_class_by_name("NeedyTrainer")
    for entry in (HELPFUL, *TRAINERS):
        assert recursive_find_trainer_class_by_name(entry.name) is entry.load()


def test_nnunets_own_trainers_are_untouched():
    found = recursive_find_trainer_class_by_name("nnUNetTrainer")
    assert found.__module__ == "nnunetv2.training.nnUNetTrainer.nnUNetTrainer"


@pytest.mark.parametrize("name", ["NoSuchTrainer", "mnettrainer"])
def test_an_unknown_name_raises_nnunets_error(name):
    with pytest.raises(RuntimeError, match=f"Could not find requested nnunet trainer {name}"):
        recursive_find_trainer_class_by_name(name)


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        (None, [OURS]),
        ("", [OURS]),
        ("/mine", ["/mine", OURS]),
        (os.pathsep.join(["/mine", "/yours"]), ["/mine", "/yours", OURS]),
        (os.pathsep.join(["/mine", "", " "]), ["/mine", OURS]),
        (OURS, [OURS]),
        (os.pathsep.join([OURS, "/mine"]), [OURS, "/mine"]),
    ],
)
def test_register_keeps_what_the_variable_holds_and_is_idempotent(held, expected, monkeypatch):
    if held is None:
        monkeypatch.delenv(VARIABLE)
    else:
        monkeypatch.setenv(VARIABLE, held)
    for _ in range(2):
        nnunetv2_ext.register()
        assert os.environ[VARIABLE].split(os.pathsep) == expected


def test_register_works_within_a_running_process(monkeypatch):
    # nnU-Net reads the variable live, so that a notebook may register after importing it
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(RuntimeError, match="Could not find"):
        recursive_find_trainer_class_by_name(TRAINERS[0].name)
    nnunetv2_ext.register()
    assert recursive_find_trainer_class_by_name(TRAINERS[0].name) is TRAINERS[0].load()
