"""Plans for the segmentor with entries: strides of nnU-Net's rule, patch, memory of all passes, block, refusals."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.memory import memory_gb
from nnunetv2_ext.planning.api import plan_and_preprocess
from tests.planning.conftest import Described, network_of

Describe = Callable[..., Described]
THIN = {"shape": (36, 50, 35), "spacing": (1.0, 1.0, 1.0)}
BLOCK = {"shape": (48, 64, 64), "spacing": (1.0, 1.0, 1.0)}
THICK = {"shape": (12, 60, 60), "spacing": (5.0, 1.0, 1.0)}


def plan(planner: str = "HierarchicalPlanner", **options: Any) -> str:
    more = {key: options.pop(key) for key in ("training", "gpu_memory_target", "plans_name") if key in options}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the patch")
        return plan_and_preprocess(901, planner=planner, options=options, preprocess=False, progress=False, **more)


def planned(data: Described, **options: Any) -> dict[str, Any]:
    assert plan(**options) == "HierarchicalPlans"
    return data.configuration("HierarchicalPlans")


@pytest.mark.parametrize(
    ("data", "options", "patch", "entries"),
    [
        (THIN, {}, [40, 56, 40], [(40, 56, 40), (20, 28, 20), (10, 14, 10)]),
        # slices of 5 mm are not halved before the planes are as coarse
        (THICK, {}, [12, 64, 64], [(12, 64, 64), (12, 32, 32), (12, 16, 16)]),
        (THICK, {"entries": 4}, [12, 64, 64], [(12, 64, 64), (12, 32, 32), (12, 16, 16), (6, 8, 8)]),
        (THIN, {"entries": 1}, [40, 56, 40], [(40, 56, 40)]),
        (THIN, {"patch_size": [16, 32, 32]}, [16, 32, 32], [(16, 32, 32), (8, 16, 16), (4, 8, 8)]),
        # 32 voxels in plane at least
        ({"shape": (3, 20, 20), "spacing": (3.0, 1, 1)}, {}, [3, 32, 32], [(3, 32, 32), (3, 16, 16), (3, 8, 8)]),
        ({"shape": (1, 40, 40), "spacing": (3.0, 1, 1)}, {}, [1, 40, 40], [(1, 40, 40), (1, 20, 20), (1, 10, 10)]),
        # planes of which one axis is coarse
        (
            {"shape": (20, 64, 64), "spacing": (5.0, 2.5, 1.0)},
            {"entries": 2},
            [20, 64, 64],
            [(20, 64, 64), (20, 64, 32)],
        ),
    ],
    ids=str,
)
def test_patch_and_entries(
    described: Describe, data: Any, options: dict[str, Any], patch: list[int], entries: Sequence[Any]
) -> None:
    configuration = planned(described(**data), **options)
    arguments = configuration["architecture"]["arch_kwargs"]
    assert configuration["patch_size"] == arguments["spatial_shape"] == patch
    network = network_of(configuration)
    assert [tuple(shape) for shape in network.entry_shapes] == entries
    assert not (np.array(patch) % np.prod(arguments["strides"], axis=0)).any()
    assert network.deep_supervision_shapes(patch) == entries
    weights = configuration["training"]["hierarchical"]["entry_weights"]
    assert weights == [1.0, 0.5, 0.25, 0.125][: len(entries)]


def test_strides_and_kernels_are_those_of_nnunets_own_plans(described: Describe) -> None:
    """For the patch that nnU-Net plans itself."""
    data = described(shape=(24, 256, 256), spacing=(5.0, 0.8, 0.8))
    plan("ExperimentPlanner")
    stock = data.configuration("nnUNetPlans")
    arguments = planned(data, patch_size=[int(size) for size in stock["patch_size"]])["architecture"]["arch_kwargs"]
    for key in ("strides", "kernel_sizes"):
        assert arguments[key] == [list(one) for one in stock["architecture"]["arch_kwargs"][key]]


def test_all_that_users_may_edit_stands_in_the_plans(described: Describe) -> None:
    configuration = planned(described(**THICK))
    assert configuration["architecture"]["arch_kwargs"] == {
        "spatial_shape": [12, 64, 64],
        "strides": [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [1, 2, 2]],
        "kernel_sizes": [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
        "entries": 3,
        "features": 16,
        "max_features": 320,
        "tokens": 512,
    }
    block = configuration["training"]
    assert block["optimizer"] == {"name": "AdamW", "lr": 1e-3, "betas": [0.9, 0.999], "weight_decay": 0.05}
    assert (block["scheduler"]["name"], block["grad_clip"], block["epochs"]) == ("warmup_poly", 1.0, 1000)


def test_the_memory_of_all_passes_fills_the_target(described: Describe) -> None:
    data = described(**BLOCK, cases=2000)
    configuration = planned(data, gpu_memory_target=0.8)
    network = network_of(configuration)
    elements = [network.compute_conv_feature_map_size(shape) for shape in network.entry_shapes]
    needed = memory_gb(sum(elements), configuration["batch_size"])
    assert 0.7 * 0.8 <= needed <= 0.8
    # a pass without weight takes none
    given = {"patch_size": configuration["patch_size"], "gpu_memory_target": 8 * sum(elements) / elements[0]}
    fewer, all_of_them = (
        planned(data, training={"hierarchical": {"entry_weights": weights}}, **given)
        for weights in ([1, 0, 0], [1, 0.5, 0.5])
    )
    assert fewer["batch_size"] == int(given["gpu_memory_target"] / memory_gb(elements[0], 1))
    assert all_of_them["batch_size"] == int(given["gpu_memory_target"] / memory_gb(sum(elements), 1))
    assert all_of_them["training"]["hierarchical"]["entry_weights"] == [1, 0.5, 0.5]


def test_checkpointing_makes_room(described: Describe) -> None:
    data = described(**BLOCK, cases=2000)
    given = {"gpu_memory_target": 8.0, "patch_size": [16, 64, 64]}
    without, with_it = (planned(data, **given, activation_checkpointing=chosen) for chosen in (False, True))
    assert with_it["batch_size"] > without["batch_size"]
    assert with_it["architecture"]["arch_kwargs"]["activation_checkpointing"] is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"entries": 0}, "--entries 0; expected 1 or more"),
        ({"entries": 5}, r"--entries 5 for images of \[12, 60, 60\] voxels, the median; expected at most 4"),
        ({"entries": 6, "patch_size": [12, 64, 64]}, "--entries 6 with a network of 5 stages .* 1 to 5"),
        ({"patch_size": [12, 64, 60]}, r"a patch of \[12, 64, 60\]; .*\[12, 64, 56\] or \[12, 64, 64\]"),
        ({"training": {"hierarchical": {"entry_weights": [1, 1]}}}, "2 numbers in hierarchical.entry_weights; .* 3"),
        ({"training": {"hierarchical": {"entry_weights": [0, 0, 0]}}}, "not all 0"),
        ({"training": {"hierarchical": {"entry_weights": [1, 1, -1]}}}, "numbers from 0"),
    ],
)
def test_refused(described: Describe, options: dict[str, Any], message: str) -> None:
    data = described(**THICK)
    with pytest.raises(InputError, match=message):
        plan(**options)
    assert not (data.preprocessed / "HierarchicalPlans.json").exists()
