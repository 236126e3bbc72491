"""SLURM runs jobs: submitit writes and submits their scripts; how they stand is asked of SLURM itself.

submitit alone waits for ever for a killed job where there is no accounting, and takes any `srun` for a SLURM.
"""

import math
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nnunetv2_ext.entry import Entry
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.jobs import record
from nnunetv2_ext.jobs.allocation import Task
from nnunetv2_ext.jobs.engine import Seen
from nnunetv2_ext.jobs.record import Job, Resources, State
from nnunetv2_ext.jobs.squeue import (
    LIVING,
    PATIENCE,
    QUEUED,
    Silence,
    Told,
    ask,
    jobs_of,
    partition_of,
    said,
    seconds,
    words,
)
from nnunetv2_ext.text import listed, one_line

FOLDER = "slurm"
"""In the folder of a job: submitit's scripts, pickles and logs."""
SUBMITIT = Entry("SLURM", "submitit.SlurmExecutor", "submits jobs to SLURM", extra="cluster")
UNENDING = 10**6
"""Time-outs until submitit gives up: it takes every preemption of a short job for one. We count ourselves."""
NOTICE = 60
"""Seconds before the time limit at which a job is told of it; SLURM may do so a minute earlier."""
OURS = "array dependency error job-name kill-on-invalid-dep nodes no-requeue ntasks ntasks-per-node open-mode output"
OURS += " parsable requeue signal test-only wait wrap"
FLAGS = {"partition": "--partition", "account": "--account", "gres": "--gres", "time": "--minutes"}
FLAGS |= {"mem": "--memory", "cpus-per-task": "--cpus"}
"""Options of sbatch that have a flag of ours."""


