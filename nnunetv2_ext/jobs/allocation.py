"""Inside an allocation of SLURM: the supervisor under submitit, and what follows when SLURM or a kill ends it.

`python -m nnunetv2_ext.jobs.allocation FOLDER_OF_JOBS NAME STATUS` is run by the script around a supervisor that did
not end well, whose job it puts into the queue again where `retries.py` says so.
"""

import os
import signal
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.jobs import record
from nnunetv2_ext.jobs.groups import SIGNALS
from nnunetv2_ext.jobs.record import State, read_job, read_state, write_job, write_state
from nnunetv2_ext.jobs.retries import AGAIN, TIME_LIMIT, in_vain, why_not_again
from nnunetv2_ext.jobs.squeue import LIVING, NoAnswer, Told, ask, jobs_of, seconds
from nnunetv2_ext.jobs.supervisor import Signals, is_to_run_again, supervise
from nnunetv2_ext.locks import held
from nnunetv2_ext.text import one_line

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

TAKEN = f"taken from its node by SLURM: {AGAIN}"
SCRIPT_KILLED = "its script in SLURM was killed"
ELSEWHERE = 600.0
"""Seconds to wait for a supervisor that a lost node still runs, and that SLURM ends when it finds the node again."""
CANCELLED = SIGNALS + signal.SIGTERM
"""The exit status that SLURM gives to a job which scancel ends."""


class Task:
    """What submitit pickles and calls: names alone, so that a later version of this module reads it."""

    def __init__(self, folder: str, name: str):
        self.folder, self.name = folder, name

    def __call__(self) -> None:
        """Run the job; ends this process with its exit status, from which SLURM knows whether others may begin."""
        from submitit.core.job_environment import JobEnvironment

        folder = Path(self.folder)
        before_limit = signal.Signals[f"SIG{JobEnvironment.USR_SIG}"]
        requeued_by_submitit = signal.getsignal(before_limit)
        meaning = {signal.SIGTERM: (record.WAITING, TAKEN), before_limit: (record.WAITING, TIME_LIMIT)}
        try:
            with (
                Signals(meaning) as signals,
                held(folder, self.name, f"the job {self.name}", patience=ELSEWHERE),
            ):
                self._begin(folder)
                status = supervise(folder, self.name, signals=signals)
                if signals.told == meaning[signal.SIGTERM]:
                    self._taken(folder)
                elif signals.told is not None and read_state(folder, self.name).state == record.WAITING:
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent by the requeue, and no cancel
                    assert callable(requeued_by_submitit)
                    requeued_by_submitit(before_limit, None)  # calls `checkpoint` and ends this process
        except InputError as error:
            sys.stderr.write(f"{error}\n")
            status = 2
        raise SystemExit(status)

    def _begin(self, folder: Path) -> None:
        """Bring what stands in the folder of the job up to date."""
        job, id = read_job(folder, self.name), os.environ.get("SLURM_JOB_ID")
        if job.id != id:  # who submitted it was killed before it could write it down
            write_job(folder, replace(job, id=id))
        state = read_state(folder, self.name)
        if state.state in record.ENDED and state.state != record.FINISHED:  # SLURM or its user starts it again
            write_state(folder, self.name, replace(state, state=record.WAITING))

    def checkpoint(self) -> Optional["DelayedSubmission"]:
        """What submitit puts into the queue again, once the command was stopped just before the time limit.

        Returns:
            None where run after run ended so without a whole epoch gained: the time is too short.
        """
        from submitit.helpers import DelayedSubmission

        folder = Path(self.folder)
        state = read_state(folder, self.name)
        count = in_vain(state.attempts)
        if count <= read_job(folder, self.name).retries:
            return DelayedSubmission(self)
        why = f"runs without a whole epoch before the time limit: {count}; give it a longer --time"
        self._mend(state, record.TIMED_OUT, why, state.attempts[-1].exit)
        return None

    def _taken(self, folder: Path) -> None:
        """Find out why the command was stopped: cancelled, taken from this node, or the script of the job is gone.

        Until SLURM has said so it counts as taken away: where this process is killed meanwhile, it goes on later.
        """
        id = os.environ.get("SLURM_JOB_ID", "")
        state = read_state(folder, self.name)
        if state.state != record.WAITING or (told := _why(id)) is None:
            return
        if told.state in LIVING - {"COMPLETING"} or told.exit == CANCELLED:
            self._mend(state, record.CANCELLED, "cancelled", CANCELLED)
        elif told.exit:
            self._mend(state, record.WAITING, SCRIPT_KILLED, told.exit)
            attempts = read_state(folder, self.name).attempts
            if attempts and why_not_again(attempts, read_job(folder, self.name).retries) is not None:
                self._mend(state, record.FAILED, SCRIPT_KILLED, told.exit)
            else:
                requeue(id, {"COMPLETING", "FAILED"})

    def _mend(self, state: State, name: str, reason: str, exit: int | None) -> None:
        """Write a state with another name, and another end of its last attempt."""
        attempts = state.attempts
        if attempts:
            attempts = (*attempts[:-1], replace(attempts[-1], reason=reason, exit=exit))
        write_state(Path(self.folder), self.name, replace(state, state=name, attempts=attempts))


def _why(id: str) -> Told | None:
    """What SLURM says of a job that it ends, whose exit status it may know a moment later; None where it is silent."""
    end = time.monotonic() + 2
    while True:
        try:
            told = jobs_of([id]).get(id)
        except NoAnswer:
            return None
        if (
            told is None
            or told.exit
            or told.state != "COMPLETING"
            or seconds(told.began) > time.time()
            or time.monotonic() > end
        ):
            return told
        time.sleep(0.1)


def requeue(id: str, states: Collection[str]) -> None:
    """Put a job into the queue again, which ends what is left of it here; waits for a controller that is on its way up.

    Args:
        states: SLURM's, in which it is: not one that somebody has cancelled or put there already.
    """
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            told = jobs_of([id]).get(id)
            if told is not None and told.state in states:
                ask("scontrol", "requeue", id)
            return
        except NoAnswer as silence:
            sys.stderr.write(f"{id} is not in the queue again: {one_line(silence)}\n")
        time.sleep(1)


def main(arguments: Sequence[str]) -> None:
    """What is left to do for a job whose supervisor ended with that status."""
    folder, name, status, id = Path(arguments[0]), arguments[1], int(arguments[2]), os.environ["SLURM_JOB_ID"]
    try:
        state = read_state(folder, name)
        stopped = state.state == record.WAITING and state.last.reason == TIME_LIMIT
        if not stopped and (status < SIGNALS or not is_to_run_again(folder, name)):
            return
    except InputError as error:  # its supervisor lives
        sys.stderr.write(f"{error}\n")
        return
    requeue(id, {"RUNNING"})


if __name__ == "__main__":
    main(sys.argv[1:])
