"""The `training` block: what is refused, what is filled in, how two blocks differ."""

from copy import deepcopy
from typing import Any

import pytest

from nnunetv2_ext.block import (
    NNUNET_BLOCK,
    PRESETS,
    check_block,
    differences,
    flags_from,
    merge_blocks,
    method_defaults,
    named_defaults,
    planned_block,
    resolve_block,
)
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.memory import passes
from nnunetv2_ext.schema import OPTIMIZERS, SCHEDULERS

# what only the whole block tells
NO_LOSS = r"training.loss = \{'dice': 0, 'ce': 0\}; expected a weight above 0"
NO_MOMENTUM = "training.optimizer.nesterov = true with momentum 0; expected a momentum above 0"
ONLY_IN_THE_WHOLE = (NO_LOSS, NO_MOMENTUM)

BAD: list[tuple[Any, str]] = [
    ({"epoch": 5}, "unknown key 'training.epoch'; expected one of epochs, iterations_per_epoch"),
    ({"optimizer": {"learning_rate": 0.1}}, "unknown key 'training.optimizer.learning_rate'; expected one of name, lr"),
    ({"scheduler": {"power": 0.9}}, "unknown key 'training.scheduler.power'"),
    ({"epochs": "5"}, "training.epochs = '5'; expected a whole number from 1"),
    ({"epochs": 5.0}, "training.epochs = 5.0"),
    ({"epochs": True}, "training.epochs = True"),
    ({"epochs": 0}, "training.epochs = 0"),
    ({"epochs": None}, "training.epochs = None"),
    ({"iterations_per_epoch": -1}, "training.iterations_per_epoch = -1"),
    ({"val_iterations_per_epoch": []}, r"training.val_iterations_per_epoch = \[\]"),
    ({"batch_size": 0}, "training.batch_size = 0; expected null or"),
    ({"batch_size": True}, "training.batch_size = True"),
    ({"optimizer": "SGD"}, "training.optimizer = 'SGD'; expected an object"),
    ({"optimizer": {"name": "Adam"}}, "training.optimizer.name = 'Adam'; expected SGD or AdamW"),
    ({"optimizer": {"betas": [0.9, 0.99], "name": "Adam"}}, "training.optimizer.name = 'Adam'"),
    ({"optimizer": {"name": ["SGD"]}}, r"training.optimizer.name = \['SGD'\]"),
    (
        {"optimizer": {"name": "AdamW", "momentum": 0.9}},
        "unknown key 'training.optimizer.momentum'; expected one of name, lr, betas, weight_decay for AdamW; correct",
    ),
    ({"optimizer": {"momentum": 0.9, "name": "AdamW"}}, "unknown key 'training.optimizer.momentum'"),
    ({"optimizer": {"name": "SGD", "betas": [0.9, 0.999]}}, "unknown key 'training.optimizer.betas'.* for SGD"),
    ({"optimizer": {"name": "AdamW", "betas": 0.9}}, "training.optimizer.betas = 0.9; expected a list of two numbers"),
    ({"optimizer": {"name": "AdamW", "betas": [0.9]}}, "training.optimizer.betas"),
    ({"optimizer": {"name": "AdamW", "betas": [0.9, 1]}}, "training.optimizer.betas"),
    ({"optimizer": {"name": "AdamW", "betas": [0.9, "0"]}}, "training.optimizer.betas"),
    ({"optimizer": {"lr": 0}}, "training.optimizer.lr = 0; expected a number above 0"),
    ({"optimizer": {"lr": float("nan")}}, "training.optimizer.lr = nan"),
    ({"optimizer": {"lr": float("inf")}}, "training.optimizer.lr = inf"),
    ({"optimizer": {"lr": True}}, "training.optimizer.lr = True"),
    ({"optimizer": {"momentum": 1}}, "training.optimizer.momentum = 1; expected a number in"),
    ({"optimizer": {"nesterov": 1}}, "training.optimizer.nesterov = 1; expected true or false"),
    ({"optimizer": {"momentum": 0}}, NO_MOMENTUM),
    ({"optimizer": {"weight_decay": -1e-5}}, "training.optimizer.weight_decay"),
    ({"scheduler": {"name": "cosine"}}, "training.scheduler.name = 'cosine'; expected poly or plateau or warmup_poly"),
    ({"scheduler": {"name": "plateau", "exponent": 0.9}}, "unknown key 'training.scheduler.exponent'.* for plateau"),
    ({"scheduler": {"name": "poly", "patience": 3}}, "unknown key 'training.scheduler.patience'.* for poly"),
    ({"scheduler": {"name": "plateau", "factor": 1}}, "training.scheduler.factor = 1; expected a number above 0 and"),
    ({"scheduler": {"name": "plateau", "factor": 0}}, "training.scheduler.factor = 0"),
    ({"scheduler": {"name": "plateau", "patience": 1.5}}, "training.scheduler.patience = 1.5; expected a whole number"),
    ({"scheduler": {"name": "plateau", "patience": -1}}, "training.scheduler.patience = -1"),
    (
        {"scheduler": {"name": "poly", "warmup_iterations": 5}},
        "unknown key 'training.scheduler.warmup_iterations'.* for poly",
    ),
    ({"scheduler": {"name": "warmup_poly", "patience": 3}}, "unknown key 'training.scheduler.patience'.* for warmup"),
    ({"scheduler": {"name": "warmup_poly", "exponent": -1}}, "training.scheduler.exponent = -1"),
    (
        {"scheduler": {"name": "warmup_poly", "warmup_iterations": -1}},
        "warmup_iterations = -1; expected null or a whol",
    ),
    ({"scheduler": {"name": "warmup_poly", "warmup_iterations": 0.05}}, "training.scheduler.warmup_iterations = 0.05"),
    ({"scheduler": {"name": "warmup_poly", "warmup_iterations": True}}, "training.scheduler.warmup_iterations = True"),
    ({"freeze_backbone": "yes"}, "training.freeze_backbone = 'yes'; expected true or false"),
    ({"freeze_backbone": None}, "training.freeze_backbone = None"),
    ({"grad_clip": 13}, "training.grad_clip = 13; expected a number above 0, at most 12"),
    ({"grad_clip": 0}, "training.grad_clip = 0"),
    ({"loss": {"dice": "1"}}, "training.loss.dice = '1'"),
    ({"loss": {"dice": 0, "ce": 0}}, NO_LOSS),
    ({"deep_supervision_weights": 1}, "training.deep_supervision_weights = 1"),
    ({"deep_supervision_weights": []}, "training.deep_supervision_weights"),
    ({"deep_supervision_weights": [0, 0.0]}, "not all 0"),
    ({"deep_supervision_weights": [1, -1]}, "training.deep_supervision_weights"),
    ({"deep_supervision_weights": [1, True]}, "training.deep_supervision_weights"),
    ({"oversample_foreground": 1.1}, "training.oversample_foreground = 1.1"),
    (["epochs"], r"training = \['epochs'\]; expected an object"),
    (5, "training = 5"),
]


