"""Saving, resuming and falling back, without a training."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.trainers.mnet import MNetTrainer
from nnunetv2_ext.weights.checkpoint import read_checkpoint
from nnunetv2_ext.weights.files import BEST, FINAL, LATEST, PREVIOUS, ForeignObject
from tests.training.conftest import DATASET, Build, log_epoch
from tests.training.test_checkpoints import Marker

EPOCHS = {"training": {"epochs": 5}}


def end_epoch(trainer: MNetTrainer, dice: float) -> None:
    """Log what an epoch of nnU-Net logs and end it, which saves."""
    log_epoch(trainer, dice)
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


def aside(build: Build) -> list[Path]:
    return sorted(build.fold.parent.glob("before-*"))


def held(folder: Path) -> dict[str, bytes]:
    """All files but logs: two trainers made in one second share theirs."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("training_log_"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("finished", [True, False])
def test_a_training_started_anew_moves_the_earlier_one_aside(stopped: Build, finished: bool) -> None:
    fold = stopped.fold
    if finished:
        shutil.copy(fold / LATEST, fold / FINAL)
        (fold / "validation").mkdir()
        (fold / "validation" / "summary.json").write_text("{}")
    (fold / (LATEST + ".part")).write_bytes(b"half")
    for name in ("plans.json", "dataset.json"):
        (fold.parent / name).write_text("{}")
    before = held(fold)
    trainer = stopped.initialized(**EPOCHS)
    assert held(fold) == before, "nothing moves before the training starts: it could be --val"
    trainer.make_room()
    (moved,) = aside(stopped)
    del before[LATEST + ".part"]
    assert held(moved / "fold_0") == before
    assert {"plans.json", "dataset.json"} <= held(moved).keys()
    assert [path.name for path in fold.iterdir()] == [Path(trainer.log_file).name]
    assert f"The {'finished' if finished else 'unfinished'} training that {fold} held is kept in" in stopped.log()
    trainer.make_room()
    assert aside(stopped) == [moved], "a folder without checkpoints stays"
    end_epoch(trainer, 0.1)
    stopped.initialized(**EPOCHS).make_room()
    assert len(aside(stopped)) == 2
    assert nnUNetPredictor.auto_detect_available_folds(str(fold.parent), FINAL) == []
    if finished:
        assert nnUNetPredictor.auto_detect_available_folds(str(moved), FINAL) == [0]


def test_a_training_that_goes_on_moves_nothing(stopped: Build) -> None:
    (stopped.fold / (BEST + ".part")).write_bytes(b"half")
    trainer = stopped.initialized(resume=True, **EPOCHS)
    trainer.load_checkpoint(str(stopped.fold / LATEST))
    trainer.make_room()
    assert files(stopped) == [BEST, LATEST, PREVIOUS]
    assert not aside(stopped)


