"""`nnunetv2_ext train`: what is submitted and told, and bad input, which leaves everything as it was."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnunetv2_ext.cli import jobs as jobs_command
from nnunetv2_ext.cli import main, train
from nnunetv2_ext.cli.train import minutes_of
from nnunetv2_ext.jobs.engine import Seen
from nnunetv2_ext.jobs.record import FINISHED, RUNNING, Resources, jobs_folder, read_jobs
from tests.doctor.conftest import DATASET, Prepared, prepare
from tests.jobs.fake import FakeEngine, use

OURS, STOCK = "MNetTrainer:MNetPlans:3d_fullres", "nnUNetTrainer:nnUNetPlans:3d_fullres"
BASE = ("-d", "901", "-m", OURS)
CPU = (*BASE, "--jobs", "2")


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    monkeypatch.setattr(train, "gpus_visible", list)
    monkeypatch.setattr(train, "has_mps", lambda: False)
    made = prepare(tmp_path, monkeypatch)
    made.change_plans("nnUNetPlans", patch_size=[32] * 3)
    return made


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    return use(monkeypatch)


def test_what_is_submitted_is_told(prepared: Prepared, engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"train -d 901 -m {OURS} {STOCK} -f 0 1 1 --jobs 2 --then evaluate"
    assert main(line.split()) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "5 jobs submitted on this machine:"
    assert told[1] == "  MNetTrainer__MNetPlans__3d_fullres__fold_0"
    assert told[5].startswith("  evaluate    after MNetTrainer__MNetPlans__3d_fullres__fold_0 and 3 more")
    assert told[6] == f"logs: {prepared.results / 'jobs' / 'NAME' / 'log.txt'}"
    assert told[7] == f"what comes after the trainings goes to {prepared.results / 'outcome'}"
    assert told[8] == "how they go: nnunetv2_ext jobs -d 901"
    assert [job.name for job in engine.submitted] == [line.split()[0] for line in told[1:6]]
    assert len(json.loads((prepared.preprocessed / "splits_final.json").read_text())) == 5
    # once more: all wait
    assert main(["train", "-d", "901", "-m", OURS, "-f", "0", "--jobs", "2"]) == 0
    assert capsys.readouterr().out == f"{OURS}, fold 0: its job is waiting already\nnothing to submit\n"


@pytest.mark.parametrize(
    ("flags", "resources", "device"),
    [
        ("", Resources(jobs=1), "cpu"),
        ("-device cpu", Resources(jobs=1), "cpu"),
        ("--jobs 3", Resources(jobs=3), "cpu"),
        ("--gpus 0,3", Resources(gpus=(0, 3)), None),
        ("--jobs 2 --time 90", Resources(jobs=2, minutes=90), "cpu"),
        ("--on slurm", Resources(), None),
        (
            "--on slurm --partition gpu --account me --gres gpu:1 --time 1:30:30 --memory 12.5 --cpus 4"
            " --slurm=--qos=long --slurm exclude=n7",
            Resources(None, None, 90.5, "gpu", "me", "gpu:1", 12.5, 4, ("--qos=long", "--exclude=n7")),
            None,
        ),
    ],
)
def test_flags_become_resources(
    prepared: Prepared, engine: FakeEngine, flags: str, resources: Resources, device: str | None
) -> None:
    assert main(["train", *BASE, "-f", "0", *flags.split(), "--retries", "0"]) == 0
    (job,) = read_jobs(jobs_folder(DATASET)).values()
    assert (job.resources, job.retries) == (resources, 0)
    assert job.command[-2:] == (("-device", device) if device else ("MNetPlans", "--npz"))
    assert job.engine == ("slurm" if "slurm" in flags else "local")


def test_a_machine_with_gpus_trains_on_the_first(
    prepared: Prepared, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "gpus_visible", lambda: [1, 2])
    assert main(["train", *BASE, "-f", "all"]) == 0
    assert engine.submitted[0].resources.gpus == (1,)
    assert not (prepared.preprocessed / "splits_final.json").exists(), "fold all needs none"


def test_a_mac_trains_on_its_gpu(prepared: Prepared, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "has_mps", lambda: True)
    for flags in ((), ("-device", "mps")):
        assert main(["train", *BASE, "-f", str(len(flags)), *flags]) == 0
        assert engine.submitted[-1].command[-2:] == ("-device", "mps")
        assert engine.submitted[-1].resources == Resources(jobs=1)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("", True),
        ("--gres tmpdisk:20", True),
        ("--gres gpu:1", False),
        ("--slurm=--gpus=1", False),
        ("-device cpu", False),
    ],
)
def test_a_cluster_without_gpus_asked_for(
    prepared: Prepared, engine: FakeEngine, capsys: pytest.CaptureFixture[str], flags: str, told: bool
) -> None:
    assert main(["train", *BASE, "-f", "0", "--on", "slurm", *flags.split()]) == 0
    assert capsys.readouterr().out.startswith("no --gres, as gpu:1: trainings fail") == told


@pytest.mark.parametrize(
    ("text", "minutes"), [("90", 90), ("0.5", 0.5), ("1:30:00", 90), ("26:00:30", 1560.5), ("0:00:06", 0.1)]
)
def test_times(text: str, minutes: float) -> None:
    assert minutes_of(text) == pytest.approx(minutes)


def empty_images(prepared: Prepared) -> None:
    (prepared.results.parent / "images").mkdir()


def nothing(prepared: Prepared) -> None:
    pass


def same_folder(prepared: Prepared) -> None:
    content = json.loads((prepared.preprocessed / "MNetPlans.json").read_text())
    prepared.write(prepared.preprocessed / "OtherPlans.json", content)


BAD: dict[str, tuple[str, Callable[[Prepared], Any], str]] = {
    "no data set": ("-d 902 -m M", nothing, "no data set 902"),
    "no model": ("-d 901 -m M", nothing, "the model 'M'; expected TRAINER:PLANS:CONFIG"),
    "a model twice": (f"-d 901 -m {OURS} {STOCK} {OURS}", nothing, f"-m {OURS} twice"),
    "two plans of one name": (
        "-d 901 -m MNetTrainer:MNetPlans:3d_fullres MNetTrainer:OtherPlans:3d_fullres",
        same_folder,
        "OtherPlans.json, which calls itself MNetPlans",
    ),
    "a fold that is none": (f"-d 901 -m {OURS} -f 0 x", nothing, "-f x; expected numbers of folds, or all"),
    "a fold too many": (f"-d 901 -m {OURS} -f 0 7", nothing, "fold 7 of 5"),
    "no plans": ("-d 901 -m MNetTrainer:NoPlans:3d_fullres", nothing, "no plans file .*NoPlans.json"),
    "no trainer": ("-d 901 -m NoTrainer:MNetPlans:3d_fullres", nothing, "no trainer NoTrainer"),
    "jobs that are none": (f"-d 901 -m {OURS} --jobs two", nothing, "--jobs two; expected a whole number"),
    "GPUs and the CPU": (f"-d 901 -m {OURS} --gpus 0 -device cpu", nothing, "--gpus 0 with -device cpu"),
    "jobs and the GPU": (f"-d 901 -m {OURS} --jobs 2 -device cuda", nothing, "--jobs 2 with -device cuda"),
    "a GPU of no number": (f"-d 901 -m {OURS} --gpus 0;1", nothing, "--gpus 0;1"),
    "no GPU at all": (f"-d 901 -m {OURS} --gpus ,", nothing, "--gpus ,"),
    "no such GPU": (f"-d 901 -m {OURS} --gpus 9", nothing, "--gpus 9; expected GPUs of this machine"),
    "no GPU here": (f"-d 901 -m {OURS} -device cuda", nothing, "-device cuda on a machine without a GPU"),
    "no Mac": (f"-d 901 -m {OURS} -device mps", nothing, "-device mps; expected a device that PyTorch finds here"),
    "jobs on a Mac": (f"-d 901 -m {OURS} -device mps --jobs 2", nothing, "--jobs 2 with -device mps"),
    "a cluster of Macs": (f"-d 901 -m {OURS} -device mps --on slurm", nothing, "-device mps with --on slurm"),
    "no time": (f"-d 901 -m {OURS} --time 0", nothing, "--time 0; expected minutes above 0, or H:MM:SS"),
    "a time of days": (f"-d 901 -m {OURS} --time 1-00:00", nothing, "--time 1-00:00"),
    "no end": (f"-d 901 -m {OURS} --time inf", nothing, "--time inf"),
    "no retries": (f"-d 901 -m {OURS} --retries=-1", nothing, "--retries -1; expected 0 or more"),
    "no such step": (f"-d 901 -m {OURS} --then finish", nothing, "--then finish; expected some of find_best, predict"),
    "images for nothing": (f"-d 901 -m {OURS} -i images --then report", nothing, "-i images without --then predict"),
    "no images": (f"-d 901 -m {OURS} -i images --then predict", nothing, "-i images; expected a folder of images"),
    "output below a file": (
        f"-d 901 -m {OURS} --then report evaluate -o {{results}}/file/out",
        lambda p: p.write(p.results / "file", ""),
        "an error on writing .*out .*Not a directory",
    ),
    "output of nothing": (f"-d 901 -m {OURS} -o out", nothing, "-o out without --then"),
}


def tree(prepared: Prepared) -> dict[str, bytes]:
    root = prepared.results.parent.parent
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("line", "damage", "told"), BAD.values(), ids=BAD)
def test_bad_input_is_told_in_a_sentence_and_nothing_is_written(
    prepared: Prepared,
    engine: FakeEngine,
    capsys: pytest.CaptureFixture[str],
    line: str,
    damage: Callable[[Prepared], Any],
    told: str,
) -> None:
    damage(prepared)
    before = tree(prepared)
    assert main(["train", *line.format(results=prepared.results).split()]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.count("\n") == 1, error
    assert re.search(told, error), error
    assert (tree(prepared), engine.submitted) == (before, [])


HOLD = """
import sys, time
from pathlib import Path
from nnunetv2_ext.locks import hold
hold(Path(sys.argv[1]), "fold_1", "a training")
print("held", flush=True)
time.sleep(60)
"""


def test_a_fold_that_another_process_trains_is_refused_and_a_stale_lock_is_not(
    prepared: Prepared, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    model = prepared.model("MNetTrainer", "MNetPlans")
    model.mkdir()
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(model)], stdout=subprocess.PIPE, env={**os.environ})
    try:
        assert other.stdout is not None
        other.stdout.readline()
        assert main(["train", *CPU, "-f", "0", "1"]) == 2
        error = capsys.readouterr().err
        assert f"a training in {model / 'fold_1'} while process {other.pid} on " in error
        assert not engine.submitted
        assert main(["train", *CPU, "-f", "0"]) == 0
    finally:
        other.kill()
        other.communicate()
    assert main(["train", *CPU, "-f", "0", "1"]) == 0
    assert [job.name[-6:] for job in engine.submitted] == ["fold_0", "fold_1"]


def test_what_waits_already_is_not_submitted_again(
    prepared: Prepared, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["train", *CPU, "-f", "0", "--then", "find_best", "evaluate"]
    assert main(line) == 0
    before = len(engine.submitted)
    capsys.readouterr()
    assert main(line) == 0
    assert len(engine.submitted) == before == 3
    told = capsys.readouterr().out.splitlines()
    assert told[1:] == ["find_best: waiting already", "evaluate: waiting already", "nothing to submit"]
    assert main([*line, "-o", "elsewhere"]) == 2
    assert "a job find_best that is waiting for another request" in capsys.readouterr().err
    # one that failed takes those behind it along
    engine.states |= {"MNetTrainer__MNetPlans__3d_fullres__fold_0": Seen("failed", 1)}
    assert main(line) == 0
    assert len(engine.submitted) == 6


def test_jobs_of_two_engines_cannot_wait_for_each_other(
    prepared: Prepared, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *CPU, "-f", "0"]) == 0
    assert main(["train", *BASE, "-f", "0", "--on", "slurm", "--then", "evaluate"]) == 2
    assert "jobs on slurm that need MNetTrainer__MNetPlans__3d_fullres__fold_0 on local" in capsys.readouterr().err


def test_who_waits_is_told_of_what_trainings_need(
    prepared: Prepared, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared.write_images()
    shutil.rmtree(prepared.data)
    name = f"preprocess_{prepared.data.name}"
    monkeypatch.setattr(
        jobs_command.time, "sleep", lambda _: engine.states.update({name: Seen("failed", 1, "no luck")})
    )
    assert main(["train", *CPU, "-f", "0", "--wait"]) == 1
    assert f"{name}: failed: no luck" in (told := capsys.readouterr().out)
    assert "1 job (MNetTrainer__MNetPlans__3d_fullres__fold_0) cannot run after that" in told


@pytest.mark.parametrize(("end", "status"), [(Seen(FINISHED, 0), 0), (Seen("failed", 1, "no luck"), 1)])
def test_waiting_for_the_end(
    prepared: Prepared, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, end: Seen, status: int
) -> None:
    looks = iter((Seen(RUNNING), Seen(RUNNING), end))

    def sleep(seconds: float) -> None:
        engine.states = {"MNetTrainer__MNetPlans__3d_fullres__fold_0": next(looks)}

    monkeypatch.setattr(jobs_command.time, "sleep", sleep)
    assert main(["train", *CPU, "-f", "0", "--wait"]) == status
