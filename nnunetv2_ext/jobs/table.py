"""The jobs of data sets as a table and as JSON: their states, how far their trainings are, why they failed."""

from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import nnunet_folder
from nnunetv2_ext.jobs.engine import Seen, in_order, standing
from nnunetv2_ext.jobs.progress import Progress, progress
from nnunetv2_ext.jobs.record import (
    BLOCKED,
    CANCELLED,
    FAILED,
    FINISHED,
    JOBS,
    LOG,
    RUNNING,
    TIMED_OUT,
    WAITING,
    Job,
    State,
    jobs_folder,
    read_jobs,
    state_or_none,
)
from nnunetv2_ext.text import duration, listed, shortened

WRONG = (FAILED, TIMED_OUT, BLOCKED)
"""States for which the table's exit status is 1."""
_HEADER = ("job", "fold", "state", "epoch", "s/epoch", "left", "Dice")
_DROPPED = ("s/epoch", "left", "Dice", "epoch")
"""Columns that a narrow terminal does without, the first one first."""
_LEAST = 12
"""Letters of a job's name that are shown at the least."""


class Row(NamedTuple):
    """A job as it stands."""

    dataset: str
    job: Job
    seen: Seen
    state: State
    progress: Progress | None

    @property
    def log(self) -> Path:
        """All that its command printed."""
        return jobs_folder(self.dataset) / self.job.name / LOG

    @property
    def model(self) -> str | None:
        """TRAINER:PLANS:CONFIG of a training."""
        return None if self.job.fold is None else self.job.fold.parent.name.replace("__", ":")

    @property
    def fold(self) -> str | None:
        """The fold's number, or "all", of a training."""
        return None if self.job.fold is None else self.job.fold.name.removeprefix("fold_")

    @property
    def reason(self) -> str:
        """Why it is not well: what the engine tells, or the last attempt."""
        told = self.seen.reason or (self.state.last.reason if self.seen.state in (*WRONG, CANCELLED) else "")
        return (told if told != self.seen.state else "") or self.state.note

    def to_json(self) -> dict[str, Any]:
        """As `nnunetv2_ext jobs --json` prints it; None is what is not known."""
        how = self.progress or Progress()
        attempts = self.state.attempts
        return {
            "dataset": self.dataset,
            "name": self.job.name,
            "model": self.model,
            "fold": self.fold,
            "state": self.seen.state,
            "exit": self.seen.exit,
            "reason": self.reason or None,
            "attempts": len(attempts),
            "retries": self.job.retries,
            "epochs_done": how.epochs_done if self.progress else None,
            "epochs": how.epochs,
            "seconds_per_epoch": how.seconds_per_epoch,
            "seconds_left": how.seconds_left,
            "pseudo_dice": how.dice,
            "cases_validated": how.cases_done if self.progress else None,
            "cases": how.cases,
            "began": attempts[0].began if attempts else None,
            "ended": self.state.last.ended,
            "engine": self.job.engine,
            "id": self.job.id,
            "host": self.state.host or None,
            "device": self.state.device,
            "needs": list(self.job.needs),
            "command": list(self.job.command),
            "log": str(self.log),
        }


def with_jobs() -> list[str]:
    """The data sets that have jobs, by name.

    Raises:
        InputError: no folder nnUNet_results.
    """
    return sorted(path.parent.name for path in nnunet_folder("nnUNet_results").glob(f"Dataset*/{JOBS}"))


def rows(dataset: str) -> list[Row]:
    """The jobs of a data set in the order of the whole way, each behind those that it needs."""
    folder = jobs_folder(dataset)
    jobs = read_jobs(folder)
    seen = standing(folder, jobs)
    found = []
    for job in in_order(jobs.values()):
        state = state_or_none(folder, job.name)
        began = state.last.began if seen[job.name].state == RUNNING else 0.0
        how = None if job.fold is None else progress(job.fold, began)
        found.append(Row(dataset, job, seen[job.name], state, how))
    return found


def chosen(found: Sequence[Row], patterns: Sequence[str]) -> list[Row]:
    """The jobs that are named: by name, a pattern of names (`*fold_3`), model, fold (`fold_3`); all without patterns.

    Raises:
        InputError: a name that fits none.
    """
    fitting = []
    for pattern in patterns:
        of_pattern = [row for row in found if _fits(row, pattern)]
        if not of_pattern:
            names = listed((row.job.name for row in found), shown=10) or "none"
            raise InputError(f"no job '{pattern}'", f"a name, a model or a fold of {names}", "correct it")
        fitting += of_pattern
    return [row for row in found if row in fitting] if patterns else list(found)


