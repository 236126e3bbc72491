"""The `training` block of a configuration in the plans: its defaults, its checks, and how one goes over another."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.schema import METHODS, NAMED, SCHEMA, Setting, Values


def _named_schema(group: str, name: str) -> dict[str, Setting]:
    table = NAMED[group]
    known = Values(" or ".join(table), lambda value: isinstance(value, str) and value in table)
    return {"name": Setting(name, known, f"the other keys of `{group}` depend on it"), **table[name]}


def all_settings() -> dict[str, Setting]:
    """Every key of the block by its path, such as `optimizer.lr`; one that several optimizers have is the first's."""
    found: dict[str, Setting] = {}
    for key, entry in {**SCHEMA, **{group: method.settings for group, method in METHODS.items()}}.items():
        if isinstance(entry, Setting):
            found[key] = entry
            continue
        for settings in [_named_schema(key, name) for name in entry] if key in NAMED else [entry]:
            for name, setting in settings.items():
                found.setdefault(f"{key}.{name}", setting)
    return found


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
    return _defaults(METHODS[group].settings)


# nnU-Net's own numbers; a method overrides what its paper does otherwise. None: what nnU-Net or the plans say.
NNUNET_BLOCK: dict[str, Any] = _defaults(
    SCHEMA | {group: _named_schema(group, next(iter(table))) for group, table in NAMED.items()}
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
# some hundred iterations instead of some hundred thousand: a step of AdamW is long from the start
_SHORT: dict[str, Any] = {
    "epochs": 20,
    "iterations_per_epoch": 50,
    "optimizer": {**named_defaults("optimizer", "AdamW"), "lr": 0.002, "weight_decay": 0.01},
    "scheduler": {**named_defaults("scheduler", "warmup_poly"), "warmup_iterations": 5},
    "loss": {"dice": 1.0, "ce": 1.0},
    "batch_size": None,
}
# all of them set the same keys, so that each replaces what another one set
PRESETS: dict[str, dict[str, Any]] = {
    "nnunet": {key: NNUNET_BLOCK[key] for key in _PAR_PAPER},
    "par_paper": _PAR_PAPER,
    "short": _SHORT,
}


def _check(block: Any, schema: Mapping[str, Any], path: str) -> None:
    if not isinstance(block, Mapping):
        raise InputError(f"{path} = {block!r}", f"an object with keys of {', '.join(schema)}", "correct the plans")
    for key, value in block.items():
        if key not in schema:
            if path == "training" and key in METHODS:
                trainer = METHODS[key].trainer
                raise InputError(
                    f"the key '{path}.{key}' of {trainer}",
                    f"some of {', '.join(schema)} for another trainer",
                    f"train with -tr {trainer}, or remove the key",
                )
            of = f" for {schema['name'].default}" if "name" in schema else ""
            raise InputError(
                f"the unknown key '{path}.{key}'", f"one of {', '.join(schema)}{of}", "correct or remove it"
            )
        rule = schema[key]
        if not isinstance(rule, Setting):
            _check(value, rule, f"{path}.{key}")
        elif not rule.values.accepts(value):
            raise InputError(f"{path}.{key} = {value!r}", rule.values.expected, "correct it in the plans")


def _check_block(block: Any, base: Mapping[str, Any] | None) -> None:
    """Check a block by the optimizer and scheduler that it names, and else by those of the layer below.

    Args:
        base: the layer below; None: unknown, then the keys may be those of any optimizer or scheduler.
    """
    schema = SCHEMA | {group: of.settings for group, of in METHODS.items() if base is None or group in base}
    for group, table in NAMED.items():
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
    return key in NAMED and "name" in block and block["name"] != base.get("name")


def planned_block(configurations: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The `training` block of a configuration, its own or the one that it inherits; {} where there is none.

    A block of its own replaces an inherited one whole, so whoever adds keys to it starts from this.
    """
    held = configurations[name]
    if "training" not in held and held.get("inherits_from") in configurations:
        return planned_block(configurations, held["inherits_from"])
    return held.get("training") or {}


def check_block(block: Mapping[str, Any]) -> None:
    """Check a block alone, not knowing what it goes over: without a name, an optimizer's keys may be those of any.

    Raises:
        InputError: as `resolve_block`, or keys of several methods, which no trainer takes.
    """
    _check_block(block, None)
    groups = [f"'training.{group}'" for group in METHODS if group in block]
    if len(groups) > 1:
        raise InputError(
            f"the keys {' and '.join(groups)} together",
            "those of one method: each is its trainer's alone",
            "drop the flags, or remove the keys, of the others",
        )


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
    for group in NAMED:
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


def flags_from(block: Mapping[str, Any], other: Mapping[str, Any]) -> list[str] | None:
    """The flags of `schedule` that make `other` of a resolved block; None where a key that differs has none."""
    flags = []
    for path, setting in all_settings().items():
        group, _, key = path.rpartition(".")
        mine, wanted = ((held.get(group, {}) if group else held).get(key) for held in (block, other))
        if mine != wanted:
            if setting.flag is None or wanted is None or wanted is False:
                return None
            flags.append(setting.flag if wanted is True else f"{setting.flag} {wanted}")
    return flags
