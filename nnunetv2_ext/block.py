"""The `training` block of a configuration in the plans: its one schema, its defaults, its checks."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, NamedTuple

from nnunetv2_ext.errors import InputError, is_whole


class Setting(NamedTuple):
    """A key of the block: its default, and what is expected of its value, in words and as a test."""

    default: Any
    expected: str
    accepts: Callable[[Any], bool]


def _is_weight(value: Any) -> bool:
    return (isinstance(value, float) or is_whole(value, 0)) and 0 <= value < float("inf")


def _is_positive(value: Any) -> bool:
    return _is_weight(value) and value > 0


def _is_below_one(value: Any) -> bool:
    return _is_weight(value) and value < 1


def _is_weights(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_weight, value)) and any(weight > 0 for weight in value)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


_POSITIVE_INT = ("a whole number from 1", is_whole)
_WEIGHT = ("a number from 0", _is_weight)
_POSITIVE = ("a number above 0", _is_positive)
_BELOW_ONE = ("a number in [0, 1)", _is_below_one)
_BOOL = ("true or false", _is_bool)

# the keys are those of the class of that name in torch.optim
OPTIMIZERS: dict[str, dict[str, Setting]] = {
    "SGD": {
        "lr": Setting(0.01, *_POSITIVE),
        "momentum": Setting(0.99, *_BELOW_ONE),
        "nesterov": Setting(True, *_BOOL),
        "weight_decay": Setting(3e-5, *_WEIGHT),
    },
    "AdamW": {
        "lr": Setting(1e-4, *_POSITIVE),
        "betas": Setting(
            [0.9, 0.999],
            "a list of two numbers in [0, 1)",
            lambda value: isinstance(value, list) and len(value) == 2 and all(map(_is_below_one, value)),
        ),
        "weight_decay": Setting(0.01, *_WEIGHT),
    },
}

# nnunetv2_ext.training.scheduler builds them
SCHEDULERS: dict[str, dict[str, Setting]] = {
    "poly": {"exponent": Setting(0.9, *_WEIGHT)},
    "plateau": {
        "factor": Setting(
            0.9, "a number above 0 and below 1", lambda value: _is_positive(value) and _is_below_one(value)
        ),
        "patience": Setting(10, "a whole number from 0", lambda value: is_whole(value, 0)),
    },
    "warmup_poly": {
        "exponent": Setting(0.9, *_WEIGHT),
        "warmup_iterations": Setting(
            None, "null or a whole number from 0", lambda value: value is None or is_whole(value, 0)
        ),
    },
}

# groups whose keys depend on their name; nnU-Net's own choice stands first
_NAMED = {"optimizer": OPTIMIZERS, "scheduler": SCHEDULERS}

_SCHEMA: dict[str, Setting | dict[str, Any]] = {
    "epochs": Setting(1000, *_POSITIVE_INT),
    "iterations_per_epoch": Setting(250, *_POSITIVE_INT),
    "val_iterations_per_epoch": Setting(50, *_POSITIVE_INT),
    **_NAMED,
    # nnU-Net's training step clips at 12 itself, so a looser bound would be a lie
    "grad_clip": Setting(12.0, "a number above 0, at most 12", lambda value: _is_positive(value) and value <= 12),
    "loss": {"dice": Setting(1.0, *_WEIGHT), "ce": Setting(1.0, *_WEIGHT)},
    "deep_supervision_weights": Setting(
        None,
        "null or a list of numbers from 0, one per output, not all 0",
        lambda value: value is None or _is_weights(value),
    ),
    "batch_size": Setting(None, "null or a whole number from 1", lambda value: value is None or is_whole(value)),
    "oversample_foreground": Setting(0.33, "a number in [0, 1]", lambda value: _is_weight(value) and value <= 1),
    "freeze_backbone": Setting(False, *_BOOL),
}

# how the thick image is shown to the network: its slabs alone, or each of them repeated on the thin slices
THICK_GRID, THIN_GRID = "thick_grid", "thin_grid"

# keys of one method, in plans of trainers whose published block holds the group
METHODS: dict[str, dict[str, Setting]] = {
    "thin_thick": {
        "thick_weight": Setting(0.1, *_WEIGHT),
        "thin_weight": Setting(1.0, *_WEIGHT),
        "features_weight": Setting(0.1, *_WEIGHT),
        "beta": Setting(4.0, *_POSITIVE),
        "ramp_up_epochs": Setting(
            None, "null or a whole number from 0", lambda value: value is None or is_whole(value, 0)
        ),
        "thick_image": Setting(
            None, f"null, {THICK_GRID} or {THIN_GRID}", lambda value: value in (None, THICK_GRID, THIN_GRID)
        ),
        "slabs": Setting(None, "null or a whole number from 1", lambda value: value is None or is_whole(value)),
    },
}


def _named_schema(group: str, name: str) -> dict[str, Setting]:
    table = _NAMED[group]
    return {
        "name": Setting(name, " or ".join(table), lambda value: isinstance(value, str) and value in table),
        **table[name],
    }


def _defaults(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: deepcopy(entry.default) if isinstance(entry, Setting) else _defaults(entry)
        for key, entry in schema.items()
    }


def named_defaults(group: str, name: str) -> dict[str, Any]:
    """The own numbers of an optimizer or a scheduler, for instance of `("optimizer", "AdamW")`."""
    return _defaults(_named_schema(group, name))


def method_defaults(group: str) -> dict[str, Any]:
    """The numbers of a method's own group, for instance of "thin_thick"."""
    return _defaults(METHODS[group])


