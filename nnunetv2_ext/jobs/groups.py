"""A command with all its processes, which end together, also when the process that started them is killed."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

KILLED = 137
"""The exit status of what SIGKILL ended, as shells tell it: 128 + signal."""
SIGNALS = 128
GRACE = 5.0
"""Seconds between asking a command to end and killing it."""
REST = 1.0
"""Seconds that the helpers of a command that has ended may take to clean up."""
_AFTER_GO = 'read -r go && exec "$@" < /dev/null'
_WATCH = 'trap "" TERM INT HUP USR1 USR2; read -r group; read -r end || kill -s KILL -- "-$group"'


class Group:
    """A command in a session and process group of its own, which waits for `begin`; output in one pipe.

    A second process, the watcher, kills the group if this process ends before `end`, be it by SIGKILL: then its input
    ends without a word. As the command waits until the watcher knows it, nothing ever runs unwatched.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], directory: Path | None = None):
        self._process = subprocess.Popen(
            ["sh", "-c", _AFTER_GO, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=directory if directory is not None and directory.is_dir() else None,
            start_new_session=True,
        )
        quiet = subprocess.DEVNULL
        self._watcher = subprocess.Popen(
            ["sh", "-c", _WATCH], stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True
        )
        self.id = self._process.pid
        self.output: IO[bytes] | None = self._process.stdout
        _tell(self._watcher, str(self.id))

    def begin(self) -> None:
        """Let the command run."""
        _tell(self._process, "go", last=True)

    def has_ended(self) -> bool:
        """Whether the command has ended; its process stays known until `end`."""
        try:
            return os.waitid(os.P_PID, self.id, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
        except ChildProcessError:  # where who started this process lets the system collect those that end
            return True

    def terminate(self) -> None:
        """Ask all processes to end; kill them if the command does not."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            _send(self.id, number)
            end = time.monotonic() + GRACE
            while time.monotonic() < end:
                if self.has_ended():
                    return
                time.sleep(0.02)

    def end(self) -> int:
        """The exit status of the command, which has ended, as shells tell it; ends what is left of its group."""
        status = KILLED
        with contextlib.suppress(ChildProcessError):
            _, waited = os.waitpid(self.id, 0)
            status = os.waitstatus_to_exitcode(waited)
        self._process.returncode = status
        if not await_end(self.id, 0):
            _send(self.id, signal.SIGTERM)
            if not await_end(self.id, REST):
                _send(self.id, signal.SIGKILL)
                await_end(self.id)
        _tell(self._watcher, "end", last=True)
        self._watcher.wait()
        return SIGNALS - status if status < 0 else status


def await_end(group: int, patience: float = GRACE) -> bool:
    """Wait until no process of a group is left; whether it came to that."""
    end = time.monotonic() + patience
    while _send(group, 0) and _lives(group):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def _lives(group: int) -> bool:
    """Whether a process of a group that is there still runs; where there is no /proc, each is taken to.

    In containers nobody may collect those that have ended.
    """
    processes = Path("/proc")
    if not (processes / "self/stat").is_file():
        return True
    for path in processes.glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            state, _, its_group = path.read_text(errors="replace").rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in "ZX":
                return True
    return False


def _send(group: int, number: int) -> bool:
    """Send a signal to a group; whether there is one."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # the latter on macOS, of processes that have ended
        return False
    return True


def _tell(process: "subprocess.Popen[bytes]", line: str, *, last: bool = False) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(f"{line}\n".encode())
        process.stdin.flush()
    if last:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