@pytest.mark.parametrize(("block", "message"), BAD, ids=lambda value: str(value)[:40])
def test_refused(block: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve_block(block)


THIN_THICK = {"thin_thick": method_defaults("thin_thick")}
BAD_FOR_THIN_THICK: list[tuple[Any, str]] = [
    ({"weights": [1, 1, 0.1]}, "unknown key 'training.thin_thick.weights'; expected one of thick_weight, thin_weight"),
    ({"thick_weight": -1}, "training.thin_thick.thick_weight = -1; expected a number from 0"),
    ({"thick_weight": 0, "thin_weight": 0.0}, "thick_weight and thin_weight = 0; expected one of them above 0"),
    ({"beta": 0}, "training.thin_thick.beta = 0; expected a number above 0"),
    ({"ramp_up_epochs": 1.5}, "training.thin_thick.ramp_up_epochs = 1.5"),
    ({"thick_image": "thin"}, "training.thin_thick.thick_image = 'thin'; expected null, thick_grid or thin_grid"),
    ({"slabs": 0}, "training.thin_thick.slabs = 0; expected null or a whole number from 1"),
]


@pytest.mark.parametrize(("group", "message"), BAD_FOR_THIN_THICK, ids=lambda value: str(value)[:40])
def test_refused_for_thin_thick(group: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve_block({"thin_thick": group}, THIN_THICK)


def test_keys_of_a_method_belong_to_it() -> None:
    block = {"thin_thick": {"beta": 1.0}}
    assert resolve_block(block, THIN_THICK)["thin_thick"] == {**THIN_THICK["thin_thick"], "beta": 1.0}
    assert "thin_thick" not in resolve_block(None)
    with pytest.raises(
        InputError, match=r"'training\.thin_thick' of ThinThickTrainer; .* train with -tr ThinThickTrainer"
    ):
        resolve_block(block)
    check_block(block)  # alone, it may be of any method


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        (None, 1),
        ({}, 2),
        ({"thick_image": "thick_grid", "slabs": 8}, 1.25),
        ({"thick_image": "thin_grid", "slabs": 8}, 2),
        ({"thick_weight": 0}, 2),
        ({"thick_weight": 0, "features_weight": 0.0}, 1),
    ],
)
def test_passes_of_a_step(group: Any, expected: float) -> None:
    block = resolve_block(None) if group is None else resolve_block({"thin_thick": group}, THIN_THICK)
    assert passes(block, 32) == expected