def test_a_folder_that_cannot_be_moved_is_left_as_it_is(stopped: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    trainer = stopped.initialized(**EPOCHS)
    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(InputError, match=r"No space left on device.*make room there"):
        trainer.make_room()
    assert files(stopped) == [BEST, LATEST, PREVIOUS]
    assert not aside(stopped)


def test_only_the_previous_one_is_left(stopped: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net then finds no checkpoint and starts anew; ours goes on."""
    (stopped.fold / LATEST).unlink()
    (stopped.fold / BEST).unlink()
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", lambda self: None)
    trainer = stopped.initialized(resume=True, **EPOCHS)
    trainer.on_train_start()
    assert trainer.current_epoch == 2
    assert not aside(stopped)


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


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = torch.load(path, weights_only=False)
    edit(content)
    torch.save(content, path)


def spoil_weights(content: dict[str, Any]) -> None:
    next(iter(content["network_weights"].values())).fill_(torch.nan)


def reshape_weights(content: dict[str, Any]) -> None:
    name = next(iter(content["network_weights"]))
    content["network_weights"][name] = content["network_weights"][name][:1]


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "shape": (reshape_weights, r"\(1, 1, 1, 3, 3\) instead of \(2, 1, 1, 3, 3\)"),
    "no weights": (lambda c: c["network_weights"].clear(), "its network_weights are no dict"),
    "a weight missing": (lambda c: c["network_weights"].popitem(), "missing instead of"),
    "NaN": (spoil_weights, r"no finite numbers: 1 tensor"),
    "no plans": (lambda c: c["init_args"].pop("plans"), "init_args without plans"),
    "optimizer": (lambda c: c["optimizer_state"]["param_groups"][0]["params"].pop(), "optimizer_state is of"),
    "log": (lambda c: c["logging"].pop("train_losses"), "its log of train_losses"),
    "epoch": (lambda c: c.update(current_epoch=-5), "its epoch is -5"),
}


@pytest.mark.parametrize(("edit", "told"), FAULTS.values(), ids=FAULTS)
def test_a_checkpoint_that_contradicts_itself(stopped: Build, edit: Any, told: str) -> None:
    """Falls back as from a damaged one; with none left it is refused in one sentence."""
    change(stopped.fold / LATEST, edit)
    trainer = stopped.initialized(resume=True, **EPOCHS)
    trainer.load_checkpoint(str(stopped.fold / LATEST))
    assert trainer.current_epoch == 2
    (stopped.fold / PREVIOUS).unlink()
    (stopped.fold / BEST).unlink()
    with pytest.raises(InputError, match=rf"damaged checkpoint \S*latest.*{told}.*anew"):
        trainer.load_checkpoint(str(stopped.fold / LATEST))


@pytest.mark.parametrize("name", [LATEST, PREVIOUS])
def test_nothing_in_a_checkpoint_is_run(stopped: Build, name: str, tmp_path: Path) -> None:
    """Nor is it passed over for an earlier one, since it is no damage: someone put it there."""
    ran = tmp_path / "ran"
    change(stopped.fold / name, lambda content: content.update(more=Marker(ran)))
    if name == PREVIOUS:
        damage(stopped, LATEST)
    trainer = stopped.initialized(resume=True, **EPOCHS)
    with pytest.raises(ForeignObject, match=rf"{name}, which holds pickled Python objects"):
        trainer.load_checkpoint(str(stopped.fold / LATEST))
    assert not ran.exists()


def test_nnunets_own_loading_runs_nothing_either(
    stopped: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should the file change after it was verified."""
    ran = tmp_path / "ran"
    trainer = stopped.initialized(resume=True, **EPOCHS)
    monkeypatch.setattr(
        trainer,
        "_misfit",
        lambda path, _: change(path, lambda content: content.update(more=Marker(ran))),
    )
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        trainer.load_checkpoint(str(stopped.fold / LATEST))
    assert not ran.exists()


@pytest.mark.parametrize("name", [LATEST, BEST, FINAL])
def test_weights_that_are_no_numbers_are_not_written(stopped: Build, name: str) -> None:
    trainer = stopped.initialized(resume=True, **EPOCHS)
    trainer.load_checkpoint(str(stopped.fold / LATEST))
    before = held(stopped.fold)
    next(trainer.network.parameters()).data[0] = torch.inf
    if name == FINAL:
        kept = r"checkpoint_latest.pth, checkpoint_previous.pth, checkpoint_best.pth in .* are from before"
        with pytest.raises(InputError, match=f"no finite numbers any more.*{kept}"):
            trainer.on_train_end()
    else:
        trainer.save_checkpoint(str(stopped.fold / name))
        assert f"{name} is not written" in stopped.log()
    assert {key: held(stopped.fold)[key] for key in files(stopped)} == {key: before[key] for key in files(stopped)}


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


def test_another_task_is_refused(stopped: Build) -> None:
    """Weights fit as well where labels only changed their places."""
    swapped = {"labels": {"background": 0, "left": 2, "right": 1}}
    trainer = stopped.initialized(resume=True, labels=swapped, **EPOCHS)
    with pytest.raises(
        InputError, match=r"a task that differs .*dataset.json.labels.left: 1 and 2; .*; restore dataset"
    ):
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
