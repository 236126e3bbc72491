"""Plans for every backbone, with the refiner and without: what is built from them, memory, sizes, names, refusals."""

import json
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_ext.architectures.backbones.network import record_of
from nnunetv2_ext.architectures.backbones.record import size_rule
from nnunetv2_ext.architectures.par import resolved_sizes
from nnunetv2_ext.block import resolve_block
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.memory import memory_gb
from nnunetv2_ext.planning.api import plan_and_preprocess
from nnunetv2_ext.registry import BACKBONES, find
from nnunetv2_ext.trainers.mnet import MNetTrainer
from tests.planning.conftest import Described, network_of

Describe = Callable[..., Described]
NAMES = [entry.name for entry in BACKBONES]
PLANNERS = {"PaRPlanner": "PaRNetwork", "BackbonePlanner": "BackboneNetwork"}
# no low resolution: each configuration takes a search of its own
WIDE = {"shape": (40, 160, 160), "spacing": (5.0, 1.0, 1.0)}


def plan(planner: str = "PaRPlanner", backbone: str | None = None, **options: Any) -> str:
    """The plans identifier; a warning of padding is no matter of most tests."""
    keys = ("gpu_memory_target", "plans_name", "training")
    arguments = {key: options.pop(key) for key in keys if key in options}
    if backbone is not None:
        options["backbone"] = backbone
    return plan_and_preprocess(901, planner=planner, preprocess=False, progress=False, options=options, **arguments)


