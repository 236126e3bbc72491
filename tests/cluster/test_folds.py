"""Five folds trained in SLURM, with two places for them: nothing that happens to them or to who submits is lost."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nnunetv2_ext.jobs import record
from nnunetv2_ext.jobs.record import Job, Resources, read_job, read_state
from nnunetv2_ext.jobs.slurm import Slurm
from nnunetv2_ext.weights.checkpoint import read_checkpoint
from tests.cluster.daemons import Cluster, until
from tests.cluster.test_outcomes import MARK, marked
from tests.pipeline.conftest import Pipeline

EPOCHS = 3
SUBMIT = """
import sys, time
from pathlib import Path
from nnunetv2_ext.jobs import slurm
submit = slurm._submit
def slowly(folder, job, *others):  # so that it is killed between two jobs
    if job.name == "fold_3":
        time.sleep(600)
    return submit(folder, job, *others)
slurm._submit = slowly
from tests.cluster.test_folds import jobs_of
slurm.Slurm().submit(Path(sys.argv[1]), jobs_of(Path(sys.argv[1]), Path(sys.argv[2])))
"""


def jobs_of(folder: Path, results: Path) -> list[Job]:
    """Five folds, one with plans that are not there, and what comes after the folds."""
    environment = {key: value for key, value in os.environ.items() if key.startswith(("nnUNet_", MARK, "OMP_"))}
    half = Resources(cpus=8)
    training = ("nnUNetv2_train", "104", "3d_fullres")
    options = ("-tr", "MNetTrainer", "-device", "cpu", "--npz", "-p")
    folds = [
        Job(
            f"fold_{fold}",
            (*training, str(fold), *options, "MNetPlans"),
            (),
            results / f"fold_{fold}",
            environment,
            half,
        )
        for fold in range(5)
    ]
    return [
        *folds,
        Job("bad_plans", (*training, "0", *options, "NoPlans"), ("fold_0",), None, environment, half),
        Job("after", ("true",), tuple(job.name for job in folds), resources=half),
        Job("never", ("true",), ("bad_plans",), resources=half),
    ]


@pytest.mark.parametrize("cluster", [False], ids=["unaccounted"], indirect=True)
def test_five_folds(cluster: Cluster, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    short = f"--epochs {EPOCHS} --iterations 1 --val-iterations 1 --batch-size 2"
    pipeline.run(f"nnunetv2_ext plan_and_preprocess -d 104 -pl MNetPlanner {short}")
    pipeline.narrow("MNetPlans")
    results = pipeline.results("MNetTrainer", "MNetPlans")
    folder = results.parent / "jobs"
    for key, value in {
        **pipeline.environment,
        MARK: str(folder),
        "OMP_NUM_THREADS": "1",
        "nnUNet_n_proc_DA": "0",
    }.items():
        if key.startswith(("nnUNet_", MARK, "OMP_")):
            monkeypatch.setenv(key, value)
    submitting = subprocess.Popen(
        [sys.executable, "-c", SUBMIT, str(folder), str(results)], cwd=Path(__file__).parents[2]
    )
    killed = results / "fold_0"
    try:
        until(lambda: (killed / "checkpoint_latest.pth").is_file(), 200, "the first epoch of fold 0")
        assert not (folder / "fold_3").exists()
    finally:
        submitting.kill()
        submitting.wait()
    os.killpg(read_state(folder, "fold_0").group or 0, signal.SIGKILL)
    ids = {name: read_job(folder, name).id for name in ("fold_0", "fold_1", "fold_2")}
    slurm = Slurm()
    slurm.submit(folder, jobs_of(folder, results))
    jobs = record.read_jobs(folder)
    assert ids.items() <= {name: job.id for name, job in jobs.items()}.items()  # those in the queue are left alone
    end = time.monotonic() + 1200
    while time.monotonic() < end:
        seen = slurm.look(folder, jobs)
        if all(one.state not in (record.WAITING, record.RUNNING) for one in seen.values()):
            break
        time.sleep(0.5)
    states = {name: (one.state, one.exit) for name, one in seen.items()}
    folds = {f"fold_{fold}": (record.FINISHED, 0) for fold in range(5)}
    refused = {"bad_plans": (record.FAILED, 1), "never": (record.BLOCKED, None)}
    assert states == {**folds, "after": (record.FINISHED, 0), **refused}, seen
    assert "NoPlans" in seen["bad_plans"].reason
    assert len(read_state(folder, "fold_0").attempts) == 2
    for fold in range(5):
        checkpoint = read_checkpoint(results / f"fold_{fold}/checkpoint_final.pth")
        assert checkpoint["current_epoch"] == len(checkpoint["logging"]["train_losses"]) == EPOCHS
        logs = sorted((results / f"fold_{fold}").glob("training_log_*.txt"), key=lambda path: path.stat().st_mtime_ns)
        begun = [int(epoch) for log in logs for epoch in re.findall(r"Epoch (\d+) ?\n", log.read_text())]
        assert sorted({*begun}) == [*range(EPOCHS)]
        assert len(begun) - EPOCHS <= (fold == 0)
        assert (results / f"fold_{fold}/validation/summary.json").is_file()
    until(lambda: not marked(folder), 5, f"the end of {marked(folder)}")
