"""Two folds as jobs on this machine, and what comes after them: submitted by one command, seen by another."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nnunetv2_ext.data.phantom import write_phantoms
from tests.pipeline.conftest import Pipeline
from tests.warm import WarmProcess

DATASET, MODEL = "Dataset901_Phantoms", "MNetTrainer:MNetPlans:3d_fullres"
SHORT = "--epochs 2 --iterations 1 --val-iterations 1 --batch-size 2 --patch-size 12 32 32"
PATIENCE = 600.0


def wait(pipeline: Pipeline) -> dict[str, Any]:
    """The jobs as `jobs --json` tells them, once all have ended."""
    end = time.monotonic() + PATIENCE
    while True:
        running = pipeline.start("nnunetv2_ext jobs -d 901 --json")
        jobs = {job["name"]: job for job in json.loads(running.communicate(timeout=60)[0])}
        if not {"waiting", "running"} & {job["state"] for job in jobs.values()}:
            return jobs
        assert time.monotonic() < end, jobs
        time.sleep(1)


@pytest.fixture
def pipeline(tmp_path: Path, warm: WarmProcess) -> Iterator[Pipeline]:
    pipeline = Pipeline(tmp_path, warm)
    yield pipeline
    pipeline.end_jobs()


def test_folds_as_jobs(pipeline: Pipeline, tmp_path: Path) -> None:
    write_phantoms(tmp_path / "nnUNet_raw" / DATASET, training=5, test=0)
    pipeline.run(f"nnunetv2_ext plan_and_preprocess -d 901 -pl MNetPlanner {SHORT} --no_pp -np 1 -npfp 1")
    pipeline.narrow("MNetPlans", DATASET)
    command = f"nnunetv2_ext train -d 901 -m {MODEL} -f 0 1 --jobs 2"
    told = pipeline.run(f"{command} --then find_best evaluate report -o {tmp_path / 'out'}")
    assert told.startswith("6 jobs submitted on this machine:\n  preprocess_nnUNetPlans_3d_fullres\n")

    jobs = wait(pipeline)
    logs = {name: Path(job["log"]).read_text() for name, job in jobs.items()}
    assert {job["state"] for job in jobs.values()} == {"finished"}, logs
    results = tmp_path / "nnUNet_results" / DATASET
    for fold in ("0", "1"):
        name = f"{MODEL.replace(':', '__')}__fold_{fold}"
        job = jobs[name]
        assert (job["model"], job["fold"], job["exit"], job["attempts"]) == (MODEL, fold, 0, 1)
        assert (job["epochs_done"], job["epochs"], job["seconds_left"]) == (2, 2, 0)
        assert job["seconds_per_epoch"] > 0
        assert 0 <= job["pseudo_dice"] < 1
        assert job["cases_validated"] == job["cases"] == 1
        summary = results / MODEL.replace(":", "__") / f"fold_{fold}" / "validation" / "summary.json"
        assert json.loads(summary.read_text())["metric_per_case"]
        assert len(list(summary.parent.glob("*.npz"))) == 1
        assert "Training done." in logs[name]
    assert (results / "inference_instructions.txt").is_file()
    assert (tmp_path / "out" / "evaluation" / "metrics.csv").is_file()
    assert "<html" in (tmp_path / "out" / "report.html").read_text()

    # once more: what is whole is told, and nothing runs
    again = pipeline.run(command)
    assert again.count("trained and validated already") == 2
    assert again.endswith("nothing to submit\n")

    # a fold that lost its validation is validated again, and not trained
    place = results / MODEL.replace(":", "__") / "fold_1"
    final = (place / "checkpoint_final.pth").stat()
    shutil.rmtree(place / "validation")
    assert "1 job submitted" in pipeline.run(command)
    assert wait(pipeline)[f"{MODEL.replace(':', '__')}__fold_1"]["state"] == "finished"
    assert (place / "validation" / "summary.json").is_file()
    assert (place / "checkpoint_final.pth").stat() == final
