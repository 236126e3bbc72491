"""The `training` block of a configuration in the plans: its one schema, with defaults, checks, meanings and flags."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, NamedTuple

from nnunetv2_ext.errors import InputError, is_whole

NNUNET_CLIP = 12
"""The norm to which nnU-Net's training step, and ours, clip gradients."""


class Values(NamedTuple):
    """What a value may be: in words, as a test, and how a flag's text becomes one."""

    expected: str
    accepts: Callable[[Any], bool]
    kind: type | tuple[str, ...] = str
    """int, float, bool for a switch, or the words to choose from."""


class Setting(NamedTuple):
    """A key of the block: all that checks, `--help` and the reference derive from."""

    default: Any
    values: Values
    meaning: str
    flag: str | None = None
    """Of `schedule` and `plan_and_preprocess`, where it has one."""
    null: str = ""
    """What null stands for, where it is allowed."""


def _is_weight(value: Any) -> bool:
    return (isinstance(value, float) or is_whole(value, 0)) and 0 <= value < float("inf")


def _is_positive(value: Any) -> bool:
    return _is_weight(value) and value > 0


def _is_below_one(value: Any) -> bool:
    return _is_weight(value) and value < 1


def _is_weights(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_weight, value)) and any(weight > 0 for weight in value)


def _is_two_below_one(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_below_one, value))


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _or_null(values: Values) -> Values:
    return values._replace(
        expected=f"null or {values.expected}", accepts=lambda value: value is None or values.accepts(value)
    )


_FROM_ONE = Values("a whole number from 1", is_whole, int)
_MOST = 1_000_000
"""Epochs, or iterations of an epoch, beyond which a number is a slip of the pen."""
_LENGTH = Values(f"a whole number from 1 to {_MOST}", lambda value: is_whole(value) and value <= _MOST, int)
_FROM_ZERO = Values("a whole number from 0", lambda value: is_whole(value, 0), int)
_WEIGHT = Values("a number from 0", _is_weight, float)
_POSITIVE = Values("a number above 0", _is_positive, float)
_BELOW_ONE = Values("a number in [0, 1)", _is_below_one, float)
_SHARE = Values("a number in [0, 1]", lambda value: _is_weight(value) and value <= 1, float)
_FACTOR = Values("a number above 0 and below 1", lambda value: _is_positive(value) and _is_below_one(value), float)
_CLIP = Values(
    f"a number above 0, at most {NNUNET_CLIP}", lambda value: _is_positive(value) and value <= NNUNET_CLIP, float
)
_WEIGHTS = Values("a list of numbers from 0, one per output, not all 0", _is_weights)
_TWO_BELOW_ONE = Values("a list of two numbers in [0, 1)", _is_two_below_one)
_BOOL = Values("true or false", _is_bool, bool)

_LR = Setting(0.01, _POSITIVE, "initial learning rate", "--lr")
_WEIGHT_DECAY = Setting(3e-5, _WEIGHT, "weight decay; AdamW's is apart from the gradient", "--weight-decay")
# the keys are those of the class of that name in torch.optim
OPTIMIZERS: dict[str, dict[str, Setting]] = {
    "SGD": {
        "lr": _LR,
        "momentum": Setting(0.99, _BELOW_ONE, "0 only without `nesterov`"),
        "nesterov": Setting(True, _BOOL, "Nesterov's form of the momentum"),
        "weight_decay": _WEIGHT_DECAY,
    },
    "AdamW": {
        "lr": _LR._replace(default=1e-4),
        "betas": Setting([0.9, 0.999], _TWO_BELOW_ONE, "decay of the running means of the gradient and of its square"),
        "weight_decay": _WEIGHT_DECAY._replace(default=0.01),
    },
}

_EXPONENT = Setting(0.9, _WEIGHT, "of the decay of the learning rate")
# nnunetv2_ext.training.scheduler builds them
SCHEDULERS: dict[str, dict[str, Setting]] = {
    "poly": {"exponent": _EXPONENT},
    "plateau": {
        "factor": Setting(0.9, _FACTOR, "what the learning rate is multiplied with on a plateau"),
        "patience": Setting(
            10, _FROM_ZERO, "epochs in a row that may pass without a lower validation loss; the next one reduces"
        ),
    },
    "warmup_poly": {
        "exponent": _EXPONENT,
        "warmup_iterations": Setting(
            None, _or_null(_FROM_ZERO), "iterations in which the learning rate rises", null="5 % of all, at least 200"
        ),
    },
}

# groups whose keys depend on their name; nnU-Net's own choice stands first
_NAMED = {"optimizer": OPTIMIZERS, "scheduler": SCHEDULERS}

