"""What SLURM says is read right, and merged with what the supervisor wrote."""

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
    write_job,
    write_state,
)
from nnunetv2_ext.jobs.retries import TIME_LIMIT, in_vain, why_not_again
from nnunetv2_ext.jobs.squeue import Told

SQUEUE = """\
2|PENDING|PartitionDown|0|N/A|
1|RUNNING|None|0|2026-11-29T14:59:23|
24|COMPLETING|JobLaunchFailure|9|2026-11-29T15:03:00|
29|COMPLETING|None|15|2026-11-29T15:03:40|
30|FAILED|NonZeroExitCode|35072|2026-11-29T15:03:48|
23|CANCELLED|DependencyNeverSatisfied|0|N/A|
"""
"""As SLURM 22.05 printed it."""
SACCT = """\
7|FAILED|None|137:0|2026-11-29T15:20:10
8|CANCELLED by 0|None|0:15|2026-11-29T15:20:11
9|FAILED|None|0:9|2026-11-29T15:20:12
10|TIMEOUT|None|0:0|2026-11-29T15:20:12
7|COMPLETED|None|0:0|2026-11-29T15:25:10
"""
PARTITIONS = """\
PartitionName=short AllowGroups=ALL Default=YES DefaultTime=01:00:00 MaxTime=1-00:00:00 State=UP
PartitionName=down AllowGroups=ALL Default=NO DefaultTime=NONE MaxTime=UNLIMITED State=DOWN
"""


def test_squeue_is_read() -> None:
    assert squeue.read_squeue(SQUEUE) == {
        "2": Told("PENDING", "PartitionDown", 0, "N/A"),
        "1": Told("RUNNING", "", 0, "2026-11-29T14:59:23"),
        "24": Told("COMPLETING", "JobLaunchFailure", 137, "2026-11-29T15:03:00"),
        "29": Told("COMPLETING", "", 143, "2026-11-29T15:03:40"),
        "30": Told("FAILED", "NonZeroExitCode", 137, "2026-11-29T15:03:48"),
        "23": Told("CANCELLED", "DependencyNeverSatisfied", 0, "N/A"),
    }


def test_sacct_is_read_the_last_of_each() -> None:
    told = squeue.read_sacct(SACCT)
    assert {id: (one.state, one.exit) for id, one in told.items()} == {
        "7": ("COMPLETED", 0),
        "8": ("CANCELLED", 143),
        "9": ("FAILED", 137),
        "10": ("TIMEOUT", 0),
    }


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("01:00:00", 60), ("1-00:00:00", 1440), ("2-03:04:30", 3064.5), ("UNLIMITED", None), ("NONE", None), ("", None)],
)
def test_times(text: str, minutes: float | None) -> None:
    assert squeue.minutes_of(text) == minutes


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Resources", "waits for a free place"),
        ("QOSMaxJobsPerUserLimit", "a limit of its QOS (QOSMaxJobsPerUserLimit)"),
        ("AssocGrpCpuLimit", "a limit of its account (AssocGrpCpuLimit)"),
        ("ReqNodeNotAvail, UnavailableNodes:gpu[1-4]", "the nodes that it could run on are down or reserved"),
        ("SomethingNew", "SomethingNew"),
    ],
)
def test_reasons_in_words(reason: str, words: str) -> None:
    assert squeue.words(reason) == words


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
        (wrote(RUNNING, None), Told("COMPLETED"), Seen(FINISHED, 0)),
        (State(), Told("CANCELLED", "Dependency"), Seen(CANCELLED)),
        (wrote(WAITING, NOW + 5, 143, TIME_LIMIT), Told("CANCELLED", "", 0), Seen(CANCELLED, 143)),
    ],
)
def test_merged(written: State, told: Told | None, seen: Seen) -> None:
    assert slurm.merged(written, told) == seen


@pytest.mark.parametrize(("told", "state"), [(None, FAILED), (Told("RUNNING"), RUNNING)])
def test_a_damaged_state_stops_no_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Told | None, state: str
) -> None:
    monkeypatch.setattr(slurm, "jobs_of", lambda ids: {} if told is None else {"7": told})
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "state.json").write_text("{")
    (seen,) = slurm.Slurm().look(tmp_path, {"a": Job("a", ("true",), engine="slurm", id="7")}).values()
    assert (seen.state, "a/state.json" in seen.reason) == (state, told is None)


def test_a_submission_that_was_killed_and_what_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "jobs_of", lambda ids: {})
    jobs = {"a": Job("a", ("true",), engine="slurm"), "b": Job("b", ("true",), ("a",), engine="slurm", id="8")}
    seen = slurm.Slurm().look(tmp_path, jobs)
    assert seen["a"].state == CANCELLED and "submit it again" in seen["a"].reason
    assert seen["b"] == Seen(BLOCKED, None, "a did not finish")


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
