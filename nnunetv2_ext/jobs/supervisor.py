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
from collections.abc import Iterator, Mapping, Sequence
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
from nnunetv2_ext.locks import PARENT, held, lock_file
from nnunetv2_ext.text import one_line

SUPERVISOR = "nnunetv2_ext.jobs.supervisor"
"""This module, which a supervisor's process is known by."""
PATIENCE = 2.0
"""Seconds to wait for a lock, which who looks takes for an instant."""
PAUSE = 0.05
"""Seconds between two looks at the command."""
BUSY = 75
"""The exit status of a supervisor whose GPU another job has: nothing has happened."""
STOPPED = SIGNALS + signal.SIGTERM
SHARED = (STOPPED, SIGNALS + signal.SIGUSR2)
"""Exit statuses by the signals that SLURM sends to all processes of a job at once."""
CANCELS = dict.fromkeys((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), (CANCELLED, CANCELLED))
"""What signals ask of a supervisor on this machine, see `Signals`."""


class Signals:
    """The first word from outside that a job is to stop. Handlers note it and do nothing else; the main line acts.

    After the block this process, which has nothing left to stop, ignores the signals.

    Args:
        meaning: for each signal the state in which it leaves the job, and the reason of its attempt: `WAITING` where
            the job runs again later, with `retries.AGAIN` at the end of the reason.
    """

    def __init__(self, meaning: Mapping[signal.Signals, tuple[str, str]]):
        self.meaning = meaning
        self.told: tuple[str, str] | None = None

    def tell(self, state: str, why: str) -> None:
        """Ask the job to stop in a state; nothing where it was asked before."""
        self.told = self.told or (state, why)

    def __enter__(self) -> "Signals":
        def note(number: int, frame: FrameType | None) -> None:
            self.tell(*self.meaning[signal.Signals(number)])

        for number in self.meaning:
            signal.signal(number, note)
        return self

    def __exit__(self, *error: object) -> None:
        for number in self.meaning:  # what comes later must not change the exit status of a job that has ended
            signal.signal(number, signal.SIG_IGN)


def search_path() -> str:
    """Where programs are looked for: beside this Python first, whose virtual environment may not be activated."""
    return os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))


def supervise(folder: Path, name: str, *, gpu: str | None = None, signals: Signals | None = None) -> int:
    """Run a job, again after failures, until it has finished or is given up.

    Args:
        folder: of all jobs of the data set.
        gpu: the GPU of this machine that it takes for itself.
        signals: what stops the job from outside.

    Returns:
        The exit status of the command: 128 + signal where one ended it.

    Raises:
        InputError: another supervisor runs it, or there is no such job.
    """
    job = read_job(folder, name)
    with held(folder, name, f"the job {name}", patience=PATIENCE):
        if gpu is not None:
            try:
                take_gpu(gpu, f"the job {name}")
            except InputError:
                return BUSY
        supervisor = Supervisor(folder, job, signals or Signals({}))
        try:
            return supervisor.run()
        finally:
            supervisor.close()
            if gpu is not None:
                leave_gpu(gpu)


def is_to_run_again(folder: Path, name: str) -> bool:
    """Note that the supervisor of a job was killed; whether the job is to be run again.

    Raises:
        InputError: it lives.
    """
    with held(folder, name, f"the job {name}", patience=PATIENCE):
        return Supervisor(folder, read_job(folder, name), Signals({})).was_killed()


class Supervisor:
    """One job, its command and the processes around it.

    Args:
        folder: of all jobs of the data set; the lock of the job is held.
        signals: what stops it from outside.
    """

    def __init__(self, folder: Path, job: Job, signals: Signals):
        self.folder, self.job, self.signals = folder, job, signals
        self.state = State()
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
        while self.signals.told is None:
            command = self._command()
            if command is None:
                self._write(FINISHED, "the fold has finished already")
                return 0
            self._attempt(command)
            if self._last_exit() == 0:
                self._write(FINISHED)
                return 0
            if self.signals.told is None and not self._goes_on():
                return self._last_exit()
        state, _ = self.signals.told
        self._write(state, f"{state} from outside" if state == CANCELLED else state)
        return STOPPED

    def was_killed(self) -> bool:
        """See `is_to_run_again`."""
        self.state = read_state(self.folder, self.job.name)
        self._close_killed()
        return self.state.state == RUNNING and bool(self.state.attempts) and self._goes_on()

    def close(self) -> None:
        """Leave nothing behind, whatever happened."""
        if self.group is not None:
            self.group.terminate()
            self.group.end()
        self.log.close()

    def _last_exit(self) -> int:
        status = self.state.last.exit
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
        except OSError as error:
            self.log.say(f"{fold.parent} cannot be made ({one_line(error)})")
        with held(fold.parent, fold.name, "a training", patience=PATIENCE):
            yield

    def _command(self) -> list[str] | None:
        """The command as it is run now; None where nothing is left to do."""
        if self.job.fold is None:
            return [*self.job.command]
        with contextlib.suppress(OSError):
            for sentence in set_damaged_aside(self.job.fold):
                self.log.say(sentence)
        return command_now(self.job.command, self.job.fold)

    def _attempt(self, command: Sequence[str]) -> None:
        """Run the command once, to its end and that of its group."""
        self.log.say(f"runs {' '.join(command)}")
        environment = {"PYTHONUNBUFFERED": "1", **os.environ, "PATH": search_path(), **self.job.environment}
        if self.job.fold is not None:
            environment[PARENT] = os.path.realpath(lock_file(self.job.fold.parent, self.job.fold.name))
        self.group = group = Group(command, environment, self.job.directory)
        self.log.follow(group.output)
        self.state = replace(self.state, attempts=(*self.state.attempts, Attempt(time.time())), group=group.id)
        self._write(RUNNING)
        minutes = self.job.resources.minutes if self.job.engine == "local" else None
        end = None if minutes is None else time.monotonic() + minutes * 60
        group.begin()
        while self.signals.told is None and not group.has_ended():
            if end is not None and time.monotonic() > end:
                self.signals.tell(TIMED_OUT, TIMED_OUT)
            time.sleep(PAUSE)
        stopped = self.signals.told is not None
        if stopped:
            group.terminate()
        status = group.end()
        self.group = None
        self.log.finish()
        if status in SHARED:
            time.sleep(0.2)  # this process is told in a moment, and why
        if self.signals.told is not None and (stopped or status):
            self._finish_attempt(STOPPED, self.signals.told[1])
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
        with Signals(CANCELS) as signals:
            return supervise(Path(folder), name, gpu=gpu[0] if gpu else None, signals=signals)
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
