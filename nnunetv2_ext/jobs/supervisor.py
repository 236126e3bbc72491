"""Runs one job to its end: `python -m nnunetv2_ext.jobs.supervisor FOLDER_OF_JOBS NAME`.

The command runs in a process group of its own, which ends as a whole: with the command, with a signal to the
supervisor, at the time limit, and, by a watcher, when the supervisor itself is killed.
"""

import contextlib
import os
import platform
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import IO

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.jobs.folds import command_now, set_damaged_aside, whole_epochs
from nnunetv2_ext.jobs.record import (
    CANCELLED,
    ENDED,
    FAILED,
    FINISHED,
    LOG,
    RUNNING,
    TIMED_OUT,
    WAITING,
    Attempt,
    Job,
    State,
    read_job,
    read_state,
    write_state,
)
from nnunetv2_ext.jobs.retries import KILLED, SIGNALS, reason, why_not_again
from nnunetv2_ext.locks import PARENT, hold, let_go, lock_file
from nnunetv2_ext.text import one_line

GRACE = 5.0
"""Seconds between asking the processes of a command to end and killing them."""
LOCK_PATIENCE = 2.0
BUSY = 75
"""The exit status of a supervisor whose device another job has: nothing has happened."""
TAIL = 1 << 16
"""Bytes of the output in which the reason of a failure is looked for."""
STOPPED = SIGNALS + signal.SIGTERM
_AFTER_GO = 'read -r go && exec "$@" < /dev/null'
_WATCH = 'read -r group; read -r end || kill -s KILL -- "-$group"'
"""The watcher: its input ends unsaid only with the supervisor."""
_supervisor: "Supervisor | None" = None


def supervise(folder: Path, name: str, *, signals: bool = True) -> int:
    """Run a job, again after failures, until it has finished or is given up.

    Args:
        folder: of all jobs of the data set.
        signals: end the job as cancelled on SIGTERM, SIGINT and SIGHUP.

    Returns:
        The exit status of the command: 128 + signal where one ended it.

    Raises:
        InputError: another supervisor runs it, or there is no such job.
    """
    global _supervisor
    job = read_job(folder, name)
    hold(folder, name, f"the job {name}", patience=LOCK_PATIENCE)
    try:
        _supervisor = Supervisor(folder, job)
        with _handled(signals):
            return _supervisor.run()
    finally:
        if _supervisor is not None:
            _supervisor.close()
        _supervisor = None
        let_go(folder, name)


