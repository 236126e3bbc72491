"""What SLURM says: of its jobs (squeue, then sacct) and of its partitions, in words that need no manual."""

import os
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.text import listed, one_line

PATIENCE = 10
"""Seconds that a command of SLURM's may take to answer."""
COLUMNS = ("JobID", "State", "Reason", "exit_code", "StartTime", "WorkDir", "Name")
LIVING = {"RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
QUEUED = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
WORDS = {
    "Resources": "waits for a free place",
    "Priority": "waits for other jobs, which come first",
    "Dependency": "waits for the jobs that it needs",
    "DependencyNeverSatisfied": "a job that it needs did not finish",
    "BeginTime": "in the queue again, starts in a moment",
    "PartitionDown": "its partition is down",
    "PartitionInactive": "its partition is inactive",
    "PartitionTimeLimit": "asks for more time than its partition gives",
    "PartitionNodeLimit": "asks for more nodes than its partition gives",
    "NodeDown": "its node is down",
    "ReqNodeNotAvail": "the nodes that it could run on are down or reserved",
    "JobHeldUser": "held back; run scontrol release",
    "JobHeldAdmin": "held back by an administrator",
    "JobHoldMaxRequeue": "held back after too many starts; run scontrol release",
    "launch failed requeued held": "its node could not start it, held back; run scontrol release",
    "Reservation": "waits for its reservation",
    "Licenses": "waits for a licence",
    "JobLaunchFailure": "its node could not start it, or its script was killed",
    "NodeFail": "its node failed",
    "OutOfMemory": "more memory than SLURM gave it: ask for more with --memory",
    "TimeLimit": "SLURM ended it at its time limit",
}

FOREIGN = re.compile("(SLURM|SBATCH|SALLOC|SRUN|SQUEUE|SACCT|SCANCEL|SINFO|SCONTROL)_")
"""How variables begin that change what SLURM's commands do: of an allocation around this process, or its user's."""
CLUSTER = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT")
"""Of these, those that say where the cluster is."""


class Told(NamedTuple):
    """What SLURM says of a job."""

    state: str
    """In SLURM's words, without what follows them: `CANCELLED by 1000` is `CANCELLED`."""
    reason: str = ""
    exit: int = 0
    """As shells tell it: 128 + signal for one that was killed."""
    began: str = ""
    """When it began, or is to begin, by the clock of SLURM: 2026-11-29T14:59:23."""
    name: str = ""
    folder: str = ""
    """Where its script runs; empty where accounting tells it."""


class NoAnswer(Exception):
    """SLURM gave no answer; the text says why."""


@contextmanager
def cleared() -> Iterator[None]:
    """Keep the variables of `FOREIGN` from what is run within: sbatch prefers them to its script, jobs inherit them."""
    taken = {name: os.environ.pop(name) for name in [*os.environ] if FOREIGN.match(name) and name not in CLUSTER}
    try:
        yield
    finally:
        os.environ.update(taken)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of SLURM's, which is not to be changed by variables.

    Raises:
        NoAnswer: it took too long, or is not there.
    """
    try:
        with cleared():
            return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"no answer from {command[0]} within {PATIENCE} s") from None
    except OSError as error:
        raise NoAnswer(f"no {command[0]}: {error.strerror}") from None


def ask(*command: str) -> str:
    """What a command of SLURM's prints.

    Raises:
        NoAnswer: it failed, took too long, or is not there.
    """
    done = run(*command)
    if done.returncode:
        raise NoAnswer(said(done.stderr) or f"exit status {done.returncode} of {command[0]}")
    return done.stdout


def said(text: str) -> str:
    """What a command of SLURM's complains about, as one line: the last that is no hint to call for help."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("Try ")]
    return re.sub(r"^\w+: (error: )?", "", lines[-1]).rstrip(".!") if lines else ""


def jobs_of(ids: Sequence[str]) -> dict[str, Told]:
    """What SLURM says of jobs, by id, in one question to its controller; those that it has forgotten are absent.

    Raises:
        NoAnswer: the controller does not answer.
    """
    if not ids:
        return {}
    try:
        told = _squeue("--states=all", f"--jobs={','.join(ids)}")
    except NoAnswer as silence:
        if "Invalid job id" not in one_line(silence):  # of a single job that it has forgotten
            raise
        told = {}
    forgotten = [id for id in ids if id not in told]
    if forgotten:
        try:
            columns = "--format=JobID,State,Reason,ExitCode,Start,JobName"
            told |= read_sacct(ask("sacct", "-X", "-n", "-P", f"--jobs={','.join(forgotten)}", columns))
        except NoAnswer:  # a cluster without accounting
            pass
    return told


def queued() -> dict[str, Told]:
    """What SLURM says of all jobs of this user that run or are to run, by id.

    Raises:
        NoAnswer: the controller does not answer.
    """
    return _squeue(f"--user={os.getuid()}")


def _squeue(*which: str) -> dict[str, Told]:
    table = "".join(f"{column}:|," for column in COLUMNS).rstrip(",")
    return read_squeue(ask("squeue", "--noheader", *which, "-O", table))


def read_squeue(text: str) -> dict[str, Told]:
    """Jobs by id from squeue's lines of `COLUMNS`, whose exit code is the one of wait(2)."""
    found = {}
    for line in text.splitlines():
        fields = line.strip().removesuffix("|").split("|", len(COLUMNS) - 1)
        if len(fields) == len(COLUMNS):
            id, state, reason, code, began, folder, name = (field.strip() for field in fields)
            status = int(code) if code.isdecimal() else 0
            exit = 128 + (status & 127) if status & 127 else status >> 8
            found[id] = Told(state.split()[0], "" if reason == "None" else reason, exit, began, name, folder)
    return found


def read_sacct(text: str) -> dict[str, Told]:
    """Jobs by id from sacct's lines, the last of each, whose exit code is written as `status:signal`."""
    found = {}
    for line in text.splitlines():
        id, state, reason, code, began, name = (*line.split("|", 5), "", "", "", "", "")[:6]
        status, _, signal = code.partition(":")
        exit = 128 + int(signal) if signal.isdecimal() and int(signal) else int(status or 0)
        found[id] = Told((state.split() or [""])[0], "" if reason == "None" else reason, exit, began, name)
    return found


def words(reason: str) -> str:
    """Why a job waits; what SLURM has no short words for stays as it says it."""
    if reason in WORDS:
        return WORDS[reason]
    for start, what in (("QOS", "a limit of its QOS"), ("Assoc", "a limit of its account")):
        if reason.startswith(start):
            return f"{what} ({reason})"
    return WORDS.get(reason.split(",")[0], reason)


class Partition(NamedTuple):
    """Its time limits, in minutes; None where there is none."""

    name: str
    default: float | None
    most: float | None


def partition_of(name: str | None) -> Partition:
    """A partition by its name, or the one that jobs without a name go to.

    Raises:
        InputError: no SLURM behind its commands, no such partition, or none for jobs without a name.
    """
    try:
        text = ask("scontrol", "--oneliner", "show", "partition")
    except NoAnswer as silence:
        raise InputError(
            f"no SLURM here ({one_line(silence)})",
            "a controller that answers",
            "try `scontrol ping`, or use --on local",
        ) from None
    known = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in text.splitlines() if line.strip()]
    names = [each["PartitionName"] for each in known]
    if name is None:
        chosen = [each for each in known if each.get("Default") == "YES"]
    else:  # of several, SLURM takes the first that is free
        wanted = name.split(",")
        chosen = [each for each in known if each["PartitionName"] in wanted] if {*wanted} <= {*names} else []
    if not chosen:
        got = f"the partition '{name}'" if name is not None else "no partition, and the cluster has none by default"
        raise InputError(got, f"one of {listed(names, shown=20)}", "choose one with --partition")
    most = [minutes_of(each.get("MaxTime", "")) for each in chosen]
    ends = [each for each in most if each is not None]
    default = minutes_of(chosen[0].get("DefaultTime", ""))
    return Partition(chosen[0]["PartitionName"], default, max(ends) if len(ends) == len(most) else None)


def minutes_of(text: str) -> float | None:
    """A time of SLURM's, `days-hours:minutes:seconds`, in minutes; None for UNLIMITED and NONE."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return days * 1440 + hours * 60 + minutes + seconds / 60


def seconds(text: str) -> float:
    """A time that SLURM tells, by the clock of this machine, in seconds since 1970."""
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return 0.0
