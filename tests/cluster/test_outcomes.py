"""However a job in SLURM ends, it is shown so within seconds, and no process of it is left."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.jobs import record, squeue
from nnunetv2_ext.jobs.engine import Seen
from nnunetv2_ext.jobs.record import Job, Resources, read_job, read_state
from nnunetv2_ext.jobs.retries import TIME_LIMIT
from nnunetv2_ext.jobs.slurm import Slurm
from tests.cluster.daemons import Cluster, until

MARK = "NNUNETV2_EXT_CLUSTER"
"""Set for every command, so that what is left of one can be found."""
ONCE = "test -e again && exit 0; touch again; "
"""The second run ends at once, and well."""
LONG = "sleep 600 & sleep 600"


class Case(NamedTuple):
    command: str
    state: str
    exit: int | None
    runs: int
    does: str = ""
    retries: int = 0
    reason: str = ""
    needs: tuple[str, ...] = ()
    resources: Resources = Resources(cpus=1)


def killed(who: str, *, again: bool) -> Case:
    if again:
        return Case(ONCE + LONG, record.FINISHED, 0, 2, f"kill {who}", 1)
    reasons = {"command": "SIGKILL", "supervisor": "supervisor was killed", "script": "script in SLURM was killed"}
    return Case(LONG, record.FAILED, 137, 1, f"kill {who}", 0, reasons[who])


SHORT = Resources(cpus=1, minutes=1)
CASES = {
    "finishes": Case("sleep 1", record.FINISHED, 0, 1),
    "after": Case("test -e ../finishes/state.json", record.FINISHED, 0, 1, needs=("finishes",)),
    "fails": Case(
        "echo 'ValueError: no such plans' >&2; exit 3", record.FAILED, 3, 2, retries=2, reason="no such plans"
    ),
    "blocked": Case("true", record.BLOCKED, None, 0, needs=("fails",)),
    "command": killed("command", again=False),
    "command_again": killed("command", again=True),
    "supervisor": killed("supervisor", again=False),
    "supervisor_again": killed("supervisor", again=True),
    "script": killed("script", again=False),
    "script_again": killed("script", again=True),
    "scancel": Case(LONG, record.CANCELLED, 143, 1, "scancel", 2),
    "cancel": Case(LONG, record.CANCELLED, 143, 1, "cancel", 2),
    "taken": Case(ONCE + LONG, record.FINISHED, 0, 2, "scontrol requeue"),
    "pending": Case("true", record.CANCELLED, None, 0, "scancel", resources=Resources(partition="down", cpus=1)),
    "time_limit": Case(ONCE + LONG, record.FINISHED, 0, 2, retries=1, resources=SHORT),
    "too_short": Case(LONG, record.TIMED_OUT, 143, 1, resources=SHORT, reason="longer --time"),
}


class Outcomes(NamedTuple):
    folder: Path
    seen: dict[str, Seen]
    seconds: dict[str, float]
    """Until a job that was killed was shown as it ended, or as one that runs again."""


def marked(folder: Path) -> list[str]:
    """The command lines of the processes whose environment has a folder as `MARK`."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if f"{MARK}={folder}\0" in (process / "environ").read_text(errors="replace") + "\0":
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it has ended
            continue
    return found


def script_of(id: str | None) -> int:
    """The process of a job's script."""
    for process in Path("/proc").iterdir():
        try:
            if re.search(rf"job0*{id}/slurm_script", (process / "cmdline").read_text()):
                return int(process.name)
        except OSError:
            continue
    raise AssertionError(f"no script of {id}")


def act(folder: Path, name: str) -> None:
    """What happens to a job while it runs."""
    job, state = read_job(folder, name), read_state(folder, name)
    does: dict[str, Callable[[], object]] = {
        "kill command": lambda: os.kill(state.group or 0, signal.SIGKILL),
        "kill supervisor": lambda: os.kill(state.process or 0, signal.SIGKILL),
        "kill script": lambda: os.kill(script_of(job.id), signal.SIGKILL),
        "scancel": lambda: subprocess.run(["scancel", str(job.id)], check=True),
        "scontrol requeue": lambda: subprocess.run(["scontrol", "requeue", str(job.id)], check=True),
        "cancel": lambda: Slurm().cancel(folder, [job]),
    }
    does[CASES[name].does]()


@pytest.fixture(scope="module")
def outcomes(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcomes]:
    """All cases at once, until the last has ended."""
    folder = tmp_path_factory.mktemp("results") / "Dataset001_Any" / "jobs"
    slurm, environment = Slurm(), {MARK: str(folder)}
    jobs = []
    for name, case in CASES.items():
        where = folder / name
        where.mkdir(parents=True)
        command = ("bash", "-c", f"touch begun; {case.command}")
        resources = case.resources
        jobs.append(Job(name, command, case.needs, None, environment, resources, case.retries, directory=where))
    slurm.submit(folder, jobs)
    waiting = slurm.look(folder, {"pending": read_job(folder, "pending")})["pending"]
    assert waiting == Seen(record.WAITING, None, "its partition is down")
    acted: dict[str, float] = {}
    shown: dict[str, float] = {}
    end = time.monotonic() + 150
    while time.monotonic() < end:
        for name, case in CASES.items():
            runs = name == "pending" or (folder / name / ("again" if "again" in case.command else "begun")).exists()
            if case.does and name not in acted and runs:
                act(folder, name)
                acted[name] = time.monotonic()
        seen = slurm.look(folder, record.read_jobs(folder))
        for name, one in seen.items():
            if name in acted and one.state != record.RUNNING:
                shown.setdefault(name, time.monotonic() - acted[name])
        if all(one.state not in (record.WAITING, record.RUNNING) for one in seen.values()):
            break
        time.sleep(0.2)
    yield Outcomes(folder, seen, shown)


