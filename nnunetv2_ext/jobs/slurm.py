"""SLURM runs jobs: submitit writes and submits their scripts; how they stand is asked of SLURM itself.

submitit alone waits for ever for a killed job where there is no accounting, and takes any `srun` for a SLURM.
"""

import contextlib
import io
import math
import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nnunetv2_ext.entry import Entry
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import unwritable
from nnunetv2_ext.jobs import record
from nnunetv2_ext.jobs.allocation import Task
from nnunetv2_ext.jobs.engine import Seen, blocked, in_order
from nnunetv2_ext.jobs.groups import SIGNALS
from nnunetv2_ext.jobs.record import Job, Resources, State
from nnunetv2_ext.jobs.squeue import (
    LIVING,
    QUEUED,
    NoAnswer,
    Told,
    ask,
    cleared,
    jobs_of,
    partition_of,
    queued,
    run,
    said,
    seconds,
    words,
)
from nnunetv2_ext.locks import held
from nnunetv2_ext.text import listed, one_line

FOLDER = "slurm"
"""In the folder of a job: submitit's scripts, pickles and logs."""
SUBMITIT = Entry("SLURM", "submitit.SlurmExecutor", "submits jobs to SLURM", extra="cluster")
UNENDING = 10**6
"""Time-outs until submitit gives up: it takes every preemption of a short job for one. We count ourselves."""
NOTICE = 60
"""Seconds before the time limit at which a job is told of it; SLURM may do so a minute earlier."""
ENDING = 180
"""Seconds that SLURM may take to end a job."""
OURS = "array chdir dependency error job-name kill-on-invalid-dep nodes no-requeue ntasks ntasks-per-node open-mode"
OURS += " output parsable requeue signal test-only wait wrap"
"""Options of sbatch that a line cannot set: this file does, or relies on them."""
FLAGS = {"partition": "--partition", "account": "--account", "gres": "--gres", "time": "--time"}
FLAGS |= {"mem": "--memory", "cpus-per-task": "--cpus"}
"""Options of sbatch that have a flag of ours."""
USUAL = {key: f"SBATCH_{key.upper()}" for key in ("partition", "account", "qos", "reservation", "constraint")}
"""Options of sbatch that its user may set for all jobs, by a variable; all others of SLURM's are kept from it."""


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
        try:
            done = run("sbatch", "--wrap=true", "--test-only", *_flags(options))
        except NoAnswer as silence:
            raise InputError(one_line(silence), "an answer of SLURM's", "try again") from None
        if done.returncode and not ("node configuration" in done.stderr and _are_nodes_away(options.get("partition"))):
            raise _refused("a job", options, said(done.stderr))

    def submit(self, folder: Path, jobs: Sequence[Job]) -> None:
        """See `Engine.submit`; a job that SLURM has in its hands is left alone, one that has ended runs anew."""
        folder = folder.absolute()
        known = record.read_jobs(folder)
        names = {name for job in jobs for name in (job.name, *job.needs)} & known.keys()
        try:
            seen, told = _look(folder, {name: known[name] for name in names})
        except NoAnswer as silence:
            raise InputError(f"no submission ({one_line(silence)})", "an answer of SLURM's", "try again") from None
        ids: dict[str, str | None] = {}  # of what is in the queue, and None of what has finished
        for name, one in seen.items():
            if one.state in (record.WAITING, record.RUNNING) and name in told:
                ids[name] = told[name][0]
            elif one.state == record.FINISHED:
                ids[name] = None
        ordered = in_order(job for job in jobs if ids.get(job.name) is None)
        for job in ordered:
            for need in sorted(set(job.needs) - ids.keys() - {other.name for other in ordered}):
                state = f"is {seen[need].state}" if need in seen else "is not known"
                got = f"{job.name}, which needs {need}, which {state}"
                raise InputError(got, "a job that can begin", f"submit {need} with it")
        new: list[str] = []
        for job in ordered:
            needed = [id for need in job.needs if (id := ids.get(need)) is not None]
            ids[job.name] = _submit(folder, job, needed, new)
            new.append(job.name)

    def look(self, folder: Path, jobs: Mapping[str, Job]) -> dict[str, Seen]:
        """How jobs stand: what SLURM says of those that are in its hands, what the supervisor wrote of the others.

        An end that no supervisor wrote is written here, since SLURM forgets it.
        """
        try:
            return _look(folder, jobs)[0]
        except NoAnswer as silence:
            return {name: _unasked(state, one_line(silence)) for name, state in _states(folder, jobs)[0].items()}

    def cancel(self, folder: Path, jobs: Sequence[Job]) -> None:
        """End jobs, and wait until SLURM has ended all their processes."""
        try:
            living = _living(folder, jobs)
            if living:
                ask("scancel", *living.values())
            end = time.monotonic() + ENDING
            names = [*living]
            while living:
                if time.monotonic() > end:
                    got = f"jobs that SLURM has not ended within {ENDING} s ({listed(living.values())})"
                    raise InputError(got, "their end", "see `squeue`: their node may be down")
                time.sleep(0.5)
                living = _living(folder, [job for job in jobs if job.name in living])
        except NoAnswer as silence:
            raise InputError(f"no cancel ({one_line(silence)})", "an answer of SLURM's", "try again") from None
        for name, one in self.look(folder, {job.name: job for job in jobs if job.name in names}).items():
            if one.state == record.BLOCKED:  # SLURM ended it first, for want of one that was cancelled with it
                _write_end(folder, name, record.read_state(folder, name), Seen(record.CANCELLED))


