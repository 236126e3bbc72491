"""Checkpoints under kills, full disks and damage."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import write_beside
from nnunetv2_ext.training.checkpoints import REQUIRED_KEYS, is_readable, read_checkpoint

CONTENT: dict[str, Any] = {
    "network_weights": {"weight": torch.arange(1000.0)},
    "current_epoch": 3,
    "init_args": {},
    "trainer_name": "MNetTrainer",
    "logging": {},
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
    write_beside(lambda part: torch.save({**CONTENT, "current_epoch": 4}, part), checkpoint)
    assert read_checkpoint(checkpoint)["current_epoch"] == 4
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
        ([1, 2], "without network_weights, current_epoch"),
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