@pytest.mark.parametrize("block", [None, {}, {"epochs": 1000}])
def test_missing_keys_take_nnunets_numbers(block: Any) -> None:
    assert resolve_block(block) == NNUNET_BLOCK


def test_defaults_of_a_method_lie_between() -> None:
    method = {"epochs": 500, "optimizer": {"lr": 0.1, "momentum": 0.9}}
    block = resolve_block({"optimizer": {"lr": 0.5}}, method)
    assert block["epochs"] == 500
    assert block["optimizer"] == {**NNUNET_BLOCK["optimizer"], "lr": 0.5, "momentum": 0.9}
    assert resolve_block(block) == block


SGD = named_defaults("optimizer", "SGD")
ADAMW = named_defaults("optimizer", "AdamW")


@pytest.mark.parametrize(
    ("method", "block", "expected"),
    [
        (None, None, SGD),
        (None, {"name": "SGD", "lr": 0.5}, {**SGD, "lr": 0.5}),
        (None, {"name": "AdamW"}, ADAMW),
        (None, {"name": "AdamW", "lr": 0.5}, {**ADAMW, "lr": 0.5}),
        ({"name": "AdamW"}, None, ADAMW),
        ({"name": "AdamW", "weight_decay": 0.1}, {"lr": 0.5}, {**ADAMW, "weight_decay": 0.1, "lr": 0.5}),
        ({"name": "AdamW", "weight_decay": 0.1}, {"betas": [0, 0]}, {**ADAMW, "weight_decay": 0.1, "betas": [0, 0]}),
        ({"name": "AdamW", "weight_decay": 0.1}, {"name": "AdamW"}, {**ADAMW, "weight_decay": 0.1}),
        ({"name": "AdamW", "weight_decay": 0.1}, {"name": "SGD"}, SGD),
        ({"lr": 0.5, "momentum": 0.5}, {"name": "AdamW"}, ADAMW),
        ({"lr": 0.5, "momentum": 0.5}, {"name": "SGD"}, {**SGD, "lr": 0.5, "momentum": 0.5}),
    ],
)
def test_another_optimizer_starts_from_its_own_numbers(method: Any, block: Any, expected: dict[str, Any]) -> None:
    layers = [{} if optimizer is None else {"optimizer": optimizer} for optimizer in (block, method)]
    block = resolve_block(*layers)
    assert block["optimizer"] == expected
    assert next(iter(block["optimizer"])) == "name"
    assert block == {**NNUNET_BLOCK, "optimizer": expected}


