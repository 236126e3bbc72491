"""The queue of a data set on this machine: `python -m nnunetv2_ext.jobs.queue FOLDER_OF_JOBS` starts jobs in turn.

It lives in a session of its own and knows nothing that is not in the folders of the jobs and in their locks. If it is
killed, the supervisors that it started go on, and the next queue finds them.
"""

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.jobs.devices import is_taken
from nnunetv2_ext.jobs.engine import Seen, blocked, unreadable
from nnunetv2_ext.jobs.groups import KILLED
from nnunetv2_ext.jobs.log import TAIL
from nnunetv2_ext.jobs.record import (
    ENDED,
    FAILED,
    FINISHED,
    JOB,
    LOG,
    RUNNING,
    STATE,
    WAITING,
    Attempt,
    Job,
    State,
    read_jobs,
    read_state,
    write_state,
)
from nnunetv2_ext.jobs.retries import SUPERVISOR_KILLED, reason
from nnunetv2_ext.jobs.supervisor import BUSY, SUPERVISOR
from nnunetv2_ext.locks import held, hold, holder, is_held, let_go, silent, tell_again

QUEUE = "queue"
"""What is locked in the folder of jobs."""
TICK = 1.0
"""Seconds between two looks at the jobs."""
IDLE_TICKS = 10
"""Ticks after which the folders are read though none of their files has changed: a kill changes none."""
SILENCE = 120.0
"""Seconds after which the queue of another machine, whose lock may not be seen here, is known to be gone."""
PATIENCE = 3.0
"""Seconds for which a new queue waits for the end of one that has nothing left to do, and for the lock of a job."""


def stands(folder: Path, name: str) -> Seen:
    """How a job of this machine stands by its own files, whatever it needs."""
    try:
        state = read_state(folder, name)
    except InputError as error:
        return Seen(FAILED, None, str(error))
    if _is_left(folder, name, state):
        if state.host == platform.node():  # whose queue sees to it
            return Seen(WAITING, KILLED, f"{SUPERVISOR_KILLED}; it runs again where retries are left")
        return Seen(FAILED, KILLED, SUPERVISOR_KILLED)
    why = "" if state.state in (WAITING, FINISHED) else state.last.reason
    return Seen(state.state, state.last.exit, why or state.note)


def was_killed(folder: Path, name: str) -> bool:
    """Whether a supervisor that is gone left its job running."""
    with suppress(InputError):
        return _is_left(folder, name, read_state(folder, name))
    return False


def _is_left(folder: Path, name: str, state: State) -> bool:
    """Whether a job runs by its state, and no supervisor holds it."""
    return state.state == RUNNING and not is_held(folder, name)


def _stand(folder: Path, jobs: Mapping[str, Job]) -> dict[str, Seen]:
    """How the jobs of a folder stand, by name; those of other engines too, by what their files say."""
    return blocked(jobs, {name: stands(folder, name) for name in jobs} | unreadable(folder, jobs))


def _of_this_machine(jobs: Mapping[str, Job]) -> dict[str, Job]:
    """Those of this engine that can be read."""
    return {name: job for name, job in jobs.items() if job.engine == "local" and job.command}