# nnU-Net's own numbers; a method overrides what its paper does otherwise. None: what nnU-Net or the plans say.
NNUNET_BLOCK: dict[str, Any] = _defaults(
    _SCHEMA | {group: _named_schema(group, next(iter(table))) for group, table in _NAMED.items()}
)

# the optimisation of PaR (Huang et al., "Volumetric Axial Disentanglement Enabling Advancing in Medical Image
# Segmentation"): its 80 000 iterations, in epochs of nnU-Net's length
_PAR_PAPER: dict[str, Any] = {
    "epochs": 320,
    "iterations_per_epoch": 250,
    "optimizer": named_defaults("optimizer", "AdamW"),
    "scheduler": named_defaults("scheduler", "plateau"),
    "loss": {"dice": 1.0, "ce": 1.0},
    "batch_size": 2,
}
# all of them set the same keys, so that each replaces what another one set
PRESETS: dict[str, dict[str, Any]] = {
    "nnunet": {key: NNUNET_BLOCK[key] for key in _PAR_PAPER},
    "par_paper": _PAR_PAPER,
}


def _check(block: Any, schema: Mapping[str, Any], path: str) -> None:
    if not isinstance(block, Mapping):
        raise InputError(f"{path} = {block!r}", f"an object with keys of {', '.join(schema)}", "correct the plans")
    for key, value in block.items():
        if key not in schema:
            of = f" for {schema['name'].default}" if "name" in schema else ""
            raise InputError(
                f"the unknown key '{path}.{key}'", f"one of {', '.join(schema)}{of}", "correct or remove it"
            )
        rule = schema[key]
        if not isinstance(rule, Setting):
            _check(value, rule, f"{path}.{key}")
        elif not rule.accepts(value):
            raise InputError(f"{path}.{key} = {value!r}", rule.expected, "correct it in the plans")


def _check_block(block: Any, base: Mapping[str, Any] | None) -> None:
    """Check a block by the optimizer and scheduler that it names, and else by those of the layer below.

    Args:
        base: the layer below; None: unknown, then the keys may be those of any optimizer or scheduler.
    """
    schema = _SCHEMA | {group: keys for group, keys in METHODS.items() if base is None or group in base}
    for group, table in _NAMED.items():
        given = block.get(group) if isinstance(block, Mapping) else None
        given = given if isinstance(given, Mapping) else {}
        if base is not None:
            name = base[group]["name"]
        else:
            name = next((name for name, keys in table.items() if given.keys() <= keys.keys()), next(iter(table)))
        if "name" in given:
            # before the other keys: they are judged by it
            _check({"name": given["name"]}, _named_schema(group, name), f"training.{group}")
            name = given["name"]
        schema[group] = _named_schema(group, name)
    _check(block, schema, "training")