def _fits(row: Row, pattern: str) -> bool:
    name = row.job.name
    parts = (name, row.model, None if row.job.fold is None else row.job.fold.parent.name, *name.split("__"))
    return pattern in parts or fnmatchcase(name, pattern)


def summary(found: Sequence[Row]) -> str:
    """How many jobs are in each state."""
    counts = Counter(row.seen.state for row in found)
    order = (RUNNING, WAITING, FINISHED, FAILED, TIMED_OUT, CANCELLED, BLOCKED)
    return listed(f"{counts[state]} {state}" for state in order if counts[state])


def lines(found: Sequence[Row], width: int) -> list[str]:
    """The table of one data set's jobs, its rows at most so wide; below it why jobs are not well, and their logs.

    Where names have no room, what says nothing about a model is left out: the configuration and the trainer.

    Args:
        found: at least one.
    """
    header = list(_HEADER)
    cells = [dict(zip(header, _cells(row), strict=True)) for row in found]
    widths = {name: max(len(name), *(len(one[name]) for one in cells)) for name in header}
    for name in _DROPPED:
        if sum(widths[key] + 2 for key in header) - 2 - widths["job"] + _LEAST > width:
            header.remove(name)
    others = sum(widths[key] + 2 for key in header if key != "job")
    names = _names(found, max(width - others, _LEAST))
    widths["job"] = max(len("job"), *map(len, names))
    table = []
    for one, name in zip(cells, names, strict=True):
        one["job"] = name
    for one in ({name: name for name in header}, *cells):
        parts = [one["job"].ljust(widths["job"])]
        parts += [one[key].ljust(widths[key]) if key == "state" else one[key].rjust(widths[key]) for key in header[1:]]
        table.append("  ".join(parts))
    dataset = found[0].dataset
    told = [f"{dataset}: {summary(found)}", *(shortened(line.rstrip(), width) for line in table)]
    for row in found:
        if row.reason:
            told += [f"{row.job.name}: {row.reason}", *[f"  log: {row.log}"] * row.log.is_file()]
    return [*told, f"logs: {jobs_folder(dataset) / 'NAME' / LOG}"]


def _names(found: Sequence[Row], most: int) -> list[str]:
    """The rows' names with so many letters at the most."""
    models = {name: split for row in found for name in (_model(row),) if name and (split := name.split(":"))}
    configurations, plans = ({split[index] for split in models.values()} for index in (2, 1))
    ways = [slice(0, 3)]
    if len(configurations) == 1:
        ways.append(slice(0, 2))
        ways += [slice(1, 2)] * (len(plans) == len(models))
    for kept in ways:
        names = []
        for row in found:
            model = _model(row)
            before = "" if row.model else "predict_"
            names.append(f"{before}{':'.join(models[model][kept])}" if model else row.job.name)
        if max(map(len, names)) <= most:
            break
    return [shortened(name, most) for name in names]


def _model(row: Row) -> str:
    """TRAINER:PLANS:CONFIG of a training or of the prediction by one model; else nothing."""
    model = row.model or row.job.name.removeprefix("predict_").replace("__", ":")
    return model if model.count(":") == 2 else ""


def _cells(row: Row) -> list[str]:
    """As `_HEADER` names them."""
    how = row.progress
    state = row.seen.state + f" {row.seen.exit}" * (row.seen.state == FAILED and row.seen.exit is not None)
    name = row.model or row.job.name
    if how is None:
        return [name, row.fold or "", state, "", "", "", ""]
    of = "?" if how.epochs is None else str(how.epochs)
    epoch = f"{how.epochs_done}/{of}"
    if how.validates and row.seen.state == RUNNING:
        state = f"validates {how.cases_done}/{'?' if how.cases is None else how.cases}"
    left = how.seconds_left if row.seen.state != FINISHED else None
    return [
        name,
        row.fold or "",
        state,
        epoch,
        "" if how.seconds_per_epoch is None else f"{how.seconds_per_epoch:.3g}",
        "" if not left else duration(left),
        "" if how.dice is None else f"{how.dice:.3f}",
    ]