class Queue:
    """The jobs of one data set that wait for their turn on this machine.

    Args:
        folder: of all jobs of the data set; its queue's lock is held.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        """The supervisors that this queue has started."""
        self.gpus: dict[str, str] = {}
        """The GPUs given to them."""
        self.unsettled: dict[str, int] = {}
        """Exit statuses of supervisors that could not say how their job ended."""

    def run(self) -> None:
        """Start jobs until nothing is left to run."""
        before: object = None
        ticks = 0
        while True:
            ended = self._collect()
            now = self._files()
            if ended or now != before or ticks >= IDLE_TICKS or self.unsettled:
                before, ticks = now, 0
                tell_again(self.folder, QUEUE)
                if not self.step():
                    return
            ticks += 1
            time.sleep(TICK)

    def step(self) -> bool:
        """Look at all jobs and start those whose turn it is; whether any is left to wait for."""
        jobs = read_jobs(self.folder)
        for name, status in [*self.unsettled.items()]:
            if self._settle(name, status):
                del self.unsettled[name]
        seen = _stand(self.folder, jobs)
        jobs = _of_this_machine(jobs)
        killed = {name for name in jobs if was_killed(self.folder, name)} - self.unsettled.keys()
        running = {
            name for name in jobs if seen[name].state == RUNNING or name in self.children
        } - self.unsettled.keys()
        waiting = {name for name in jobs if seen[name].state == WAITING} | killed
        waiting -= running | self.unsettled.keys()
        for name in sorted(waiting, key=self._submitted):
            job = jobs[name]
            if name not in killed and not all(self._has_finished(need) for need in job.needs):
                continue
            on_cpu = sum(not jobs[other].resources.gpus for other in running)
            if self._start(job, on_cpu):
                running.add(name)
        return bool(running or waiting or self.unsettled or self.children)

    def _collect(self) -> bool:
        """Note the supervisors that have ended; whether one has."""
        ended = {name: child.returncode for name, child in self.children.items() if child.poll() is not None}
        for name, status in ended.items():
            del self.children[name]
            self.gpus.pop(name, None)
            if status != BUSY and not self._settle(name, status):
                self.unsettled[name] = status
        return bool(ended)

    def _settle(self, name: str, status: int) -> bool:
        """Say for a supervisor how its job ended where it did not: it was killed early, or the disk was full."""
        if not (self.folder / name / JOB).is_file():  # removed meanwhile
            return True
        try:
            with held(self.folder, name, "noting its end", patience=PATIENCE):
                state = read_state(self.folder, name)
                if state.state in ENDED:
                    return True
                if status < 0:  # a kill; the next supervisor counts it
                    if state.state == WAITING:
                        state = replace(state, state=RUNNING, attempts=(*state.attempts, Attempt(time.time())))
                        write_state(self.folder, name, state)
                    return True
                told = reason(status, self._end_of_log(name)) if status else ""
                attempt = Attempt(time.time(), time.time(), status, told)
                if state.attempts and state.attempts[-1].ended is None:
                    attempt = replace(attempt, began=state.attempts[-1].began)
                    state = replace(state, attempts=state.attempts[:-1])
                state = replace(state, state=FAILED if status else FINISHED, attempts=(*state.attempts, attempt))
                write_state(self.folder, name, state)
        except (InputError, OSError) as error:
            sys.stderr.write(f"{name}: {error}\n")
            return isinstance(error, InputError)
        return True

    def _end_of_log(self, name: str) -> str:
        with suppress(OSError), (self.folder / name / LOG).open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL))
            return log.read().decode(errors="replace")
        return ""

    def _has_finished(self, need: str) -> bool:
        with suppress(InputError):
            return read_state(self.folder, need).state == FINISHED
        return False

    def _submitted(self, name: str) -> float:
        with suppress(OSError):
            return (self.folder / name / JOB).stat().st_mtime_ns
        return 0

    def _files(self) -> object:
        """What changes when a job is submitted, begins or ends."""
        times = []
        for path in sorted(self.folder.glob("*/*.json")):
            with suppress(OSError):
                if path.name in (JOB, STATE):
                    times.append((str(path), path.stat().st_mtime_ns))
        return times

    def _start(self, job: Job, on_cpu: int) -> bool:
        """Start the supervisor of a job if there is room for it.

        Args:
            on_cpu: jobs that run on the CPU now.
        """
        environment, gpu = dict(os.environ), None
        if job.resources.gpus:
            free = [str(number) for number in job.resources.gpus if str(number) not in self.gpus.values()]
            gpu = next((number for number in free if not is_taken(number)), None)
            if gpu is None:
                return False
            # CUDA's own order is another one: the fastest first
            environment |= {"CUDA_VISIBLE_DEVICES": gpu, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
            self.gpus[job.name] = gpu
        else:
            places = job.resources.jobs or 1
            if on_cpu >= places:
                return False
            environment["CUDA_VISIBLE_DEVICES"] = ""
            # nnUNetv2_train on the CPU asks for a thread per core itself. OMP_THREAD_LIMIT would not let it, and then
            # convolutions wait for ever for the threads that they were promised.
            if "OMP_NUM_THREADS" not in environment:
                environment["OMP_NUM_THREADS"] = str(max(1, cores() // places))
            environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        command = [sys.executable, "-m", SUPERVISOR, str(self.folder), job.name]
        with _appended(self.folder / job.name / LOG) as output:
            self.children[job.name] = subprocess.Popen(
                command if gpu is None else [*command, gpu],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        return True


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ensure_queue(folder: Path) -> bool:
    """Start a queue where jobs wait for one: the last was killed, or the machine went down; whether it was needed.

    The jobs of another machine, whose locks may not be seen here, are left to it.
    """
    if other_host(folder) is not None:
        return False
    jobs = read_jobs(folder)
    seen = _stand(folder, jobs)
    needed = any(seen[name].state == WAITING or was_killed(folder, name) for name in _of_this_machine(jobs))
    if not needed or is_held(folder, QUEUE):
        return False
    start_queue(folder)
    return True


def other_host(folder: Path) -> str | None:
    """The machine, another than this, whose queue works in a folder; one that was killed there falls silent.

    A container has another name at each start.
    """
    who = holder(folder, QUEUE)
    if who is None or who["host"] == platform.node():
        return None
    return who["host"] if is_held(folder, QUEUE) or silent(folder, QUEUE) < SILENCE else None


def start_queue(folder: Path) -> None:
    """Start a queue, which ends at once where one is at work."""
    command = [sys.executable, "-m", "nnunetv2_ext.jobs.queue", str(folder.absolute())]
    with suppress(OSError):
        (folder / f"{QUEUE}.log").touch()  # tells when
    with _appended(folder / f"{QUEUE}.log") as output:
        # by a shell that ends at once: the queue is no child of this process, nor of its terminal
        subprocess.run(
            ["sh", "-c", '"$@" &', "sh", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            check=True,
        )


def _appended(path: Path) -> BinaryIO:
    """A log to write on; nothing where it cannot be written."""
    try:
        return path.open("ab")
    except OSError:
        return Path(os.devnull).open("ab")


def main(arguments: Sequence[str]) -> int:
    """Be the queue of a folder of jobs until nothing is left."""
    (folder,) = map(Path, arguments)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        hold(folder, QUEUE, "the queue of jobs", patience=PATIENCE)
    except InputError:
        return 0
    Queue(folder).run()
    let_go(folder, QUEUE)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
