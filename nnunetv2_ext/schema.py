"""The keys of the `training` block: defaults, what their values may be, meanings and flags."""

from collections.abc import Callable
from typing import Any, NamedTuple

from nnunetv2_ext.errors import is_whole

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


def _is_quantile(value: Any) -> bool:
    return _is_below_one(value) and value >= 0.5


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
_QUANTILE = Values("a number in [0.5, 1)", _is_quantile, float)
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
NAMED = {"optimizer": OPTIMIZERS, "scheduler": SCHEDULERS}

SCHEMA: dict[str, Setting | dict[str, Any]] = {
    "epochs": Setting(1000, _LENGTH, "number of epochs", "--epochs"),
    "iterations_per_epoch": Setting(250, _LENGTH, "training iterations per epoch", "--iterations"),
    "val_iterations_per_epoch": Setting(
        50, _LENGTH, "validation iterations per epoch, for the pseudo Dice", "--val-iterations"
    ),
    **NAMED,
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
    "seed": Setting(
        None,
        _or_null(_FROM_ZERO),
        "from which all random numbers of the training follow",
        "--seed",
        null="other ones in each training",
    ),
}

# how the thick image is shown to the network: its slabs alone, or each of them repeated on the thin slices
THICK_GRID, THIN_GRID = "thick_grid", "thin_grid"
# what a detector's boxes are compared by: the pinball loss of their sides, or DETR's L1 and GIoU
PINBALL, L1_GIOU = "pinball", "l1_giou"


class Method(NamedTuple):
    """Keys of one method, in plans of trainers whose published block holds the group."""

    title: str
    trainer: str
    settings: dict[str, Setting]


METHODS = {
    "thin_thick": Method(
        "thin slices from thick annotations (ThinThickTrainer)",
        "ThinThickTrainer",
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
    ),
    "detector": Method(
        "boxes (DetectorTrainer)",
        "DetectorTrainer",
        {
            "box": Setting(
                PINBALL,
                Values(f"{PINBALL} or {L1_GIOU}", lambda value: value in (PINBALL, L1_GIOU), (PINBALL, L1_GIOU)),
                "the loss of a box: the pinball loss of its sides, outwards, or DETR's 5 L1 + 2 GIoU",
                "--box-loss",
            ),
            "quantile": Setting(
                0.9, _QUANTILE, "of the pinball loss: the share of organs that a side is to hold", "--quantile"
            ),
        },
    ),
    "hierarchical": Method(
        "entries of a network (HierarchicalTrainer)",
        "HierarchicalTrainer",
        {
            "entry_weights": Setting(
                None,
                _or_null(_WEIGHTS._replace(expected="a list of numbers from 0, one per entry, not all 0")),
                "weights of the losses of the patch and of a crop for each further entry; one of weight 0 is not "
                "computed, but for the patch; our planner writes them",
                null="1, 0.5, 0.25 and so on, half of the one before",
            ),
        },
    ),
}
