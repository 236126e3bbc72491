"""A training whose whole process group is killed at random moments, and resumed each time, still finishes."""

import contextlib
import itertools
import os
import random
import re
import signal
import time

import pytest

from nnunetv2_ext.weights.checkpoint import is_readable, read_checkpoint
from tests.pipeline.conftest import Pipeline, survivors

KILLS = int(os.environ.get("NNUNETV2_EXT_KILLS", "3"))
EPOCHS = 2 * KILLS


def test_killed_at_random_moments(pipeline: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    short = f"--epochs {EPOCHS} --iterations 1 --val-iterations 1 --batch-size 2"
    pipeline.run(f"nnunetv2_ext plan_and_preprocess -d 104 -pl MNetPlanner {short}")
    fold = pipeline.results("MNetTrainer", "MNetPlans") / "fold_0"
    command = "nnUNetv2_train 104 3d_fullres 0 -tr MNetTrainer -p MNetPlans -device cpu"
    moments = random.Random(0)
    for kill in range(KILLS):
        latest = fold / "checkpoint_latest.pth"
        before = latest.stat().st_mtime_ns if latest.is_file() else 0
        training = pipeline.start(f"{command} --c" if kill else command)
        # from a new latest checkpoint on, so that every round gets somewhere, at any moment of the epochs that follow
        while training.poll() is None and not (latest.is_file() and latest.stat().st_mtime_ns != before):
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 3))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(training.pid, signal.SIGKILL)
        training.communicate()
        assert not survivors(training.pid)
        whole = [path for path in fold.glob("checkpoint_*.pth") if is_readable(path)]
        assert whole and len(whole) == len(list(fold.glob("checkpoint_*.pth")))
    pipeline.run(f"{command} --c")
    # nnU-Net writes its log at once, one file a start; what a killed process printed is lost
    logs = sorted(fold.glob("training_log_*.txt"), key=lambda path: path.stat().st_mtime_ns)
    started = [int(epoch) for log in logs for epoch in re.findall(r"Epoch (\d+) ?\n", log.read_text())]
    final, best = (read_checkpoint(fold / f"checkpoint_{name}.pth") for name in ("final", "best"))
    assert sorted(path.name for path in fold.glob("checkpoint_*")) == ["checkpoint_best.pth", "checkpoint_final.pth"]
    assert best["logging"]["ema_fg_dice"][-1] >= max(final["logging"]["ema_fg_dice"])
    assert final["current_epoch"] == EPOCHS
    assert len(final["logging"]["train_losses"]) == EPOCHS
    assert set(started) == set(range(EPOCHS))
    repeated = len(started) - EPOCHS
    with capsys.disabled():
        print(f"\n{KILLS} kills, {EPOCHS} epochs, {repeated} repeated")
    assert repeated <= KILLS
    assert all(later - earlier in (0, 1) for earlier, later in itertools.pairwise(started))
