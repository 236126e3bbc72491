"""Weights for PaR: the authors' (https://github.com/IMOP-lab/PaR-Pytorch), and trained networks as backbones."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

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
    planned, channels, classes = planned_network(*_planned(content["init_args"], dataset, plans, configuration))
    network = planned.build(channels, classes)
    for what, asked, found in (("input channels", input_channels, channels), ("classes", num_classes, classes)):
        check_count(what, asked, found)
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


def check_count(what: str, asked: int | None, found: int) -> None:
    """Refuse plans with another number of channels or classes than the user asks for, if any."""
    if asked is not None and asked != found:
        raise InputError(f"plans with {found} {what}", f"{asked} {what}", "correct the flag, or choose other plans")


class Planned(NamedTuple):
    """What PaRTrainer makes of a configuration."""

    build: Callable[[int, int], Any]
    """The `PaRNetwork`, from the numbers of input channels and of classes; errors as of `planned_network`."""
    backbone: Mapping[str, Any]
    """The arguments that are its backbone's: `backbone`, `spatial_shape`, `backbone_kwargs`."""


@contextmanager
def _readable() -> Iterator[None]:
    """Tell what nnU-Net and the network cannot read in a sentence."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # nnU-Net and the network read plans and labels as they come
        raise InputError(
            f"plans or labels that make no network ({type(error).__name__}: {one_line(error)})",
            "those of a training of nnU-Net",
            "give another checkpoint, or choose whole plans with -d and -p",
        ) from error


@_readable()
def planned_network(
    plans: dict[str, Any], description: Mapping[str, Any], configuration: str
) -> tuple[Planned, int, int]:
    """The network that PaRTrainer trains on plans, and the numbers of input channels and of classes that they tell.

    Args:
        description: dataset.json.

    Raises:
        InputError: no such configuration, or plans and labels that make no network.
    """
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    if configuration not in plans["configurations"]:
        raise InputError(
            f"the configuration '{configuration}'", f"one of {listed(plans['configurations'])}", "correct -c"
        )
    trainer = find("trainer", "PaRTrainer").load()
    manager = PlansManager(plans)
    of_it = manager.get_configuration(configuration)
    channels = determine_num_input_channels(manager, of_it, description)
    classes = manager.get_label_manager(description).num_segmentation_heads

    @_readable()
    def build(channels: int, classes: int) -> Any:
        return trainer.build_network(of_it, channels, classes, True)

    return Planned(build, trainer.network_kwargs(of_it)), channels, classes


def read_plans_of(dataset: str, plans: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plans of that name and dataset.json of a preprocessed data set."""
    folder = nnunet_folder("nnUNet_preprocessed") / dataset_name(dataset)
    remedy = "run nnunetv2_ext plan_and_preprocess, or correct -d and -p"
    return read_plans(folder / f"{plans}.json", remedy), read_json(folder / "dataset.json", remedy)


@_readable()
def _planned(
    made_with: Mapping[str, Any], dataset: str | None, plans: str | None, configuration: str | None
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Plans, dataset.json and the configuration that PaRTrainer will train, by default those of the checkpoint."""
    plans_content, description = made_with["plans"], made_with["dataset_json"]
    if dataset is not None or plans is not None:
        plans_content, description = read_plans_of(
            dataset or plans_content["dataset_name"], plans or plans_content["plans_name"]
        )
    return plans_content, description, configuration or made_with["configuration"]


def _check_backbone(expected: dict[str, Any], trained: dict[str, Any], file: Path, remedy: str) -> None:
    if differing := differing_weights(trained, expected):
        raise InputError(
            f"{file}, whose network differs from the plans' backbone ({listed(differing, shown=3, separator='; ')})",
            "the network of the plans",
            remedy,
        )