def test_another_scheduler_starts_from_its_own_numbers() -> None:
    plateau = {"scheduler": {"name": "plateau", "patience": 3}}
    assert resolve_block(plateau)["scheduler"] == {"name": "plateau", "factor": 0.9, "patience": 3}
    assert resolve_block({"scheduler": {"name": "poly"}}, plateau)["scheduler"] == {"name": "poly", "exponent": 0.9}
    warmup = {"scheduler": {"name": "warmup_poly", "exponent": 2.0}}
    assert resolve_block({"scheduler": {"warmup_iterations": 0}}, warmup)["scheduler"] == {
        "name": "warmup_poly",
        "exponent": 2.0,
        "warmup_iterations": 0,
    }
    assert resolve_block({"scheduler": {"name": "poly"}}, warmup)["scheduler"] == {"name": "poly", "exponent": 0.9}


@pytest.mark.parametrize(
    ("method", "block", "message"),
    [
        ("AdamW", {"momentum": 0.5}, "unknown key 'training.optimizer.momentum'; .* for AdamW"),
        ("SGD", {"betas": [0.5, 0.5]}, "unknown key 'training.optimizer.betas'; .* for SGD"),
    ],
)
def test_keys_are_those_of_the_layer_below(method: str, block: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve_block({"optimizer": block}, {"optimizer": {"name": method}})
    check_block({"optimizer": block})


@pytest.mark.parametrize(
    "block", [block for block, message in BAD if message not in ONLY_IN_THE_WHOLE], ids=lambda value: str(value)[:40]
)
def test_a_block_alone_is_refused(block: Any) -> None:
    with pytest.raises(InputError):
        check_block(block)


def test_two_optimizers_keys_in_one_block() -> None:
    with pytest.raises(InputError, match=r"unknown key 'training\.optimizer\.betas'"):
        check_block({"optimizer": {"momentum": 0.5, "betas": [0.5, 0.5]}})


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name: str) -> None:
    check_block(PRESETS[name])
    method = {"epochs": 500, "deep_supervision_weights": [1, 2], "optimizer": {"name": "SGD", "momentum": 0.5}}
    block = resolve_block(PRESETS[name], method)
    assert {key: block[key] for key in PRESETS[name]} == PRESETS[name]
    assert block["deep_supervision_weights"] == [1, 2]


def test_a_preset_undoes_the_other() -> None:
    for name, other in (("nnunet", "par_paper"), ("par_paper", "nnunet")):
        assert merge_blocks(PRESETS[other], PRESETS[name]) == PRESETS[name]
    assert resolve_block(PRESETS["nnunet"]) == NNUNET_BLOCK
    assert PRESETS["par_paper"]["epochs"] * PRESETS["par_paper"]["iterations_per_epoch"] == 80_000


def test_no_default_is_refused() -> None:
    for group, table in (("optimizer", OPTIMIZERS), ("scheduler", SCHEDULERS)):
        for name in table:
            assert resolve_block({group: named_defaults(group, name)})[group] == named_defaults(group, name)
    assert resolve_block(NNUNET_BLOCK) == NNUNET_BLOCK


def test_nothing_handed_in_or_out_is_shared() -> None:
    before = deepcopy(NNUNET_BLOCK)
    block = {"deep_supervision_weights": [1.0, 0.5], "optimizer": {"lr": 0.5}}
    resolved = resolve_block(block)
    resolved["optimizer"]["lr"] = 7
    resolved["loss"]["dice"] = 7
    resolved["deep_supervision_weights"].append(7)
    assert before == NNUNET_BLOCK
    assert block == {"deep_supervision_weights": [1.0, 0.5], "optimizer": {"lr": 0.5}}