def planned(data: Described, *args: Any, **options: Any) -> dict[str, Any]:
    """The configuration 3d_fullres as planned."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the patch")
        return data.configuration(plan(*args, **options))


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("backbone", NAMES)
def test_small_data(described: Describe, planner: str, backbone: str) -> None:
    data = described()
    configuration = planned(data, planner, backbone)
    architecture = configuration["architecture"]
    assert architecture["network_class_name"] == find("architecture", PLANNERS[planner]).path
    assert architecture["arch_kwargs"]["backbone"] == backbone
    patch = configuration["patch_size"]
    assert architecture["arch_kwargs"]["spatial_shape"] == patch
    divisor, minimum = size_rule(record_of(backbone), architecture["arch_kwargs"]["backbone_kwargs"])
    # the data's 12 x 40 x 40, rounded up to what the backbone takes
    least = np.maximum((12, 40, 40), minimum)
    assert all(np.array(patch) % divisor == 0)
    assert all(least <= patch)
    assert all(patch < least + np.array(divisor))
    shapes = network_of(configuration).deep_supervision_shapes(patch)
    assert tuple(shapes[0]) == tuple(patch)
    assert configuration["data_identifier"] == "nnUNetPlans_3d_fullres", "nnU-Net's data are shared"


@pytest.mark.parametrize(("planner", "backbone"), [(p, b) for p in PLANNERS for b in NAMES if b[-1] not in "ML"])
def test_what_is_planned_fills_the_memory_target(described: Describe, planner: str, backbone: str) -> None:
    configuration = planned(described(**WIDE), planner, backbone, gpu_memory_target=6)
    network, patch, batch = network_of(configuration), configuration["patch_size"], configuration["batch_size"]
    needed = memory_gb(network.compute_conv_feature_map_size(patch), batch)
    assert batch >= 2
    assert needed <= 6
    # half a step along one axis leaves room, and a data set as small as this one bounds the batch
    assert needed > 2 or all(np.array(patch) >= WIDE["shape"]) or batch == 5


def test_the_refiner_is_counted(described: Describe) -> None:
    data = described(**WIDE)
    voxels = {}
    for planner in PLANNERS:
        configuration = planned(data, planner, gpu_memory_target=3)
        network = network_of(configuration)
        voxels[planner] = configuration["batch_size"] * np.prod(configuration["patch_size"])
        assert memory_gb(network.compute_conv_feature_map_size(configuration["patch_size"]), 2) <= 3
    assert voxels["PaRPlanner"] <= voxels["BackbonePlanner"]


STOCK_PLANNERS = [
    ("PlainConvUNet", "ExperimentPlanner", 8),
    ("ResidualEncoderUNet", "nnUNetPlannerResEncM", 8),
    ("ResidualEncoderUNetM", "nnUNetPlannerResEncM", 8),
    ("ResidualEncoderUNetL", "nnUNetPlannerResEncL", 24),
    ("ResidualEncoderUNetXL", "nnUNetPlannerResEncXL", 40),
]


@pytest.mark.parametrize(("backbone", "stock", "target"), STOCK_PLANNERS)
@pytest.mark.parametrize("shape", [(12, 40, 40), (30, 100, 90)], ids=str)
def test_nnunets_unets_are_planned_as_nnunet_does(
    described: Describe, backbone: str, stock: str, target: float, shape: tuple[int, ...]
) -> None:
    """Where memory is no bound."""
    data = described(shape=shape)
    theirs = data.configuration(plan_and_preprocess(901, planner=stock, preprocess=False, progress=False))
    ours = planned(data, "BackbonePlanner", backbone)
    for key in ("patch_size", "spacing", "normalization_schemes"):
        assert ours[key] == theirs[key], key
    if backbone != "ResidualEncoderUNet":  # no preset, so that a batch sees a twentieth of the data set at most
        # nnU-Net rounds to the nearest number of samples that fill the memory, ours stays below
        assert ours["batch_size"] in (theirs["batch_size"], theirs["batch_size"] - 1)
    arguments = ours["architecture"]["arch_kwargs"]["backbone_kwargs"]
    expected = theirs["architecture"]["arch_kwargs"]
    assert arguments == {key: value for key, value in expected.items() if value is not None}
    assert theirs["architecture"]["network_class_name"] == find("backbone", backbone).path


@pytest.mark.parametrize(("backbone", "stock", "target"), STOCK_PLANNERS)
def test_default_memory_targets(described: Describe, backbone: str, stock: str, target: float) -> None:
    described()
    for planner in PLANNERS:
        chosen: Any = type("Chosen", (find("planner", planner).load(),), {"backbone": backbone})
        assert chosen(901).UNet_vram_target_GB == target
        assert chosen(901, 5).UNet_vram_target_GB == 5


@pytest.mark.parametrize(
    ("planner", "backbone", "options", "expected"),
    [
        ("PaRPlanner", None, {}, "PaRPlans"),
        ("PaRPlanner", "PlainConvUNet", {}, "PaRPlans"),
        ("PaRPlanner", "SegResNet", {}, "PaRSegResNetPlans"),
        ("BackbonePlanner", None, {}, "BackbonePlans"),
        ("BackbonePlanner", "MNet", {}, "BackboneMNetPlans"),
        ("PaRPlanner", "MNet", {"plans_name": "Mine"}, "Mine"),
    ],
)
def test_plans_are_named_after_the_backbone(
    described: Describe, planner: str, backbone: str | None, options: dict[str, Any], expected: str
) -> None:
    data = described()
    assert plan(planner, backbone, **options) == expected
    assert data.plans(expected)["plans_name"] == expected
    assert data.plans(expected)["experiment_planner_used"] == planner


REFINER = {"axis": 0, "heads": 8, "groups": 8, "kernel_size": 3, "variant": "published_code", "fusion": "add"}


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, {"heads": 6, "groups": 6, "padding": 0}),
        ({"axis": 2, "heads": 4}, {"heads": 4, "groups": 5, "padding": 0}),
        ({"groups": 1, "variant": "paper"}, {"heads": 6, "groups": 1, "padding": 0}),
        ({"fusion": "concat", "kernel_size": 5}, {"heads": 6, "groups": 6, "padding": 0}),
    ],
    ids=str,
)
def test_the_refiner_stands_in_the_plans(described: Describe, options: dict[str, Any], sizes: dict[str, int]) -> None:
    configuration = planned(described(), **options)
    asked = {**REFINER, **options}
    arguments = configuration["architecture"]["arch_kwargs"]
    assert {key: arguments[key] for key in REFINER} == asked
    assert configuration["refiner"] == sizes
    assert sizes == resolved_sizes(configuration["patch_size"][asked["axis"]], asked["heads"], asked["groups"])
    refiner = network_of(configuration).refiner
    assert (refiner.axis, refiner.heads, refiner.groups) == (asked["axis"], sizes["heads"], sizes["groups"])
    assert (refiner.variant, refiner.fusion) == (asked["variant"], asked["fusion"])


def test_no_refiner_in_the_plans_of_a_backbone(described: Describe) -> None:
    configuration = planned(described(), "BackbonePlanner")
    assert "refiner" not in configuration
    assert configuration["architecture"]["arch_kwargs"].keys() == {"backbone", "spatial_shape", "backbone_kwargs"}


def test_arguments_of_the_backbone_go_over_the_planned_ones(described: Describe) -> None:
    configuration = planned(described(), backbone="SwinUNETR", backbone_kwargs={"feature_size": 12})
    assert configuration["architecture"]["arch_kwargs"]["backbone_kwargs"] == {"feature_size": 12}
    configuration = planned(described(), backbone_kwargs={"conv_bias": False})
    arguments = configuration["architecture"]["arch_kwargs"]["backbone_kwargs"]
    assert arguments["conv_bias"] is False
    assert arguments["strides"][0] == [1, 1, 1]


THICK = [[1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2]]


@pytest.mark.parametrize(("spacing", "strides"), [((5.0, 1.0, 1.0), THICK), ((1.0, 1.0, 1.0), [[2, 2, 2]] * 4)])
@pytest.mark.parametrize(("backbone", "levels"), [("TransBTS", 3), ("MultiResUNet", 4)])
def test_strides_by_the_spacing(
    described: Describe, backbone: str, levels: int, spacing: tuple[float, ...], strides: list[list[int]]
) -> None:
    configuration = planned(described(spacing=spacing), "BackbonePlanner", backbone, patch_size=[16, 32, 32])
    assert configuration["architecture"]["arch_kwargs"]["backbone_kwargs"] == {"strides": strides[:levels]}


def test_arguments_change_the_size_rule(described: Describe) -> None:
    data = described()
    assert planned(data, "BackbonePlanner", "SegResNet")["patch_size"] == [16, 40, 40]
    two_levels = {"blocks_down": [1, 1], "blocks_up": [1]}
    assert planned(data, "BackbonePlanner", "SegResNet", backbone_kwargs=two_levels)["patch_size"] == [12, 40, 40]


@pytest.mark.parametrize(
    ("spacing", "patch", "tokens", "first"),
    [
        ((5.0, 1.0, 1.0), [12, 64, 64], [1, 4, 4], [1, 2, 2]),
        ((3.0, 1.0, 1.0), [16, 64, 64], [2, 4, 4], [2, 2, 2]),
        ((1.0, 1.0, 1.0), [32, 64, 64], [4, 4, 4], [2, 2, 2]),
    ],
    ids=str,
)
def test_tokens_and_strides_by_the_spacing(
    described: Describe, spacing: Any, patch: list[int], tokens: list[int], first: list[int]
) -> None:
    configuration = planned(described(spacing=spacing), "BackbonePlanner", "nnFormer")
    assert configuration["patch_size"] == patch
    assert configuration["architecture"]["arch_kwargs"]["backbone_kwargs"] == {
        "patch_size": tokens,
        "strides": [first, [2, 2, 2], [2, 2, 2]],
    }


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize(
    ("backbone", "weights"), [("PlainConvUNet", None), ("MNet", MNetTrainer.published_block)], ids=["stock", "MNet"]
)
def test_training_block(described: Describe, planner: str, backbone: str, weights: Any) -> None:
    block = planned(described(), planner, backbone, training={"epochs": 3})["training"]
    published = dict(find("trainer", planner.replace("Planner", "Trainer")).load().published_block)
    if weights is not None:
        published["deep_supervision_weights"] = weights["deep_supervision_weights"]
    assert block == resolve_block({"epochs": 3}, published)


@pytest.mark.parametrize(
    ("backbone", "shape", "patch", "added"),
    [("SwinUNETR", (12, 64, 64), [32, 64, 64], 167), ("VNet", (9, 64, 64), [16, 64, 64], 78)],
)
def test_padding_is_told(
    described: Describe, backbone: str, shape: tuple[int, ...], patch: list[int], added: int
) -> None:
    data = described(shape=shape)
    told = rf"the patch {re.escape(str(patch))} of 3d_fullres .* adds {added}%"
    with pytest.warns(UserWarning, match=told):
        identifier = plan("BackbonePlanner", backbone)
    assert data.configuration(identifier)["patch_size"] == patch


def test_a_little_padding_is_not_told(described: Describe) -> None:
    described(shape=(12, 64, 64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan("BackbonePlanner", "VNet")


def test_a_large_patch_of_the_user_is_his_choice(described: Describe) -> None:
    data = described()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        identifier = plan("BackbonePlanner", patch_size=[24, 64, 64])
    assert data.configuration(identifier)["patch_size"] == [24, 64, 64]


@pytest.mark.parametrize(
    ("backbone", "patch"), [("SwinUNETR", [32, 64, 96]), ("MNet", [7, 33, 65]), ("PlainConvUNet", [12, 48, 64])]
)
def test_the_users_patch(described: Describe, backbone: str, patch: list[int]) -> None:
    configuration = planned(described(), "PaRPlanner", backbone, patch_size=patch)
    assert configuration["patch_size"] == patch
    assert network_of(configuration).refiner.spatial_shape == tuple(patch)


@pytest.mark.parametrize(
    ("backbone", "patch", "would_do"),
    [
        ("SwinUNETR", [12, 64, 64], [32, 64, 64]),
        ("VNet", [16, 40, 64], [16, 48, 64]),
        ("UNETR", [20, 64, 64], [32, 64, 64]),
        ("PlainConvUNet", [12, 42, 40], [12, 48, 40]),
        ("MNet", [12, 8, 40], [12, 32, 40]),
    ],
)
def test_a_patch_of_the_user_that_cannot_work(
    described: Describe, backbone: str, patch: list[int], would_do: list[int]
) -> None:
    data = described()
    with pytest.raises(InputError, match=re.escape(f"a patch of {patch}; expected a size")) as refused:
        plan("PaRPlanner", backbone, patch_size=patch)
    assert str(would_do) in str(refused.value)
    assert not list(data.preprocessed.glob("*Plans.json"))


@pytest.mark.parametrize(
    ("planner", "options", "message"),
    [
        ("PaRPlanner", {"backbone": "nnUNext"}, "the backbone 'nnUNext'; expected one of PlainConvUNet, .*MedNeXt"),
        ("PaRPlanner", {"variant": "code"}, "variant='code'; expected one of paper, published_code"),
        ("PaRPlanner", {"fusion": "mean"}, "fusion='mean'; expected one of add, multiply, concat"),
        ("PaRPlanner", {"axis": 3}, "axis=3; expected 0, 1 or 2"),
        ("PaRPlanner", {"axis": -1}, "axis=-1; expected 0, 1 or 2"),
        ("PaRPlanner", {"axis": 3, "patch_size": [12, 40, 40]}, "axis=3; expected 0, 1 or 2"),
        ("PaRPlanner", {"heads": 0}, "heads=0; expected a whole number from 1"),
        ("PaRPlanner", {"groups": -1, "patch_size": [12, 40, 40]}, "groups=-1; expected a whole number from 1"),
        ("PaRPlanner", {"kernel_size": 4}, "kernel_size=4; expected an odd number"),
        ("PaRPlanner", {"backbone_kwargs": {"widht": 3}}, "the arguments widht in backbone_kwargs of PlainConvUNet"),
        ("PaRPlanner", {"backbone": "UNet", "backbone_kwargs": {"strides": 2}}, "strides=2 in backbone_kwargs"),
        ("PaRPlanner", {"heads": 2.5}, "heads=2.5; expected a whole number from 1"),
        ("BackbonePlanner", {"training": {"freeze_backbone": True}}, "freeze_backbone for BackbonePlanner"),
        (
            "PaRPlanner",
            {"merge": "sum"},
            "the option --merge for PaRPlanner; expected some of --patch-size, .*--backbone",
        ),
        ("BackbonePlanner", {"variant": "paper"}, "the option --variant for BackbonePlanner"),
        ("MNetPlanner", {"backbone": "UNet"}, "the option --backbone for MNetPlanner"),
        ("ExperimentPlanner", {"backbone": "UNet"}, "backbone for nnU-Net's ExperimentPlanner"),
        ("PaRPlanner", {"backbone": "VNet", "gpu_memory_target": 0.01}, r"smallest patch \[16, 32, 32\]"),
    ],
    ids=str,
)
def test_refused(described: Describe, planner: str, options: dict[str, Any], message: str) -> None:
    data = described()
    with pytest.raises(InputError, match=message), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the patch")
        plan(planner, **options)
    assert not list(data.preprocessed.glob("*Plans.json"))


@pytest.mark.parametrize("batch", [1, 2])
def test_batch_normalisation_of_one_image_is_told(described: Describe, batch: int) -> None:
    described()
    kwargs = {"channels": [4, 6, 8], "strides": [[1, 2, 2], [2, 2, 2]], "norm": "BATCH"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plan("BackbonePlanner", "UNet", backbone_kwargs=kwargs, training={"batch_size": batch})
    told = [str(warning.message) for warning in caught if "batch normalisation" in str(warning.message)]
    assert len(told) == (batch == 1)
    assert all(text.startswith("3d_fullres: batch normalisation at a batch of 1") for text in told)


@pytest.mark.parametrize("planner", PLANNERS)
def test_a_patch_beyond_the_memory_of_a_network_with_mixtures(described: Describe, planner: str) -> None:
    data = described()
    settings: dict[str, Any] = {"patch_size": [32, 64, 64], "gpu_memory_target": 0.1}
    settings["backbone_kwargs"] = {"feature_size": 12, "num_layers_with_moe": 4}
    told = (
        r"a patch of \[32, 64, 64\], of which SwinSMT mixes 16384 tokens among its experts; it takes 0.\d+ GB at a "
        r"batch of 2, .* 26.6 G multiply-adds a sample; expected at most 0.1 GB, the memory target; "
        r"choose a smaller --patch-size, or raise -gpu_memory_target to 0.\d+\.$"
    )
    with pytest.raises(InputError, match=told) as refused:
        plan(planner, "SwinSMT", **settings)
    assert not list(data.preprocessed.glob("*Plans.json"))
    # what the message says mends it
    enough = float(str(refused.value).rpartition(" ")[2].removesuffix("."))
    assert planned(data, planner, "SwinSMT", **{**settings, "gpu_memory_target": enough})["batch_size"] == 2


@pytest.mark.parametrize("spacing", [(5.0, 1.0, 1.0), (1.0, 1.0, 1.0)], ids=str)
def test_mixtures_shrink_the_planned_patch(described: Describe, spacing: tuple[float, ...]) -> None:
    data = described(shape=(32, 64, 96), spacing=spacing)
    settings: dict[str, Any] = {"backbone_kwargs": {"feature_size": 12, "num_layers_with_moe": 4}}
    patch, target = [32, 64, 96], 8.0
    for _ in range(2):
        configuration = planned(data, "BackbonePlanner", "SwinSMT", gpu_memory_target=target, **settings)
        assert configuration["patch_size"] == patch
        needed = memory_gb(network_of(configuration).compute_conv_feature_map_size(patch), 2)
        assert needed <= target
        patch, target = [32, 32, 96], 0.9 * needed


def test_nnunet_reads_the_plans(described: Describe) -> None:
    data = described()
    plans = json.loads(json.dumps(data.plans(plan())))
    configuration = PlansManager(plans).get_configuration("3d_fullres")
    assert configuration.network_arch_class_name == "nnunetv2_ext.architectures.PaRNetwork"
    assert configuration.network_arch_init_kwargs_req_import == []


@pytest.mark.parametrize(
    ("planner", "backbone"),
    [("BackbonePlanner", None), ("PaRPlanner", None), ("BackbonePlanner", "MNet"), ("MNetPlanner", None)],
)
def test_checkpointing_makes_room(described: Describe, planner: str, backbone: str | None) -> None:
    data, voxels = described(**WIDE), []
    for options in ({}, {"activation_checkpointing": True}):
        configuration = planned(data, planner, backbone, gpu_memory_target=3, **options)
        arguments = configuration["architecture"]["arch_kwargs"]
        assert {key: arguments[key] for key in arguments if key == "activation_checkpointing"} == options
        voxels.append(configuration["batch_size"] * np.prod(configuration["patch_size"]))
    assert voxels[0] < voxels[1]
