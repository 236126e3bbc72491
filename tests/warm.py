"""Commands without their seconds of imports: a process that has imported PyTorch and nnU-Net forks one for each.

The forked process is what the command's own would be: it has the given environment, arguments, folder and output, leads
a process group, and enters where the installed script does. What nnU-Net does there costs less, see `light_nnunet`.
"""

import atexit
import contextlib
import gc
import importlib
import importlib.metadata
import json
import multiprocessing
import multiprocessing.context
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol
from unittest import mock

ROOT = Path(__file__).parents[1]
# What the imported modules read when they use it. All other variables may have been read by an import already.
READ_WHEN_USED = {
    *("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_extTrainer", "nnUNet_compile"),
    *("HOME", "PATH", "PWD", "OLDPWD", "PYTEST_CURRENT_TEST"),
}


class Running(Protocol):
    """What the tests use of a `subprocess.Popen`."""

    pid: int

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def communicate(self, *, timeout: float | None = None) -> tuple[str, Any]: ...


class Command:
    """A command forked by a `WarmProcess`; its methods are those of `subprocess.Popen`."""

    def __init__(self, words: Sequence[str], pid: int, output: int, status: Callable[[float], int | None]):
        self.args, self.pid, self.returncode = words, pid, None
        self._output, self._status = output, status

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while the command runs."""
        return self._status(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; raises TimeoutExpired after so many seconds."""
        end = time.monotonic() + (float("inf") if timeout is None else timeout)
        while (status := self._status(max(0, min(1, end - time.monotonic())))) is None:
            if time.monotonic() >= end:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return status

    def output_so_far(self) -> str:
        """Wait for output and take it; empty at its end."""
        return os.read(self._output, 1 << 16).decode(errors="replace")

    def communicate(self, *, timeout: float | None = None) -> tuple[str, None]:
        """Wait for the end of the output and of the command; return the output of both streams, and None."""
        end = time.monotonic() + (float("inf") if timeout is None else timeout)
        output = bytearray()
        while True:
            ready = select.select([self._output], [], [], max(0, min(1, end - time.monotonic())))[0]
            if ready and not (part := os.read(self._output, 1 << 16)):
                break
            if ready:
                output += part
            elif time.monotonic() >= end:
                raise subprocess.TimeoutExpired(self.args, timeout or 0, bytes(output))
        os.close(self._output)
        self.wait(None if timeout is None else max(0, end - time.monotonic()))
        return output.decode(errors="replace"), None


class WarmProcess:
    """The process that has imported everything, in an environment that its commands start from.

    It ends with the process that made it, and its commands with it.
    """

    def __init__(self, *, environment: Mapping[str, str] | None = None, imports: bool = True) -> None:
        self.environment = dict(os.environ if environment is None else environment)
        self._channel, far = socket.socketpair()
        self._statuses: dict[int, int] = {}
        with far:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(far.fileno()), *(["imports"] if imports else [])],
                pass_fds=[far.fileno()],
                env=self.environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )

    def serves(self, environment: Mapping[str, str]) -> bool:
        """Whether a command in that environment would be the same in an interpreter of its own."""
        differing = {key for key, _ in environment.items() ^ self.environment.items()}
        return differing <= READ_WHEN_USED

    def start(self, words: Sequence[str], *, environment: Mapping[str, str], folder: Path) -> Command:
        """Start an installed script, `python SCRIPT ...` or `python -m MODULE ...`, output into one pipe.

        Raises:
            ValueError: the environment differs in a variable that an import may have read.
        """
        if not self.serves(environment):
            differing = sorted({key for key, _ in environment.items() ^ self.environment.items()} - READ_WHEN_USED)
            raise ValueError(f"got another {', '.join(differing)}; expected the same as here; use an interpreter")
        request = json.dumps({"words": [*words], "environment": {**environment}, "folder": str(folder)}).encode()
        reading, writing = os.pipe()
        socket.send_fds(self._channel, [len(request).to_bytes(8, "big")], [writing])
        os.close(writing)
        self._channel.sendall(request)
        while "pid" not in (answer := self._receive()):
            self._statuses[answer["ended"]] = answer["status"]
        pid = answer["pid"]
        return Command(words, pid, reading, lambda seconds: self._status(pid, seconds))

    def close(self) -> None:
        """End the process."""
        self._channel.close()
        self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _status(self, pid: int, seconds: float) -> int | None:
        while pid not in self._statuses and select.select([self._channel], [], [], seconds)[0]:
            answer = self._receive()
            self._statuses[answer["ended"]] = answer["status"]
        return self._statuses.get(pid)

    def _receive(self) -> dict[str, int]:
        line = b""
        while not line.endswith(b"\n"):
            part = self._channel.recv(1)
            if not part:
                raise RuntimeError(f"the warm process ended with {self._process.wait()}")
            line += part
        return json.loads(line)


class _OneThread(multiprocessing.context.ForkProcess):
    """A forked process of one thread: those that PyTorch started before are not in it, and it would wait for them."""

    def run(self) -> None:
        import torch

        torch.set_num_threads(1)
        super().run()


