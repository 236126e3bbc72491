"""One job to its end: exit status, retries, and no process left however it ends."""

import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.jobs import supervisor
from nnunetv2_ext.jobs.record import (
    CANCELLED,
    FAILED,
    FINISHED,
    RUNNING,
    TIMED_OUT,
    WAITING,
    Resources,
    State,
    write_job,
)
from nnunetv2_ext.jobs.supervisor import Signals
from nnunetv2_ext.locks import PARENT, held, lock_file
from tests.jobs.conftest import Jobs, wait_for

STUBBORN = "trap '' TERM; (trap '' TERM; SLEEP) & SLEEP"
"""Neither it nor its child ends on SIGTERM."""


@pytest.mark.parametrize(
    ("script", "status", "state", "reason"),
    [
        ("echo done", 0, FINISHED, ""),
        ("echo it broke; exit 3", 3, FAILED, "it broke"),
        ("kill -9 $$", 137, FAILED, "killed by signal 9 (SIGKILL), as by the system when memory runs out"),
        ("kill -TERM $$", 143, FAILED, "killed by signal 15 (SIGTERM)"),
        ("SLEEP & exit 4", 4, FAILED, "exit status 4 without a word"),
        ("(trap '' TERM; SLEEP) & kill -9 $$", 137, FAILED, "killed by signal 9 (SIGKILL), as by the system when mem"),
        ("exec no_such_program", 127, FAILED, "sh: 1: exec: no_such_program: not found"),
        ('read line; echo "<$line>"; exit 5', 5, FAILED, "<>"),
    ],
)
def test_exit_status_and_reason_are_kept(jobs: Jobs, script: str, status: int, state: str, reason: str) -> None:
    assert jobs.supervisor(jobs.job("a", script)).wait() == status
    now = jobs.state("a")
    (attempt,) = now.attempts
    assert (now.state, attempt.exit, now.group, now.note) == (state, status, None, "")
    assert attempt.reason.startswith(reason) if reason else attempt.reason == ""
    assert attempt.ended is not None and 0 <= attempt.ended - attempt.began < 5
    assert "[job] runs sh -c" in jobs.log("a")
    assert not jobs.sleepers()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_cancels(jobs: Jobs, number: int) -> None:
    running = jobs.supervisor(jobs.job("a", "SLEEP & SLEEP", retries=5))
    wait_for(lambda: len(jobs.sleepers()) == 2)
    running.send_signal(number)
    assert running.wait(3) == 143
    assert jobs.state("a").state == CANCELLED
    assert not jobs.sleepers()


