"""ThinThickPlanner: the network's own planner decides on sizes, the side-car on axis and slabs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nnunetv2_ext.data.sidecar import SIDECAR, Sidecar, read_sidecar, write_sidecar
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.geometry.slabs import CaseSlabs, slice_edges
from nnunetv2_ext.planning.api import plan_and_preprocess
from nnunetv2_ext.registry import find
from tests.planning.conftest import NAME, Described, network_of

SHAPE, SPACING = (64, 48, 48), (1.0, 1.0, 1.0)


@pytest.fixture
def plan(described: Callable[..., Described]) -> Callable[..., Described]:
    """Plans a data set of cases with slabs of the given thicknesses (mm) along an axis."""

    def run(
        *thicknesses: float,
        axis: int = 0,
        shape: tuple[int, ...] = SHAPE,
        spacing: tuple[float, ...] = SPACING,
        sidecar: bool = True,
        **options: Any,
    ) -> Described:
        data = described(shape=shape, spacing=spacing)
        extent = shape[axis] * spacing[axis]
        cases = {
            f"case{number}": CaseSlabs(
                spacing[axis], shape[axis], slice_edges(max(int(extent / thickness), 1), thickness)
            )
            for number, thickness in enumerate(thicknesses)
        }
        if sidecar:
            write_sidecar(data.raw, Sidecar(NAME, axis, cases))
        training = options.pop("training", None)
        memory = options.pop("gpu_memory_target", None)
        plan_and_preprocess(
            901,
            planner="ThinThickPlanner",
            training=training,
            options=options,
            gpu_memory_target=memory,
            preprocess=False,
            progress=False,
        )
        return data

    return run


# backbone and options, name of the plans, architecture, what the thick image is shown on, its slices
BACKBONES: list[tuple[dict[str, Any], str, str, str, int]] = [
    ({}, "ThinThickPlans", "BackboneNetwork", "thick_grid", 16),
    ({"backbone": "MNet"}, "ThinThickMNetPlans", "BackboneNetwork", "thick_grid", 16),
    ({"backbone": "PaR"}, "ThinThickPaRPlans", "PaRNetwork", "thin_grid", 16),
    ({"backbone": "PaR:MNet", "heads": 4}, "ThinThickPaRMNetPlans", "PaRNetwork", "thin_grid", 16),
    ({"backbone": "ConvFreeTransformer"}, "ThinThickConvFreePlans", "ConvFreeTransformer", "thin_grid", 16),
    ({"backbone": "HierarchicalSegmentor"}, "ThinThickHierarchicalPlans", "HierarchicalSegmentor", "thick_grid", 16),
    (
        {"backbone": "ConvFreeTransformer", "context": "block"},
        "ThinThickConvFreeBlockPlans",
        "ConvFreeTransformer",
        "thin_grid",
        16,
    ),
]


@pytest.mark.parametrize(("options", "name", "architecture", "shown", "slabs"), BACKBONES, ids=lambda v: str(v)[:40])
def test_every_kind_of_network(
    plan: Any, options: dict[str, Any], name: str, architecture: str, shown: str, slabs: int
) -> None:
    data = plan(4.0, patch_size=[64, 48, 48], **options)
    configuration = data.configuration(name)
    assert configuration["architecture"]["network_class_name"] == find("architecture", architecture).path
    assert configuration["patch_size"] == [64, 48, 48]
    group = configuration["training"]["thin_thick"]
    assert (group["thick_image"], group["slabs"]) == (shown, slabs)
    network = network_of(configuration)
    if shown == "thick_grid":
        network.deep_supervision_shapes([slabs, 48, 48])
    assert read_sidecar(data.preprocessed, NAME).cases.keys() == {"case0"}
    assert data.plans(name)["experiment_planner_used"] == "ThinThickPlanner"


def test_the_training_block_is_that_of_the_network(plan: Any) -> None:
    mnet = plan(4.0, backbone="MNet").configuration("ThinThickMNetPlans")["training"]
    assert len(mnet["deep_supervision_weights"]) == 7
    transformer = plan(4.0, backbone="ConvFreeTransformer", training={"epochs": 7, "thin_thick": {"beta": 2.0}})
    block = transformer.configuration("ThinThickConvFreePlans")["training"]
    assert (block["optimizer"]["name"], block["grad_clip"], block["epochs"]) == ("AdamW", 1.0, 7)
    assert (block["thin_thick"]["beta"], block["thin_thick"]["thin_weight"]) == (2.0, 1.0)


@pytest.mark.parametrize(
    ("thicknesses", "slabs"),
    [((3.7,), 24), ((3.7, 8.0), 24), ((8.0,), 8), ((4.0, 8.0), 16)],
)
def test_slabs_of_any_and_of_mixed_ratio(plan: Any, thicknesses: tuple[float, ...], slabs: int) -> None:
    group = plan(*thicknesses, patch_size=[64, 48, 48]).configuration("ThinThickPlans")["training"]["thin_thick"]
    assert group["slabs"] == slabs  # what the U-Net takes from 17, 17, 8, 16 on


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_slice_axis_comes_first(plan: Any, axis: int) -> None:
    spacing = tuple(0.625 if k == axis else 0.8 for k in range(3))
    data = plan(5.0, axis=axis, shape=(64, 64, 64), spacing=spacing)
    plans = data.plans("ThinThickPlans")
    assert plans["transpose_forward"][0] == axis
    assert [plans["transpose_forward"][k] for k in plans["transpose_backward"]] == [0, 1, 2]
    configuration = data.configuration("ThinThickPlans")
    np.testing.assert_allclose(configuration["spacing"], [0.625, 0.8, 0.8])
    # nnU-Net puts the coarsest axis first, so that its data would lie otherwise, but for the axis that it takes
    own = "ThinThickPlans_3d_fullres"
    assert configuration["data_identifier"] == (own if axis != 0 else configuration["data_identifier"])


def test_data_are_shared_where_nnunet_has_the_slice_axis_first(plan: Any) -> None:
    assert plan(4.0).configuration("ThinThickPlans")["data_identifier"] == "nnUNetPlans_3d_fullres"
    data = plan(5.0, axis=2, shape=(64, 64, 64), spacing=(0.8, 0.8, 0.625))
    assert data.configuration("ThinThickPlans")["data_identifier"] == "ThinThickPlans_3d_fullres"


def test_memory_is_that_of_both_passes(plan: Any) -> None:
    large = {"shape": (200, 160, 160)}
    thin = plan(4.0, **large, gpu_memory_target=4.0, training={"thin_thick": {"thick_image": "thin_grid"}})
    on_thin_grid = np.prod(thin.configuration("ThinThickPlans")["patch_size"])
    thick = plan(4.0, **large, gpu_memory_target=4.0)
    on_thick_grid = np.prod(thick.configuration("ThinThickPlans")["patch_size"])
    assert 1.2 < on_thick_grid / on_thin_grid < 2.1
    assert thin.configuration("ThinThickPlans")["training"]["thin_thick"]["thick_image"] == "thick_grid"


def test_a_refiner_may_be_trained_alone(plan: Any) -> None:
    block = plan(4.0, backbone="PaR", training={"freeze_backbone": True}).configuration("ThinThickPaRPlans")["training"]
    assert block["freeze_backbone"] is True


def test_a_case_without_a_whole_slab_is_told(plan: Any) -> None:
    with pytest.warns(UserWarning, match="no slab lies wholly in the images of case1: they teach nothing"):
        plan(4.0, 70.0)


def test_presets_see_the_whole_data_set(plan: Any) -> None:
    batches = {
        backbone: plan(4.0, backbone=backbone).configuration(f"ThinThick{backbone}Plans")["batch_size"]
        for backbone in ("ResidualEncoderUNet", "ResidualEncoderUNetM")
    }
    assert batches["ResidualEncoderUNetM"] > batches["ResidualEncoderUNet"]


def test_no_cascade_is_planned(plan: Any) -> None:
    configurations = plan(4.0, shape=(300, 256, 256), gpu_memory_target=4.0).plans("ThinThickPlans")["configurations"]
    assert configurations.keys() == {"3d_lowres", "3d_fullres"}
    assert "next_stage" not in configurations["3d_lowres"]
    assert configurations["3d_lowres"]["training"]["thin_thick"]["slabs"] >= 1


def test_the_patch_covers_the_thickest_slab(plan: Any) -> None:
    data = plan(4.0, 48.0, shape=(96, 256, 256), gpu_memory_target=2.0)
    assert data.configuration("ThinThickPlans")["patch_size"][0] >= 49
    usual = plan(4.0, shape=(96, 256, 256), gpu_memory_target=2.0)
    assert usual.configuration("ThinThickPlans")["patch_size"][0] < 48


REFUSED: list[tuple[tuple[float, ...], dict[str, Any], str]] = [
    ((4.0,), {"sidecar": False}, r"no file .*slabs.json; expected a JSON file there; make the data set with"),
    ((1.0,), {}, r"annotations of Dataset901_Boxes as thin as the images .*train it with any other trainer"),
    ((70.0,), {}, r"no slab that lies wholly in the image, in none of 1 cases"),
    (
        (4.0, 40.0),
        {"patch_size": [32, 48, 48]},
        r"a patch of 32 slices, 32 mm, and slabs of 40 mm or more in case case1",
    ),
    ((4.0,), {"patch_size": [-5, 48, 48]}, r"a patch of \[-5, 48, 48\]; expected three positive numbers"),
    ((4.0,), {"backbone": "MNet", "training": {"freeze_backbone": True}}, r"freeze_backbone for ThinThickPlanner"),
    ((4.0,), {"backbone": "Nothing"}, r"the network 'Nothing'; expected one of .*PlainConvUNet.*PaR:BACKBONE"),
    ((4.0,), {"backbone": "PaR:Nothing"}, r"the backbone 'Nothing'"),
    ((4.0,), {"backbone": "MNet", "size": "B"}, r"the option --size for BackbonePlanner"),
    (
        (4.0,),
        {"backbone": "PaR", "training": {"thin_thick": {"thick_image": "thick_grid"}}},
        r"--thick-image thick_grid for PaR; expected thin_grid",
    ),
    ((4.0,), {"training": {"thin_thick": {"beta": 0}}}, r"training.thin_thick.beta = 0"),
]


@pytest.mark.parametrize(("thicknesses", "options", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_refused(plan: Any, thicknesses: tuple[float, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(*thicknesses, **options)


def test_an_old_sidecar_of_preprocessed_data_is_replaced(plan: Any) -> None:
    data = plan(4.0)
    (data.preprocessed / SIDECAR).write_text("{}")
    assert read_sidecar(plan(8.0).preprocessed, NAME).cases["case0"].slabs[0].tolist() == [0, 8]