@pytest.mark.parametrize(
    ("base", "block", "expected"),
    [
        ({}, {"a": 1}, {"a": 1}),
        ({"a": 1, "b": 2}, {"a": 3}, {"a": 3, "b": 2}),
        ({"a": {"x": 1, "y": 2}}, {"a": {"x": 3}}, {"a": {"x": 3, "y": 2}}),
        ({"a": 1}, {"a": {"x": 3}}, {"a": {"x": 3}}),
        ({"a": {"x": 1}}, {"a": None}, {"a": None}),
        ({"optimizer": {"name": "AdamW"}}, {"optimizer": {"lr": 1}}, {"optimizer": {"name": "AdamW", "lr": 1}}),
        ({"optimizer": SGD}, {"optimizer": {"name": "AdamW", "lr": 1}}, {"optimizer": {"name": "AdamW", "lr": 1}}),
        ({"optimizer": {"momentum": 0.5}}, {"optimizer": {"name": "AdamW"}}, {"optimizer": {"name": "AdamW"}}),
        ({"optimizer": SGD}, {"optimizer": {"name": "SGD", "lr": 1}}, {"optimizer": {**SGD, "lr": 1}}),
    ],
)
def test_merge(base: dict[str, Any], block: dict[str, Any], expected: dict[str, Any]) -> None:
    assert merge_blocks(base, block) == expected


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ({}, []),
        ({"epochs": 5}, ["training.epochs: 1000 and 5"]),
        (
            {"optimizer": {"lr": 0.5}, "batch_size": 3},
            ["training.batch_size: None and 3", "training.optimizer.lr: 0.01 and 0.5"],
        ),
        ({"freeze_backbone": True}, ["training.freeze_backbone: False and True"]),
        (
            {"scheduler": {"name": "plateau"}},
            [
                "training.scheduler.exponent: 0.9 and None",
                "training.scheduler.factor: None and 0.9",
                "training.scheduler.name: poly and plateau",
                "training.scheduler.patience: None and 10",
            ],
        ),
        ({"deep_supervision_weights": [1]}, ["training.deep_supervision_weights: None and [1]"]),
    ],
)
def test_differences(block: dict[str, Any], expected: list[str]) -> None:
    assert differences(NNUNET_BLOCK, resolve_block(block)) == expected


@pytest.mark.parametrize(
    ("wanted", "flags"),
    [
        ({}, []),
        ({"epochs": 2, "iterations_per_epoch": 3}, ["--epochs 2", "--iterations 3"]),
        ({"optimizer": {"lr": 0.5}, "batch_size": 3}, ["--lr 0.5", "--batch-size 3"]),
        ({"freeze_backbone": True}, ["--freeze-backbone"]),
        # what no flag says
        ({"loss": {"dice": 0.5}}, None),
        ({"optimizer": {"name": "AdamW"}}, None),
        ({"epochs": 2, "scheduler": {"exponent": 0.5}}, None),
    ],
)
def test_flags_that_make_another_block(wanted: dict[str, Any], flags: list[str] | None) -> None:
    assert flags_from(NNUNET_BLOCK, resolve_block(wanted)) == flags


@pytest.mark.parametrize("block", [{"batch_size": 3}, {"freeze_backbone": True}])
def test_no_flag_takes_away(block: dict[str, Any]) -> None:
    assert flags_from(resolve_block(block), NNUNET_BLOCK) is None


CONFIGURATIONS = {
    "full": {"training": {"epochs": 3}},
    "child": {"inherits_from": "full"},
    "grandchild": {"inherits_from": "child"},
    "own": {"inherits_from": "full", "training": {"batch_size": 4}},
    "none": {},
    "null": {"training": None},
    "orphan": {"inherits_from": "nowhere"},
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("full", {"epochs": 3}),
        ("child", {"epochs": 3}),
        ("grandchild", {"epochs": 3}),
        ("own", {"batch_size": 4}),
        ("none", {}),
        ("null", {}),
        ("orphan", {}),
    ],
)
def test_the_planned_block_follows_inheritance(name: str, expected: dict[str, Any]) -> None:
    assert planned_block(CONFIGURATIONS, name) == expected