def _check_together(block: Mapping[str, Any]) -> None:
    loss, optimizer = block["loss"], block["optimizer"]
    if loss["dice"] == loss["ce"] == 0:
        raise InputError(f"training.loss = {loss!r}", "a weight above 0", "correct it in the plans")
    group = block.get("thin_thick")
    if group and not (group["thick_weight"] or group["thin_weight"]):  # alone, features fall together
        raise InputError(
            "training.thin_thick.thick_weight and thin_weight = 0", "one of them above 0", "correct it in the plans"
        )
    if optimizer.get("nesterov") and optimizer["momentum"] == 0:
        raise InputError(
            "training.optimizer.nesterov = true with momentum 0",
            "a momentum above 0 for Nesterov's form of it",
            "correct one of them in the plans",
        )


def merge_blocks(base: Mapping[str, Any], block: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `block` laid over it, one level deep.

    An optimizer or a scheduler that `block` names and `base` does not keeps nothing of the one in `base`.
    """
    merged = deepcopy(dict(base))
    for key, value in block.items():
        held = merged.get(key)
        if not isinstance(value, Mapping) or not isinstance(held, Mapping) or _names_another(key, value, held):
            held = None
        merged[key] = deepcopy(value) if held is None else {**held, **deepcopy(dict(value))}
    return merged


def _names_another(key: str, block: Mapping[str, Any], base: Mapping[str, Any]) -> bool:
    return key in _NAMED and "name" in block and block["name"] != base.get("name")


def planned_block(configurations: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The `training` block of a configuration, its own or the one that it inherits; {} where there is none.

    A block of its own replaces an inherited one whole, so whoever adds keys to it starts from this.
    """
    held = configurations[name]
    if "training" not in held and held.get("inherits_from") in configurations:
        return planned_block(configurations, held["inherits_from"])
    return held.get("training") or {}


def passes(block: Mapping[str, Any], slices: int) -> float:
    """Passes of a training step over a patch of so many slices, each counting by its share of them.

    1, but with `thin_thick` also the thick image's, on the thin grid where the block does not say.
    """
    group = block.get("thin_thick")
    if group is None or not (group["thick_weight"] or group["features_weight"]):
        return 1.0
    return 1.0 + (group["slabs"] / slices if group["thick_image"] == THICK_GRID and group["slabs"] else 1.0)


def check_block(block: Mapping[str, Any]) -> None:
    """Check a block alone, not knowing what it goes over: without a name, an optimizer's keys may be those of any.

    Raises:
        InputError: as `resolve_block`.
    """
    _check_block(block, None)


def resolve_block(block: Mapping[str, Any] | None, defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The whole block: nnU-Net's numbers, over them a method's published ones, over them the plans' block.

    A layer that names another optimizer or scheduler than the one below starts from the own numbers of that one.

    Args:
        block: the `training` block as the plans hold it; None or {} where they hold none.
        defaults: what the method's paper does otherwise than nnU-Net.

    Raises:
        InputError: an unknown key or a value of a wrong type or range, named by its path (`training.optimizer.lr`).
    """
    base = merge_blocks(NNUNET_BLOCK, defaults or {})
    block = {} if block is None else block
    _check_block(block, base)
    resolved = merge_blocks(base, block)
    for group in _NAMED:
        resolved[group] = named_defaults(group, resolved[group]["name"]) | resolved[group]
    _check_together(resolved)
    return resolved


def differences(block: Mapping[str, Any], other: Mapping[str, Any], path: str = "training") -> list[str]:
    """Where two resolved blocks differ, as lines `training.epochs: 500 and 20`."""
    lines = []
    for key in sorted({*block, *other}):
        mine, theirs = block.get(key), other.get(key)
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            lines += differences(mine, theirs, f"{path}.{key}")
        elif mine != theirs:
            lines.append(f"{path}.{key}: {mine} and {theirs}")
    return lines
