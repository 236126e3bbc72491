"""What SLURM says is merged with what the supervisor wrote, and jobs are asked for as they should be."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.jobs import slurm, squeue
from nnunetv2_ext.jobs.engine import Seen
from nnunetv2_ext.jobs.record import (
    BLOCKED,
    CANCELLED,
    FAILED,
    FINISHED,
    RUNNING,
    TIMED_OUT,
    WAITING,
    Attempt,
    Job,
    Resources,
    State,
    read_jobs,
    read_state,
    write_job,
    write_state,
)
from nnunetv2_ext.jobs.retries import TIME_LIMIT, in_vain, why_not_again
from nnunetv2_ext.jobs.squeue import Told

PARTITIONS = """\
PartitionName=short AllowGroups=ALL Default=YES DefaultTime=01:00:00 MaxTime=1-00:00:00 State=UP
PartitionName=down AllowGroups=ALL Default=NO DefaultTime=NONE MaxTime=UNLIMITED State=DOWN
"""


NOW = 1795964400.0
BEGAN = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(NOW))


def wrote(name: str, ended: float | None, exit: int | None = None, reason: str = "") -> State:
    return State(name, (Attempt(NOW, ended, exit, reason),))


@pytest.mark.parametrize(
    ("written", "told", "seen"),
    [
        (State(), Told("PENDING", "Priority"), Seen(WAITING, None, "waits for other jobs, which come first")),
        (
            State(),
            Told("PENDING", "DependencyNeverSatisfied"),
            Seen(BLOCKED, None, "a job that it needs did not finish"),
        ),
        (
            State(),
            Told("CANCELLED", "DependencyNeverSatisfied"),
            Seen(BLOCKED, None, "a job that it needs did not finish"),
        ),
        (State(), Told("CANCELLED", "PartitionDown"), Seen(CANCELLED)),
        (State(), None, Seen(CANCELLED, None, "it had not begun, and SLURM knows it no longer")),
        (
            State(),
            Told("FAILED", "JobLaunchFailure"),
            Seen(FAILED, None, "its node could not start it, or its script was killed"),
        ),
        (State(), Told("RUNNING", began=BEGAN), Seen(RUNNING)),
        (wrote(RUNNING, None), Told("RUNNING", began=BEGAN), Seen(RUNNING)),
        (
            wrote(RUNNING, None),
            Told("FAILED", "NonZeroExitCode", 137),
            Seen(FAILED, 137, "its supervisor was ended with exit status 137"),
        ),
        (wrote(RUNNING, None), Told("NODE_FAIL"), Seen(FAILED, None, "its node failed")),
        (wrote(RUNNING, None), Told("TIMEOUT"), Seen(TIMED_OUT, None, "SLURM ended it at its time limit")),
        (
            wrote(RUNNING, None),
            Told("OUT_OF_MEMORY", "OutOfMemory", 137),
            Seen(FAILED, 137, "more memory than SLURM gave it: ask for more with --memory"),
        ),
        (wrote(RUNNING, None), None, Seen(FAILED, None, "its supervisor wrote no end, and SLURM knows it no longer")),
        (wrote(WAITING, NOW + 5, 143, TIME_LIMIT), Told("PENDING", "BeginTime"), Seen(WAITING, None, TIME_LIMIT)),
        (wrote(FAILED, NOW + 5, 1, "ValueError"), Told("COMPLETING", "", 1, BEGAN), Seen(FAILED, 1, "ValueError")),
        (wrote(FAILED, NOW - 5, 1, "ValueError"), Told("RUNNING", "", 0, BEGAN), Seen(RUNNING)),
        (wrote(FAILED, NOW + 5, 1, "ValueError"), Told("FAILED", "NonZeroExitCode", 1), Seen(FAILED, 1, "ValueError")),
        (wrote(FINISHED, NOW + 5, 0), Told("COMPLETED"), Seen(FINISHED, 0)),
        (wrote(FINISHED, NOW + 5, 0), None, Seen(FINISHED, 0)),
        (wrote(FINISHED, NOW - 5, 0), Told("RUNNING", began=BEGAN), Seen(FINISHED, 0)),
        (wrote(RUNNING, None), Told("COMPLETED"), Seen(FINISHED, 0)),
        (State(), Told("CANCELLED", "Dependency"), Seen(CANCELLED)),
        (wrote(WAITING, NOW + 5, 143, TIME_LIMIT), Told("CANCELLED", "", 0), Seen(CANCELLED, 143)),
    ],
)
def test_merged(written: State, told: Told | None, seen: Seen) -> None:
    assert slurm.merged(written, told) == seen


class Fake:
    """SLURM's answers by the id of a job, and what scancel was told to end."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.told: dict[str, Told] = {}
        self.ended: list[str] = []

    def has(self, id: str, name: str, *words: Any, where: Path | None = None) -> None:
        dataset = f"{self.folder.parent.name}/" if "/" not in name else ""
        told = Told(*words)._replace(name=dataset + name, folder=str((where or self.folder) / name))
        self.told[id] = told

    def ask(self, *command: str) -> str:
        assert command[0] == "scancel"
        self.ended += command[1:]
        self.told |= {id: self.told[id]._replace(state="CANCELLED", exit=143) for id in command[1:]}
        return ""

    def job(self, name: str, id: str | None, state: State, needs: tuple[str, ...] = ()) -> None:
        write_job(self.folder, Job(name, ("true",), needs, engine="slurm", id=id))
        write_state(self.folder, name, state)

    def look(self) -> dict[str, Seen]:
        return slurm.Slurm().look(self.folder, read_jobs(self.folder))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake(tmp_path / "Dataset001_Any" / "jobs")
    monkeypatch.setattr(slurm, "jobs_of", lambda ids: {id: fake.told[id] for id in ids if id in fake.told})
    alive = squeue.LIVING | squeue.QUEUED
    monkeypatch.setattr(slurm, "queued", lambda: {id: one for id, one in fake.told.items() if one.state in alive})
    monkeypatch.setattr(slurm, "ask", fake.ask)
    return fake


