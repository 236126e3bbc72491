"""From a trained network to the backbone under a fresh refiner."""

import json
from typing import Any

import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

from nnunetv2_ext.architectures import PaRNetwork
from nnunetv2_ext.trainers.par import PaRTrainer
from tests.training.conftest import DATASET, MNET, UNET, hand_made_plans
from tests.weights.made import DESCRIPTION, TRAINED, checkpoint, start_of_par, trained


@pytest.mark.parametrize("flags", [[], ["--num-classes", "3", "--input-channels", "1"], ["-c", "3d_cascade_fullres"]])
@pytest.mark.parametrize(("trainer", "architecture", "held"), [(name, *held) for name, held in TRAINED.items()])
def test_a_trained_network_becomes_the_backbone(trainer, architecture, held, flags, tmp_path, capsys):
    backbone, plans = trained(architecture)
    if "3d_cascade_fullres" in flags:  # one that takes the segmentation of the stage before beside the image
        del plans["configurations"]["3d_cascade_fullres"]["previous_stage"]
    status, output = start_of_par(tmp_path, checkpoint(held(backbone), plans, trainer), *flags)
    assert status == 0
    told = capsys.readouterr().out
    assert f"of {trainer}, 1 input channels, 3 classes, patch [8, 32, 32], the refiner fresh" in told
    torch.manual_seed(6)
    ours = PaRNetwork(
        1,
        3,
        backbone=architecture["network_class_name"],
        spatial_shape=(8, 32, 32),
        backbone_kwargs=architecture["arch_kwargs"],
    )
    weights = torch.load(output, weights_only=True)["network_weights"]
    assert weights.keys() == ours.state_dict().keys()
    load_pretrained_weights(ours, str(output))
    x = torch.randn(1, 1, 8, 32, 32)
    with torch.no_grad():
        expected = backbone(x)
        assert all(torch.equal(one, other) for one, other in zip(ours.backbone(x), expected, strict=True))
        torch.testing.assert_close(ours(x)[0], ours.refiner(expected[0]))


ONE_STAGE = {
    **UNET["arch_kwargs"],
    "n_stages": 1,
    "features_per_stage": [4],
    "kernel_sizes": [[3, 3, 3]],
    "strides": [[1, 1, 1]],
    "n_conv_per_stage": [2],
    "n_conv_per_stage_decoder": [],
}


def write_plans(folder, name, plans, description=DESCRIPTION):
    folder = folder / "nnUNet_preprocessed" / DATASET
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({**plans, "plans_name": name}))
    (folder / "dataset.json").write_text(json.dumps(description))


WIDER = {**UNET, "arch_kwargs": {**UNET["arch_kwargs"], "features_per_stage": [4, 8, 12]}}
DEEPER = {
    **UNET,
    "arch_kwargs": {
        **UNET["arch_kwargs"],
        "n_stages": 4,
        "features_per_stage": [4, 8, 8, 8],
        "kernel_sizes": [[3, 3, 3]] * 4,
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [1, 2, 2]],
        "n_conv_per_stage": [2] * 4,
        "n_conv_per_stage_decoder": [2] * 3,
    },
}


@pytest.mark.parametrize("dataset", [[], ["-d", "901"], ["-d", DATASET]], ids=str)
def test_other_plans_of_the_same_network(dataset, nnunet_folders, tmp_path, capsys):
    backbone, plans = trained()
    write_plans(nnunet_folders, "OtherPlans", hand_made_plans(UNET, patch_size=[16, 48, 64]))
    status, output = start_of_par(tmp_path, checkpoint(backbone.network, plans), "-p", "OtherPlans", *dataset)
    assert status == 0
    assert "patch [16, 48, 64]" in capsys.readouterr().out
    weights = torch.load(output, weights_only=True)["network_weights"]
    assert weights["refiner.sai.spatial_bias"].shape[1:] == (48, 64)


def without_seg_layers(content):
    weights = content["network_weights"]
    return {**content, "network_weights": {k: v for k, v in weights.items() if "seg_layers.0.bias" not in k}}


def refined(content):
    _, plans = trained()
    network = PaRTrainer.network_class(
        1, 3, backbone="MNet", spatial_shape=(4, 32, 32), backbone_kwargs={"features_per_stage": [2, 3, 4, 5, 6]}
    )
    return checkpoint(network, plans, "PaRTrainer")