def _told(folder: Path, jobs: Mapping[str, Job]) -> dict[str, tuple[str, Told]]:
    """What SLURM says of jobs, by name, with their ids.

    An id alone is not trusted: another cluster over the same files, or this one set up anew, counts its own. A job
    without one, whose submission was killed before it wrote it down, is known by its folder.

    Raises:
        NoAnswer: the controller does not answer.
    """
    found = {}
    told = jobs_of([job.id for job in jobs.values() if job.id is not None])
    for name, job in jobs.items():
        one = told.get(job.id or "")
        if job.id is not None and one is not None and one.name == _name(folder, name):
            found[name] = (job.id, one)
    lost = {os.path.realpath(folder / name): name for name, job in jobs.items() if job.id is None}
    for id, one in queued().items() if lost else ():
        where = lost.get(os.path.realpath(one.folder))
        if where is not None and one.name == _name(folder, where):
            found[where] = (id, one)
    return found


def _states(folder: Path, jobs: Mapping[str, Job]) -> tuple[dict[str, State], dict[str, str]]:
    """What the supervisors wrote, and why a state cannot be read, which then counts as that of a job not begun."""
    states, damaged = dict[str, State](), dict[str, str]()
    for name in jobs:
        try:
            states[name] = record.read_state(folder, name)
        except InputError as error:
            states[name], damaged[name] = State(), str(error)
    return states, damaged


def _living(folder: Path, jobs: Sequence[Job]) -> dict[str, str]:
    """The ids of jobs that run or are to run, by name."""
    told = _told(folder, {job.name: job for job in jobs})
    return {name: id for name, (id, one) in told.items() if one.state in LIVING | QUEUED}


def _look(folder: Path, jobs: Mapping[str, Job]) -> tuple[dict[str, Seen], dict[str, tuple[str, Told]]]:
    """See `Slurm.look`; with what SLURM said.

    Raises:
        NoAnswer: the controller does not answer.
    """
    (states, damaged), told = _states(folder, jobs), _told(folder, jobs)
    seen = {name: merged(states[name], told[name][1] if name in told else None) for name in jobs}
    for name, job in jobs.items():
        if job.id is None and name not in told:
            why = "who submitted it was ended before SLURM had it; submit it again"
            seen[name] = Seen(record.CANCELLED, None, why)
    for name, why in damaged.items():
        if seen[name].state in record.ENDED:
            seen[name] = Seen(record.FAILED, seen[name].exit, why)
    never = [name for name, one in seen.items() if one.state == record.CANCELLED and states[name] == State()]
    again = {name: blocked(jobs, {**seen, name: Seen(record.WAITING)})[name] for name in never}
    seen |= {name: one for name, one in again.items() if one.state == record.BLOCKED}  # as SLURM said, and forgot
    for name, (_, one) in told.items():
        state = seen[name].state
        new = state in record.ENDED and state not in (record.FINISHED, states[name].state)
        if (
            new and one.state not in LIVING | QUEUED and not 0 < one.exit < SIGNALS
        ):  # else the supervisor ended by itself: what it wrote is on its way
            _write_end(folder, name, states[name], seen[name])
    return seen, told