@pytest.mark.parametrize(("told", "state"), [(None, FAILED), (Told("RUNNING"), RUNNING)])
def test_a_damaged_state_stops_no_look(fake: Fake, told: Told | None, state: str) -> None:
    fake.job("a", "7", State())
    (fake.folder / "a" / "state.json").write_text("{")
    if told is not None:
        fake.has("7", "a", *told[:4])
    seen = fake.look()["a"]
    assert (seen.state, "a/state.json" in seen.reason) == (state, told is None)


def test_a_submission_that_was_killed_and_what_needs_it(fake: Fake) -> None:
    fake.job("a", None, State())
    fake.job("b", "8", State(), ("a",))
    fake.job("c", "9", State(), ("b",))
    seen = fake.look()
    assert seen["a"].state == CANCELLED and "submit it again" in seen["a"].reason
    assert seen["b"] == Seen(BLOCKED, None, "it needs a: cancelled")
    assert seen["c"] == Seen(BLOCKED, None, "it needs b: cancelled")


def test_a_job_whose_id_was_not_written_down_is_known_by_its_folder(fake: Fake, tmp_path: Path) -> None:
    """Its submission was killed after SLURM had it; a job of the same name in other results is another."""
    fake.job("a", None, State())
    fake.job("b", None, State())
    fake.has("7", "a", "PENDING", "Priority")
    fake.has("8", "b", "PENDING", "Priority", where=tmp_path / "other" / "Dataset001_Any" / "jobs")
    assert {name: one.state for name, one in fake.look().items()} == {"a": WAITING, "b": CANCELLED}
    slurm.Slurm().cancel(fake.folder, [*read_jobs(fake.folder).values()])
    assert fake.ended == ["7"]
    assert fake.look()["a"].state == CANCELLED