def stop(state: str) -> None:
    """End the command of the job that this process supervises and write `state`; for a signal's handler too.

    Args:
        state: `WAITING` where the job runs again later.
    """
    if _supervisor is not None:
        _supervisor.stop(state)


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
        self.process: subprocess.Popen[bytes] | None = None
        self.watcher: subprocess.Popen[bytes] | None = None
        self.log = _Log(folder / job.name / LOG)

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

    def stop(self, state: str) -> None:
        """See the function of this name."""
        if self.stopped or self.state.state in ENDED:
            return
        self.stopped = state
        if self.process is not None:
            self._terminate(self.process.pid)
            self._end_attempt(self.process)
        self._write(state, f"{state} from outside" if state == CANCELLED else state)

    def close(self) -> None:
        """Leave nothing behind, whatever happened."""
        if self.process is not None:
            _end_group(self.process.pid, patience=0)
        self._dismiss_watcher()
        self.log.close()

    def _last_exit(self) -> int:
        status = self.state.attempts[-1].exit if self.state.attempts else None
        return STOPPED if status is None else status

    def _close_killed(self) -> None:
        """End the attempt of a supervisor that was killed, once its processes are gone."""
        if self.state.state != RUNNING or not self.state.attempts or self.state.attempts[-1].ended is not None:
            return
        if self.state.host == platform.node() and self.state.group is not None:
            _await_end(self.state.group, GRACE)
        self._finish_attempt(KILLED, "its supervisor was killed: by somebody, or as the machine went down")

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
            hold(fold.parent, fold.name, "a training", patience=LOCK_PATIENCE)
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
        # It waits for a word before it begins, so that at no moment a command runs that nobody watches.
        process = subprocess.Popen(
            ["sh", "-c", _AFTER_GO, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        self.process = process
        self.watcher = subprocess.Popen(
            ["sh", "-c", _WATCH],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        _tell(self.watcher, f"{process.pid}\n")
        self.log.follow(process.stdout)
        self.state = replace(self.state, attempts=(*self.state.attempts, Attempt(time.time())), group=process.pid)
        self._write(RUNNING)
        if self.job.engine == "local" and self.job.resources.minutes is not None:
            signal.setitimer(signal.ITIMER_REAL, max(0.001, self.job.resources.minutes * 60))
        if not self.stopped:
            _tell(process, "go\n")
        process.stdin.close() if process.stdin is not None else None
        with contextlib.suppress(ChildProcessError):  # ended by a handler
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._end_attempt(process)

    def _terminate(self, pid: int) -> None:
        """Ask a command to end, then force it; it stays to be waited for."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            _send(pid, number)
            end = time.monotonic() + GRACE
            while time.monotonic() < end:
                try:
                    if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None:
                        return
                except ChildProcessError:  # the signal came as its end was noted
                    return
                time.sleep(0.02)

    def _end_attempt(self, process: "subprocess.Popen[bytes]") -> None:
        """Note how the command ended, end what is left of its group."""
        if self.process is None:
            return  # a signal's handler has
        status = _status(process)
        _end_group(process.pid, patience=1)
        self.process = None
        self._dismiss_watcher()
        self.log.finish()
        if self.stopped:
            self._finish_attempt(STOPPED, self.stopped)
        else:
            self._finish_attempt(status, reason(status, self.log.tail()) if status else "")

    def _finish_attempt(self, status: int, why: str) -> None:
        *before, last = self.state.attempts
        epochs = None
        if self.job.fold is not None:
            with contextlib.suppress(OSError):
                epochs = whole_epochs(self.job.fold)
        ended = replace(last, ended=time.time(), exit=status, reason=why, epochs=epochs)
        self.state = replace(self.state, attempts=(*before, ended), group=None)

    def _dismiss_watcher(self) -> None:
        watcher, self.watcher = self.watcher, None
        if watcher is not None:
            _tell(watcher, "end\n")
            assert watcher.stdin is not None
            watcher.stdin.close()
            watcher.wait()

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


class _Log:
    """`log.txt` of a job: what the command prints and lines of the supervisor; does without where it cannot be written.

    Args:
        path: of the file, which is continued.
    """

    def __init__(self, path: Path):
        self.fault = ""
        self._thread: threading.Thread | None = None
        self._tail = b""
        self._path = path
        self._file: IO[bytes] | None = None
        self._append(b"")

    def say(self, line: str) -> None:
        """A line of the supervisor."""
        self._append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} [job] {line}\n".encode())

    def follow(self, stream: IO[bytes] | None) -> None:
        """Write what comes out of a pipe until it is closed."""
        assert stream is not None
        self._tail = b""
        self._thread = threading.Thread(target=self._copy, args=(stream,), daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait until all that was printed is written; a process that left the group may hold the pipe open."""
        if self._thread is not None:
            self._thread.join(timeout=2)
        self._thread = None

    def tail(self) -> str:
        """The end of what was printed since `follow`."""
        return self._tail.decode(errors="replace")

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def _copy(self, stream: IO[bytes]) -> None:
        with stream:
            while block := os.read(stream.fileno(), TAIL):
                self._tail = (self._tail + block)[-TAIL:]
                self._append(block)

    def _append(self, block: bytes) -> None:
        try:
            if self._file is None:
                self._file = self._path.open("ab", buffering=0)
            self._file.write(block)
        except OSError as error:
            self.fault = f"lines are missing in {self._path.name} ({error.strerror})"


def _tell(process: "subprocess.Popen[bytes]", line: str) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(line.encode())
        process.stdin.flush()


def _status(process: "subprocess.Popen[bytes]") -> int:
    """The exit status of a process that has ended, as shells tell it; takes it out of the table of processes."""
    try:
        _, waited = os.waitpid(process.pid, 0)
    except ChildProcessError:
        return KILLED
    code = os.waitstatus_to_exitcode(waited)
    process.returncode = code
    return SIGNALS - code if code < 0 else code


def _send(group: int, number: int) -> bool:
    """Send a signal to a group; whether there is one."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # macOS, of a group whose processes have all ended
        return False
    return True


def _end_group(group: int, *, patience: float) -> None:
    """End what is left of a group whose first process has ended: helpers that clean up have a moment for it."""
    if _send(group, signal.SIGTERM) and not _await_end(group, patience):
        _send(group, signal.SIGKILL)
        _await_end(group, GRACE)


def _await_end(group: int, patience: float) -> bool:
    end = time.monotonic() + patience
    while _send(group, 0):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def main(arguments: Sequence[str]) -> int:
    """Run the job that the command line names."""
    folder, name = arguments
    warnings.simplefilter("default")
    try:
        return supervise(Path(folder), name)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
