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
from nnunetv2_ext.jobs.queue import QUEUE, other_host, stands, start_queue
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
from nnunetv2_ext.locks import hold, holder, is_held, let_go

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
            InputError: the folder cannot be written, or jobs of it run on another machine.
        """
        folder = folder.absolute()
        if is_held(folder, QUEUE) and (host := other_host(folder)) is not None:
            what = f"jobs for {platform.node()} while the queue in {folder} runs on {host}"
            raise InputError(what, "one machine at a time", "submit there, or wait until its jobs have ended")
        for job in jobs:
            try:
                (folder / job.name).mkdir(parents=True, exist_ok=True)
                if state_or_none(folder, job.name).state == RUNNING and is_held(folder, job.name):
                    continue
                try:
                    hold(folder, job.name, "a submission", patience=PATIENCE)
                except InputError:  # its supervisor begins
                    continue
                try:
                    write_job(folder, replace(job, engine=self.name, directory=job.directory or Path.cwd()))
                    write_state(folder, job.name, State())
                finally:
                    let_go(folder, job.name)
            except OSError as error:
                raise unwritable(folder / job.name, error) from None
        start_queue(folder)

    def look(self, folder: Path, jobs: Mapping[str, Job]) -> dict[str, Seen]:
        """See `Engine.look`."""
        return {name: stands(folder, name) for name in jobs}

    def cancel(self, folder: Path, jobs: Sequence[Job]) -> None:
        """See `Engine.cancel`; those that wait first, so that none begins in the place of another.

        Raises:
            InputError: one runs on another machine, or does not end.
        """
        names = [job.name for job in jobs]
        running = [name for name in names if not _cancelled_waiting(folder, name)]
        for name in running:
            _ask_to_end(folder, name)
        for name in running:
            _see_to_end(folder, name)


def _cancelled_waiting(folder: Path, name: str) -> bool:
    """Cancel a job that does not run; whether it has ended with that, or before."""
    try:
        hold(folder, name, "a cancellation", patience=PATIENCE)
    except InputError:
        return False
    try:
        state = state_or_none(folder, name)
        if state.group is not None and state.host == platform.node():
            await_end(state.group)  # what its killed supervisor left, which the watcher ends
        if state.state not in ENDED:
            write_state(folder, name, replace(state, state=CANCELLED, group=None))
    except OSError as error:
        raise unwritable(folder / name, error) from None
    finally:
        let_go(folder, name)
    return True


def _ask_to_end(folder: Path, name: str, number: int = signal.SIGTERM) -> None:
    who = holder(folder, name)
    if who is None:
        return
    if who["host"] != platform.node():
        raise InputError(f"the job {name}, which runs on {who['host']}", "a job of this machine", "cancel it there")
    with suppress(ProcessLookupError):
        os.kill(int(who["process"]), number)


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
