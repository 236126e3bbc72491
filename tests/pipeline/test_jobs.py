"""A fold as a job, by nnU-Net's own command: its supervisor is killed, the training with it, and the queue goes on."""

import os
import re
import signal
import time
from pathlib import Path

from nnunetv2_ext.jobs.local import Local
from nnunetv2_ext.jobs.record import ENDED, FINISHED, LOG, Job, read_state
from nnunetv2_ext.locks import holder
from tests.pipeline.conftest import Pipeline, survivors

EPOCHS = 3


def test_a_killed_fold_goes_on_at_the_epoch_that_ran(pipeline: Pipeline) -> None:
    short = f"--epochs {EPOCHS} --iterations 2 --val-iterations 1 --batch-size 2"
    pipeline.run(f"nnunetv2_ext plan_and_preprocess -d 104 -pl MNetPlanner -c 3d_fullres {short}")
    pipeline.narrow("MNetPlans")
    fold = pipeline.results("MNetTrainer", "MNetPlans") / "fold_0"
    folder = fold.parents[1] / "jobs"
    train = "nnUNetv2_train 104 3d_fullres 0 -tr MNetTrainer -p MNetPlans -device cpu --npz"
    kept = {key: value for key, value in pipeline.environment.items() if key.startswith(("nnUNet_", "OMP_"))}
    job = Job(fold.name, tuple(train.split()), fold=fold, environment=kept, retries=1)
    Local().submit(folder, [job])
    groups = set()
    try:
        wait_for_checkpoint(fold, folder, job)
        group = read_state(folder, job.name).group
        who = holder(folder, job.name)
        assert group is not None and who is not None
        groups.add(group)
        os.kill(who["process"], signal.SIGKILL)
        while (state := read_state(folder, job.name)).state not in ENDED:
            if state.group is not None:
                groups.add(state.group)
            time.sleep(0.1)
    finally:
        Local().cancel(folder, [job])
    log = (folder / job.name / LOG).read_text()
    assert state.state == FINISHED, log
    assert [attempt.exit for attempt in state.attempts] == [137, 0]
    assert len(groups) == 2 and not any(survivors(group) for group in groups)
    assert (fold / "validation" / "summary.json").is_file() and list((fold / "validation").glob("*.npz"))
    assert not (fold / "checkpoint_latest.pth").exists()
    logs = sorted(fold.glob("training_log_*.txt"), key=lambda path: path.stat().st_mtime_ns)
    begun = [int(epoch) for text in logs for epoch in re.findall(r"Epoch (\d+) ?\n", text.read_text())]
    assert set(begun) == set(range(EPOCHS)) and len(begun) <= EPOCHS + 1


def wait_for_checkpoint(fold: Path, folder: Path, job: Job) -> None:
    while not (fold / "checkpoint_latest.pth").is_file():
        assert read_state(folder, job.name).state not in ENDED, (folder / job.name / LOG).read_text()
        time.sleep(0.05)