@pytest.mark.parametrize("name", CASES)
def test_ends_as_it_should(outcomes: Outcomes, name: str) -> None:
    case, one = CASES[name], outcomes.seen[name]
    state = read_state(outcomes.folder, name)
    assert (one.state, one.exit) == (case.state, case.exit), (one, state)
    assert case.reason in one.reason
    assert len(state.attempts) == case.runs
    if name == "time_limit":
        assert state.attempts[0].reason == TIME_LIMIT
    if case.does.startswith("kill") and case.state == record.FAILED:
        assert outcomes.seconds[name] < 10


def test_leaves_no_process(outcomes: Outcomes) -> None:
    until(lambda: not marked(outcomes.folder), 5, f"the end of {marked(outcomes.folder)}")


def test_stays_so_when_the_controller_has_forgotten(cluster: Cluster, outcomes: Outcomes) -> None:
    jobs = record.read_jobs(outcomes.folder)
    until(lambda: not cluster.says("squeue", "-h", "--states=all"), 100, "jobs that are forgotten")
    later = Slurm().look(outcomes.folder, jobs)
    assert {name: one[:2] for name, one in later.items()} == {name: one[:2] for name, one in outcomes.seen.items()}


def test_refuses_before_anything_is_written(cluster: Cluster, tmp_path: Path) -> None:
    refused = {
        "partition 'none'": Resources(partition="none"),
        "not available": Resources(gres="gpu:9"),
        "at most 1440": Resources(minutes=3000),
        "unrecognized option": Resources(lines=("--no-such",)),
        **({"account": Resources(account="none")} if cluster.accounting else {}),
    }
    for words, resources in refused.items():
        with pytest.raises(InputError, match=words):
            Slurm().check(resources)
    jobs = [
        Job("first", ("true",)),
        Job("second", ("true",), resources=Resources(gres="gpu:9")),
        Job("third", ("true",)),
    ]
    with pytest.raises(InputError, match=r"second that SLURM refuses .*submitted before it: first"):
        Slurm().submit(tmp_path, jobs)
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


INSIDE = """
import sys
from pathlib import Path
from nnunetv2_ext.jobs.record import Job, Resources
from nnunetv2_ext.jobs.slurm import Slurm
folder = Path(sys.argv[1])
runs = Job("runs", ("bash", "-c", f"env > {folder}/variables; sleep 600"), resources=Resources(memory_gb=0.1))
Slurm().submit(folder, [runs, Job("waits", ("true",), resources=Resources(partition="down"))])
"""


def test_submitted_within_an_allocation_and_killed_before_the_id_is_written(cluster: Cluster, tmp_path: Path) -> None:
    """What the allocation and its user set does not change the jobs, which are found without their ids."""
    folder = tmp_path / "Dataset001_Any" / "jobs"
    folder.mkdir(parents=True)
    hostile = {"TIMELIMIT": "1", "JOB_NAME": "other", "NO_REQUEUE": "1", "EXPORT": "NONE", "CPUS_PER_GPU": "2"}
    environment = os.environ | {f"SBATCH_{key}": value for key, value in hostile.items()} | {"SQUEUE_PARTITION": "no"}
    salloc = ["salloc", "--cpus-per-task=3", "--mem-per-cpu=10", "--ntasks=2"]
    subprocess.run([*salloc, sys.executable, "-c", INSIDE, folder], env=environment, check=True, timeout=60)
    jobs = record.read_jobs(folder)
    forgotten = {name: replace(job, id=None) for name, job in jobs.items()}
    try:
        until((folder / "variables").exists, 30, "the command")
        states = {name: one.state for name, one in Slurm().look(folder, forgotten).items()}
        assert states == {"runs": record.RUNNING, "waits": record.WAITING}
        told = cluster.says("scontrol", "show", "job", str(jobs["runs"].id))
        assert "TimeLimit=01:00:00" in told and "Requeue=1" in told and "MinMemoryNode=103M" in told
        variables = (folder / "variables").read_text()
        assert "SLURM_JOB_NAME=Dataset001_Any/runs\n" in variables
        assert "SLURM_MEM_PER_CPU" not in variables and "SLURM_NTASKS=1\n" in variables
    finally:
        Slurm().cancel(folder, [*forgotten.values()])
    assert {one.state for one in Slurm().look(folder, jobs).values()} == {record.CANCELLED}


def test_takes_jobs_while_nodes_are_away(cluster: Cluster) -> None:
    """`sbatch --test-only` refuses them, sbatch does not."""
    node = cluster.says("sinfo", "-h", "-p", "short", "-o", "%n").strip()
    cluster.says("scontrol", "update", f"NodeName={node}", "State=drain", "Reason=test")
    try:
        assert not cluster.succeeds("sbatch", "--test-only", "--wrap=true")
        Slurm().check(Resources())
    finally:
        cluster.says("scontrol", "update", f"NodeName={node}", "State=resume")


def test_a_controller_that_does_not_answer(
    cluster: Cluster, outcomes: Outcomes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(squeue, "PATIENCE", 1)
    jobs = {"finishes": read_job(outcomes.folder, "finishes")}
    controller = cluster.processes["slurmctld"]
    controller.send_signal(signal.SIGSTOP)
    try:
        one = Slurm().look(outcomes.folder, jobs)["finishes"]
        with pytest.raises(InputError, match="got no SLURM here"):
            Slurm().check(Resources())
    finally:
        controller.send_signal(signal.SIGCONT)
    assert one == Seen(record.FINISHED, 0)
