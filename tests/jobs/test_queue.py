"""Jobs in their turn: needs, places, GPUs, and kills of the queue and of what it started."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.jobs import devices, local
from nnunetv2_ext.jobs.devices import is_taken, leave_gpu, take_gpu
from nnunetv2_ext.jobs.local import Local
from nnunetv2_ext.jobs.queue import ensure_queue
from nnunetv2_ext.jobs.record import (
    BLOCKED,
    CANCELLED,
    FAILED,
    FINISHED,
    RUNNING,
    TIMED_OUT,
    WAITING,
    Attempt,
    Resources,
    State,
    read_jobs,
    write_job,
    write_state,
)
from nnunetv2_ext.jobs.supervisor import search_path
from nnunetv2_ext.locks import PARENT, is_held
from tests.jobs.conftest import Jobs, wait_for

TWO = Resources(jobs=2)
SUBMIT = (
    "import sys; from nnunetv2_ext.jobs.local import *; from nnunetv2_ext.jobs.record import read_jobs;"
    "Local().submit(Path(sys.argv[1]), [*read_jobs(Path(sys.argv[1])).values()])"
)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Queues that look often, by a module that Python imports at its start."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import sys\nif sys.orig_argv[1:3] == ['-m', 'nnunetv2_ext.jobs.queue']:\n"
        "    import time\n    sleep = time.sleep\n    time.sleep = lambda seconds: sleep(min(seconds, 0.1))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def test_needs_come_first_and_what_needs_a_failed_job_is_not_run(jobs: Jobs) -> None:
    jobs.submit(
        jobs.job("z_first", "sleep 0.3; echo first >> order", directory=jobs.folder),
        jobs.job("a_second", "echo second >> order", needs=("z_first",), directory=jobs.folder),
        jobs.job("bad", "exit 3"),
        jobs.job("after_bad", "echo never >> order", needs=("z_first", "bad"), directory=jobs.folder),
        jobs.job("after_all", "echo never >> order", needs=("after_bad",), directory=jobs.folder),
    )
    jobs.until(z_first=FINISHED, a_second=FINISHED, bad=FAILED, after_bad=BLOCKED, after_all=BLOCKED)
    wait_for(lambda: not is_held(jobs.folder, "queue"))
    assert (jobs.folder / "order").read_text() == "first\nsecond\n"
    seen = jobs.seen()
    assert seen["bad"].exit == 3
    assert seen["after_bad"].reason == "it needs bad: failed"
    assert seen["after_all"].reason == "it needs after_bad: not to run"
    jobs.submit(jobs.job("bad", "exit 0"))  # --retry
    jobs.until(bad=FINISHED, after_bad=FINISHED, after_all=FINISHED)
    assert jobs.log("bad").count("[job] runs") == 2  # the old log is kept


def test_so_many_at_a_time_with_their_share_of_the_cores(jobs: Jobs) -> None:
    script = 'echo "+ <$CUDA_VISIBLE_DEVICES> $OMP_NUM_THREADS" >> n; sleep 0.4; echo - >> n'
    jobs.submit(*(jobs.job(f"{number}", script, resources=TWO, directory=jobs.folder) for number in range(5)))
    jobs.until(**{f"{number}": FINISHED for number in range(5)})
    running, most = 0, 0
    lines = (jobs.folder / "n").read_text().splitlines()
    for line in lines:
        running += 1 if line[0] == "+" else -1
        most = max(most, running)
    assert most == 2
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert {line for line in lines if line[0] == "+"} == {f"+ <> {threads}"}


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose driver lists three GPUs."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nfor i in 0 1 3; do echo "GPU $i: NVIDIA Card (UUID: GPU-$i)"; done\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(devices, "_counted_by_torch", lambda gpus: len(gpus))


def test_a_gpu_runs_one_job_at_a_time_of_all_data_sets(jobs: Jobs, gpus: None, tmp_path: Path) -> None:
    resources = Resources(gpus=(0, 3))
    Local().check(resources)
    other = Jobs(tmp_path / "other" / "jobs", jobs.mark)
    other.folder.mkdir(parents=True)
    record = tmp_path / "n"
    gpu = "$CUDA_VISIBLE_DEVICES $CUDA_DEVICE_ORDER"
    script = f"echo + {gpu} >> {record}; sleep 0.5; echo - {gpu} >> {record}"
    for folder in (jobs, other):
        folder.submit(*(jobs.job(f"{number}", script, resources=resources) for number in range(2)))
    for folder in (jobs, other):
        folder.until(**{"0": FINISHED, "1": FINISHED})
    running: set[str] = set()
    for line in record.read_text().splitlines():
        sign, gpu = line.split()[:2]
        assert (gpu in running) == (sign == "-"), record.read_text()
        (running.add if sign == "+" else running.remove)(gpu)
    assert record.read_text().count("+ 0 PCI_BUS_ID") + record.read_text().count("+ 3 PCI_BUS_ID") == 4
    assert jobs.state("0").device in ("0", "3")


def test_a_killed_supervisor_is_started_again_and_counted(jobs: Jobs) -> None:
    jobs.submit(jobs.job("a", "test -f again && exit 0; touch again; SLEEP & SLEEP", retries=1, directory=jobs.folder))
    wait_for(lambda: len(jobs.sleepers()) == 2)
    os.kill(jobs.process("a"), signal.SIGKILL)
    jobs.until(a=FINISHED)
    assert [attempt.exit for attempt in jobs.state("a").attempts] == [137, 0]


def test_a_job_whose_supervisor_was_killed_too_often_has_failed(jobs: Jobs) -> None:
    jobs.submit(jobs.job("a", "SLEEP"))
    wait_for(jobs.sleepers)
    os.kill(jobs.process("a"), signal.SIGKILL)
    wait_for(lambda: jobs.state("a").state == FAILED)
    assert [attempt.exit for attempt in jobs.state("a").attempts] == [137]
    wait_for(lambda: not is_held(jobs.folder, "queue"))
    assert not ensure_queue(jobs.folder)


def test_a_queue_ends_where_its_jobs_were_removed(jobs: Jobs) -> None:
    jobs.submit(jobs.job("a", "SLEEP"))
    wait_for(jobs.sleepers)
    queue, supervisor = jobs.process("queue"), jobs.process("a")
    shutil.rmtree(jobs.folder)
    os.kill(supervisor, signal.SIGTERM)
    wait_for(lambda: not Path(f"/proc/{queue}").exists(), 15)


def test_a_killed_queue_loses_nothing(jobs: Jobs) -> None:
    script = "touch begun_NAME; while ! test -f go; do sleep 0.05; done"
    jobs.submit(*(jobs.job(name, script.replace("NAME", name), directory=jobs.folder) for name in ("a", "b")))
    wait_for((jobs.folder / "begun_a").is_file)
    supervisor = jobs.process("a")
    os.kill(jobs.process("queue"), signal.SIGKILL)
    wait_for(lambda: not is_held(jobs.folder, "queue"))
    assert jobs.look() == {"a": RUNNING, "b": WAITING}
    ensure_queue(jobs.folder)
    jobs.process("queue")
    assert jobs.process("a") == supervisor and not (jobs.folder / "begun_b").exists()
    (jobs.folder / "go").touch()
    jobs.until(a=FINISHED, b=FINISHED)
    assert len(jobs.state("a").attempts) == 1
    wait_for(lambda: not is_held(jobs.folder, "queue"))


def test_jobs_outlive_the_terminal_that_submitted_them(jobs: Jobs) -> None:
    write_job(jobs.folder, jobs.job("a", "sleep 1"))
    script = f"{SUBMIT}; import time; time.sleep(60)"
    terminal = subprocess.Popen([sys.executable, "-c", script, str(jobs.folder)], start_new_session=True)
    jobs.until(a=RUNNING)
    for number in (signal.SIGHUP, signal.SIGKILL):
        os.killpg(terminal.pid, number)
    terminal.wait()
    jobs.until(a=FINISHED)


def test_two_submissions_at_once_run_each_job_once(jobs: Jobs) -> None:
    job = jobs.job("a", "echo x >> n; sleep 1", directory=jobs.folder)
    write_job(jobs.folder, job)
    both = [subprocess.Popen([sys.executable, "-c", SUBMIT, str(jobs.folder)]) for _ in range(3)]
    assert [one.wait() for one in both] == [0, 0, 0]
    jobs.until(a=FINISHED)
    assert (jobs.folder / "n").read_text() == "x\n"


def test_cancel_ends_what_runs_and_takes_out_what_waits(jobs: Jobs) -> None:
    jobs.submit(*(jobs.job(f"{number}", "(trap '' HUP; SLEEP) & SLEEP") for number in range(3)))
    wait_for(lambda: len(jobs.sleepers()) == 2)
    Local().cancel(jobs.folder, [*read_jobs(jobs.folder).values()])
    assert not jobs.sleepers()
    assert set(jobs.look().values()) == {CANCELLED}
    assert sum(len(jobs.state(f"{number}").attempts) for number in range(3)) == 1
    wait_for(lambda: not is_held(jobs.folder, "queue"))


def test_a_time_limit_ends_a_job(jobs: Jobs) -> None:
    jobs.submit(jobs.job("a", "SLEEP & SLEEP", resources=Resources(minutes=0.01)))
    jobs.until(a=TIMED_OUT)
    assert not jobs.sleepers()


def test_what_another_machine_left_running_is_known_to_be_dead(jobs: Jobs) -> None:
    write_job(jobs.folder, jobs.job("a", "exit 0", retries=1))
    write_state(jobs.folder, "a", State(RUNNING, (Attempt(1.0),), "another", 1, 1))
    (seen,) = Local().look(jobs.folder, read_jobs(jobs.folder)).values()
    assert (seen.state, seen.exit) == (FAILED, 137) and "supervisor was killed" in seen.reason
    ensure_queue(jobs.folder)
    jobs.until(a=FINISHED)


@pytest.mark.parametrize(("seconds", "gone"), [(0, False), (60, False), (600, True)])
def test_the_queue_of_another_machine_is_replaced_once_it_is_silent(jobs: Jobs, seconds: int, gone: bool) -> None:
    """A container that starts again has another name."""
    write_job(jobs.folder, jobs.job("a", "exit 0"))
    told = jobs.folder / ".queue.running.json"
    told.write_text(json.dumps({"host": "another", "process": 1, "since": "today", "doing": "the queue of jobs"}))
    os.utime(told, (time.time() - seconds,) * 2)
    assert ensure_queue(jobs.folder) == gone
    if gone:
        jobs.until(a=FINISHED)
        return
    with pytest.raises(InputError, match=r"while the queue in .* runs on another; .*submit there"):
        jobs.submit(jobs.job("a", "exit 0"))


def test_a_queue_tells_that_it_lives(jobs: Jobs) -> None:
    jobs.submit(jobs.job("a", "SLEEP"))
    jobs.process("queue")
    told = jobs.folder / ".queue.running.json"
    wait_for(jobs.sleepers)
    os.utime(told, (1, 1))
    wait_for(lambda: told.stat().st_mtime > 1)
    Local().cancel(jobs.folder, [*read_jobs(jobs.folder).values()])


def test_a_folder_without_locks_is_refused(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(InputError, match=r"got .*, where files cannot be locked \(.*No locks available\); expected"):
        jobs.submit(jobs.job("a", "exit 0"))
    assert [*jobs.folder.iterdir()] == []


@pytest.mark.parametrize("told", ["another process", "nothing"])
def test_cancel_ends_the_supervisor_alone(jobs: Jobs, told: str) -> None:
    """Whatever a full disk or a kill left of the file that tells who holds the lock."""
    jobs.submit(jobs.job("a", "SLEEP"))
    wait_for(lambda: jobs.state("a").state == RUNNING and jobs.sleepers())
    path = jobs.folder / ".a.running.json"
    with subprocess.Popen(["sleep", "60"]) as other:
        if told == "nothing":
            path.unlink()
        else:
            path.write_text(json.dumps({**json.loads(path.read_text()), "process": other.pid}))
        Local().cancel(jobs.folder, [*read_jobs(jobs.folder).values()])
        assert jobs.look() == {"a": CANCELLED} and not jobs.sleepers()
        assert other.poll() is None
        other.kill()


def test_cancel_asks_all_before_it_waits_for_one(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "PATIENCE", 15)
    jobs.submit(*(jobs.job(f"{number}", "SLEEP", resources=Resources(jobs=3)) for number in range(3)))
    wait_for(lambda: len(jobs.sleepers()) == 3)
    began = time.monotonic()
    Local().cancel(jobs.folder, [*read_jobs(jobs.folder).values()])
    assert time.monotonic() - began < 15
    assert set(jobs.look().values()) == {CANCELLED}


def test_a_submission_waits_for_a_cancellation(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "PATIENCE", 0.1)
    script = (
        "import sys, time; from nnunetv2_ext.locks import Path, hold;"
        "hold(Path(sys.argv[1]), 'a', 'a cancellation'); print(flush=True); time.sleep(0.5)"
    )
    command = [sys.executable, "-c", script, str(jobs.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as cancellation:
        assert cancellation.stdout is not None and cancellation.stdout.readline()
        jobs.submit(jobs.job("a", "exit 0"))
    jobs.until(a=FINISHED)


def test_a_job_runs_in_the_surroundings_of_who_submitted_it(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in those of who started the queue."""
    path = os.environ["PATH"]
    for name, needs in (("a", ()), ("b", ("a",))):
        program = tmp_path / name / "tool"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\necho "tool of {name}, $nnUNet_raw, <$nnUNet_ext_held>"\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{path}")
        monkeypatch.setenv("nnUNet_raw", f"raw of {name}")
        monkeypatch.setenv(PARENT, f"lock of {name}")
        command = f"while ! test -f {tmp_path}/go; do sleep 0.05; done; tool"
        jobs.submit(jobs.job(name, command, needs=needs))
        jobs.process("queue")
    (tmp_path / "go").touch()
    jobs.until(a=FINISHED, b=FINISHED)
    for name in ("a", "b"):
        assert f"tool of {name}, raw of {name}, <lock of a>" in jobs.log(name)
    assert search_path().split(os.pathsep)[0] == str(Path(sys.executable).parent)


