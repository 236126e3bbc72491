"""Runs one job to its end: `python -m nnunetv2_ext.jobs.supervisor FOLDER_OF_JOBS NAME [GPU]`.

The command runs in a process group of its own, which ends as a whole: with the command, with a signal to the
supervisor, at the time limit, and, by a watcher, when the supervisor itself is killed.
"""

import contextlib
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.jobs.devices import leave_gpu, take_gpu
from nnunetv2_ext.jobs.folds import command_now, set_damaged_aside
from nnunetv2_ext.jobs.groups import KILLED, SIGNALS, Group, await_end
from nnunetv2_ext.jobs.log import Log
from nnunetv2_ext.jobs.progress import progress
from nnunetv2_ext.jobs.record import (
    CANCELLED,
    ENDED,
    FAILED,
    FINISHED,
    LOG,
    RUNNING,
    TIMED_OUT,
    Attempt,
    Job,
    State,
    read_job,
    read_state,
    write_state,
)
from nnunetv2_ext.jobs.retries import SUPERVISOR_KILLED, reason, why_not_again
from nnunetv2_ext.locks import PARENT, hold, let_go, lock_file
from nnunetv2_ext.text import one_line

PATIENCE = 2.0
"""Seconds to wait for a lock, which who looks takes for an instant."""
BUSY = 75
"""The exit status of a supervisor whose GPU another job has: nothing has happened."""
STOPPED = SIGNALS + signal.SIGTERM
SHARED = (STOPPED, SIGNALS + signal.SIGUSR2)
"""Exit statuses by the signals that SLURM sends to all processes of a job at once."""
_supervisor: "Supervisor | None" = None


def supervise(folder: Path, name: str, *, gpu: str | None = None, signals: bool = True) -> int:
    """Run a job, again after failures, until it has finished or is given up.

    Args:
        folder: of all jobs of the data set.
        gpu: the GPU of this machine that it takes for itself.
        signals: end the job as cancelled on SIGTERM, SIGINT and SIGHUP.

    Returns:
        The exit status of the command: 128 + signal where one ended it.

    Raises:
        InputError: another supervisor runs it, or there is no such job.
    """
    global _supervisor
    job = read_job(folder, name)
    hold(folder, name, f"the job {name}", patience=PATIENCE)
    try:
        if gpu is not None:
            try:
                take_gpu(gpu, f"the job {name}")
            except InputError:
                return BUSY
        _supervisor = Supervisor(folder, job)
        with _handled(signals):
            return _supervisor.run()
    finally:
        if _supervisor is not None:
            _supervisor.close()
        _supervisor = None
        if gpu is not None:
            leave_gpu(gpu)
        let_go(folder, name)


def stop(state: str, why: str = "") -> None:
    """End the command of the job that this process supervises and write `state`; for a signal's handler too.

    Args:
        state: `WAITING` where the job runs again later.
        why: the reason of its attempt, with `retries.AGAIN` at its end where it runs again; by default the state.
    """
    if _supervisor is not None:
        _supervisor.stop(state, why)


def is_to_run_again(folder: Path, name: str) -> bool:
    """Note that the supervisor of a job was killed; whether the job is to be run again.

    Raises:
        InputError: it lives.
    """
    hold(folder, name, f"the job {name}", patience=PATIENCE)
    try:
        return Supervisor(folder, read_job(folder, name)).was_killed()
    finally:
        let_go(folder, name)


@contextlib.contextmanager
def _handled(signals: bool) -> Iterator[None]:
    def handler(state: str) -> Callable[[int, FrameType | None], None]:
        return lambda number, frame: stop(state)

    states = {signal.SIGALRM: TIMED_OUT}
    if signals:
        states |= dict.fromkeys((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), CANCELLED)
    before = {number: signal.signal(number, handler(state)) for number, state in states.items()}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, previous in before.items():
            signal.signal(number, previous)