class Slurm:
    """Runs each job as one of SLURM's, which puts it into the queue again at its time limit."""

    name = "slurm"

    def check(self, resources: Resources) -> None:
        """Refuse what SLURM refuses, in its words; nothing is submitted."""
        SUBMITIT.load()
        if resources.gpus is not None or resources.jobs is not None:
            flag = "--jobs" if resources.gpus is None else "--gpus"
            raise InputError(f"{flag} on SLURM", "it on this machine alone", "say --gres gpu:1, for instance")
        options = options_of(resources)
        command = ["sbatch", "--test-only", *_flags(options), "--wrap=true"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise InputError(f"no answer from sbatch ({one_line(error)})", "one of SLURM's", "try again") from None
        if done.returncode:
            raise _refused("such a job", _flags(options), said(done.stderr))

    def submit(self, folder: Path, jobs: Sequence[Job]) -> None:
        """Hand over jobs in the order of what they need."""
        known = record.read_jobs(folder)
        ids: dict[str, str] = {}
        others = {need for job in jobs for need in job.needs} - {job.name for job in jobs}
        seen = self.look(folder, {name: known[name] for name in others if name in known})
        for job in _in_order(jobs):
            needed = []
            for need in job.needs:
                if need in ids:
                    needed.append(ids[need])
                elif need not in seen or seen[need].state not in (record.FINISHED, record.WAITING, record.RUNNING):
                    state = f"is {seen[need].state}" if need in seen else "is not known"
                    raise InputError(
                        f"{job.name}, which needs {need}", "a job that can finish", f"{need} {state}: submit it too"
                    )
                elif seen[need].state != record.FINISHED:
                    needed.append(str(known[need].id))
            ids[job.name] = _submit(folder, job, needed, [*ids])

    def look(self, folder: Path, jobs: Mapping[str, Job]) -> dict[str, Seen]:
        """How jobs stand: what SLURM says of those that are in its hands, what the supervisor wrote of the others."""
        states = {name: record.read_state(folder, name) for name in jobs}
        ids = [job.id for job in jobs.values() if job.id is not None]
        try:
            told = jobs_of(ids)
        except Silence as silence:
            return {name: _unasked(state, one_line(silence)) for name, state in states.items()}
        return {name: merged(states[name], told.get(job.id or "")) for name, job in jobs.items()}

    def cancel(self, folder: Path, jobs: Sequence[Job]) -> None:
        """End jobs, and wait until SLURM has ended all their processes."""
        ids = [job.id for job in jobs if job.id is not None]
        if not ids:
            return
        try:
            ask("scancel", *ids)
            while any(one.state in LIVING | QUEUED for one in jobs_of(ids).values()):
                time.sleep(0.5)
        except Silence as silence:
            raise InputError(f"no cancel ({one_line(silence)})", "an answer of SLURM's", "try again") from None


def options_of(resources: Resources) -> dict[str, Any]:
    """The resources as options of sbatch, without their dashes; True for one without a value.

    Raises:
        InputError: no SLURM, no such partition, more time than it gives, or a line that is no option.
    """
    partition = partition_of(resources.partition)
    minutes = resources.minutes
    if minutes is not None and partition.most is not None and minutes > partition.most:
        got = f"--minutes {minutes:g} in the partition {partition.name}"
        raise InputError(got, f"at most {partition.most:g}", "say fewer: a job goes on where it was, in a new run")
    if minutes is None:  # submitit would say five minutes
        minutes = partition.default or partition.most or 0
    options: dict[str, Any] = {"time": math.ceil(minutes), "requeue": True}
    given = {
        "partition": resources.partition,
        "account": resources.account,
        "gres": resources.gres,
        "mem": None if resources.memory_gb is None else f"{math.ceil(resources.memory_gb * 1024)}M",
        "cpus-per-task": resources.cpus,
    }
    options |= {key: value for key, value in given.items() if value is not None}
    for line in resources.lines:
        key, separator, value = line.strip().removeprefix("--").partition("=" if "=" in line else " ")
        if not line.strip().startswith("--") or not key or "\n" in line or (separator and not value.strip()):
            raise InputError(f"the line '{line}'", "one option of sbatch", "write it as --qos=long, for instance")
        if key in FLAGS or key in OURS.split():
            remedy = f"say {FLAGS[key]}" if key in FLAGS else "leave it out"
            raise InputError(f"the line '{line}'", "an option that is not set for every job", remedy)
        options[key] = value.strip() if separator else True
    return options


def _flags(options: Mapping[str, Any]) -> list[str]:
    return [f"--{key}" if value is True else f"--{key}={value}" for key, value in options.items()]


def _refused(what: str, flags: Sequence[str], words: str) -> InputError:
    return InputError(f"{what} ({listed(flags, separator=' ')})", "one that SLURM takes", f"SLURM says: {words}")


def _in_order(jobs: Sequence[Job]) -> list[Job]:
    """Jobs after those that they need."""
    left, done = {job.name: job for job in jobs}, list[Job]()
    while left:
        ready = [job for job in left.values() if not left.keys() & set(job.needs)]
        if not ready:
            raise InputError(f"jobs that need one another ({listed(left)})", "an order of them", "correct their needs")
        done += ready
        left = {name: job for name, job in left.items() if job not in ready}
    return done


def _submit(folder: Path, job: Job, needed: Sequence[str], before: Sequence[str]) -> str:
    """Submit one job and write its id down; where it is refused, its record is as it was."""
    import submitit

    path = folder / job.name / record.JOB
    old = path.read_bytes() if path.is_file() else None
    record.write_job(folder, replace(job, engine=Slurm.name, id=None))  # read by the job, which may start at once
    options = options_of(job.resources)
    if needed:
        options |= {"dependency": f"afterok:{':'.join(needed)}", "kill-on-invalid-dep": "yes"}
    seconds = options["time"] * 60
    python = shlex.quote(sys.executable)
    ended = shlex.join([sys.executable, "-m", "nnunetv2_ext.jobs.allocation", str(folder), job.name])
    executor = submitit.SlurmExecutor(folder / job.name / FOLDER, max_num_timeout=UNENDING, python=python)
    executor.update_parameters(
        job_name=f"{folder.parent.name}/{job.name}",
        time=options["time"],
        signal_delay_s=min(NOTICE, seconds // 10) if seconds else NOTICE,
        # newer versions of srun do not take over the number of CPUs
        setup=["export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}"],
        teardown=["code=$?", f"[ $code = 0 ] || {ended} $code", "exit $code"],
        additional_parameters=options,
    )
    try:
        id = str(executor.submit(Task(str(folder), job.name)).job_id)
    except Exception as error:  # submitit's own types, whose text is what sbatch said
        if old is None:
            path.unlink()
        else:
            path.write_bytes(old)
        earlier = f"; submitted before it, and in the queue: {listed(before)}" if before else ""
        raise _refused(job.name, _flags(options), said(str(error)) + earlier) from None
    record.write_job(folder, replace(job, engine=Slurm.name, id=id))
    return id


def _unasked(state: State, why: str) -> Seen:
    """A job as its supervisor last wrote, where SLURM does not answer."""
    last = _last(state)
    ended = state.state in record.ENDED
    return Seen(state.state, last.exit, last.reason if ended else f"as last known; SLURM does not answer ({why})")


def _last(state: State) -> record.Attempt:
    return state.attempts[-1] if state.attempts else record.Attempt(0.0)


def merged(state: State, told: Told | None) -> Seen:
    """A job as it stands, from what its supervisor wrote and what SLURM says.

    Args:
        told: None for a job that SLURM has forgotten.
    """
    last = _last(state)
    written = Seen(state.state, last.exit, last.reason)
    if told is None:
        if state.state in record.ENDED:
            return written
        return Seen(record.FAILED, last.exit, "SLURM knows it no longer, and its supervisor wrote no end")
    if told.state in QUEUED:
        if told.reason == "DependencyNeverSatisfied":
            return Seen(record.BLOCKED, None, words(told.reason))
        return Seen(
            record.WAITING, None, last.reason if told.reason == "BeginTime" and last.reason else words(told.reason)
        )
    if told.state in LIVING:
        began = seconds(told.began)
        if state.state in record.ENDED and (last.ended or 0) >= began:  # what is left is to leave the node
            return written
        return Seen(record.RUNNING)
    if state.state == record.FINISHED:
        return written
    if told.reason == "DependencyNeverSatisfied" or (told.reason == "Dependency" and not state.attempts):
        return Seen(record.BLOCKED, None, words("DependencyNeverSatisfied"))
    if told.state in ("CANCELLED", "PREEMPTED", "REVOKED"):
        return Seen(record.CANCELLED, last.exit, "" if told.state == "CANCELLED" else told.state.lower())
    if told.state in ("TIMEOUT", "DEADLINE"):
        return Seen(record.TIMED_OUT, last.exit, "SLURM ended it at its time limit")
    if state.state in (record.FAILED, record.TIMED_OUT) and last.ended is not None:
        return written
    exit = told.exit or last.exit
    reason = told.reason if told.reason not in ("", "NonZeroExitCode", "RaisedSignal:9(Killed)") else ""
    return Seen(record.FAILED, exit, reason or f"its supervisor was ended with exit status {exit}")
