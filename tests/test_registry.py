"""The registry: names resolve, unknown ones list the known, a missing optional dependency names its extra."""

import importlib

import pytest

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.registry import KINDS, Entry, find

ENTRIES = [pytest.param(kind, entry, id=entry.name) for kind, entries in KINDS.items() for entry in entries]


@pytest.mark.parametrize(("kind", "entry"), ENTRIES)
def test_every_entry_loads_the_class_it_names(kind, entry):
    loaded = find(kind, entry.name).load()
    assert isinstance(loaded, type)
    assert loaded.__name__ == entry.name
    assert f"{loaded.__module__}.{loaded.__name__}" == entry.path


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_unique_and_summaries_are_one_line(kind):
    names = [entry.name for entry in KINDS[kind]]
    assert len(set(names)) == len(names)
    for entry in KINDS[kind]:
        assert entry.summary
        assert "\n" not in entry.summary


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["NoSuchName", "", "mnet"])
def test_unknown_names_print_the_known_ones(kind, name):
    with pytest.raises(InputError) as caught:
        find(kind, name)
    for known in KINDS[kind]:
        assert known.name in str(caught.value)
    assert f"'{name}'" in str(caught.value)


@pytest.fixture
def needy_module(tmp_path, monkeypatch):
    (tmp_path / "needy_module.py").write_text("import a_module_nobody_has\n\nclass Needy: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()


@pytest.mark.parametrize(
    ("extra", "error", "message"),
    [
        ("needy", ImportError, r"Needy needs the module 'a_module_nobody_has'.*nnunetv2_ext\[needy\]"),
        (None, ModuleNotFoundError, "a_module_nobody_has"),
    ],
)
def test_a_missing_dependency_is_named(needy_module, extra, error, message):
    with pytest.raises(error, match=message):
        Entry("Needy", "needy_module.Needy", "needs what is missing", extra=extra).load()
