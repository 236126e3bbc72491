"""This machine as an engine: a queue that outlives the terminal, one job per GPU, or so many on the CPU."""

import os
import platform
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import unwritable
from nnunetv2_ext.jobs.devices import check_gpus
from nnunetv2_ext.jobs.engine import Seen
from nnunetv2_ext.jobs.groups import await_end
from nnunetv2_ext.jobs.queue import other_host, stands, start_queue
from nnunetv2_ext.jobs.record import (
    CANCELLED,
    ENDED,
    RUNNING,
    Job,
    Resources,
    State,
    state_or_none,
    write_job,
    write_state,
)
from nnunetv2_ext.jobs.supervisor import SUPERVISOR, search_path
from nnunetv2_ext.locks import PARENT, check_locks, held, holder, is_held

SLURM_ONLY = {name: f"--{name}" for name in ("partition", "account", "gres", "cpus")}
SLURM_ONLY |= {"memory_gb": "--memory", "lines": "--slurm"}
"""Resources of a cluster, with their flags."""
PATIENCE = 1.0
"""Seconds to wait for the lock of a job, which who looks takes for an instant."""
ASKED, FORCED = 20.0, 40.0
"""Seconds after which a supervisor that was asked to end is killed, and after which it is given up."""


class Local:
    """Runs jobs on this machine. See `Engine`."""

    name = "local"

    def check(self, resources: Resources) -> None:
        """Refuse resources that this machine has not.

        Raises:
            InputError: GPUs that are not there, no number of jobs, resources of a cluster.
        """
        for field, flag in SLURM_ONLY.items():
            if value := getattr(resources, field):
                raise InputError(f"{flag} {value} for jobs of this machine", "it with --on slurm", f"leave out {flag}")
        if resources.jobs is not None and resources.jobs < 1:
            raise InputError(f"--jobs {resources.jobs}", "1 or more", "choose how many run at a time")
        if resources.minutes is not None and not resources.minutes > 0:
            raise InputError(f"a time limit of {resources.minutes:g} minutes", "more than 0", "choose a longer one")
        if resources.gpus is not None:
            if resources.jobs is not None:
                raise InputError("--jobs with --gpus", "one of them: a GPU runs one job at a time", "leave out --jobs")
            check_gpus(resources.gpus)

    def submit(self, folder: Path, jobs: Sequence[Job]) -> None:
        """See `Engine.submit`; a job that runs now is left alone, one that has ended runs anew.

        Raises:
            InputError: the folder cannot be written or has no locks, or jobs of it run on another machine.
        """
        folder = folder.absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            check_locks(folder)
        except OSError as error:
            raise unwritable(folder, error) from None
        if (host := other_host(folder)) is not None:
            raise InputError(
                f"jobs for {platform.node()} while the queue in {folder} runs on {host}",
                "one machine at a time",
                "submit there, wait until its jobs have ended, or, if that machine is gone, try again in 2 minutes",
            )
        for job in jobs:
            try:
                (folder / job.name).mkdir(parents=True, exist_ok=True)
                self._write(folder, job)
            except OSError as error:
                raise unwritable(folder / job.name, error) from None
        start_queue(folder)

    def _write(self, folder: Path, job: Job) -> None:
        """Write a job to the folder of all, where the queue finds it; nothing where its supervisor is at work."""
        environment = {**job.environment, **surroundings()}
        directory = job.directory or Path.cwd()
        end = time.monotonic() + ASKED
        while not (is_held(folder, job.name) and _supervisor(folder, job.name) is not None):
            try:
                with held(folder, job.name, "a submission", patience=PATIENCE):
                    write_job(folder, replace(job, engine=self.name, directory=directory, environment=environment))
                    write_state(folder, job.name, State())
                return
            except InputError:  # its supervisor begins, or it is being cancelled
                if time.monotonic() > end:
                    raise

    def look(self, folder: Path, jobs: Mapping[str, Job]) -> dict[str, Seen]:
        """See `Engine.look`."""
        return {name: stands(folder, name) for name in jobs}

    def cancel(self, folder: Path, jobs: Sequence[Job]) -> None:
        """See `Engine.cancel`; those that wait first, so that none begins in the place of another.

        Raises:
            InputError: one runs on another machine, or does not end.
        """
        names = [job.name for job in jobs]
        held_now = [name for name in names if is_held(folder, name)]
        begun = [name for name in names if name not in held_now and not _cancelled_waiting(folder, name)]
        for name in held_now:
            _ask_to_end(folder, name)
        for name in (*held_now, *begun):
            _see_to_end(folder, name)


def surroundings() -> dict[str, str]:
    """What a command needs of the environment in which it is submitted; another may have started the queue."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name == "LD_LIBRARY_PATH" or (name.lower().startswith("nnunet") and name != PARENT)
    }
    return {**kept, "PATH": search_path()}


def _cancelled_waiting(folder: Path, name: str) -> bool:
    """Cancel a job that does not run; whether it has ended with that, or before."""
    try:
        with held(folder, name, "a cancellation", patience=PATIENCE):
            state = state_or_none(folder, name)
            if state.group is not None and state.host == platform.node():
                await_end(state.group)  # what its killed supervisor left, which the watcher ends
            if state.state not in ENDED:
                write_state(folder, name, replace(state, state=CANCELLED, group=None))
    except InputError:
        return False
    except OSError as error:
        raise unwritable(folder / name, error) from None
    return True


def _supervisor(folder: Path, name: str) -> int | None:
    """The process that runs a job whose lock is held; None where the lock is held for something else.

    Raises:
        InputError: it runs on another machine.
    """
    who, state = holder(folder, name), state_or_none(folder, name)
    told = [] if who is None else [(who["host"], int(who["process"]))]
    if state.state == RUNNING:  # on a full disk there may be this one alone
        told.append((state.host, state.process or 0))
    if told and told[0][0] != platform.node():
        raise InputError(f"the job {name}, which runs on {told[0][0]}", "a job of this machine", "cancel it there")
    return next((process for _, process in told if _supervises(process, folder, name)), None)


def _supervises(process: int, folder: Path, name: str) -> bool:
    """Whether a process is the supervisor of a job; where there is no /proc, any that is there is taken for it."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return not Path("/proc/self").exists()
    command = [os.fsdecode(word) for word in words[1:5]]
    if len(command) < 4 or command[:2] != ["-m", SUPERVISOR] or command[3] != name:
        return False
    with suppress(OSError):
        return Path(command[2]).samefile(folder)
    return False


def _ask_to_end(folder: Path, name: str, number: int = signal.SIGTERM) -> None:
    process = _supervisor(folder, name)
    if process is not None:
        with suppress(ProcessLookupError):
            os.kill(process, number)


def _see_to_end(folder: Path, name: str) -> None:
    """Wait until a job that was asked to end has ended, with force at last."""
    begun = time.monotonic()
    asked = begun
    while not _cancelled_waiting(folder, name):
        now = time.monotonic()
        if now > begun + FORCED:
            raise InputError(
                f"the job {name}, which does not end", "a job that ends", f"see its log in {folder / name}"
            )
        if now > begun + ASKED:
            _ask_to_end(folder, name, signal.SIGKILL)
        elif now > asked + 2 * PATIENCE:  # it began anew meanwhile
            _ask_to_end(folder, name)
            asked = now