def _write_end(folder: Path, name: str, state: State, seen: Seen) -> None:
    """Write down how a job ended whose supervisor did not, unless it changes meanwhile or may not be written."""
    attempts = state.attempts
    if attempts and (attempts[-1].ended is None or seen.reason):
        ended = attempts[-1].ended or time.time()
        attempts = (*attempts[:-1], replace(attempts[-1], ended=ended, exit=seen.exit, reason=seen.reason))
    new = replace(state, state=seen.state, attempts=attempts, group=None, note=state.note if attempts else seen.reason)
    with contextlib.suppress(InputError, OSError):
        if os.access(folder / name, os.W_OK):
            with held(folder, name, "a look"):
                if record.read_state(folder, name) == state:
                    record.write_state(folder, name, new)


def options_of(resources: Resources) -> dict[str, Any]:
    """The resources as options of sbatch, without their dashes; True for one without a value.

    Raises:
        InputError: no SLURM, no such partition, more time than it gives, or a line that is no option.
    """
    for flag, value in (("--time", resources.minutes), ("--memory", resources.memory_gb)):
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{flag} {value:g}", "a number above 0", "correct it")
    if resources.cpus is not None and resources.cpus < 1:
        raise InputError(f"--cpus {resources.cpus}", "1 or more", "correct it")
    usual = {key: os.environ[name] for key, name in USUAL.items() if os.environ.get(name)}
    partition = partition_of(resources.partition or usual.get("partition"))
    minutes = resources.minutes
    if minutes is not None and partition.most is not None and minutes > partition.most:
        got = f"a time of {minutes:g} minutes in the partition {partition.name}"
        raise InputError(got, f"at most {partition.most:g}", "say a shorter --time: a job goes on in a new run")
    if minutes is None:  # submitit would say five minutes
        minutes = partition.default or partition.most or 0
    options: dict[str, Any] = {"time": math.ceil(minutes), "requeue": True, **usual}
    given = {
        "partition": resources.partition,
        "account": resources.account,
        "gres": resources.gres,
        "mem": None if resources.memory_gb is None else f"{math.ceil(resources.memory_gb * 1024)}M",
        "cpus-per-task": resources.cpus,
    }
    options |= {key: value for key, value in given.items() if value is not None}
    for line in resources.lines:
        key, separator, text = line.strip().removeprefix("--").partition("=" if "=" in line else " ")
        if not line.strip().startswith("--") or not key or "\n" in line or (separator and not text.strip()):
            raise InputError(f"the line '{line}'", "one option of sbatch", "write it as --qos=long, for instance")
        if key in FLAGS or key in OURS.split():
            remedy = f"say {FLAGS[key]}" if key in FLAGS else "leave it out"
            raise InputError(f"the line '{line}'", "an option that is not set for every job", remedy)
        options[key] = text.strip() if separator else True
    return options


def _are_nodes_away(partition: str | None) -> bool:
    """Whether nodes are down or drained: `--test-only` then refuses what sbatch takes, and tells for what is wrong."""
    where = [] if partition is None else ["--partition", partition]
    with contextlib.suppress(NoAnswer):
        return bool(
            ask("sinfo", "--noheader", *where, "--states=down,drain,fail,maint,unk,no_respond", "-o", "%n").strip()
        )
    return False


def _flags(options: Mapping[str, Any]) -> list[str]:
    return [f"--{key}" if value is True else f"--{key}={value}" for key, value in options.items()]


def _refused(what: str, options: Mapping[str, Any], words: str) -> InputError:
    flags = listed(_flags(options), separator=" ")
    remedy = f"correct {listed([*dict.fromkeys(FLAGS.values())])} or --slurm"
    return InputError(f"{what} that SLURM refuses ({words}; {flags})", "one that its partition can run", remedy)