class Supervisor:
    """One job, its command and the processes around it.

    Args:
        folder: of all jobs of the data set; the lock of the job is held.
    """

    def __init__(self, folder: Path, job: Job):
        self.folder, self.job = folder, job
        self.state = State()
        self.stopped = ""
        """The state in which it was stopped from outside."""
        self.why = ""
        self.group: Group | None = None
        self.log = Log(folder / job.name / LOG)

    def run(self) -> int:
        """See `supervise`."""
        self.state = read_state(self.folder, self.job.name)
        if self.state.state in ENDED:
            return 0 if self.state.state == FINISHED else self._last_exit()
        self._close_killed()
        self.state = replace(
            self.state,
            host=platform.node(),
            process=os.getpid(),
            group=None,
            device=os.environ.get("CUDA_VISIBLE_DEVICES"),
        )
        if self.state.attempts and self.state.state == RUNNING and not self._goes_on():
            return self._last_exit()
        try:
            with self._fold_held():
                return self._attempts()
        except InputError as error:  # somebody else trains the fold
            self.state = replace(self.state, attempts=(*self.state.attempts, Attempt(time.time())))
            self._finish_attempt(2, str(error))
            self._goes_on()
            return self._last_exit()

    def _attempts(self) -> int:
        """Run the command until it has finished, is given up or stopped."""
        while not self.stopped:
            command = self._command()
            if command is None:
                self._write(FINISHED, "the fold has finished already")
                return 0
            self._attempt(command)
            if self.stopped:
                break
            if self._last_exit() == 0:
                self._write(FINISHED)
                return 0
            if not self._goes_on():
                return self._last_exit()
        return STOPPED

    def was_killed(self) -> bool:
        """See `is_to_run_again`."""
        self.state = read_state(self.folder, self.job.name)
        self._close_killed()
        return self.state.state == RUNNING and bool(self.state.attempts) and self._goes_on()

    def stop(self, state: str, why: str = "") -> None:
        """See the function of this name."""
        if self.stopped or self.state.state in ENDED:
            return
        self.stopped, self.why = state, why or state
        if self.group is not None:
            self.group.terminate()
            self._end_attempt(self.group)
        self._write(state, f"{state} from outside" if state == CANCELLED else state)

    def close(self) -> None:
        """Leave nothing behind, whatever happened."""
        if self.group is not None:
            self.group.terminate()
            self.group.end()
        self.log.close()

    def _last_exit(self) -> int:
        status = self.state.attempts[-1].exit if self.state.attempts else None
        return STOPPED if status is None else status

    def _close_killed(self) -> None:
        """End the attempt of a supervisor that was killed, once its processes are gone."""
        if self.state.state != RUNNING or not self.state.attempts or self.state.attempts[-1].ended is not None:
            return
        if self.state.host == platform.node() and self.state.group is not None:
            await_end(self.state.group)
        self._finish_attempt(KILLED, SUPERVISOR_KILLED)

    def _goes_on(self) -> bool:
        """Whether the job is run again after a failure; writes why not."""
        why = why_not_again(self.state.attempts, self.job.retries)
        last = self.state.attempts[-1]
        if why is None:
            self._write(RUNNING, f"failed with exit status {last.exit} ({last.reason}); runs again")
            return True
        self._write(FAILED, f"failed with exit status {last.exit} ({last.reason}); not run again: {why}")
        return False

    @contextlib.contextmanager
    def _fold_held(self) -> Iterator[None]:
        """Close the fold of a training to others; our trainers in the command know by a variable that it is for them.

        nnU-Net's own trainers know of no lock.
        """
        fold = self.job.fold
        if fold is None:
            yield
            return
        try:
            fold.parent.mkdir(parents=True, exist_ok=True)
            hold(fold.parent, fold.name, "a training", patience=PATIENCE)
        except OSError as error:
            self.log.say(f"{fold.parent} cannot be made ({one_line(error)})")
        try:
            yield
        finally:
            let_go(fold.parent, fold.name)

    def _command(self) -> list[str] | None:
        """The command as it is run now; None where nothing is left to do."""
        command: list[str] | None = [*self.job.command]
        if self.job.fold is not None:
            with contextlib.suppress(OSError):
                for sentence in set_damaged_aside(self.job.fold):
                    self.log.say(sentence)
            command = command_now(self.job.command, self.job.fold)
        if command is None:
            return None
        beside = Path(sys.executable).with_name(command[0])
        return [str(beside) if beside.is_file() else command[0], *command[1:]]

    def _attempt(self, command: Sequence[str]) -> None:
        """Run the command once, to its end and that of its group."""
        self.log.say(f"runs {' '.join(command)}")
        environment = {"PYTHONUNBUFFERED": "1", **os.environ, **self.job.environment}
        if self.job.fold is not None:
            environment[PARENT] = os.path.realpath(lock_file(self.job.fold.parent, self.job.fold.name))
        self.group = group = Group(command, environment, self.job.directory)
        self.log.follow(group.output)
        self.state = replace(self.state, attempts=(*self.state.attempts, Attempt(time.time())), group=group.id)
        self._write(RUNNING)
        if self.job.engine == "local" and self.job.resources.minutes is not None:
            signal.setitimer(signal.ITIMER_REAL, max(0.001, self.job.resources.minutes * 60))
        if self.stopped:  # before there was a group that the handler could end
            group.terminate()
        group.begin()
        group.wait()
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._end_attempt(group)

    def _end_attempt(self, group: Group) -> None:
        """Note how the command ended, once nothing is left of its group."""
        if self.group is None:
            return  # a signal's handler has
        status = group.end()
        if status in SHARED and not self.stopped:
            time.sleep(0.2)  # this process is told in a moment, and its handler says why
            if self.group is None:
                return
        self.group = None
        self.log.finish()
        if self.stopped:
            self._finish_attempt(STOPPED, self.why)
        else:
            self._finish_attempt(status, reason(status, self.log.tail()) if status else "")

    def _finish_attempt(self, status: int, why: str) -> None:
        *before, last = self.state.attempts
        epochs = None
        if self.job.fold is not None:
            with contextlib.suppress(OSError):
                how = progress(self.job.fold)
                epochs = 0 if how is None else how.epochs_done
        ended = replace(last, ended=time.time(), exit=status, reason=why, epochs=epochs)
        self.state = replace(self.state, attempts=(*before, ended), group=None)

    def _write(self, state: str, line: str = "") -> None:
        """Write the state; a disk that is full must not end the command."""
        state = self.stopped or state  # by a handler, just now
        if line:
            self.log.say(line)
        self.state = replace(self.state, state=state, note=self.log.fault)
        for pause in (0.0, *((0.5,) * 10 if state != RUNNING else ())):
            time.sleep(pause)
            try:
                write_state(self.folder, self.job.name, self.state)
            except OSError as error:
                self.log.fault = f"{self.folder / self.job.name} could not be written ({one_line(error)})"
                self.state = replace(self.state, note=self.log.fault)
            else:
                return


def main(arguments: Sequence[str]) -> int:
    """Run the job that the command line names: the folder of jobs, a name and, where it has one, a GPU."""
    folder, name, *gpu = arguments
    try:
        return supervise(Path(folder), name, gpu=gpu[0] if gpu else None)
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
