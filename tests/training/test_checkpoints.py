"""Checkpoints under kills, full disks and damage."""

import os
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import write_beside
from nnunetv2_ext.weights.checkpoint import (
    EVERY_EPOCH,
    PREDICTION_KEYS,
    REQUIRED_KEYS,
    differing_weights,
    is_readable,
    optimizer_faults,
    read_checkpoint,
)
from nnunetv2_ext.weights.files import ForeignObject
from tests.training.conftest import UNET, Build

WEIGHT = torch.arange(1000.0)
CONTENT: dict[str, Any] = {
    "network_weights": {"weight": WEIGHT},
    "current_epoch": 3,
    "init_args": {"plans": {"configurations": {"3d": {}}}, "configuration": "3d", "dataset_json": {}},
    "trainer_name": "MNetTrainer",
    "logging": {key: [0.1, np.float64(0.2), np.float32(0.3)] for key in EVERY_EPOCH},
    "optimizer_state": {
        "state": {0: {"momentum_buffer": torch.ones(1000)}},
        "param_groups": [{"lr": 0.01, "params": [0]}],
    },
}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint_latest.pth"
    torch.save(CONTENT, path)
    return path


def test_a_part_left_by_a_kill_does_not_matter(checkpoint: Path) -> None:
    checkpoint.with_name(checkpoint.name + ".part").write_bytes(b"half")
    write_beside(lambda part: torch.save({**CONTENT, "trainer_name": "B"}, part), checkpoint)
    assert read_checkpoint(checkpoint)["trainer_name"] == "B"
    assert names(checkpoint.parent) == [checkpoint.name]


def test_a_whole_checkpoint(checkpoint: Path) -> None:
    content = read_checkpoint(checkpoint)
    assert torch.equal(content["network_weights"]["weight"], CONTENT["network_weights"]["weight"])
    assert is_readable(checkpoint)


@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.5, 0.9, 0.999])
def test_truncated(checkpoint: Path, part: float) -> None:
    data = checkpoint.read_bytes()
    checkpoint.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(InputError, match=r"damaged checkpoint .*; continue from an earlier checkpoint with --c"):
        read_checkpoint(checkpoint)
    assert not is_readable(checkpoint)


def test_a_flipped_byte_is_found_or_without_effect(checkpoint: Path) -> None:
    data = bytearray(checkpoint.read_bytes())
    weights = data.find(CONTENT["network_weights"]["weight"].numpy().tobytes())
    assert weights > 0
    found = 0
    for position in [*range(0, len(data), 97), weights + 8]:
        damaged = data.copy()
        damaged[position] ^= 0x10
        checkpoint.write_bytes(damaged)
        try:
            content = read_checkpoint(checkpoint)
        except InputError:
            found += 1
        else:  # alignment between the records holds nothing
            assert torch.equal(content["network_weights"]["weight"], CONTENT["network_weights"]["weight"])
            assert content["current_epoch"] == 3
            assert position != weights + 8
    assert found > len(data) / 97 / 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "without network_weights, init_args, trainer_name, current_epoch"),
        ({"state_dict": {}}, "without network_weights"),
        *(({key: 0 for key in REQUIRED_KEYS if key != missing}, f"without {missing};") for missing in REQUIRED_KEYS),
    ],
    ids=str,
)
def test_not_a_checkpoint(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(InputError, match=message):
        read_checkpoint(tmp_path / "file.pth")


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()], ids=["nothing", "folder"])
def test_missing(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "file.pth")
    with pytest.raises(InputError, match=r"no file .*file\.pth; expected a checkpoint"):
        read_checkpoint(tmp_path / "file.pth")


def test_a_text_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "file.pth").write_text("<html>not found</html>")
    assert not is_readable(tmp_path / "file.pth")