class _ForkContext(multiprocessing.context.ForkContext):
    Process = _OneThread


@contextlib.contextmanager
def light_nnunet() -> Iterator[None]:
    """What nnU-Net does in this process for five small cases costs no more than that.

    Its pools fork, where they would spawn processes that import it again; one process looks for the files of a data
    set, not twelve; and the fingerprint draws a million voxels from all cases, not a hundred million. The process must
    not have used more than one thread of PyTorch, unless what it starts sets the number before it computes.
    """
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.utilities import utils

    forking, get_context = _ForkContext(), multiprocessing.get_context
    initialize = DatasetFingerprintExtractor.__init__

    def fork_where_spawning(method: str | None = None) -> Any:
        return forking if method == "spawn" else get_context(method)

    def draw_fewer(self: DatasetFingerprintExtractor, *args: Any, **kwargs: Any) -> None:
        initialize(self, *args, **kwargs)
        self.num_foreground_voxels_for_intensitystats = 1e6

    with (
        mock.patch.object(multiprocessing, "get_context", fork_where_spawning),
        mock.patch.object(utils, "Pool", lambda processes: forking.Pool(1)),
        mock.patch.object(DatasetFingerprintExtractor, "__init__", draw_fewer),
    ):
        yield


def _import_all() -> None:
    """Import what the commands import."""
    from nnunetv2_ext.cli import COMMANDS
    from nnunetv2_ext.registry import KINDS

    for point in importlib.metadata.entry_points(group="console_scripts"):
        if point.name.startswith("nnUNetv2_"):
            point.load()
    for command in COMMANDS:
        importlib.import_module(f"nnunetv2_ext.cli.{command}")
    for entries in KINDS.values():
        for entry in entries:
            entry.load()


def _receive_request(channel: socket.socket) -> tuple[dict[str, Any], int] | None:
    header, descriptors, *_ = socket.recv_fds(channel, 8, 1)
    if not header:
        return None
    length, request = int.from_bytes(header, "big"), b""
    while len(request) < length:
        request += channel.recv(length - len(request))
    return json.loads(request), descriptors[0]


def _serve(channel: socket.socket) -> list[str] | None:
    """Fork a process for each request. Return a command's words in its process, None here when nobody can ask."""
    waking, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wake)
    running: set[int] = set()
    watched: list[Any] = [channel, waking]
    while True:
        ready = select.select(watched, [], [])[0]
        if waking in ready:
            os.read(waking, 1024)
            for pid in [*running]:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    running.remove(pid)
                    answer = {"ended": pid, "status": os.waitstatus_to_exitcode(status)}
                    with contextlib.suppress(BrokenPipeError):  # nobody asks any more
                        channel.sendall(json.dumps(answer).encode() + b"\n")
        if channel not in ready:
            continue
        received = _receive_request(channel)
        if received is None:
            for pid in running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            return None
        request, output = received
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for descriptor in (waking, wake, channel.detach()):
                os.close(descriptor)
            _take_over(request, output)
            return request["words"]
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpgid(pid, pid)  # here too, so that the group can be killed from now on
        running.add(pid)
        os.close(output)
        channel.sendall(json.dumps({"pid": pid}).encode() + b"\n")


def _take_over(request: Mapping[str, Any], output: int) -> None:
    """Make this forked process what a command's own would be before its first line."""
    import numpy as np

    os.setpgid(0, 0)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    np.random.seed()  # noqa: NPY002 - nnU-Net draws from it; random does so by itself


def _enter(words: Sequence[str]) -> Any:
    """Run the command as its script would."""
    name = Path(words[0]).name
    if name.startswith("python") and words[1] == "-m":
        sys.argv, sys.path[0] = ["-m", *words[3:]], str(Path.cwd())
        runpy.run_module(words[2], run_name="__main__", alter_sys=True)
        return 0
    if name.startswith("python"):
        sys.argv, sys.path[0] = [*words[1:]], str(Path(words[1]).parent)
        runpy.run_path(words[1], run_name="__main__")
        return 0
    (point,) = importlib.metadata.entry_points(group="console_scripts", name=name)
    program = shutil.which(words[0]) or words[0]
    sys.argv, sys.path[0] = [program, *words[1:]], str(Path(program).parent)
    return point.load()()


def _run_and_leave(words: Sequence[str]) -> NoReturn:
    """End as an interpreter does after the command, but without taking apart all that was imported."""
    try:
        status = _enter(words)
    except SystemExit as ending:
        status = ending.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    if not isinstance(status, int | None):
        print(status, file=sys.stderr)
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]  # as multiprocessing ends its processes
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)


def main() -> None:
    """Serve until the other end of the socket, whose descriptor is the argument, is closed."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    if "imports" in sys.argv:
        _import_all()
    gc.collect()
    gc.freeze()  # a collection in a forked process would copy all that is shared
    words = _serve(channel)
    if words is not None:
        with light_nnunet():
            _run_and_leave(words)


if __name__ == "__main__":
    main()
