"""The `training` block of a configuration in the plans: its one schema, its defaults, its checks."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

from nnunetv2_ext.errors import InputError

# nnU-Net's own numbers; a method overrides what its paper does otherwise. None: what nnU-Net or the plans say.
NNUNET_SCHEDULE: dict[str, Any] = {
    "epochs": 1000,
    "iterations_per_epoch": 250,
    "val_iterations_per_epoch": 50,
    "optimizer": {"name": "SGD", "lr": 0.01, "momentum": 0.99, "nesterov": True, "weight_decay": 3e-5},
    "scheduler": {"name": "poly", "exponent": 0.9},
    "grad_clip": 12.0,
    "loss": {"dice": 1.0, "ce": 1.0},
    "deep_supervision_weights": None,
    "batch_size": None,
    "oversample_foreground": 0.33,
}

Check = tuple[str, Callable[[Any], bool]]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or _is_int(value)


def _is_positive_int(value: Any) -> bool:
    return _is_int(value) and value > 0


def _is_weight(value: Any) -> bool:
    return _is_number(value) and 0 <= value < float("inf")


_POSITIVE_INT: Check = ("a whole number from 1", _is_positive_int)
_WEIGHT: Check = ("a number from 0", _is_weight)

_SCHEMA: dict[str, Check | dict[str, Check]] = {
    "epochs": _POSITIVE_INT,
    "iterations_per_epoch": _POSITIVE_INT,
    "val_iterations_per_epoch": _POSITIVE_INT,
    "optimizer": {
        "name": ("SGD", lambda value: value == "SGD"),
        "lr": ("a number above 0", lambda value: _is_weight(value) and value > 0),
        "momentum": ("a number in [0, 1)", lambda value: _is_weight(value) and value < 1),
        "nesterov": ("true or false", lambda value: isinstance(value, bool)),
        "weight_decay": _WEIGHT,
    },
    "scheduler": {"name": ("poly", lambda value: value == "poly"), "exponent": _WEIGHT},
    # nnU-Net's training step clips at 12 itself, so a looser bound would be a lie
    "grad_clip": ("a number above 0, at most 12", lambda value: _is_number(value) and 0 < value <= 12),
    "loss": {"dice": _WEIGHT, "ce": _WEIGHT},
    "deep_supervision_weights": (
        "null or a list of numbers from 0, one per output, not all 0",
        lambda value: (
            value is None
            or (isinstance(value, list) and all(map(_is_weight, value)) and any(weight > 0 for weight in value))
        ),
    ),
    "batch_size": ("null or a whole number from 1", lambda value: value is None or _is_positive_int(value)),
    "oversample_foreground": ("a number in [0, 1]", lambda value: _is_weight(value) and value <= 1),
}


def _check(block: Any, schema: Mapping[str, Any], path: str) -> None:
    if not isinstance(block, Mapping):
        raise InputError(f"{path} = {block!r}", f"an object with keys of {', '.join(schema)}", "correct the plans")
    for key, value in block.items():
        if key not in schema:
            raise InputError(f"the unknown key '{path}.{key}'", f"one of {', '.join(schema)}", "correct or remove it")
        rule = schema[key]
        if isinstance(rule, dict):
            _check(value, rule, f"{path}.{key}")
        elif not rule[1](value):
            raise InputError(f"{path}.{key} = {value!r}", rule[0], "correct it in the plans")
    if path == "training.loss" and block.get("dice", 1) == block.get("ce", 1) == 0:
        raise InputError(f"{path} = {block!r}", "a weight above 0", "correct it in the plans")


def merge_schedule(base: Mapping[str, Any], block: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `block` laid over it, one level deep."""
    merged = deepcopy(dict(base))
    for key, value in block.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = {**merged[key], **value} if both else deepcopy(value)
    return merged


def planned_schedule(configurations: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The `training` block of a configuration, its own or the one that it inherits; {} where there is none.

    A block of its own replaces an inherited one whole, so whoever adds keys to it starts from this.
    """
    held = configurations[name]
    if "training" not in held and held.get("inherits_from") in configurations:
        return planned_schedule(configurations, held["inherits_from"])
    return held.get("training") or {}


def resolve_schedule(block: Mapping[str, Any] | None, defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The whole schedule: nnU-Net's numbers, over them a method's published ones, over them the plans' block.

    Args:
        block: the `training` block as the plans hold it; None or {} where they hold none.
        defaults: what the method's paper does otherwise than nnU-Net.

    Raises:
        InputError: an unknown key or a value of a wrong type or range, named by its path (`training.optimizer.lr`).
    """
    block = {} if block is None else block
    _check(block, _SCHEMA, "training")
    return merge_schedule(merge_schedule(NNUNET_SCHEDULE, defaults or {}), block)


def differences(schedule: Mapping[str, Any], other: Mapping[str, Any], path: str = "training") -> list[str]:
    """Where two resolved schedules differ, as lines `training.epochs: 500 and 20`."""
    lines = []
    for key in sorted({*schedule, *other}):
        mine, theirs = schedule.get(key), other.get(key)
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            lines += differences(mine, theirs, f"{path}.{key}")
        elif mine != theirs:
            lines.append(f"{path}.{key}: {mine} and {theirs}")
    return lines