def test_a_supervisor_that_cannot_begin_is_not_started_for_ever(jobs: Jobs) -> None:
    (jobs.folder / "a").mkdir()
    (jobs.folder / "a" / "state.json").write_text("{")
    write_job(jobs.folder, jobs.job("a", "exit 0"))
    write_job(jobs.folder, jobs.job("b", "exit 0"))
    ensure_queue(jobs.folder)
    jobs.until(a=FAILED, b=FINISHED)
    wait_for(lambda: not is_held(jobs.folder, "queue"))
    assert "a damaged file" in Local().look(jobs.folder, read_jobs(jobs.folder))["a"].reason


def test_a_job_that_cannot_be_read_stops_no_other(jobs: Jobs) -> None:
    (jobs.folder / "old").mkdir()
    (jobs.folder / "old" / "job.json").write_text('{"name": "old"}')
    jobs.submit(jobs.job("a", "exit 0"), jobs.job("b", "exit 0", needs=("old",)))
    jobs.until(old=FAILED, a=FINISHED, b=BLOCKED)
    wait_for(lambda: not is_held(jobs.folder, "queue"))


@pytest.mark.parametrize(
    ("resources", "sentence"),
    [
        (Resources(gpus=(0, 7)), r"got GPU 7; expected a GPU of .*; choose from 0, 1, 3"),
        (Resources(gpus=(1, 1)), r"got the GPUs '1, 1'; expected one or more, each once"),
        (Resources(gpus=(0,), jobs=2), "got --jobs with --gpus; expected one of them"),
        (Resources(jobs=0), "got --jobs 0; expected 1 or more"),
        (Resources(minutes=0), "got a time limit of 0 minutes; expected more than 0"),
        (Resources(partition="gpu"), "got --partition gpu for jobs of this machine; expected it with --on slurm"),
    ],
)
def test_resources_that_are_not_there_are_refused(gpus: None, resources: Resources, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Local().check(resources)


def test_a_gpu_is_kept_where_the_home_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert not is_taken("0")
    take_gpu("0", "the job a")
    assert is_taken("0")
    leave_gpu("0")
    assert not is_taken("0")