def _submit(folder: Path, job: Job, needed: Sequence[str], before: Sequence[str]) -> str:
    """Submit one job and write its id down; where it is refused, all is as it was."""
    import submitit

    kept = {path: path.read_bytes() for path in (folder / job.name).glob("*.json")}
    options = options_of(job.resources)
    if needed:
        options |= {"dependency": f"afterok:{':'.join(needed)}", "kill-on-invalid-dep": "yes"}
    id = ""
    try:
        job = replace(job, engine=Slurm.name, id=None, directory=job.directory or Path.cwd())
        record.write_job(folder, job)  # before it is submitted: it may begin at once
        record.write_state(folder, job.name, State())
        executor = submitit.SlurmExecutor(
            folder / job.name / FOLDER, max_num_timeout=UNENDING, python=shlex.quote(sys.executable)
        )
        executor.update_parameters(**_script(folder, job, options))
        with cleared(), contextlib.redirect_stderr(io.StringIO()):  # what sbatch says comes with the error, too
            id = str(executor.submit(Task(str(folder), job.name)).job_id)
        record.write_job(folder, replace(job, id=id))
    except OSError as error:  # a full disk, or no sbatch
        if id:
            with contextlib.suppress(NoAnswer):
                ask("scancel", id)
        _take_back(folder / job.name, kept)
        raise unwritable(folder / job.name, error) from None
    except Exception as error:  # submitit's own types, whose text is what sbatch said
        _take_back(folder / job.name, kept)
        earlier = f"; in the queue, since submitted before it: {listed(before, shown=10)}" if before else ""
        raise _refused(job.name, options, said(str(error)) + earlier) from None
    return id


def _name(folder: Path, name: str) -> str:
    """What SLURM calls a job."""
    return f"{folder.absolute().parent.name}/{name}"


def _script(folder: Path, job: Job, options: Mapping[str, Any]) -> dict[str, Any]:
    """What submitit writes the script of a job from."""
    ended = shlex.join([sys.executable, "-m", "nnunetv2_ext.jobs.allocation", str(folder), job.name])
    seconds = options["time"] * 60
    return {
        "job_name": _name(folder, job.name),
        "time": options["time"],
        "signal_delay_s": min(NOTICE, seconds // 10) if seconds else NOTICE,
        # newer versions of srun do not take over the number of CPUs
        "setup": ["export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}"],
        "teardown": ["code=$?", f"[ $code = 0 ] || {ended} $code", "exit $code"],
        "additional_parameters": {**options, "chdir": folder / job.name},  # python -m imports from where it is run
    }


def _take_back(folder: Path, kept: Mapping[Path, bytes]) -> None:
    """Leave the folder of a job as it was before it was submitted."""
    if not kept:
        shutil.rmtree(folder, ignore_errors=True)
    for path, content in kept.items():
        path.write_bytes(content)


def _unasked(state: State, why: str) -> Seen:
    """A job as its supervisor last wrote, where SLURM does not answer."""
    last = state.last
    ended = state.state in record.ENDED
    return Seen(state.state, last.exit, last.reason if ended else f"as last known; SLURM does not answer ({why})")


def merged(state: State, told: Told | None) -> Seen:
    """A job as it stands, from what its supervisor wrote and what SLURM says.

    Args:
        told: None for a job that SLURM has forgotten.
    """
    last = state.last
    written = Seen(state.state, last.exit, last.reason or state.note)
    if state.state == record.FINISHED:
        return written
    if told is None:
        if state.state in record.ENDED:
            return written
        if not state.attempts:
            return Seen(record.CANCELLED, None, "it had not begun, and SLURM knows it no longer")
        return Seen(record.FAILED, last.exit, "its supervisor wrote no end, and SLURM knows it no longer")
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
    if told.state == "COMPLETED":  # what the supervisor wrote is on its way through a network's file system
        return Seen(record.FINISHED, 0)
    if told.reason == "DependencyNeverSatisfied" and state.state == record.WAITING:
        return Seen(record.BLOCKED, None, words("DependencyNeverSatisfied"))
    if told.state in ("CANCELLED", "PREEMPTED", "REVOKED"):
        return Seen(record.CANCELLED, last.exit, "" if told.state == "CANCELLED" else told.state.lower())
    if told.state in ("TIMEOUT", "DEADLINE"):
        return Seen(record.TIMED_OUT, last.exit, words("TimeLimit"))
    if state.state in (record.FAILED, record.TIMED_OUT) and last.ended is not None:
        return written
    exit = told.exit or last.exit
    why = {"NODE_FAIL": "NodeFail", "BOOT_FAIL": "NodeFail", "OUT_OF_MEMORY": "OutOfMemory"}.get(
        told.state, told.reason
    )
    if why in ("", "NonZeroExitCode") or why.startswith("RaisedSignal"):
        return Seen(record.FAILED, exit, f"its supervisor was ended with exit status {exit}")
    return Seen(record.FAILED, exit, words(why))