def at(*path: Any, value: Any) -> Callable[[dict[str, Any]], object]:
    """Puts a value into the content, by the keys that lead there."""

    def change(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


NAN, INFINITE = torch.tensor([1.0, torch.nan]), torch.tensor([-torch.inf])
FOR_PREDICTION = [
    (at("network_weights", value={}), "no dict of tensors"),
    (at("network_weights", value=[WEIGHT]), "no dict of tensors"),
    (at("network_weights", "bias", value=0.5), "no tensors in network_weights: bias"),
    (at("network_weights", 3, value=WEIGHT), "no tensors in network_weights: 3"),
    (at("network_weights", "bias", value=NAN), r"no finite numbers: 1 tensor \(bias\)"),
    (at("network_weights", "bias", value=INFINITE), "no finite numbers"),
    (at("network_weights", "bias", value=INFINITE.half()), "no finite numbers"),
    (at("trainer_name", value=None), "trainer_name is no text"),
    (at("init_args", value=[]), "init_args are no dict"),
    (at("init_args", value={}), "init_args without plans, dataset_json, configuration"),
    (at("init_args", "plans", value=[]), "init_args without plans"),
    (at("init_args", "plans", value={}), "lack the configuration 3d"),
    (at("init_args", "plans", "configurations", value=3), "lack the configuration 3d"),
    (at("init_args", "configuration", value="2d"), "lack the configuration 2d"),
]
FOR_RESUMING = [
    *((at("current_epoch", value=value), "epoch is .*, no whole number") for value in (-5, 1.5, None, True, "3")),
    (at("current_epoch", value=4), "not one entry for each of 4 epochs"),
    (at("current_epoch", value=2), "not one entry for each of 2 epochs"),
    (at("logging", value=[]), "log is no dict"),
    (at("logging", value={}), "its log of train_losses, .* has not one entry"),
    (at("logging", "lrs", value=None), "its log of lrs"),
    (at("logging", "a_term_losses", value=[0.1] * 4), "its log of a_term_losses"),
    (at("logging", "ema_fg_dice", value=["a", "b", "c"]), "more than numbers"),
    (at("optimizer_state", value=None), "optimizer_state lacks"),
    (at("optimizer_state", "param_groups", value=[]), "optimizer_state lacks"),
    (at("optimizer_state", "param_groups", value=[{"lr": 1}]), "names no parameters"),
    (at("optimizer_state", "state", value={0: NAN}), "no dict of dicts"),
    (at("optimizer_state", "state", value={0: {"momentum_buffer": NAN}}), "not finite"),
]


@pytest.mark.parametrize(
    ("change", "message", "resume"),
    [(*fault, resume) for fault in FOR_PREDICTION for resume in (True, False)]
    + [(*fault, True) for fault in FOR_RESUMING],
)
def test_content_of_another_kind(change: Callable[..., object], message: str, resume: bool, tmp_path: Path) -> None:
    content = deepcopy(CONTENT)
    change(content)
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(InputError, match=f"damaged checkpoint .*{message}"):
        read_checkpoint(tmp_path / "file.pth", resume=resume)


@pytest.mark.parametrize(("change", "message"), FOR_RESUMING)
def test_prediction_needs_weights_and_plans_alone(change: Callable[..., object], message: str, tmp_path: Path) -> None:
    content = deepcopy(CONTENT)
    change(content)
    torch.save(content, tmp_path / "file.pth")
    assert read_checkpoint(tmp_path / "file.pth", resume=False)["trainer_name"] == "MNetTrainer"
    torch.save({key: CONTENT[key] for key in PREDICTION_KEYS}, tmp_path / "file.pth")
    assert read_checkpoint(tmp_path / "file.pth", resume=False)


def mark(path: str) -> None:
    Path(path).touch()


class Marker:
    """Harmless: unpickled in full, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return mark, (str(self.path),)


@pytest.mark.parametrize("place", [("network_weights", "x"), ("logging", "x"), ("extra",), ("init_args", "fold")])
@pytest.mark.parametrize("variable", [None, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
def test_nothing_in_a_checkpoint_is_run(
    place: tuple[str, ...], variable: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, ran = deepcopy(CONTENT), tmp_path / "ran"
    at(*place, value=Marker(ran))(content)
    torch.save(content, tmp_path / "file.pth")
    if variable is not None:
        monkeypatch.setenv(variable, "1")
    with pytest.raises(ForeignObject, match=r"pickled Python objects \(\S+\.mark\) beside tensors"):
        read_checkpoint(tmp_path / "file.pth")
    assert not ran.exists()
    monkeypatch.undo()
    torch.load(tmp_path / "file.pth", weights_only=False)
    assert ran.exists(), "the marker marks nothing"


class Blocked:
    """Harmless: asks for the number of the process, of a module that torch's restricted unpickler blocks by name."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.getpid, ()


def test_a_blocked_module_is_no_damage(tmp_path: Path) -> None:
    torch.save({**CONTENT, "more": Blocked()}, tmp_path / "file.pth")
    with pytest.raises(ForeignObject, match=r"pickled Python objects \(\w+\.getpid\)"):
        read_checkpoint(tmp_path / "file.pth")


class Own:
    """A class that a trainer's author puts into checkpoints."""


def test_a_class_that_its_author_named_is_read(tmp_path: Path) -> None:
    torch.save({**CONTENT, "own": Own()}, tmp_path / "file.pth")
    with pytest.raises(ForeignObject, match=r"Own.*torch\.serialization\.add_safe_globals"):
        read_checkpoint(tmp_path / "file.pth")
    with torch.serialization.safe_globals([Own]):
        assert isinstance(read_checkpoint(tmp_path / "file.pth")["own"], Own)


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ({"a": WEIGHT, "b": NAN}, []),
        ({"module.a": WEIGHT, "module.b": NAN}, []),
        ({"a": WEIGHT}, ["b missing instead of (2,)"]),
        ({"a": WEIGHT, "b": NAN, "c": NAN}, ["c (2,) instead of missing"]),
        ({"a": WEIGHT, "b": INFINITE}, ["b (1,) instead of (2,)"]),
    ],
)
def test_weights_of_another_network(weights: dict[str, torch.Tensor], told: list[str]) -> None:
    assert differing_weights(weights, {"a": WEIGHT, "b": NAN}) == told


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ([[WEIGHT]], ""),
        ([[WEIGHT, NAN]], r"of [1] parameters instead of [2]"),
        ([[NAN]], "parameter 0 (momentum_buffer)"),
    ],
)
def test_an_optimizer_of_another_network(parameters: list[list[torch.Tensor]], told: str) -> None:
    faults = optimizer_faults(CONTENT["optimizer_state"], parameters)
    assert len(faults) == bool(told)
    assert told in "".join(faults)


