"""The `training` block: what is refused, what is filled in, how two blocks differ."""

from copy import deepcopy
from typing import Any

import pytest

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.training.schedule import (
    NNUNET_SCHEDULE,
    differences,
    merge_schedule,
    planned_schedule,
    resolve_schedule,
)

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
    ({"optimizer": {"name": "Adam"}}, "training.optimizer.name = 'Adam'; expected SGD"),
    ({"optimizer": {"lr": 0}}, "training.optimizer.lr = 0; expected a number above 0"),
    ({"optimizer": {"lr": float("nan")}}, "training.optimizer.lr = nan"),
    ({"optimizer": {"lr": float("inf")}}, "training.optimizer.lr = inf"),
    ({"optimizer": {"lr": True}}, "training.optimizer.lr = True"),
    ({"optimizer": {"momentum": 1}}, "training.optimizer.momentum = 1; expected a number in"),
    ({"optimizer": {"nesterov": 1}}, "training.optimizer.nesterov = 1; expected true or false"),
    ({"optimizer": {"weight_decay": -1e-5}}, "training.optimizer.weight_decay"),
    ({"scheduler": {"name": "cosine"}}, "training.scheduler.name = 'cosine'; expected poly"),
    ({"grad_clip": 13}, "training.grad_clip = 13; expected a number above 0, at most 12"),
    ({"grad_clip": 0}, "training.grad_clip = 0"),
    ({"loss": {"dice": "1"}}, "training.loss.dice = '1'"),
    ({"loss": {"dice": 0, "ce": 0}}, "a weight above 0"),
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
        resolve_schedule(block)


@pytest.mark.parametrize("block", [None, {}, {"epochs": 1000}])
def test_missing_keys_take_nnunets_numbers(block: Any) -> None:
    assert resolve_schedule(block) == NNUNET_SCHEDULE


def test_defaults_of_a_method_lie_between() -> None:
    method = {"epochs": 500, "optimizer": {"lr": 0.1, "momentum": 0.9}}
    schedule = resolve_schedule({"optimizer": {"lr": 0.5}}, method)
    assert schedule["epochs"] == 500
    assert schedule["optimizer"] == {**NNUNET_SCHEDULE["optimizer"], "lr": 0.5, "momentum": 0.9}
    assert resolve_schedule(schedule) == schedule


def test_nothing_handed_in_or_out_is_shared() -> None:
    before = deepcopy(NNUNET_SCHEDULE)
    block = {"deep_supervision_weights": [1.0, 0.5], "optimizer": {"lr": 0.5}}
    schedule = resolve_schedule(block)
    schedule["optimizer"]["lr"] = 7
    schedule["loss"]["dice"] = 7
    schedule["deep_supervision_weights"].append(7)
    assert before == NNUNET_SCHEDULE
    assert block == {"deep_supervision_weights": [1.0, 0.5], "optimizer": {"lr": 0.5}}


@pytest.mark.parametrize(
    ("base", "block", "expected"),
    [
        ({}, {"a": 1}, {"a": 1}),
        ({"a": 1, "b": 2}, {"a": 3}, {"a": 3, "b": 2}),
        ({"a": {"x": 1, "y": 2}}, {"a": {"x": 3}}, {"a": {"x": 3, "y": 2}}),
        ({"a": 1}, {"a": {"x": 3}}, {"a": {"x": 3}}),
        ({"a": {"x": 1}}, {"a": None}, {"a": None}),
    ],
)
def test_merge(base: dict[str, Any], block: dict[str, Any], expected: dict[str, Any]) -> None:
    assert merge_schedule(base, block) == expected


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ({}, []),
        ({"epochs": 5}, ["training.epochs: 1000 and 5"]),
        (
            {"optimizer": {"lr": 0.5}, "batch_size": 3},
            ["training.batch_size: None and 3", "training.optimizer.lr: 0.01 and 0.5"],
        ),
        ({"deep_supervision_weights": [1]}, ["training.deep_supervision_weights: None and [1]"]),
    ],
)
def test_differences(block: dict[str, Any], expected: list[str]) -> None:
    assert differences(NNUNET_SCHEDULE, resolve_schedule(block)) == expected


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
    assert planned_schedule(CONFIGURATIONS, name) == expected
