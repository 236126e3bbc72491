"""What `nnunetv2_ext profile` profiles: the network of a trainer with plans, or an architecture with its arguments.

A subject is described by plain values, so that a process of its own can build the same network.
"""

import inspect
import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

import nnunetv2_ext
from nnunetv2_ext import registry
from nnunetv2_ext.entry import Entry
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.text import one_line

REFINER = Entry("PaR:none", "nnunetv2_ext.architectures.PaR", "the refiner alone, on logits")


@dataclass(frozen=True)
class Subject:
    """A network to profile.

    Attributes:
        title: what it is, in a line.
        build: makes the network with fresh weights, on the device of a `torch.device` context.
        shape: of one sample, (channels, *patch).
        description: the arguments of `find_subject`, in values that JSON can hold.
    """

    title: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    description: Mapping[str, Any]


def find_subject(**description: Any) -> Subject:
    """The subject of `architecture_subject` or `training_subject`, whichever has these arguments."""
    return training_subject(**description) if "dataset" in description else architecture_subject(**description)


def architecture_subject(
    architecture: str,
    patch_size: Sequence[int],
    channels: int = 1,
    classes: int = 2,
    kwargs: Mapping[str, Any] | None = None,
) -> Subject:
    """A network of the grammar (`nnunetv2_ext.registry.find_network`), or the refiner alone (`PaR:none`).

    Args:
        patch_size: voxels along z, y, x; also the network's `spatial_shape` where it has one and `kwargs` give none.
        channels: of the input. The refiner's input are logits, so that its channels are the classes.
        kwargs: of the constructor; for a backbone those of `BackboneNetwork`.

    Raises:
        InputError: an unknown name (the message lists the known), sizes below 1, arguments that the network does not
            have or lacks, a missing optional dependency; from `build`, arguments that it refuses.
    """
    given = dict(kwargs or {})
    network_class, settled = _find_class(architecture)
    parameters = inspect.signature(network_class).parameters
    settled["num_classes"] = classes
    if "input_channels" in parameters:
        settled["input_channels"] = channels
    else:
        channels = classes
    known = [key for key in parameters if key not in settled]
    for key in given:
        if key not in known:
            raise InputError(f"the argument '{key}' of {architecture}", f"one of {', '.join(known)}", "correct it")
    if min([*patch_size, channels, classes], default=0) < 1:
        raise InputError(
            f"a patch of {tuple(patch_size)}, {channels} channels, {classes} classes",
            "numbers of at least 1",
            "correct it",
        )
    shape = {"spatial_shape": list(patch_size)} if "spatial_shape" in known else {}
    arguments = {**shape, **given, **settled}
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in arguments:
            raise InputError(f"no '{key}' of {architecture}", "a value for it", f"pass --kwargs '{{\"{key}\": ...}}'")
    return Subject(
        f"{architecture}, {classes} classes",
        partial(_construct, architecture, network_class, arguments),
        (channels, *patch_size),
        {
            "architecture": architecture,
            "patch_size": list(patch_size),
            "channels": channels,
            "classes": classes,
            "kwargs": given,
        },
    )


def _find_class(name: str) -> tuple[Any, dict[str, Any]]:
    """The class behind a name of the grammar, and the arguments that the name settles."""
    if name == REFINER.name:
        return REFINER.load(), {}
    named = registry.find_network(name)
    if "backbone" in named.kwargs:
        registry.find("backbone", named.kwargs["backbone"]).load()  # a missing extra is told here
    return registry.find("architecture", named.architecture).load(), named.kwargs


def _construct(name: str, network_class: Any, arguments: Mapping[str, Any]) -> nn.Module:
    try:
        return network_class(**arguments)
    except InputError:
        raise
    except (TypeError, ValueError, KeyError, AssertionError) as error:
        raise InputError(
            f"{name} with {dict(arguments)}, which it refuses ({one_line(error)})",
            "arguments that it takes",
            "correct them",
        ) from error


def training_subject(dataset: str, configuration: str, trainer: str, plans: str) -> Subject:
    """The network that a trainer builds for plans, deep supervision included.

    Args:
        dataset: id or name of a data set in nnUNet_preprocessed.

    Raises:
        InputError: what `nnunetv2_ext doctor` would find wrong on the way to the network.
    """
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

    from nnunetv2_ext.doctor import dataset as of_dataset
    from nnunetv2_ext.doctor import training as of_training
    from nnunetv2_ext.doctor.examination import FAIL, said
    from nnunetv2_ext.doctor.examination import Subject as Examined

    nnunetv2_ext.register()
    examined = Examined(dataset, configuration, trainer, plans)
    for check in (
        of_dataset.check_dataset,
        of_dataset.check_dataset_json,
        of_training.check_plans,
        of_training.check_trainer,
        of_training.check_configuration,
        of_training.check_network,
    ):
        try:
            results = list(check(examined))
        except InputError:
            raise
        except Exception as error:  # nnU-Net reads plans and labels as they come
            raise InputError(
                f"plans or labels of another kind ({said(error)})",
                "a training that can start",
                f"run nnunetv2_ext doctor -d {dataset} -c {configuration} -tr {trainer} -p {plans}",
            ) from error
        for result in results:
            if result.status == FAIL:
                raise InputError(result.what, "a training that can start", result.remedy)
    found = examined.found
    if "network" not in found:
        raise InputError(
            f"{trainer}, whose build_network_architecture has a signature of its own", "nnU-Net's", "choose another -tr"
        )
    manager, planned, labels = found["plans_manager"], found["configuration"], found["dataset_json"]
    channels = determine_num_input_channels(manager, planned, labels)
    classes = manager.get_label_manager(labels).num_segmentation_heads

    def build() -> nn.Module:
        with redirect_stdout(io.StringIO()):  # nnU-Net's networks print
            # copies: some trainers write into what they are given
            return found["trainer"].build_network_architecture(
                deepcopy(manager), deepcopy(planned), channels, classes, True
            )

    return Subject(
        f"{trainer} on {found['name']} {plans} {configuration}, {classes} classes",
        build,
        (channels, *planned.patch_size),
        {"dataset": dataset, "configuration": configuration, "trainer": trainer, "plans": plans},
    )