_SCHEMA: dict[str, Setting | dict[str, Any]] = {
    "epochs": Setting(1000, _LENGTH, "number of epochs", "--epochs"),
    "iterations_per_epoch": Setting(250, _LENGTH, "training iterations per epoch", "--iterations"),
    "val_iterations_per_epoch": Setting(
        50, _LENGTH, "validation iterations per epoch, for the pseudo Dice", "--val-iterations"
    ),
    **_NAMED,
    # the training step clips at that itself, so a looser bound would be a lie
    "grad_clip": Setting(
        12.0, _CLIP, "bound of the gradient's norm, at most 12, where nnU-Net clips itself", "--grad-clip"
    ),
    "loss": {
        "dice": Setting(1.0, _WEIGHT, "weight of the Dice loss"),
        "ce": Setting(1.0, _WEIGHT, "weight of the cross-entropy (with regions: binary cross-entropy)"),
    },
    "deep_supervision_weights": Setting(
        None,
        _or_null(_WEIGHTS),
        "weights of the network's outputs, divided by their sum; without effect on a network of one output, which "
        "trains without deep supervision",
        null="nnU-Net's halving weights",
    ),
    "batch_size": Setting(
        None, _or_null(_FROM_ONE), "number of patches in a batch", "--batch-size", null="the configuration's"
    ),
    "oversample_foreground": Setting(0.33, _SHARE, "share of the patches that must hold foreground"),
    "freeze_backbone": Setting(
        False, _BOOL, "train only what refines the backbone's output, in networks that refine one", "--freeze-backbone"
    ),
}

# how the thick image is shown to the network: its slabs alone, or each of them repeated on the thin slices
THICK_GRID, THIN_GRID = "thick_grid", "thin_grid"


class Method(NamedTuple):
    """Keys of one method, in plans of trainers whose published block holds the group."""

    title: str
    settings: dict[str, Setting]


METHODS = {
    "thin_thick": Method(
        "thin slices from thick annotations (ThinThickTrainer)",
        {
            "thick_weight": Setting(0.1, _WEIGHT, "weight of the loss of the thick image", "--thick-weight"),
            "thin_weight": Setting(1.0, _WEIGHT, "weight of the loss of averaged thin predictions", "--thin-weight"),
            "features_weight": Setting(
                0.1, _WEIGHT, "weight of the distance between the features of both", "--features-weight"
            ),
            "beta": Setting(4.0, _POSITIVE, "sharpening of the averages, 1 as published", "--beta"),
            "ramp_up_epochs": Setting(
                None,
                _or_null(_FROM_ZERO),
                "epochs in which beta rises from 1 and the weight of the features from 0, in equal steps; 0: whole "
                "from the start",
                "--ramp-up-epochs",
                null="all of the training",
            ),
            "thick_image": Setting(
                None,
                Values(
                    f"null, {THICK_GRID} or {THIN_GRID}",
                    lambda value: value in (None, THICK_GRID, THIN_GRID),
                    (THICK_GRID, THIN_GRID),
                ),
                "how the network sees the thick image: as few thick slices, or each repeated on the thin ones",
                "--thick-image",
                null="on the thick grid where the network takes it",
            ),
            "slabs": Setting(
                None,
                _or_null(_FROM_ONE),
                "thick slices of a patch, to which all are filled up; our planner writes it",
                null="as many as a patch covers in any case and the network takes",
            ),
        },
    )
}


def _named_schema(group: str, name: str) -> dict[str, Setting]:
    table = _NAMED[group]
    known = Values(" or ".join(table), lambda value: isinstance(value, str) and value in table)
    return {"name": Setting(name, known, f"the other keys of `{group}` depend on it"), **table[name]}


def all_settings() -> dict[str, Setting]:
    """Every key of the block by its path, such as `optimizer.lr`; one that several optimizers have is the first's."""
    found: dict[str, Setting] = {}
    for key, entry in {**_SCHEMA, **{group: method.settings for group, method in METHODS.items()}}.items():
        if isinstance(entry, Setting):
            found[key] = entry
            continue
        for settings in [_named_schema(key, name) for name in entry] if key in _NAMED else [entry]:
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
        elif not rule.values.accepts(value):
            raise InputError(f"{path}.{key} = {value!r}", rule.values.expected, "correct it in the plans")


def _check_block(block: Any, base: Mapping[str, Any] | None) -> None:
    """Check a block by the optimizer and scheduler that it names, and else by those of the layer below.

    Args:
        base: the layer below; None: unknown, then the keys may be those of any optimizer or scheduler.
    """
    schema = _SCHEMA | {group: of.settings for group, of in METHODS.items() if base is None or group in base}
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