@pytest.mark.parametrize("state", [wrote(FINISHED, NOW + 5, 0), wrote(FAILED, NOW + 5, 1, "ValueError")])
def test_the_id_of_somebody_elses_job_is_not_ours(fake: Fake, state: State) -> None:
    """A second cluster over the same files counts from 1, too."""
    fake.job("report", "7", state)
    fake.has("7", "Dataset002_Other/report", "RUNNING")
    assert fake.look()["report"] == Seen(state.state, state.attempts[-1].exit, state.attempts[-1].reason)
    slurm.Slurm().cancel(fake.folder, [*read_jobs(fake.folder).values()])
    assert fake.ended == []


@pytest.mark.parametrize(
    ("state", "told", "name"),
    [
        (wrote(RUNNING, None), Told("TIMEOUT"), TIMED_OUT),
        (wrote(RUNNING, None), Told("OUT_OF_MEMORY", "OutOfMemory", 137), FAILED),
        (wrote(RUNNING, None), Told("FAILED", "NonZeroExitCode", 137), FAILED),
        (wrote(WAITING, NOW + 5, 143, TIME_LIMIT), Told("CANCELLED"), CANCELLED),
        (wrote(FAILED, NOW + 5, 1, "ValueError"), Told("CANCELLED"), CANCELLED),
        (State(), Told("CANCELLED"), CANCELLED),
        (State(), Told("FAILED", "JobLaunchFailure"), FAILED),
    ],
)
def test_an_end_that_only_slurm_knows_outlives_its_memory(fake: Fake, state: State, told: Told, name: str) -> None:
    fake.job("a", "7", state)
    fake.has("7", "a", *told[:4])
    first = fake.look()["a"]
    assert first.state == read_state(fake.folder, "a").state == name
    fake.told.clear()
    later = fake.look()["a"]
    assert later[:2] == first[:2]
    assert first.reason in later.reason


@pytest.mark.parametrize(
    "told", [Told("FAILED", "NonZeroExitCode", 1), Told("COMPLETED"), Told("COMPLETING", "", 143, BEGAN)]
)
def test_an_end_that_the_supervisor_writes_is_left_to_it(fake: Fake, told: Told) -> None:
    fake.job("a", "7", wrote(RUNNING, None))
    fake.has("7", "a", *told[:4])
    fake.look()
    assert read_state(fake.folder, "a") == wrote(RUNNING, None)


def test_jobs_cancelled_with_those_that_they_need(fake: Fake) -> None:
    fake.job("a", "7", wrote(RUNNING, None))
    fake.job("b", "8", State(), ("a",))
    fake.has("7", "a", "RUNNING", "", 0, BEGAN)
    fake.has("8", "b", "PENDING", "Dependency")
    slurm.Slurm().cancel(fake.folder, [*read_jobs(fake.folder).values()])
    fake.told.clear()
    assert {name: one.state for name, one in fake.look().items()} == {"a": CANCELLED, "b": CANCELLED}


