"""Weights for PaR: the authors' (https://github.com/IMOP-lab/PaR-Pytorch), and trained networks as backbones."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunetv2_ext.architectures.par import backbone_state_dict
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import dataset_name, nnunet_folder, read_json, read_plans
from nnunetv2_ext.registry import find
from nnunetv2_ext.text import listed, one_line
from nnunetv2_ext.weights.checkpoint import PREDICTION_KEYS, differing_weights, prediction_faults


def convert_published_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published refiner's state dict under the names and shapes of `PaR`; both variants hold the same weights.

    Raises:
        InputError: keys that the published refiner has not, or lacks.
    """
    converted: dict[str, Tensor] = {}
    remaining = dict(state_dict)

    def take(name: str) -> Tensor:
        if name not in remaining:
            raise InputError(f"no key '{name}'", "the published refiner's state dict", "check the file")
        return remaining.pop(name)

    for number in range(3):
        theirs, ours = f"pdi.axial_attentions.{number}.SelfAttention", f"pdi.attentions.{number}"
        query, both = take(f"{theirs}.to_q.weight"), take(f"{theirs}.to_kv.weight")
        if both.shape != (2 * query.shape[0], query.shape[1]):
            raise InputError(
                f"{theirs}.to_kv.weight of {tuple(both.shape)}",
                f"({2 * query.shape[0]}, {query.shape[1]})",
                "check the file",
            )
        converted[f"{ours}.to_qkv.weight"] = torch.cat([query, both])
        for kind in ("weight", "bias"):
            converted[f"{ours}.to_out.{kind}"] = take(f"{theirs}.to_out.{kind}")
    for number in range(1, 4):
        for kind in ("weight", "bias"):
            converted[f"sai.conv{number}.{kind}"] = take(f"sai.conv{number}.{kind}")
            converted[f"sai.norm{number}.{kind}"] = take(f"sai.gn{number}.{kind}")
    converted["sai.channel_weight"] = take("sai.axial_intense.cweight").flatten()
    converted["sai.channel_bias"] = take("sai.axial_intense.cbias").squeeze(0)
    converted["sai.spatial_weight"] = take("sai.axial_intense.sweight").flatten()
    converted["sai.spatial_bias"] = take("sai.axial_intense.sbias")[0, 0]
    converted["sai.spatial_conv.weight"] = take("sai.axial_intense.conv_spatial.weight")
    if remaining:
        raise InputError(
            f"the unexpected keys {listed(remaining, shown=3)}",
            "the published refiner's state dict",
            "check the file",
        )
    return converted


def start_of_par(
    content: Any,
    file: Path,
    dataset: str | None,
    plans: str | None,
    configuration: str | None,
    *,
    input_channels: int | None = None,
    num_classes: int | None = None,
) -> tuple[dict[str, Any], str]:
    """The state dict of a `PaRNetwork` whose backbone is the trained network of a checkpoint, its refiner fresh.

    Args:
        content: of the checkpoint.
        dataset, plans, configuration: what PaRTrainer will train; None: the checkpoint's own.

    Raises:
        InputError: no checkpoint of nnU-Net, or one whose network, channels or classes are not the plans'.
    """
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    if not isinstance(content, dict) or not {*PREDICTION_KEYS} <= content.keys():
        raise InputError(f"{file}", "a checkpoint that a training of nnU-Net wrote", "give checkpoint_final.pth")
    if faults := prediction_faults(content):
        raise InputError(f"the damaged checkpoint {file} ({faults[0]})", "what a trainer writes", "give another one")
    trained = content["network_weights"]
    if any(key.startswith("refiner.") for key in trained):
        raise InputError(
            f"{file}, whose network has a refiner already",
            "a network without one",
            "give this file to nnUNetv2_train -pretrained_weights as it is",
        )
    try:
        plans_content, description, chosen = _planned(content["init_args"], dataset, plans, configuration)
        manager = PlansManager(plans_content)
        channels = determine_num_input_channels(manager, manager.get_configuration(chosen), description)
        classes = manager.get_label_manager(description).num_segmentation_heads
        trainer = find("trainer", "PaRTrainer").load()
        network = trainer.build_network_architecture(
            manager, manager.get_configuration(chosen), channels, classes, True
        )
    except InputError:
        raise
    except Exception as error:  # nnU-Net and the network read plans and labels as they come
        raise InputError(
            f"plans or labels that make no network ({type(error).__name__}: {one_line(error)})",
            "those of a training of nnU-Net",
            "give another checkpoint, or choose whole plans with -d and -p",
        ) from error
    for what, asked, found in (("input channels", input_channels, channels), ("classes", num_classes, classes)):
        if asked is not None and asked != found:
            raise InputError(f"plans with {found} {what}", f"{asked} {what}", "correct the flag, or choose other plans")
    weights, trained = network.state_dict(), backbone_state_dict(trained)
    remedy = "choose the plans that hold the network of the checkpoint, with -p"
    if dataset is None and plans is None:
        remedy = f"{content['trainer_name']} trains another network than its plans hold, so plan for it and pass -p"
    _check_backbone(
        {key: value for key, value in weights.items() if key.startswith("backbone.")}, trained, file, remedy
    )
    weights.update(trained)
    weights = {key: value.detach().cpu().contiguous().clone() for key, value in weights.items()}
    about = f"{network.backbone.backbone} of {content['trainer_name']}, {channels} input channels, {classes} classes"
    return weights, f"PaR on {about}, patch {list(network.refiner.spatial_shape)}, the refiner fresh"


def _planned(
    made_with: Mapping[str, Any], dataset: str | None, plans: str | None, configuration: str | None
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Plans, dataset.json and the configuration that PaRTrainer will train, by default those of the checkpoint."""
    plans_content, description = made_with["plans"], made_with["dataset_json"]
    if dataset is not None or plans is not None:
        name = dataset_name(dataset or plans_content["dataset_name"])
        folder = nnunet_folder("nnUNet_preprocessed") / name
        remedy = "run nnunetv2_ext plan_and_preprocess, or correct -d and -p"
        plans_content = read_plans(folder / f"{plans or plans_content['plans_name']}.json", remedy)
        description = read_json(folder / "dataset.json", remedy)
    chosen = configuration or made_with["configuration"]
    if chosen not in plans_content["configurations"]:
        raise InputError(
            f"the configuration '{chosen}'", f"one of {listed(plans_content['configurations'])}", "correct -c"
        )
    return plans_content, description, chosen


def _check_backbone(expected: dict[str, Any], trained: dict[str, Any], file: Path, remedy: str) -> None:
    if differing := differing_weights(trained, expected):
        raise InputError(
            f"{file}, whose network differs from the plans' backbone ({listed(differing, shown=3, separator='; ')})",
            "the network of the plans",
            remedy,
        )
