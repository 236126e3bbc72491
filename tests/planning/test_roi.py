"""Plans for a coarse look at the whole image: spacing, patch, network, names, refusals."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nnunetv2_ext.block import resolve_block
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.planning.api import plan_and_preprocess
from nnunetv2_ext.trainers.detector import DetectorTrainer
from tests.planning.conftest import Described, network_of

Describe = Callable[..., Described]


def plan(planner: str = "ROIPlanner", **options: Any) -> str:
    more = {key: options.pop(key) for key in ("training", "gpu_memory_target", "target_spacing") if key in options}
    return plan_and_preprocess(901, planner=planner, options=options, preprocess=False, progress=False, **more)


def planned(data: Described, **options: Any) -> dict[str, Any]:
    name = "DetectorPlans" if options.get("network") == "detector" else "ROIPlans"
    assert plan(**options) == name
    configurations = data.plans(name)["configurations"]
    assert list(configurations) == ["3d_roi"]
    return configurations["3d_roi"]


@pytest.mark.parametrize(
    ("shape", "spacing", "options", "coarse", "patch"),
    [
        # 480 mm in 96 voxels: 5 mm along each axis
        ((96, 480, 480), (5, 1, 1), {}, (5, 5, 5), (96, 96, 96)),
        ((96, 480, 480), (5, 1, 1), {"grid": 48}, (10, 10, 10), (48, 48, 48)),
        # slices that are thicker stay as they are
        ((40, 384, 384), (8, 1, 1), {}, (8, 4, 4), (40, 96, 96)),
        # a patch is rounded up to what the network takes
        ((50, 480, 400), (5, 1, 1), {}, (5, 5, 5), (56, 96, 80)),
        # no finer than the images
        ((40, 60, 70), (2, 1, 1), {}, (2, 1, 1), (40, 64, 80)),
        # a slice is left of a thin image
        ((1, 480, 480), (3, 1, 1), {}, (3, 5, 5), (1, 96, 96)),
        ((1, 480, 480), (999, 1, 1), {}, (999, 5, 5), (1, 96, 96)),
        ((96, 480, 480), (5, 1, 1), {"target_spacing": [10, 6, 6]}, (10, 6, 6), (48, 80, 80)),
    ],
)
def test_the_patch_holds_the_image(described: Describe, shape, spacing, options, coarse, patch) -> None:
    configuration = planned(described(shape=shape, spacing=spacing), **options)
    assert configuration["spacing"] == pytest.approx(coarse)
    assert tuple(configuration["patch_size"]) == patch
    assert configuration["batch_size"] >= 2
    extent = np.array(shape) * spacing
    assert (np.multiply(configuration["patch_size"], configuration["spacing"]) >= extent - 1e-3).all()


def test_extents_of_the_fingerprint(described: Describe) -> None:
    """Of 100 images five are twice as long; the 95th percentile of both axes decides, not the median."""
    spacings = [(5.0, 1.0, 1.0)] * 90 + [(5.0, 2.0, 1.0)] * 10
    configuration = planned(described(shape=(60, 240, 240), spacings=spacings))
    assert configuration["spacing"] == pytest.approx((5, 5, 5))
    assert configuration["patch_size"] == [60 + 4, 96, 48]


def test_the_transposed_image(described: Describe) -> None:
    """Slices along the last axis: nnU-Net puts them first."""
    data = described(shape=(384, 384, 40), spacing=(1, 1, 8))
    configuration = planned(data)
    assert data.plans("ROIPlans")["transpose_forward"] == [2, 0, 1]
    assert configuration["spacing"] == pytest.approx((8, 4, 4))
    assert configuration["patch_size"] == [40, 96, 96]


def test_a_small_u_net(described: Describe) -> None:
    data = described(shape=(96, 480, 480), spacing=(5, 1, 1))
    configuration = planned(data)
    kwargs = configuration["architecture"]["arch_kwargs"]
    assert kwargs["backbone"] == "PlainConvUNet"
    assert kwargs["backbone_kwargs"]["features_per_stage"] == [16, 32, 64, 128, 256]
    parameters = sum(parameter.numel() for parameter in network_of(configuration).parameters())
    assert parameters == pytest.approx(5.6e6, rel=0.02)
    assert configuration["training"] == resolve_block({"epochs": 250})
    assert configuration["data_identifier"] == "ROIPlans_3d_roi"
    assert "previous_stage" not in configuration and "next_stage" not in configuration
    plans = data.plans("ROIPlans")
    assert plans["made_by"]["planner"] == plans["experiment_planner_used"] == "ROIPlanner"


def test_the_users_options_are_kept(described: Describe) -> None:
    data = described(shape=(96, 480, 480), spacing=(5, 1, 1))
    configuration = planned(data, grid=64, training={"epochs": 3})
    assert configuration["training"]["epochs"] == 3
    assert data.plans("ROIPlans")["made_by"]["options"] == {"grid": 64}
    # a configuration of the user's own stays
    path = data.preprocessed / "ROIPlans.json"
    plans = json.loads(path.read_text())
    plans["configurations"]["mine"] = {"inherits_from": "3d_roi", "batch_size": 7}
    path.write_text(json.dumps(plans))
    plan()
    assert list(data.plans("ROIPlans")["configurations"]) == ["3d_roi", "mine"]


DETECTOR = {"network": "detector"}


@pytest.mark.parametrize(
    ("options", "regions"),
    [({}, False), ({"view": "central", "head": "pooled"}, True)],
    ids=["labels", "the paper's, of regions"],
)
def test_a_detector(described: Describe, options, regions) -> None:
    data = described(shape=(96, 480, 480), spacing=(5, 1, 1))
    if regions:
        description = json.loads((data.raw / "dataset.json").read_text())
        description |= {"labels": {"background": 0, "whole": [1, 2], "lesion": [2]}, "regions_class_order": [1, 2]}
        (data.raw / "dataset.json").write_text(json.dumps(description))
    configuration = planned(data, **DETECTOR, **options)
    assert configuration["patch_size"] == planned(data)["patch_size"] == [96, 96, 96]  # the coarse model's, too
    assert configuration["architecture"]["network_class_name"] == "nnunetv2_ext.architectures.ROIDetector"
    expected = {"view": "slabs", "head": "extent", **options, "regions": regions}
    assert configuration["architecture"]["arch_kwargs"] == expected
    network = network_of(configuration)
    assert (network.view, network.regions) == (expected["view"], regions)
    training = configuration["training"]
    assert training == resolve_block({"epochs": 250}, DetectorTrainer.published_block)
    assert training["detector"] == {"box": "pinball", "quantile": 0.9}
    assert configuration["data_identifier"] == "DetectorPlans_3d_roi"
    made_by = data.plans("DetectorPlans")["made_by"]
    assert (made_by["planner"], made_by["options"]) == ("ROIPlanner", {**DETECTOR, **options})


def test_a_detectors_training_block(described: Describe) -> None:
    configuration = planned(described(), **DETECTOR, training={"detector": {"box": "l1_giou"}, "epochs": 3})
    assert configuration["training"]["detector"] == {"box": "l1_giou", "quantile": 0.9}
    assert configuration["training"]["epochs"] == 3


@pytest.mark.parametrize("patch", [[16, 32, 32], [96, 96, 96]])
def test_a_patch_of_the_users(described: Describe, patch) -> None:
    configuration = planned(described(shape=(96, 480, 480), spacing=(5, 1, 1)), patch_size=patch)
    assert configuration["patch_size"] == patch


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": 15}, "--grid 15; expected 16 to 512 voxels"),
        ({"grid": 513}, "--grid 513"),
        ({"grid": 320, "gpu_memory_target": 4}, "a patch of .*choose a smaller --grid"),
        ({"patch_size": [97, 96, 96]}, "a patch of"),
        ({"network": "yolo"}, "--network yolo; expected segmentation or detector"),
        ({**DETECTOR, "backbone": "MNet"}, "--backbone for --network detector; expected --network segmentation"),
        ({**DETECTOR, "activation_checkpointing": True}, "--activation-checkpointing for --network detector"),
        ({"view": "central", "head": "pooled"}, "--view, --head for --network segmentation; .*--network detector"),
        ({**DETECTOR, "view": "front"}, "view='front'; expected one of slabs, central"),
        ({**DETECTOR, "head": "long"}, "head='long'; expected one of extent, pooled"),
        ({**DETECTOR, "training": {"freeze_backbone": True}}, "freeze_backbone for ROIPlanner"),
        ({**DETECTOR, "training": {"detector": {"quantile": 0.4}}}, r"quantile = 0.4; expected a number in \[0.5, 1\)"),
        ({"training": {"detector": {"box": "l1_giou"}}}, "'training.detector' of DetectorTrainer"),
    ],
)
def test_refused(described: Describe, options, message) -> None:
    data = described(shape=(96, 480, 480), spacing=(5, 1, 1))
    with pytest.raises(InputError, match=message):
        plan(**options)
    assert not [*data.preprocessed.glob("*Plans.json")]


@pytest.mark.parametrize(
    ("planner", "configuration", "message"),
    [
        ("ROIPlanner", "3d_fullres", "'3d_fullres' for ROIPlanner; expected some of 3d_roi"),
        ("ROIPlanner", "2d", "'2d' for ROIPlanner"),
        ("MNetPlanner", "3d_roi", "'3d_roi' for MNetPlanner; expected some of 3d_fullres, 3d_lowres"),
    ],
)
def test_configurations_of_other_planners(described: Describe, planner, configuration, message) -> None:
    described()
    with pytest.raises(InputError, match=message):
        plan_and_preprocess(901, planner=planner, configurations=[configuration], progress=False)
