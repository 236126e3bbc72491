"""Whether a job that failed is run again, and its reason in one line."""

import re
import signal
from collections.abc import Sequence

from nnunetv2_ext.jobs.groups import SIGNALS
from nnunetv2_ext.jobs.record import Attempt

AGAIN = "in the queue again"
"""How the reason of an attempt ends that did not fail: it was stopped to go on later."""
TIME_LIMIT = f"time limit: {AGAIN}"
SUPERVISOR_KILLED = "its supervisor was killed: by somebody, or as the machine went down"
FULL = ("No space left on device", "Disk quota exceeded")
MEMORY = ("CUDA out of memory", "CUDA error: out of memory", "OutOfMemoryError", "DefaultCPUAllocator")
GENERAL = ("background workers are no longer alive", "Some background worker is 6 feet under", "ChildFailedError")
"""Errors that tell of another one, which was printed before."""
CHATTER = re.compile(
    r"\s|\d+it \[|.*\d%\||.*it/s|.*s/it|warnings\.warn|.*Warning: |.*resource_tracker"
    r"|Exception ignored|During handling of|The above exception|Please check the print"
)
"""Lines that say nothing on why a command ended: frames of a traceback, bars of progress, warnings."""
ERROR = re.compile(r"([A-Za-z_][\w.]*\.)?([A-Z]\w*)(: .*)?$")
"""The line of an exception: its module, its class, its words."""


def reason(exit_status: int, output: str) -> str:
    """Why a command failed, in one line.

    Args:
        exit_status: as shells tell it.
        output: the end of what it printed.
    """
    if exit_status > SIGNALS:
        return _killed(exit_status - SIGNALS)
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", output) if line.strip()]
    for word in FULL:
        if any(word in line for line in lines[-100:]):
            return "no space left on the device" if word == FULL[0] else "the disk quota is used up"
    errors = _exceptions(lines)
    telling = [line for line in errors if not any(word in line for word in GENERAL)]
    for line in reversed(telling):
        if any(word in line for word in MEMORY):
            where = "of the computer" if "DefaultCPUAllocator" in line else "CUDA"
            return "CUDA out of memory" if where == "CUDA" else "out of memory (DefaultCPUAllocator)"
    said = telling or errors or [line for line in lines if not CHATTER.match(line)]
    return said[-1][:300] if said else f"exit status {exit_status} without a word"


def _exceptions(lines: Sequence[str]) -> list[str]:
    """The lines that end tracebacks; those of `InputError`, which are a sentence, without the name."""
    found, inside = [], False
    for line in lines:
        if line.startswith("Traceback (most recent call last)"):
            inside = True
        elif inside and not line[0].isspace():
            inside = False
            match = ERROR.match(line)
            if match and match[2] == "InputError" and match[3]:
                line = match[3].removeprefix(": ")
            found.append(line)
    return found


def _killed(number: int) -> str:
    try:
        name = f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        name = f"signal {number}"
    return f"killed by {name}" + (", as by the system when memory runs out" if number == signal.SIGKILL else "")


def why_not_again(attempts: Sequence[Attempt], retries: int) -> str | None:
    """Why a job that failed is not run again; None where it is.

    Failures are counted since the last progress: a training that gained whole epochs since it last failed has all its
    retries before it again. One that fails twice in the same way, without an epoch gained, would fail a third time. A
    signal from outside is no way of its own to fail, and what was stopped to go on later has not failed.

    Args:
        attempts: all, the last of which failed.
        retries: how often the job may be run again without progress.
    """
    last = attempts[-1]
    if is_refusal(last):
        return "it was refused, and would be again"
    failures, best = 0, 0
    failed = []
    for attempt in attempts:
        gained = (attempt.epochs or 0) > best
        best = max(best, attempt.epochs or 0)
        failures = 0 if gained else failures
        if not attempt.reason.endswith(AGAIN):
            failures += 1
            failed.append(attempt)
    if failures > 1 and last.exit is not None and last.exit <= SIGNALS:
        before = failed[-2]
        if (before.exit, before.reason) == (last.exit, last.reason):
            return "it failed twice in the same way"
    if failures > retries:
        return f"{failures} failures without progress" if retries else "no retries"
    return None


def in_vain(attempts: Sequence[Attempt]) -> int:
    """How many of the latest runs were ended by a time limit without a whole epoch gained."""
    count, best = 0, 0
    for attempt in attempts:
        gained = (attempt.epochs or 0) > best
        best = max(best, attempt.epochs or 0)
        count = 0 if gained else count + (attempt.reason == TIME_LIMIT)
    return count


def is_refusal(attempt: Attempt) -> bool:
    """Whether a command refused what it was asked: bad input, which another run would find again."""
    sentence = re.search(r"\bgot .+; expected .+", attempt.reason)
    return attempt.exit in (2, 126, 127) or sentence is not None
