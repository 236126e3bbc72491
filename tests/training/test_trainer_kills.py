"""A training killed at each point of writing its checkpoints, and resumed, leaves what an unbroken one does."""

import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunetv2_ext.weights.checkpoint import read_checkpoint
from nnunetv2_ext.weights.files import BEST, FINAL, LATEST, PREVIOUS
from tests.training.conftest import DATASET, UNET, Build
from tests.training.test_trainer import RefinedTrainer
from tests.training.test_trainer_checkpoints import end_epoch

DICE = (0.5, 0.9, 0.1, 0.95, 0.9, 0.1)
"""Of each epoch."""
MOVING = [0.5, 0.54, 0.496, 0.5414, 0.57726, 0.529534]
"""Nine tenths of the value before, one tenth of the epoch's own: the best are the epochs 1, 2, 4 and 5."""
PLANS = {"architecture": UNET, "training": {"epochs": len(DICE)}}


class Killed(BaseException):
    """Ends a training where SIGKILL would: from then on nothing is written or removed any more."""


class Disk:
    """Every change of a checkpoint, counted, and the kill before or (of a file being written) in one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.changes, self.kill_at, self.dead = 0, -1, False
        for owner, name in ((os, "link"), (os, "remove"), (Path, "replace"), (Path, "unlink"), (torch, "save")):
            monkeypatch.setattr(owner, name, self.counted(getattr(owner, name), name))

    def counted(self, change: Callable[..., Any], name: str) -> Callable[..., Any]:
        def counting(*args: Any, **options: Any) -> Any:
            if not any("checkpoint_" in str(argument) for argument in args):  # the lock's files, for one
                return change(*args, **options)
            if name == "unlink" and not args[0].exists():
                return None
            if self.dead or self.changes == self.kill_at:
                if name == "save" and not self.dead:
                    change(*args, **options)
                    whole = Path(args[1]).read_bytes()
                    Path(args[1]).write_bytes(whole[: len(whole) // 2])
                self.dead = True
                raise Killed
            self.changes += 1
            return change(*args, **options)

        return counting

    def killed_at(self, number: int, run: Callable[[], None]) -> None:
        """Run until the change of that number is due."""
        self.changes, self.kill_at = 0, number
        with pytest.raises(Killed):
            run()
        self.kill_at, self.dead = -1, False


def train(build: Build, *, resume: bool) -> None:
    """What nnUNetv2_train does, with weights that tell their epoch."""
    trainer = build.initialized(resume=resume, **PLANS)
    asked = [name for name in (FINAL, LATEST, BEST) if (build.fold / name).is_file()]
    if resume and asked:
        trainer.load_checkpoint(str(build.fold / asked[0]))
    trainer.make_room()
    for epoch in range(trainer.current_epoch, len(DICE)):
        for parameter in trainer.network.parameters():
            parameter.data.fill_(epoch + 1)
        end_epoch(trainer, DICE[epoch])
    trainer.on_train_end()


def left(folder: Path) -> dict[str, tuple[int, float, list[float]]]:
    """Of every checkpoint: its epoch, that of its weights, and the best value that it knows."""
    found = {}
    for path in folder.glob("checkpoint_*"):
        content = read_checkpoint(path)
        values = {float(value) for tensor in content["network_weights"].values() for value in tensor.unique()}
        assert len(values) == 1
        found[path.name] = (content["current_epoch"], *values, content["_best_ema"])
    return found


@pytest.fixture
def disk(build: Build, monkeypatch: pytest.MonkeyPatch) -> Disk:
    monkeypatch.setattr("nnunetv2.training.logging.nnunet_logger.MetaLogger.plot_progress_png", lambda *_: None)
    # a network of five tensors, since there are many trainings
    monkeypatch.setattr("tests.training.conftest.MNetTrainer", RefinedTrainer)
    build.fold = build.folder / "nnUNet_results" / DATASET / "RefinedTrainer__nnUNetPlans__3d_fullres" / "fold_0"
    return Disk(monkeypatch)


def test_kills_at_every_point_of_the_writing(build: Build, disk: Disk) -> None:
    train(build, resume=False)
    unbroken, changes = left(build.fold), disk.changes
    best = pytest.approx(max(MOVING))
    assert unbroken == {FINAL: (6, 6, best), BEST: (5, 5, best)}
    assert changes >= 30
    for number in range(changes):
        shutil.rmtree(build.fold)
        disk.killed_at(number, lambda: train(build, resume=False))
        train(build, resume=True)
        assert left(build.fold) == unbroken, f"killed at change {number}"


@pytest.mark.parametrize("number", range(4))
def test_a_second_kill_while_the_first_is_mended(build: Build, disk: Disk, number: int) -> None:
    """Two epochs are whole, the best of them is lost, and so may be its mending."""
    train(build, resume=False)
    unbroken = left(build.fold)
    shutil.rmtree(build.fold)
    disk.killed_at(8, lambda: train(build, resume=False))
    assert left_epochs(build) == {LATEST: 2, PREVIOUS: 1, BEST: 1}
    disk.killed_at(number, lambda: train(build, resume=True))
    train(build, resume=True)
    assert left(build.fold) == unbroken


@pytest.mark.parametrize(
    ("lost", "epoch"),
    [((BEST,), 2), ((BEST, LATEST), 2), ((BEST, PREVIOUS), 3), ((LATEST,), 2), ((), 2)],
    ids=str,
)
def test_a_best_checkpoint_that_is_lost_is_the_best_of_those_left(
    build: Build, disk: Disk, lost: tuple[str, ...], epoch: int
) -> None:
    """Of three epochs the second is the best, the third the latest."""
    trainer = build.initialized(**PLANS)
    for number in range(3):
        for parameter in trainer.network.parameters():
            parameter.data.fill_(number + 1)
        end_epoch(trainer, DICE[number])
    for name in lost:
        (build.fold / name).unlink()
    trainer = build.initialized(resume=True, **PLANS)
    asked = next(name for name in (LATEST, BEST, PREVIOUS) if (build.fold / name).is_file())
    trainer.load_checkpoint(str(build.fold / asked))
    assert left(build.fold)[BEST][:2] == (epoch, epoch)
    assert trainer._best_ema == pytest.approx(MOVING[epoch - 1])
    assert ("was lost; it is now the one of" in build.log()) == (BEST in lost)
    assert not list(build.fold.glob("*.part"))


def test_a_full_disk_at_the_best_epoch(build: Build, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next epoch that is better than what lies on the disk is written."""
    trainer = build.initialized(**PLANS)
    end_epoch(trainer, 0.1)
    save = torch.save

    def full_for_the_best(content: Any, path: str) -> None:
        if BEST in str(path):
            raise OSError(28, "No space left on device")
        save(content, path)

    monkeypatch.setattr(torch, "save", full_for_the_best)
    end_epoch(trainer, 0.9)
    assert trainer._best_ema == pytest.approx(0.1)
    assert left_epochs(build) == {LATEST: 2, PREVIOUS: 1, BEST: 1}
    monkeypatch.setattr(torch, "save", save)
    end_epoch(trainer, 0.17)
    assert left_epochs(build) == {LATEST: 3, PREVIOUS: 2, BEST: 3}, "less than epoch 2, but more than what is left"


def left_epochs(build: Build) -> dict[str, int]:
    return {path.name: read_checkpoint(path)["current_epoch"] for path in build.fold.glob("checkpoint_*.pth")}


@pytest.mark.parametrize("number", range(2))
def test_a_kill_while_an_earlier_training_is_moved(
    build: Build, disk: Disk, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are whole either where they were or where they go."""
    end_epoch(build.initialized(**PLANS), 0.5)
    before = {path.name: path.read_bytes() for path in build.fold.glob("checkpoint_*")}
    rename, calls = Path.rename, itertools.count()

    def killed(self: Path, target: Path) -> Path:
        if next(calls) == number:
            raise Killed
        return rename(self, target)

    trainer = build.initialized(**PLANS)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(Killed):
            trainer.make_room()
    found = {path.name: path.read_bytes() for path in build.fold.parent.rglob("checkpoint_*")}
    assert found == before
