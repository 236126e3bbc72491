"""nnU-Net's checkpoints, read so that they run no code, and checked before anything relies on what they hold."""

from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nnunetv2_ext.errors import InputError, is_whole
from nnunetv2_ext.files import read_plans
from nnunetv2_ext.text import counted, listed
from nnunetv2_ext.weights.files import read_torch_file

PREDICTION_KEYS = ("network_weights", "init_args", "trainer_name")
REQUIRED_KEYS = (*PREDICTION_KEYS, "current_epoch", "logging", "optimizer_state")
EVERY_EPOCH = ("train_losses", "val_losses", "mean_fg_dice", "ema_fg_dice", "lrs")
"""What nnU-Net logs once an epoch."""
REMEDY = "continue from an earlier checkpoint with --c, or train again"
TRUSTED = (
    "take one from a source that you trust, or, if the class is your own, name it in "
    "torch.serialization.add_safe_globals in your trainer's module"
)


def read_checkpoint(
    path: Path, *, resume: bool = True, trust: bool = False, remedy: str = REMEDY, trusted: str = TRUSTED
) -> dict[str, Any]:
    """The verified content of a checkpoint, ours or nnU-Net's, on the CPU; nothing in it is run.

    Args:
        resume: a training is to go on from it; else what prediction needs is looked at, no more.
        trust, remedy, trusted: as of `read_torch_file`.

    Raises:
        ForeignObject: more than tensors, numbers and texts in it.
        InputError: the file is missing, truncated or damaged, is no checkpoint of a trainer, contradicts itself or
            holds weights that are no finite numbers.
    """
    content = read_torch_file(path, trust=trust, noun="checkpoint", remedy=remedy, trusted=trusted)
    keys = REQUIRED_KEYS if resume else PREDICTION_KEYS
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise InputError(f"{path} without {', '.join(missing)}", "a checkpoint that a trainer wrote", remedy)
    faults = prediction_faults(content) or (resume_faults(content) if resume else [])
    if faults:
        raise InputError(f"the damaged checkpoint {path} ({faults[0]})", "what a trainer writes", remedy)
    return content


class MadeBy(NamedTuple):
    """What tells the model that a checkpoint is of."""

    trainer_name: str
    configuration: str
    mirroring_axes: tuple[int, ...] | None
    """Of `inference_allowed_mirroring_axes`."""

    @property
    def told(self) -> str:
        """In words."""
        mirrored = "no" if self.mirroring_axes is None else listed(self.mirroring_axes)
        return f"{self.trainer_name}, {self.configuration} (mirroring axes: {mirrored})"


def made_by(content: Mapping[str, Any]) -> MadeBy:
    """Of a checkpoint as `read_checkpoint` returned it."""
    axes = content.get("inference_allowed_mirroring_axes")
    mirroring = None if axes is None else tuple(int(axis) for axis in axes)
    return MadeBy(content["trainer_name"], content["init_args"]["configuration"], mirroring)


