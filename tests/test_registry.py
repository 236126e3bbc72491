"""The registry: names resolve, unknown ones list the known, a missing optional dependency names its extra."""

import importlib
import inspect
import sys

import pytest

from nnunetv2_ext.entry import Entry
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.registry import BACKBONES, KINDS, NNUNET_PLANNERS, PLANNERS, find, planner_of

ENTRIES = [pytest.param(kind, entry, id=f"{kind} {entry.name}") for kind, entries in KINDS.items() for entry in entries]
# a suffix that tells planners how large to build the network
PRESETS = {f"ResidualEncoderUNet{size}": "ResidualEncoderUNet" for size in ("M", "L", "XL")}


@pytest.mark.parametrize(("kind", "entry"), ENTRIES)
def test_every_entry_loads_the_class_it_names(kind, entry):
    loaded = find(kind, entry.name).load()
    assert isinstance(loaded, type)
    others = {**PRESETS, "nnFormer": "NNFormer"} if kind == "backbone" else {}  # published in small letters
    assert loaded.__name__ == others.get(entry.name, entry.name)
    module, _, attribute = entry.path.rpartition(".")
    assert getattr(importlib.import_module(module), attribute) is loaded
    assert attribute == loaded.__name__


def test_presets_are_of_one_class():
    assert {name for name in PRESETS if find("backbone", name).load() is find("backbone", PRESETS[name]).load()} == {
        *PRESETS
    }


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
        (
            "needy",
            InputError,
            r"no module 'a_module_nobody_has'; expected it for Needy; run pip install 'nnunetv2_ext\[needy\]'",
        ),
        (None, ModuleNotFoundError, "a_module_nobody_has"),
    ],
)
def test_a_missing_dependency_is_named(needy_module, extra, error, message):
    with pytest.raises(error, match=message):
        Entry("Needy", "needy_module.Needy", "needs what is missing", extra=extra).load()


@pytest.mark.parametrize("entry", [entry for entry in BACKBONES if "monai" in entry.path], ids=lambda e: e.name)
def test_without_monai_its_backbones_name_the_extra(entry, monkeypatch):
    for module in [name for name in sys.modules if name.partition(".")[0] == "monai"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "monai", None)
    with pytest.raises(InputError, match=rf"for {entry.name}; run pip install 'nnunetv2_ext\[monai\]'"):
        entry.load()


@pytest.mark.parametrize("entry", KINDS["planner"], ids=lambda entry: entry.name)
def test_the_planner_of_plans_by_their_name(entry):
    plans = entry.load().plans_name
    assert planner_of(plans) == (entry.name, (), True)
    assert planner_of(f"{plans.removesuffix('Plans')}TrialPlans") == (entry.name, (), False)


@pytest.mark.parametrize(
    ("plans", "expected"),
    [
        ("nnUNetPlans", ("ExperimentPlanner", "", True)),
        ("nnUNetTrialPlans", ("ExperimentPlanner", "", False)),
        ("nnUNetResEncUNetLPlans", ("nnUNetPlannerResEncL", "", True)),
        ("PaRSwinUNETRPlans", ("PaRPlanner", "--backbone SwinUNETR", True)),
        ("nnUNetResEncUNetPlans", ("ResEncUNetPlanner", "", True)),
        ("nnUNetResEncUNetLargePlans", ("ResEncUNetPlanner", "", False)),
        ("nnUNetResEncUNetMTrialPlans", ("nnUNetPlannerResEncM", "", False)),
        ("nnUNetResEncUNetXL2Plans", ("nnUNetPlannerResEncXL", "", False)),
        ("PaRSwinUNETRTrialPlans", ("PaRPlanner", "--backbone SwinUNETR", False)),
        ("PaRPlainConvUNetPlans", ("PaRPlanner", "--backbone PlainConvUNet", False)),
        ("ROIMNetPlans", ("ROIPlanner", "--backbone MNet", True)),
        ("BackboneResidualEncoderUNetLPlans", ("BackbonePlanner", "--backbone ResidualEncoderUNetL", True)),
        ("DetectorPlans", ("ROIPlanner", "--network detector", True)),
        ("DetectorQuickPlans", ("ROIPlanner", "--network detector", False)),
        ("BackboneUNetTrialPlans", ("BackbonePlanner", "--backbone UNet", False)),
    ],
)
def test_the_planner_of_other_plans(plans, expected):
    planner, flags, by_default = planner_of(plans)
    assert (planner, " ".join(flags), by_default) == expected


@pytest.mark.parametrize("planner", NNUNET_PLANNERS.items(), ids=str)
def test_the_planners_of_nnunet_name_their_plans_so(planner):
    from nnunetv2_ext.planning.api import planner_class

    plans, name = planner
    default = inspect.signature(planner_class(name).__init__).parameters["plans_name"].default
    assert default == plans


@pytest.mark.parametrize("entry", PLANNERS, ids=str)
def test_which_planners_take_a_backbone(entry):
    assert entry.takes_backbone == hasattr(entry.load(), "backbone")


@pytest.mark.parametrize(
    ("plans", "planner", "better"),
    [
        ("PaRSwinUnetrPlans", "PaRPlanner would not use SwinUNETR", "PaRSwinUNETRPlans"),
        ("DetectorUNetPlans", "ROIPlanner would not use UNet", "PaRUNetPlans"),
        ("MNetSwinUNETRPlans", "MNetPlanner would not use SwinUNETR", "PaRSwinUNETRPlans"),
        ("nnUNetMedNeXtTrialPlans", "ExperimentPlanner would not use MedNeXt", "PaRMedNeXtPlans"),
    ],
)
def test_a_backbone_in_a_name_is_used_or_refused(plans, planner, better):
    with pytest.raises(InputError, match=f"the plans {plans}, in which {planner}; expected a name such as {better}"):
        planner_of(plans)


@pytest.mark.parametrize("plans", ["MNetworkPlans", "Plans", "MNet"])
def test_plans_of_a_name_that_only_begins_alike(plans):
    with pytest.raises(InputError, match=f"the plans {plans}, whose planner is not known"):
        planner_of(plans)


def test_plans_of_nobody():
    with pytest.raises(
        InputError, match=r"the plans MyOwn, whose planner is not known; expected one of nnUNet...Plans"
    ):
        planner_of("MyOwn")