def test_what_nnunet_itself_writes_is_read(build: Build, tmp_path: Path) -> None:
    """With numpy's numbers in its log, a scaler as on CUDA and the momentum of a step."""
    trainer = build.initialized(architecture=UNET, trainer=nnUNetTrainer)
    trainer.grad_scaler = torch.amp.GradScaler("cpu")
    for parameter in trainer.network.parameters():
        parameter.grad = torch.ones_like(parameter)
    trainer.optimizer.step()
    trainer.logger.log("lrs", trainer.optimizer.param_groups[0]["lr"], 0)
    trainer.on_train_epoch_end([{"loss": np.array(0.5, np.float32)}])
    counts = dict.fromkeys(("tp_hard", "fp_hard", "fn_hard"), np.array([3.0, 1.0], np.float32))
    trainer.on_validation_epoch_end([{**counts, "loss": np.array(0.25, np.float32)}])
    trainer._best_ema = trainer.logger.get_value("ema_fg_dice", step=-1)
    trainer.save_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    content = read_checkpoint(tmp_path / "checkpoint_latest.pth")
    expected = torch.load(tmp_path / "checkpoint_latest.pth", weights_only=False)
    assert content.keys() == expected.keys()
    for key, weight in expected["network_weights"].items():
        assert torch.equal(content["network_weights"][key], weight)
    assert isinstance(expected["logging"]["mean_fg_dice"][0], np.floating)
    for key in ("logging", "_best_ema", "current_epoch", "init_args", "trainer_name", "grad_scaler_state"):
        assert content[key] == expected[key]
    assert content["current_epoch"] == 1
    state = content["optimizer_state"]["state"]
    assert all(
        torch.equal(state[index]["momentum_buffer"], held["momentum_buffer"])
        for index, held in expected["optimizer_state"]["state"].items()
    )