def in_the_plans(*path, value):
    """A checkpoint whose init_args hold another value at the path."""

    def change(content):
        held = content["init_args"]
        for key in path[:-1]:
            held = held[key]
        held[path[-1]] = value
        return content

    return change


WRONG: tuple[Any, ...] = (None, [], "x", 5, {})

# what is changed in a checkpoint of PlainConvUNet, flags, and what the message says
PAR_FAULTS = {
    "no checkpoint": (lambda c: {"network_weights": c["network_weights"]}, [], ["a checkpoint that a training of"]),
    "a bare state dict": (lambda c: c["network_weights"], [], ["a checkpoint that a training of"]),
    "a list": (lambda c: [1, 2], [], ["a checkpoint that a training of"]),
    "weights that are no tensors": (
        lambda c: {**c, "network_weights": {"a": 1}},
        [],
        ["no tensors in network_weights: a"],
    ),
    "weights that are no dict": (lambda c: {**c, "network_weights": [1]}, [], ["network_weights are no dict"]),
    "weights that are no numbers": (
        lambda c: {**c, "network_weights": {"a": torch.tensor([torch.inf])}},
        [],
        ["no finite numbers: 1 tensor (a)"],
    ),
    "no plans": (lambda c: {**c, "init_args": {}}, [], ["init_args without plans, dataset_json, configuration"]),
    "refined already": (refined, [], ["has a refiner already", "-pretrained_weights as it is"]),
    "configuration": (dict, ["-c", "3d_lowres"], ["the configuration '3d_lowres'", "3d_fullres", "correct -c"]),
    "2D": (dict, ["-c", "2d"], ["3D configuration"]),
    "classes": (dict, ["--num-classes", "4"], ["plans with 3 classes", "expected 4 classes"]),
    "channels": (dict, ["--input-channels", "2"], ["plans with 1 input channels", "expected 2 input channels"]),
    "no such plans": (dict, ["-p", "NoPlans"], ["NoPlans.json", "plan_and_preprocess"]),
    "no such data set": (dict, ["-d", "902"], ["no data set 902"]),
    "wider": (dict, ["-p", "WiderPlans"], ["differs from the plans' backbone", "stages.2", "(8,) instead of (12,)"]),
    "deeper": (dict, ["-p", "DeeperPlans"], ["differs from the plans' backbone", "missing instead of (8,)"]),
    "another network": (dict, ["-p", "MNetPlans"], ["differs from the plans' backbone", "instead of"]),
    "other labels": (
        in_the_plans("dataset_json", value={**DESCRIPTION, "labels": {"background": 0, "organ": 1}}),
        [],
        ["differs from the plans' backbone", "refined_layers", "(3,) instead of (2,)"],
    ),
    "other channels": (
        in_the_plans("dataset_json", value={**DESCRIPTION, "channel_names": {"0": "T1", "1": "T2"}}),
        [],
        ["encoder.stages.0", "(4, 1, 3, 3, 3) instead of (4, 2, 3, 3, 3)"],
    ),
    **{
        f"{'.'.join(path)} = {value!r}": (in_the_plans(*path, value=value), [], ["expected"])
        for path in (["plans"], ["dataset_json"], ["plans", "configurations"])
        for value in WRONG
    },
    "labels of another kind": (in_the_plans("dataset_json", value={**DESCRIPTION, "labels": 5}), [], ["no network"]),
    "no init_args": (lambda c: {**c, "init_args": {}}, [], ["expected"]),
    "one stage": (
        in_the_plans("plans", "configurations", "3d_fullres", "architecture", "arch_kwargs", value=ONE_STAGE),
        [],
        ["PlainConvUNet with 1 stage; expected two or more"],
    ),
    "a missing head": (without_seg_layers, [], ["refined_layers.0.bias missing instead of (3,)"]),
}


@pytest.mark.parametrize(("change", "flags", "told"), PAR_FAULTS.values(), ids=PAR_FAULTS)
def test_what_cannot_start_a_refiner(change, flags, told, nnunet_folders, tmp_path, capsys):
    for name, architecture in {"WiderPlans": WIDER, "DeeperPlans": DEEPER, "MNetPlans": MNET}.items():
        write_plans(nnunet_folders, name, hand_made_plans(architecture))
    backbone, plans = trained()
    status, output = start_of_par(tmp_path, change(checkpoint(backbone.network, plans)), *flags)
    assert status == 2
    message = capsys.readouterr().err
    for text in told:
        assert text in message
    assert not output.exists()