def read_folds(
    model: Path, folds: Sequence[str], checkpoint: str, **reading: Any
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The checkpoint of each fold in turn, for prediction.

    Args:
        model: folder of the model, with its plans.json.
        folds: names after `fold_`.
        reading: trust, remedy, trusted, as of `read_checkpoint`.

    Raises:
        InputError: as `read_checkpoint`, folds of several models, or plans without the configuration.
    """
    plans = read_plans(model / "plans.json", "give the folder of a trained model")
    first: MadeBy | None = None
    for fold in folds:
        content = read_checkpoint(model / f"fold_{fold}" / checkpoint, resume=False, **reading)
        made = made_by(content)
        first = first or made
        if made != first:
            what = f"fold {fold} of {made.told} and fold {folds[0]} of {first.told} in {model}"
            raise InputError(what, "folds of one model", "choose them with -f")
        if made.configuration not in plans["configurations"]:
            what = f"{model / 'plans.json'} without the configuration {made.configuration}, which was trained"
            raise InputError(what, "the plans of the training", "copy them there")
        yield fold, content


def is_readable(path: Path) -> bool:
    """Whether the file is a whole checkpoint."""
    try:
        read_checkpoint(path)
    except InputError:
        return False
    return True


def prediction_faults(content: Mapping[str, Any]) -> list[str]:
    """What is wrong with the parts of a checkpoint that prediction needs; empty if nothing is."""
    weights, made_with = content["network_weights"], content["init_args"]
    if not isinstance(weights, dict) or not weights:
        return ["its network_weights are no dict of tensors"]
    strangers = [str(key) for key, value in weights.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if strangers:
        return [f"no tensors in network_weights: {listed(strangers, shown=3)}"]
    if broken := not_finite(weights):
        return [f"weights that are no finite numbers: {counted(broken, 'tensor')}"]
    if not isinstance(content["trainer_name"], str):
        return ["its trainer_name is no text"]
    if not isinstance(made_with, dict):
        return ["its init_args are no dict"]
    kinds = {"plans": dict, "dataset_json": dict, "configuration": str}
    lacking = [key for key, kind in kinds.items() if not isinstance(made_with.get(key), kind)]
    if lacking:
        return [f"init_args without {', '.join(lacking)}"]
    configurations = made_with["plans"].get("configurations")
    if not isinstance(configurations, dict) or not isinstance(configurations.get(made_with["configuration"]), dict):
        return [f"init_args whose plans lack the configuration {made_with['configuration']}"]
    return []


def resume_faults(content: Mapping[str, Any]) -> list[str]:
    """What is wrong with the parts that a training needs to go on; empty if nothing is."""
    epoch, log, optimizer = content["current_epoch"], content["logging"], content["optimizer_state"]
    if not is_whole(epoch, least=0):
        return [f"its epoch is {epoch!r}, no whole number"]
    if not isinstance(log, dict):
        return ["its log is no dict"]
    # a method's own terms may have come later
    wrong = [key for key in EVERY_EPOCH if not isinstance(log.get(key), list) or len(log[key]) != epoch]
    wrong += [str(key) for key, values in log.items() if not isinstance(values, list) or len(values) > epoch]
    if wrong:
        return [f"its log of {', '.join(dict.fromkeys(wrong))} has not one entry for each of {epoch} epochs"]
    numbers = [value for key in EVERY_EPOCH for value in log[key]]
    if not all(isinstance(value, Real) for value in numbers):
        return ["its log holds more than numbers"]
    state = optimizer.get("state") if isinstance(optimizer, dict) else None
    groups = optimizer.get("param_groups") if isinstance(optimizer, dict) else None
    if not isinstance(state, dict) or not isinstance(groups, list) or not groups:
        return ["its optimizer_state lacks state or param_groups"]
    if not all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups):
        return ["its optimizer_state names no parameters"]
    if not all(isinstance(moments, dict) for moments in state.values()):
        return ["its optimizer_state is no dict of dicts"]
    if not_finite(of_optimizer(state)):
        return ["its optimizer_state holds numbers that are not finite"]
    return []


def of_optimizer(state: Mapping[Any, Mapping[str, Any]]) -> dict[str, Any]:
    """The entries of an optimizer's state by one name each."""
    return {f"{index}.{key}": value for index, moments in state.items() for key, value in moments.items()}


def not_finite(tensors: Mapping[str, Any]) -> list[str]:
    """The names of the tensors that hold NaN or infinity."""
    return [
        name
        for name, tensor in tensors.items()
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]


def differing_weights(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Names and shapes in which weights differ from those that a network has; `module.` of a parallel one is none."""
    named = {key if key in expected else key.removeprefix("module."): value for key, value in weights.items()}
    return [
        f"{key} {_shape(named.get(key))} instead of {_shape(expected.get(key))}"
        for key in sorted({*expected, *named})
        if _shape(named.get(key)) != _shape(expected.get(key))
    ]


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else str(tuple(tensor.shape))


def optimizer_faults(optimizer: Mapping[str, Any], parameters: list[list[Tensor]]) -> list[str]:
    """In what an optimizer's state differs from the parameters of its groups.

    Args:
        optimizer: as `resume_faults` passed it.
        parameters: of each group.
    """
    lengths = [len(group["params"]) for group in optimizer["param_groups"]], [len(group) for group in parameters]
    if lengths[0] != lengths[1]:
        return [f"its optimizer_state is of {lengths[0]} parameters instead of {lengths[1]}"]
    order = [index for group in optimizer["param_groups"] for index in group["params"]]
    shapes = dict(zip(order, (tensor.shape for group in parameters for tensor in group), strict=True))
    for index, moments in optimizer["state"].items():
        for key, value in moments.items():
            if index not in shapes or (isinstance(value, Tensor) and value.ndim and value.shape != shapes[index]):
                return [f"its optimizer_state of parameter {index} ({key}) is of another network"]
    return []
