"""Jobs on this machine: what they cost beside the bare command, how soon a kill shows, and trainings under kills.

    python -m benchmarks.jobs
    python -m benchmarks.jobs --kills 40 --seed 1
    python -m benchmarks.jobs --kills 0 --rounds 5

Five folds of a tiny MNet on synthetic data, two at a time on the CPU. At random moments the training, one of its data
workers, its whole group, its supervisor or the queue gets SIGKILL. Linux only.
"""

import argparse
import json
import os
import random
import re
import resource
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks._report import machine, markdown_facts
from nnunetv2_ext.data.phantom import write_phantoms
from nnunetv2_ext.jobs.local import Local
from nnunetv2_ext.jobs.queue import QUEUE, ensure_queue
from nnunetv2_ext.jobs.record import (
    ENDED,
    FAILED,
    FINISHED,
    LOG,
    RUNNING,
    Job,
    Resources,
    read_jobs,
    read_state,
    write_job,
)
from nnunetv2_ext.locks import holder, is_held
from nnunetv2_ext.testing.trainer import Shell
from nnunetv2_ext.text import markdown_table

DATASET, MODEL = "Dataset901_Phantoms", "MNetTrainer__MNetPlans__3d_fullres"
FOLDS = 5
TWO = Resources(jobs=2)
KINDS = ("training", "worker", "group", "supervisor", QUEUE)


