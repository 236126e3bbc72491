"""Saving, resuming and falling back, without a training."""

import shutil
import time
from typing import Any

import pytest
import torch

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.trainers.mnet import MNetTrainer
from nnunetv2_ext.training.checkpoints import BEST, FINAL, LATEST, PREVIOUS, read_checkpoint
from tests.training.conftest import DATASET, Build

EPOCHS = {"training": {"epochs": 5}}


def end_epoch(trainer: MNetTrainer, dice: float) -> None:
    """Log what an epoch of nnU-Net logs and end it, which saves."""
    epoch = trainer.current_epoch
    for key, value in {
        "epoch_start_timestamps": time.time(),
        "lrs": 0.01,
        "train_losses": -0.1,
        "val_losses": -0.1,
        "dice_per_class_or_region": [dice, dice],
        "mean_fg_dice": dice,
    }.items():
        trainer.logger.log(key, value, epoch)
    trainer.on_epoch_end()


@pytest.fixture
def stopped(build: Build, monkeypatch: pytest.MonkeyPatch) -> Build:
    """A training that stopped after three epochs, the first of them the best."""
    monkeypatch.setattr("nnunetv2.training.logging.nnunet_logger.MetaLogger.plot_progress_png", lambda *_: None)
    trainer = build.initialized(**EPOCHS)
    for dice in (0.9, 0.5, 0.4):
        end_epoch(trainer, dice)
    return build


def damage(build: Build, *names: str) -> None:
    for name in names:
        path = build.fold / name
        path.write_bytes(path.read_bytes()[:-2000])


def files(build: Build) -> list[str]:
    return sorted(path.name for path in build.fold.glob("checkpoint*"))


def test_a_training_started_anew_leaves_nothing_of_the_earlier_one(stopped: Build) -> None:
    shutil.copy(stopped.fold / LATEST, stopped.fold / FINAL)
    trainer = stopped.initialized(**EPOCHS)
    end_epoch(trainer, 0.1)
    assert files(stopped) == [BEST, LATEST]
    assert {read_checkpoint(stopped.fold / name)["current_epoch"] for name in (BEST, LATEST)} == {1}


def test_resuming_from_the_best_tries_the_previous_one_first(stopped: Build) -> None:
    (stopped.fold / LATEST).unlink()
    trainer = stopped.initialized(resume=True, **EPOCHS)
    trainer.load_checkpoint(str(stopped.fold / BEST))
    assert trainer.current_epoch == 2


def test_every_epoch_is_saved_and_the_one_before_kept(stopped: Build) -> None:
    assert files(stopped) == [BEST, LATEST, PREVIOUS]
    epochs = {name: read_checkpoint(stopped.fold / name)["current_epoch"] for name in (LATEST, PREVIOUS, BEST)}
    assert epochs == {LATEST: 3, PREVIOUS: 2, BEST: 1}


@pytest.mark.parametrize(
    ("damaged", "epoch", "warnings"), [((), 3, 0), ((LATEST,), 2, 1), ((LATEST, PREVIOUS), 1, 2)], ids=str
)
def test_resuming_falls_back(stopped: Build, damaged: tuple[str, ...], epoch: int, warnings: int) -> None:
    damage(stopped, *damaged)
    trainer = stopped.initialized(resume=True, **EPOCHS)
    trainer.load_checkpoint(str(stopped.fold / LATEST))
    assert trainer.current_epoch == epoch
    assert len(trainer.logger.get_value("train_losses", step=None)) == epoch
    assert trainer._best_ema == pytest.approx(0.9)
    log = stopped.log()
    assert log.count("Falling back to an earlier checkpoint") == warnings
    assert all(f"damaged checkpoint {stopped.fold / name}" in log for name in damaged)
    assert f"next epoch {epoch}" in log


def test_nothing_whole_is_left(stopped: Build) -> None:
    damage(stopped, LATEST, PREVIOUS, BEST)
    trainer = stopped.initialized(resume=True, **EPOCHS)
    with pytest.raises(InputError, match=r"damaged checkpoint .*checkpoint_best"):
        trainer.load_checkpoint(str(stopped.fold / LATEST))


def test_resuming_continues_weights_and_momentum(stopped: Build) -> None:
    first = stopped.initialized(resume=True, **EPOCHS)
    first.load_checkpoint(str(stopped.fold / LATEST))
    data = torch.randn(2, 1, 8, 32, 32)
    first.loss = lambda outputs, target: sum(output.square().mean() for output in outputs)
    first.train_step({"data": data, "target": torch.zeros(1)})
    end_epoch(first, 0.3)
    second = stopped.initialized(resume=True, **EPOCHS)
    second.load_checkpoint(str(stopped.fold / LATEST))
    assert second.current_epoch == 4
    for name, tensor in first.network.state_dict().items():
        assert torch.equal(tensor, second.network.state_dict()[name])
    held = [state["momentum_buffer"] for state in second.optimizer.state_dict()["state"].values()]
    assert len(held) == len(list(second.network.parameters()))