def test_a_silent_controller_leaves_what_was_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*command: str, **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, 10)

    monkeypatch.setattr(subprocess, "run", silent)
    job = Job("a", ("true",), engine="slurm", id="7")
    write_job(tmp_path, job)
    write_state(tmp_path, "a", wrote(RUNNING, None))
    seen = slurm.Slurm().look(tmp_path, {"a": job})
    assert seen["a"].state == RUNNING
    assert "no answer from squeue within 10 s" in seen["a"].reason


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster whose partitions are known."""
    monkeypatch.setattr(squeue, "ask", lambda *command: PARTITIONS)
    for name in slurm.USUAL.values():
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("answers")
@pytest.mark.parametrize(
    ("resources", "options"),
    [
        (Resources(), {"time": 60}),
        (Resources(partition="down"), {"time": 0, "partition": "down"}),
        (Resources(partition="short,down", minutes=2000), {"time": 2000, "partition": "short,down"}),
        (Resources(minutes=90.5, gres="gpu:1", account="lab"), {"time": 91, "gres": "gpu:1", "account": "lab"}),
        (Resources(memory_gb=1.5, cpus=12), {"time": 60, "mem": "1536M", "cpus-per-task": 12}),
        (
            Resources(lines=("--qos=long", "--exclusive", "--comment a b")),
            {"time": 60, "qos": "long", "exclusive": True, "comment": "a b"},
        ),
    ],
)
def test_resources_as_options(resources: Resources, options: dict[str, Any]) -> None:
    assert slurm.options_of(resources) == {"requeue": True, **options}


@pytest.mark.usefixtures("answers")
def test_what_a_user_sets_for_all_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ACCOUNT": "lab", "PARTITION": "down", "QOS": "long", "TIMELIMIT": "5"}.items():
        monkeypatch.setenv(f"SBATCH_{name}", value)
    options = slurm.options_of(Resources(account="other", lines=("--qos=short",)))
    assert options == {"requeue": True, "time": 0, "partition": "down", "account": "other", "qos": "short"}


@pytest.mark.usefixtures("answers")
@pytest.mark.parametrize(
    ("resources", "words"),
    [
        (Resources(partition="gpu"), "got the partition 'gpu'; expected one of short, down"),
        (Resources(minutes=1441), "1441 minutes in the partition short; expected at most 1440"),
        (Resources(minutes=0), "got --time 0"),
        (Resources(memory_gb=float("nan")), "got --memory nan"),
        (Resources(memory_gb=0), "got --memory 0; expected a number above 0"),
        (Resources(cpus=0), "got --cpus 0; expected 1 or more"),
        (Resources(lines=("qos=long",)), "got the line 'qos=long'"),
        (Resources(lines=("-C gpu",)), "got the line '-C gpu'"),
        (Resources(lines=("--comment=a\n#SBATCH --wrap=b",)), "expected one option of sbatch"),
        (Resources(lines=("--time=5",)), "say --time"),
        (Resources(lines=("--dependency=afterok:1",)), "leave it out"),
    ],
)
def test_resources_refused(resources: Resources, words: str) -> None:
    with pytest.raises(InputError) as error:
        slurm.options_of(resources)
    assert words in str(error.value)


def test_without_submitit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match=r"no module 'submitit'.*pip install 'nnunetv2_ext\[cluster\]'"):
        slurm.Slurm().check(Resources())


@pytest.mark.parametrize(("resources", "flag"), [(Resources(jobs=2), "--jobs"), (Resources(gpus=(0,)), "--gpus")])
def test_resources_of_one_machine(resources: Resources, flag: str) -> None:
    pytest.importorskip("submitit")
    with pytest.raises(InputError, match=f"got {flag} on SLURM; expected it on this machine alone"):
        slurm.Slurm().check(resources)


def test_srun_without_a_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """submitit takes any srun for a SLURM."""
    pytest.importorskip("submitit")
    for name in ("srun", "sbatch", "scontrol"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'scontrol: error: no controller' >&2; exit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(InputError, match="got no SLURM here"):
        slurm.Slurm().check(Resources())


@pytest.mark.parametrize(
    ("runs", "vain"),
    [
        ([], 0),
        ([(TIME_LIMIT, 3)], 0),
        ([(TIME_LIMIT, 0)], 1),
        ([(TIME_LIMIT, 3), (TIME_LIMIT, 3), (TIME_LIMIT, 2)], 2),
        ([(TIME_LIMIT, 0), (TIME_LIMIT, 0), (TIME_LIMIT, 1)], 0),
        ([("killed", 0), (TIME_LIMIT, None)], 1),
    ],
)
def test_time_limits_in_vain(runs: list[tuple[str, int | None]], vain: int) -> None:
    attempts = [Attempt(NOW, NOW + 1, 143, reason, epochs) for reason, epochs in runs]
    assert in_vain(attempts) == vain


def test_what_was_put_into_the_queue_again_has_not_failed() -> None:
    stopped = [Attempt(NOW, NOW + 1, 143, TIME_LIMIT, 0)] * 5
    assert why_not_again([*stopped, Attempt(NOW, NOW + 1, 137, "killed", 0)], 1) is None