def prepare(folder: Path) -> Shell:
    """Plan and preprocess phantoms for a tiny MNet."""
    shell = Shell(folder, {**os.environ, "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "2", "OMP_NUM_THREADS": "1"})
    write_phantoms(folder / "nnUNet_raw" / DATASET, training=FOLDS, test=0)
    short = "--epochs 1 --iterations 2 --val-iterations 1 --batch-size 2"
    shell.run(f"nnunetv2_ext plan_and_preprocess -d 901 -pl MNetPlanner -c 3d_fullres {short}")
    plans, content = _plans(shell)
    arguments = content["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    arguments["features_per_stage"] = [max(2, width // 8) for width in arguments["features_per_stage"]]
    plans.write_text(json.dumps(content), encoding="utf-8")
    return shell


def set_epochs(shell: Shell, epochs: int) -> None:
    """Train so many epochs from now on."""
    plans, content = _plans(shell)
    content["configurations"]["3d_fullres"]["training"]["epochs"] = epochs
    plans.write_text(json.dumps(content), encoding="utf-8")


def _plans(shell: Shell) -> tuple[Path, dict[str, Any]]:
    path = shell.folder / "nnUNet_preprocessed" / DATASET / "MNetPlans.json"
    return path, json.loads(path.read_text(encoding="utf-8"))


def training(shell: Shell, fold: int, *, retries: int = 2) -> Job:
    """The job of a fold."""
    environment = {key: value for key, value in shell.environment.items() if key.startswith(("nnUNet_", "OMP_"))}
    return Job(
        f"{MODEL}__fold_{fold}",
        (*shlex.split(f"nnUNetv2_train 901 3d_fullres {fold} -tr MNetTrainer -p MNetPlans -device cpu --npz"),),
        fold=shell.folder / "nnUNet_results" / DATASET / MODEL / f"fold_{fold}",
        environment=environment,
        resources=TWO,
        retries=retries,
    )


def cpu_of(command: Sequence[str], **arguments: object) -> float:
    """The CPU seconds of a command and all the processes that were waited for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **arguments)  # type: ignore[call-overload]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def queue_command(folder: Path) -> list[str]:
    """The queue, in the foreground."""
    return [sys.executable, "-m", "nnunetv2_ext.jobs.queue", str(folder)]


def overhead(shell: Shell, rounds: int) -> list[tuple[str, str]]:
    """CPU seconds of one fold of one epoch by itself and as a job, in turns, and of a job that does nothing."""
    folder = shell.folder
    bare, queued = [], []
    for number in range(rounds):
        job = training(shell, 0)
        bare.append(cpu_of(job.command, env=shell.environment, cwd=folder))
        _remove(job)
        write_job(folder / f"jobs_{number}", job)
        queued.append(cpu_of(queue_command(folder / f"jobs_{number}"), env=shell.environment))
        assert read_state(folder / f"jobs_{number}", job.name).state == FINISHED
        _remove(job)
    empty = []
    for number in range(max(3, rounds)):
        jobs = folder / f"empty_{number}"
        for fold in range(FOLDS):
            write_job(jobs, Job(f"fold_{fold}", ("true",), resources=TWO))
        empty.append(cpu_of(queue_command(jobs)) / FOLDS)
    lines = [("jobs of `true` with their queue, CPU s each", f"{statistics.median(empty):.2f}")]
    if rounds:
        times = f"{statistics.median(bare):.1f} and {statistics.median(queued):.1f} s of CPU"
        lines.append((f"`nnUNetv2_train` of one epoch, bare and as a job (median of {rounds})", times))
    return lines


def _remove(job: Job) -> None:
    assert job.fold is not None
    for path in sorted(job.fold.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


def wait_for(told: Callable[[], object], seconds: float) -> float:
    """The seconds until something is so."""
    begun = time.monotonic()
    while not told():
        assert time.monotonic() - begun < seconds, f"not within {seconds} s"
        time.sleep(0.02)
    return time.monotonic() - begun


def latency(folder: Path) -> list[tuple[str, str]]:
    """Seconds from a SIGKILL until the job is shown as failed, with its exit status."""
    lines = []
    for kind in ("training", "supervisor"):
        jobs = folder / f"latency_{kind}"
        Local().submit(jobs, [Job("a", ("sleep", "600"), retries=0)])
        wait_for(lambda jobs=jobs: read_state(jobs, "a").group, 30)  # type: ignore[misc]
        time.sleep(0.5)
        assert kill(random.Random(0), jobs, "a", kind)
        names = read_jobs(jobs)
        seconds = wait_for(lambda jobs=jobs, names=names: Local().look(jobs, names)["a"].state == FAILED, 30)  # type: ignore[misc]
        wait_for(lambda jobs=jobs: read_state(jobs, "a").state == FAILED, 30)  # type: ignore[misc]
        status = Local().look(jobs, names)["a"].exit
        lines.append((f"a killed {kind} shown as failed, exit status {status}", f"after {seconds:.2f} s"))
    return lines


def members(group: int) -> list[int]:
    """The living processes of a group, its first one aside."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state not in "ZX" and int(path.parent.name) != group:
            found.append(int(path.parent.name))
    return sorted(found)


def kill(moments: random.Random, jobs: Path, name: str, kind: str) -> bool:
    """Send SIGKILL to a part of a job, or to the queue; whether there was one."""
    group = read_state(jobs, name).group
    who = holder(jobs, QUEUE if kind == QUEUE else name)
    try:
        if kind in (QUEUE, "supervisor"):
            if who is None or not is_held(jobs, QUEUE if kind == QUEUE else name):
                return False
            os.kill(who["process"], signal.SIGKILL)
        elif group is None:
            return False
        elif kind == "group":
            os.killpg(group, signal.SIGKILL)
        else:
            workers = members(group)
            if kind == "worker" and not workers:
                return False
            os.kill(moments.choice(workers) if kind == "worker" else group, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def under_kills(shell: Shell, kills: int, epochs: int, pause: float, seed: int) -> list[tuple[str, str]]:
    """Five folds that are killed at random moments until they have finished."""
    set_epochs(shell, epochs)
    jobs = shell.folder / "nnUNet_results" / DATASET / "jobs"
    folds = [training(shell, fold, retries=kills) for fold in range(FOLDS)]
    moments, done, again, groups = random.Random(seed), Counter[str](), 0, set()
    begun = time.monotonic()
    Local().submit(jobs, folds)
    next_kill = time.monotonic() + moments.uniform(5, 10)
    while True:
        ensure_queue(jobs)  # as `nnunetv2_ext jobs` does
        states = {job.name: read_state(jobs, job.name) for job in folds}
        groups |= {state.group for state in states.values() if state.group is not None}
        if all(state.state == FINISHED for state in states.values()):
            break
        if failed := [job for job in folds if states[job.name].state in ENDED and states[job.name].state != FINISHED]:
            again += len(failed)
            Local().submit(jobs, failed)
        running = sorted(name for name, state in states.items() if state.state == RUNNING)
        if running and sum(done.values()) < kills and time.monotonic() > next_kill:
            kind = moments.choice(KINDS)
            if kill(moments, jobs, moments.choice(running), kind):
                done[kind] += 1
                next_kill = time.monotonic() + moments.uniform(1, pause)
        time.sleep(0.2)
    seconds = time.monotonic() - begun
    left = [process for group in groups for process in members(group)]
    wait_for(lambda: not is_held(jobs, QUEUE), 30)
    repeated, most = 0, 0
    for job in folds:
        assert job.fold is not None
        assert (job.fold / "validation" / "summary.json").is_file()
        logs = sorted(job.fold.glob("training_log_*.txt"))
        started = [int(epoch) for log in logs for epoch in re.findall(r"Epoch (\d+) *\n", log.read_text())]
        assert set(started) == set(range(epochs)), f"{job.name}: epochs {sorted(set(started))}"
        runs = (jobs / job.name / LOG).read_text(errors="replace").count("[job] runs ")
        repeated += len(started) - epochs
        most = max(most, len(started) - epochs - (runs - 1))
    told = ", ".join(f"{kind} {number}" for kind, number in sorted(done.items()))
    return [
        (f"folds finished of {FOLDS}, {epochs} epochs each, in {seconds:.0f} s", f"{FOLDS}"),
        (f"kills ({told})", f"{sum(done.values())}"),
        ("epochs that ran more than once", f"{repeated}"),
        ("epochs of a fold repeated beyond one per new run, at most", f"{max(0, most)}"),
        ("jobs that were given up and submitted again by hand", f"{again}"),
        ("processes left", f"{len(left)}"),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="kills over five folds (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=12, help="of each fold (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="trainings timed bare and as a job (default %(default)s)")
    parser.add_argument(
        "--pause", type=float, default=20, help="seconds between two kills at most (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills (default %(default)s)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="jobs_", ignore_cleanup_errors=True) as name:
        shell = prepare(Path(name))
        rows = [*overhead(shell, options.rounds), *latency(Path(name))]
        if options.kills:
            rows += under_kills(shell, options.kills, options.epochs, options.pause, options.seed)
    print(f"{markdown_facts(machine())}\n\n{markdown_table(('jobs', 'value'), rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