@pytest.mark.parametrize(
    ("block", "message", "restore"),
    [
        ({"epochs": 9}, "training.epochs: 5 and 9", "run {schedule} --epochs 5"),
        (
            {"epochs": 5, "optimizer": {"lr": 0.1}},
            "training.optimizer.lr: 0.01 and 0.1",
            "run {schedule} --lr 0.01",
        ),
        ({"epochs": 5, "batch_size": 3}, "training.batch_size: None and 3", "restore it in the plans"),
    ],
)
def test_another_training_block_is_refused(stopped: Build, block: dict[str, Any], message: str, restore: str) -> None:
    trainer = stopped.initialized(resume=True, training=block)
    schedule = f"nnunetv2_ext schedule -d {DATASET} -p MNetPlans -c 3d_fullres"
    remedy = f"{restore.format(schedule=schedule)}, or start anew without --c"
    with pytest.raises(InputError, match=rf"differs from the checkpoint's \({message}\).*; {remedy}"):
        trainer.load_checkpoint(str(stopped.fold / LATEST))


def test_a_block_that_says_the_same_is_accepted(stopped: Build) -> None:
    trainer = stopped.initialized(resume=True, training={"epochs": 5, "optimizer": {"lr": 0.01}})
    trainer.load_checkpoint(str(stopped.fold / LATEST))
    assert trainer.current_epoch == 3


def test_another_trainers_checkpoint_is_refused(stopped: Build) -> None:
    content = torch.load(stopped.fold / LATEST, weights_only=False)
    torch.save({**content, "trainer_name": "nnUNetTrainer"}, stopped.fold / LATEST)
    trainer = stopped.initialized(resume=True, **EPOCHS)
    with pytest.raises(InputError, match="of the trainer nnUNetTrainer; expected one of MNetTrainer; pass -tr nnUNet"):
        trainer.load_checkpoint(str(stopped.fold / LATEST))


@pytest.mark.parametrize("damaged", [True, False])
def test_validation_takes_the_final_checkpoint_or_none(stopped: Build, damaged: bool) -> None:
    """`--val` does not resume: it must not fall back silently to weights that are not final."""
    (stopped.fold / LATEST).rename(stopped.fold / FINAL)
    if damaged:
        damage(stopped, FINAL)
    trainer = stopped.initialized(**EPOCHS)
    if not damaged:
        trainer.load_checkpoint(str(stopped.fold / FINAL))
        return
    with pytest.raises(InputError, match=r"damaged checkpoint .*checkpoint_final"):
        trainer.load_checkpoint(str(stopped.fold / FINAL))


def test_the_end_of_a_training_leaves_final_and_best(stopped: Build) -> None:
    trainer = stopped.initialized(resume=True, **EPOCHS)
    trainer.load_checkpoint(str(stopped.fold / LATEST))
    for dice in (0.3, 0.2):
        end_epoch(trainer, dice)
    trainer.on_train_end()
    assert files(stopped) == [BEST, FINAL]
    assert read_checkpoint(stopped.fold / FINAL)["current_epoch"] == 5


FULL = [
    OSError(28, "No space left on device"),
    RuntimeError("[enforce fail at inline_container.cc] PytorchStreamWriter failed writing file data/1"),
]


def fill_disk(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """From now on `torch.save` fails with that error."""

    def full(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(torch, "save", full)


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
def test_a_full_disk_while_training(stopped: Build, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    trainer = stopped.initialized(resume=True, **EPOCHS)
    trainer.load_checkpoint(str(stopped.fold / LATEST))
    fill_disk(monkeypatch, error)
    end_epoch(trainer, 0.99)
    assert trainer.current_epoch == 4
    assert "WARNING" in stopped.log()
    assert "the last good file stays, training goes on" in stopped.log()
    assert files(stopped) == [BEST, LATEST, PREVIOUS]
    monkeypatch.undo()
    assert read_checkpoint(stopped.fold / LATEST)["current_epoch"] == 3


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
def test_a_full_disk_at_the_end(stopped: Build, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    trainer = stopped.initialized(resume=True, **EPOCHS)
    trainer.load_checkpoint(str(stopped.fold / LATEST))
    fill_disk(monkeypatch, error)
    with pytest.raises(OSError, match="Free some space, then run the same command with --c"):
        trainer.on_train_end()
    assert files(stopped) == [BEST, LATEST, PREVIOUS]


def test_a_full_disk_while_drawing_the_progress(stopped: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = stopped.initialized(resume=True, **EPOCHS)
    trainer.load_checkpoint(str(stopped.fold / LATEST))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nnunetv2.training.logging.nnunet_logger.MetaLogger.plot_progress_png", full)
    end_epoch(trainer, 0.5)
    assert trainer.current_epoch == 4
    assert read_checkpoint(stopped.fold / LATEST)["current_epoch"] == 4


def test_checkpointing_can_be_disabled(build: Build) -> None:
    trainer = build.initialized(**EPOCHS)
    trainer.disable_checkpointing = True
    trainer.save_checkpoint(str(build.fold / LATEST))
    assert files(build) == []
