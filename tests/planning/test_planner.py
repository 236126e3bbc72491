"""Plans of our planners: patch and batch within the memory target, nnU-Net's spacing, shared data, the block."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_ext.architectures.mnet import conv_feature_map_size
from nnunetv2_ext.block import resolve_block
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.memory import memory_gb
from nnunetv2_ext.planning.api import plan_and_preprocess, planner_class
from nnunetv2_ext.planning.planner import ExtPlanner, with_options
from nnunetv2_ext.plans.mnet import MNetPlanner
from nnunetv2_ext.trainers.mnet import MNetTrainer
from tests.planning.conftest import LARGE, SMALL, Described

Describe = Callable[..., Described]


def plan(**options: Any) -> str:
    return plan_and_preprocess(901, planner="MNetPlanner", preprocess=False, progress=False, **options)


def estimate(configuration: dict[str, Any]) -> float:
    """GB at the planned patch and batch."""
    elements = conv_feature_map_size(
        configuration["patch_size"], input_channels=1, num_classes=3, **configuration["architecture"]["arch_kwargs"]
    )
    return memory_gb(elements, configuration["batch_size"])


def test_small_data(described: Describe) -> None:
    data = described()
    assert plan() == "MNetPlans"
    plans = data.plans()
    assert list(plans["configurations"]) == ["3d_fullres"]
    assert plans["experiment_planner_used"] == "MNetPlanner"
    configuration = PlansManager(plans).get_configuration("3d_fullres")
    assert configuration.patch_size == [12, 40, 40]
    assert configuration.spacing == [5.0, 1.0, 1.0]
    assert configuration.network_arch_class_name == "nnunetv2_ext.architectures.MNet"
    assert configuration.normalization_schemes == ["CTNormalization"]
    assert configuration.batch_size > 2
    for deferred in ("resampling_fn_data", "resampling_fn_seg", "resampling_fn_probabilities"):
        assert callable(getattr(configuration, deferred))


def test_the_published_training_block_is_written_out(described: Describe) -> None:
    data = described()
    plan()
    block = data.configuration()["training"]
    assert block == resolve_block({}, MNetTrainer.published_block)
    assert block["epochs"] == 500


def test_the_users_training_block_goes_over_it(described: Describe) -> None:
    data = described()
    plan(training={"epochs": 7, "optimizer": {"lr": 0.5}})
    assert data.configuration()["training"] == resolve_block(
        {"epochs": 7, "optimizer": {"lr": 0.5}}, MNetTrainer.published_block
    )
    assert MNetPlanner.training == {}, "the next data set must not inherit it"


@pytest.mark.parametrize("target", [4, 8, 24, 48])
def test_large_data_fill_the_memory_target(described: Describe, target: float) -> None:
    data = described(**LARGE)
    plan(gpu_memory_target=target)
    configurations = data.plans()["configurations"]
    for name, configuration in configurations.items():
        if "inherits_from" not in configuration:
            assert 0.6 * target <= estimate(configuration) <= target, name
            assert configuration["batch_size"] >= 2
            assert all(np.array(configuration["patch_size"]) % (1, 8, 8) == 0)


def test_more_memory_means_a_larger_patch_or_batch(described: Describe) -> None:
    data = described(**LARGE)
    voxels = []
    for target in (4, 8, 16, 24, 48):
        plan(gpu_memory_target=target)
        configuration = data.configuration()
        voxels.append(configuration["batch_size"] * np.prod(configuration["patch_size"]))
    assert voxels == sorted(set(voxels))


def test_large_data_get_a_low_resolution_and_a_cascade(described: Describe) -> None:
    data = described(**LARGE)
    plan()
    configurations = data.plans()["configurations"]
    assert configurations.keys() == {"3d_fullres", "3d_lowres", "3d_cascade_fullres"}
    low = configurations["3d_lowres"]
    assert low["next_stage"] == "3d_cascade_fullres"
    assert np.prod(low["spacing"]) > np.prod(configurations["3d_fullres"]["spacing"])
    assert configurations["3d_cascade_fullres"] == {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    cascade = PlansManager(data.plans()).get_configuration("3d_cascade_fullres")
    assert cascade.configuration["training"]["epochs"] == 500
    # its spacing follows from MNet's patch, so nnU-Net would store other data there
    assert low["data_identifier"] == "MNetPlans_3d_lowres"


def test_patch_is_shrunk_in_proportion_to_the_volume(described: Describe) -> None:
    data = described(**LARGE)
    plan()
    patch = data.configuration()["patch_size"]
    assert patch[0] / 40 == pytest.approx(patch[1] / 512, rel=0.75)
    assert patch[1] == patch[2]


def test_a_batch_sees_at_most_a_twentieth_of_the_data(described: Describe) -> None:
    data = described(cases=100)
    plan(gpu_memory_target=24)
    assert data.configuration()["batch_size"] == 5
    data = described(cases=3)
    plan(gpu_memory_target=24)
    assert data.configuration()["batch_size"] == 2


@pytest.mark.parametrize("target", [0.001, 0, -1])
def test_a_tiny_memory_target_is_refused(described: Describe, target: float) -> None:
    described(**LARGE)
    with pytest.raises(
        InputError, match=r"memory target of .* GB; expected at least 0\.00\d GB for the smallest patch \[1, 32, 32\]"
    ):
        plan(gpu_memory_target=target)


@pytest.mark.parametrize("shape", [(1, 64, 64), (64, 1, 64)], ids=str)
def test_2d_data_are_refused(described: Describe, shape: tuple[int, ...]) -> None:
    described(shape=shape, spacing=(999.0, 1.0, 1.0))
    with pytest.raises(InputError, match=r"Dataset901_Boxes of 2D images .* expected volumes for MNetPlanner"):
        plan()


@pytest.mark.parametrize(
    ("spacings", "shape", "expected"),
    [
        ([(5, 1, 1)] * 3, (12, 128, 128), (5, 1, 1)),
        # very anisotropic and few slices: the tenth percentile along the slices, not the median
        ([(10, 1, 1)] * 8 + [(5, 1, 1)] * 2, (12, 128, 128), (5, 1, 1)),
        # many slices: the median
        ([(10, 1, 1)] * 8 + [(5, 1, 1)] * 2, (120, 128, 128), (10, 1, 1)),
        # the thick axis is not the first
        ([(1, 1, 5)] * 3, (128, 128, 12), (5, 1, 1)),
    ],
)
def test_target_spacing_is_nnunets(
    described: Describe, spacings: list[tuple[float, ...]], shape: tuple[int, ...], expected: tuple[float, ...]
) -> None:
    data = described(spacings=spacings, shape=shape)
    plan()
    assert np.allclose(data.configuration()["spacing"], expected)
    own = MNetPlanner(901).determine_fullres_target_spacing()
    assert np.allclose(own, ExperimentPlanner(901).determine_fullres_target_spacing())


def preprocessing(configuration: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in configuration.items() if key not in ("training", "architecture")} | changes


@pytest.mark.parametrize(
    ("stock", "options", "expected"),
    [
        (None, {}, "nnUNetPlans_3d_fullres"),
        ({}, {}, "nnUNetPlans_3d_fullres"),
        ({"batch_size": 77, "patch_size": [1, 2, 3]}, {}, "nnUNetPlans_3d_fullres"),
        ({"spacing": [5.0, 1.5, 1.5]}, {}, "MNetPlans_3d_fullres"),
        ({"normalization_schemes": ["ZScoreNormalization"]}, {}, "MNetPlans_3d_fullres"),
        ({"use_mask_for_norm": [True]}, {}, "MNetPlans_3d_fullres"),
        ({"preprocessor_name": "OtherPreprocessor"}, {}, "MNetPlans_3d_fullres"),
        (None, {"target_spacing": (5.0, 1.5, 1.5)}, "MNetPlans_3d_fullres"),
        ({"spacing": [5.0, 1.5, 1.5]}, {"target_spacing": (5.0, 1.5, 1.5)}, "nnUNetPlans_3d_fullres"),
        ({}, {"target_spacing": (5.0, 1.5, 1.5)}, "MNetPlans_3d_fullres"),
        ({}, {"target_spacing": (5.0, 1.5, 1.5), "plans_name": "Coarse"}, "Coarse_3d_fullres"),
        (None, {"plans_name": "MNetPlans24GB", "gpu_memory_target": 24}, "nnUNetPlans_3d_fullres"),
    ],
    ids=str,
)
def test_data_are_shared_where_preprocessing_agrees(
    described: Describe, stock: dict[str, Any] | None, options: dict[str, Any], expected: str
) -> None:
    data = described()
    if stock is not None:
        plan()
        data.write_stock_plans({"3d_fullres": preprocessing(data.configuration(), **stock)})
    identifier = plan(**options)
    assert data.configuration(identifier)["data_identifier"] == expected


def test_the_plans_of_nnunets_own_planner_share_their_data(described: Describe) -> None:
    data = described()
    stock = plan_and_preprocess(901, planner="ExperimentPlanner", preprocess=False, progress=False)
    assert stock == "nnUNetPlans"
    plan()
    assert data.configuration()["data_identifier"] == data.configuration(stock)["data_identifier"]
    assert set(data.plans(stock)["configurations"]) == {"2d", "3d_fullres"}


def test_the_users_own_configurations_are_kept(described: Describe) -> None:
    data = described()
    plan()
    plans = data.plans()
    plans["configurations"]["mine"] = {"inherits_from": "3d_fullres", "batch_size": 9}
    (data.preprocessed / "MNetPlans.json").write_text(json.dumps(plans))
    plan()
    assert data.configuration(name="mine") == {"inherits_from": "3d_fullres", "batch_size": 9}


@pytest.mark.parametrize("name", ["MNetPlans", "nnUNetPlans"])
def test_truncated_plans_on_disk(described: Describe, name: str) -> None:
    data = described()
    (data.preprocessed / f"{name}.json").write_text('{"configurations": {')
    with pytest.raises(InputError, match=rf"a damaged file .*{name}\.json .*; remove it and plan again"):
        plan()


def test_unknown_planner() -> None:
    with pytest.raises(InputError, match="the planner 'NoPlanner'; expected one of MNetPlanner"):
        planner_class("NoPlanner")


@pytest.mark.parametrize(
    ("name", "expected"), [("MNetPlanner", MNetPlanner), ("ExperimentPlanner", ExperimentPlanner)], ids=str
)
def test_planners_are_found_by_name(name: str, expected: type) -> None:
    assert planner_class(name) is expected


def test_options() -> None:
    assert with_options(ExperimentPlanner, {}, {}) is ExperimentPlanner
    twice: Any = with_options(
        with_options(MNetPlanner, {"epochs": 5}, {}), {"batch_size": 3}, {"patch_size": [8, 64, 64]}
    )
    assert twice.training == {"epochs": 5, "batch_size": 3}
    assert twice.patch_size == [8, 64, 64]
    assert twice.__name__ == "MNetPlanner"
    with pytest.raises(InputError, match="a training block for nnU-Net's ExperimentPlanner; expected one of our"):
        with_options(ExperimentPlanner, {"epochs": 5}, {})
    with pytest.raises(InputError, match="--patch-size for nnU-Net's ExperimentPlanner; expected one of our planners"):
        with_options(ExperimentPlanner, {}, {"patch_size": [8, 64, 64]})
    with pytest.raises(InputError, match="the option --backbone for MNetPlanner; expected some of --patch-size"):
        with_options(MNetPlanner, {}, {"backbone": "UNet"})
    with pytest.raises(InputError, match=r"training\.epochs = 0"):
        with_options(MNetPlanner, {"epochs": 0}, {})


@pytest.mark.parametrize("patch", [[8, 64, 64], [3, 32, 48]], ids=str)
def test_the_users_patch(described: Describe, patch: list[int]) -> None:
    data = described(**LARGE)
    plan(options={"patch_size": patch})
    configuration = data.configuration()
    assert configuration["patch_size"] == patch
    assert estimate(configuration) <= 8


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ([8, 60, 64], r"a patch of \[8, 60, 64\]; expected a size .* \[8, 64, 64\] for instance"),
        ([8, 16, 64], r"\[8, 32, 64\] for instance"),
        ([0, 64, 64], "three positive numbers"),
    ],
    ids=str,
)
def test_a_patch_of_the_user_that_cannot_work(described: Describe, patch: list[int], message: str) -> None:
    described(**LARGE)
    with pytest.raises(InputError, match=message):
        plan(options={"patch_size": patch})


def test_the_count_follows_the_patch(described: Describe) -> None:
    """Also for a network whose arguments do not tell it."""
    described(**SMALL)
    planner = MNetPlanner(901)
    spacing = np.array([5.0, 1.0, 1.0])
    counted = [ExtPlanner.feature_map_size(planner, patch, spacing, 1, 3) for patch in ([8, 32, 32], [16, 64, 64])]
    assert counted[1] > 6 * counted[0] > 0