def test_what_ignores_the_signal_is_killed(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnunetv2_ext.jobs.groups.GRACE", 0.3)
    write_job(jobs.folder, jobs.job("a", STUBBORN, resources=Resources(minutes=0.005)))
    assert supervisor.supervise(jobs.folder, "a") == 143
    assert jobs.state("a").state == TIMED_OUT
    assert not jobs.sleepers()


@pytest.mark.parametrize(("script", "after"), [("SLEEP & SLEEP", (0, 0.02)), ("sleep 0.3", (0.28, 0.38))])
def test_a_signal_at_any_moment_leaves_a_whole_state(
    jobs: Jobs, script: str, after: tuple[float, float], capfd: pytest.CaptureFixture[str]
) -> None:
    """Just after the command was started, and around its end."""
    rng = random.Random(0)
    names = [f"{number}" for number in range(6)]
    running = []
    for name in names:
        running.append(jobs.supervisor(jobs.job(name, script, retries=2)))
        wait_for(partial(jobs.log, name), pause=0.001)
        time.sleep(rng.uniform(*after))
        for _ in range(rng.choice((1, 3))):  # SLURM and a queue's user may ask several times
            running[-1].send_signal(signal.SIGTERM)
    for name, process in zip(names, running, strict=True):
        status, state = process.wait(10), jobs.state(name)
        assert (status, state.state) in {(143, CANCELLED), (0, FINISHED)}
        assert [attempt.exit for attempt in state.attempts] in ([], [0 if state.state == FINISHED else 143])
        assert state.group is None
    assert not jobs.sleepers() and capfd.readouterr().err == ""


def test_signals_of_the_scheduler_leave_it_waiting(jobs: Jobs) -> None:
    job = jobs.job("a", "SLEEP", engine="slurm", resources=Resources(minutes=0.001))  # which SLURM sees to
    write_job(jobs.folder, job)
    meaning = {signal.SIGUSR2: (WAITING, "time limit"), signal.SIGTERM: (WAITING, "taken")}
    before = {number: signal.getsignal(number) for number in meaning}
    try:
        with Signals(meaning) as signals:
            os.system(f"(sleep 0.4; kill -USR2 {os.getpid()}; sleep 0.01; kill {os.getpid()}) &")
            assert supervisor.supervise(jobs.folder, "a", signals=signals) == 143
        assert signals.told == meaning[signal.SIGUSR2]
        assert {signal.getsignal(number) for number in meaning} == {signal.SIG_IGN}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert jobs.state("a").state == WAITING
    assert [(one.exit, one.reason) for one in jobs.state("a").attempts] == [(143, "time limit")]
    write_job(jobs.folder, jobs.job("a", "exit 0", engine="slurm"))
    assert supervisor.supervise(jobs.folder, "a") == 0


def test_nothing_outlives_a_killed_supervisor_and_the_next_counts_it(jobs: Jobs) -> None:
    job = jobs.job("a", f"test -f again && exit 0; touch again; {STUBBORN}", retries=1, directory=jobs.folder)
    running = jobs.supervisor(job)
    wait_for(lambda: len(jobs.sleepers()) == 2)
    running.kill()
    running.wait()
    wait_for(lambda: not jobs.sleepers(), 1)
    assert jobs.state("a").state == RUNNING and jobs.look() == {"a": WAITING}
    assert jobs.supervisor(job).wait() == 0
    assert [attempt.exit for attempt in jobs.state("a").attempts] == [137, 0]
    assert jobs.state("a").state == FINISHED


def test_two_never_run_one_job(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    job = jobs.job("a", "SLEEP")
    running = jobs.supervisor(job)
    wait_for(jobs.sleepers)
    monkeypatch.setattr(supervisor, "PATIENCE", 0.1)
    with pytest.raises(InputError, match=rf"the job a in .* process {running.pid} on"):
        supervisor.supervise(jobs.folder, "a")
    running.terminate()
    running.wait()


@pytest.mark.parametrize(
    ("script", "retries", "exits"),
    [
        ("echo x >> n; test $(wc -l < n) -eq 3 || exit $(wc -l < n)0", 2, [10, 20, 0]),
        ("echo x >> n; echo $(wc -l < n); exit 1", 2, [1, 1, 1]),
        ("echo the same; exit 1", 2, [1, 1]),
        ("echo usage: a; exit 2", 2, [2]),
    ],
)
def test_retries(jobs: Jobs, script: str, retries: int, exits: list[int]) -> None:
    write_job(jobs.folder, jobs.job("a", script, retries=retries, directory=jobs.folder))
    assert supervisor.supervise(jobs.folder, "a") == exits[-1]
    assert [attempt.exit for attempt in jobs.state("a").attempts] == exits
    assert jobs.state("a").state == (FAILED if exits[-1] else FINISHED)


def test_a_job_that_has_ended_does_not_run_again(jobs: Jobs) -> None:
    write_job(jobs.folder, jobs.job("a", "echo x >> n; exit 3", directory=jobs.folder))
    assert [supervisor.supervise(jobs.folder, "a") for _ in range(2)] == [3, 3]
    assert (jobs.folder / "n").read_text() == "x\n"


def test_a_fold_that_somebody_else_trains_is_refused(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "PATIENCE", 0.1)
    fold = tmp_path / "results" / "fold_0"
    other = jobs.supervisor(jobs.job("other", "SLEEP", fold=fold))
    wait_for(jobs.sleepers)
    write_job(jobs.folder, jobs.job("a", "exit 0", fold=fold, retries=2))
    assert supervisor.supervise(jobs.folder, "a") == 2
    (attempt,) = jobs.state("a").attempts
    assert f"got a training in {fold} while process {other.pid} on" in attempt.reason
    with pytest.raises(InputError, match="a training"), held(fold.parent, "fold_0", "a training"):
        pass
    other.terminate()
    other.wait()


def test_the_training_in_a_job_may_take_the_fold(jobs: Jobs, tmp_path: Path) -> None:
    fold = tmp_path / "results" / "fold_0"
    script = f"import sys; from nnunetv2_ext.locks import hold, Path; hold(Path({str(fold.parent)!r}), 'fold_0', 'x')"
    write_job(jobs.folder, jobs.job("a", f'exec {sys.executable} -c "{script}"', fold=fold))
    assert supervisor.supervise(jobs.folder, "a") == 0, jobs.log("a")
    assert PARENT not in os.environ and lock_file(fold.parent, "fold_0").is_file()


def test_a_disk_that_is_full_ends_no_training(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, began = supervisor.write_state, time.monotonic()

    def late(folder: Path, name: str, state: State) -> None:  # there is room again after a second
        if time.monotonic() < began + 1:
            raise OSError(28, "No space left on device")
        whole(folder, name, state)

    write_job(jobs.folder, jobs.job("a", "echo one; sleep 0.2; echo two >> done", directory=jobs.folder))
    (jobs.folder / "a" / "log.txt").symlink_to("/dev/full")
    monkeypatch.setattr(supervisor, "write_state", late)
    assert supervisor.supervise(jobs.folder, "a") == 0
    assert (jobs.folder / "done").read_text() == "two\n"
    assert jobs.state("a").state == FINISHED
    assert "could not be written" in jobs.state("a").note
