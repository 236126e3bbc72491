"""`nnunetv2_ext jobs`: how trainings and other commands that run as jobs go; cancel and retry them."""

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Sequence

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import dataset_name
from nnunetv2_ext.jobs.engine import engines
from nnunetv2_ext.jobs.record import (
    BLOCKED,
    CANCELLED,
    FAILED,
    FINISHED,
    RUNNING,
    TIMED_OUT,
    WAITING,
    jobs_folder,
)
from nnunetv2_ext.jobs.table import WRONG, Row, chosen, lines, rows, with_jobs
from nnunetv2_ext.text import counted, duration, listed

EVERY = 2.0
"""Seconds between two looks."""
QUIET_SECONDS = 30.0
"""Where the output is no terminal, how far the trainings are is told no more often than this."""
BEGINNING = 30.0
"""Seconds that a queue may take until it can be seen at work."""
EXAMPLE = """examples:
  nnunetv2_ext jobs                                  all data sets; on a terminal, live until all have ended
  nnunetv2_ext jobs -d 42 --json
  nnunetv2_ext jobs -d 42 --cancel fold_3            also a name, MODEL, or a pattern such as 'predict*'
  nnunetv2_ext jobs -d 42 --retry

Ctrl-C ends the table, not the jobs. Exit status: 1 where a job has failed, ran out of time or cannot run, 2 bad input,
0 otherwise.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which jobs, how to show them, what to do with them."""
    parser.epilog = EXAMPLE
    parser.add_argument("-d", dest="dataset", metavar="ID", help="id or name of the data set (default: all with jobs)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--watch", action="store_true", help="follow the jobs until all have ended, as a terminal does by itself"
    )
    how.add_argument("--once", action="store_true", help="show the table once, on a terminal too")
    how.add_argument("--json", action="store_true", help="print a list with an object for each job")
    how.add_argument(
        "--cancel",
        nargs="*",
        metavar="JOB",
        help="end jobs that run and take waiting ones out of the queue: all of -d, or those named",
    )
    how.add_argument(
        "--retry",
        nargs="*",
        metavar="JOB",
        help="run jobs again that did not finish, with all their retries: all, or those named",
    )


def run(args: argparse.Namespace) -> int:
    """Look, and do what is asked."""
    datasets = with_jobs() if args.dataset is None else [dataset_name(args.dataset)]
    if args.cancel == [] and args.dataset is None:
        raise InputError("--cancel without -d and names", "one data set, or some jobs", "add -d ID, or names of jobs")
    for sentence in revive(datasets):
        print(sentence, file=sys.stderr)
    found = [row for dataset in datasets for row in rows(dataset)]
    if args.json:
        print(json.dumps([row.to_json() for row in found], indent=1))
        return status(found)
    if not found:
        where = "any data set" if args.dataset is None else datasets[0]
        print(f"no jobs of {where}; nnunetv2_ext train submits some")
        return 0
    if args.cancel is not None:
        return cancel(chosen(found, args.cancel), every=bool(args.cancel))
    if args.retry is not None:
        return retry(found, chosen(found, args.retry), every=bool(args.retry))
    if args.watch or (sys.stdout.isatty() and not args.once):
        return watch(datasets)
    _print(found)
    return status(found)


def revive(datasets: Sequence[str]) -> list[str]:
    """Go on with the jobs of this machine whose queue was killed; a sentence for each data set."""
    from nnunetv2_ext.jobs.queue import QUEUE, ensure_queue

    told = []
    for dataset in datasets:
        log = jobs_folder(dataset) / f"{QUEUE}.log"
        begins = log.is_file() and time.time() - log.stat().st_mtime < BEGINNING
        if not begins and ensure_queue(log.parent):
            told.append(f"the queue of {dataset} had ended before its jobs; it goes on")
    return told


def status(found: Sequence[Row]) -> int:
    """1 where a job is not well."""
    return int(any(row.seen.state in WRONG for row in found))


def _print(found: Sequence[Row]) -> None:
    # what goes to a file or a pipe is not cut
    print("\n".join(_drawn(found, shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize)))


def _drawn(found: Sequence[Row], width: int) -> list[str]:
    """The tables of all data sets."""
    drawn: list[str] = []
    for dataset in dict.fromkeys(row.dataset for row in found):
        drawn += [""] * bool(drawn) + lines([row for row in found if row.dataset == dataset], width)
    return drawn


def watch(datasets: Sequence[str], names: Sequence[str] | None = None) -> int:
    """Show how jobs go until all have ended: the table, in place, on a terminal, else lines.

    Args:
        names: of the jobs that are waited for; None for all.

    Returns:
        0, or 1 where a job is not well, or one that is named has not finished.
    """
    terminal = sys.stdout.isatty()
    show: _Table | _Lines = _Table() if terminal else _Lines()
    while True:
        for sentence in revive(datasets):
            if not terminal:
                print(sentence, file=sys.stderr)
        found = [row for dataset in datasets for row in rows(dataset)]
        waited = [row for row in found if names is None or row.job.name in names]
        show(found if terminal else waited)
        if not any(row.seen.state in (WAITING, RUNNING) for row in waited):
            if names is None:
                return status(waited)
            return int(not {*names} <= {row.job.name for row in waited if row.seen.state == FINISHED})
        time.sleep(EVERY)


class _Table:
    """The table, drawn over the one before."""

    above = 0
    """Lines of the terminal that the one before takes."""

    def __call__(self, found: Sequence[Row]) -> None:
        size = shutil.get_terminal_size()
        cut = _fitting(_drawn(found, size.columns), size.columns, size.lines - 1)
        print(f"\x1b[{self.above}A" * bool(self.above) + "\x1b[J" + "\n".join(cut), flush=True)
        self.above = sum(_height(line, size.columns) for line in cut)


class _Lines:
    """A line where a job begins or ends, and now and then one of each training."""

    def __init__(self) -> None:
        self.states: dict[tuple[str, str], str] = {}
        self.lines: dict[tuple[str, str], str] = {}
        self.told = time.monotonic()

    def __call__(self, found: Sequence[Row]) -> None:
        late = time.monotonic() - self.told > QUIET_SECONDS
        self.told = time.monotonic() if late else self.told
        silent = (WAITING, BLOCKED) if self.states else (WAITING, BLOCKED, FINISHED)
        for row in found:
            key, state = (row.dataset, row.job.name), row.seen.state
            changed = state not in (*silent, self.states.get(key))
            if changed or (late and state == RUNNING and row.progress is not None):
                line = _line(row)
                if changed or line != self.lines.get(key):
                    print(line, flush=True)
                self.lines[key] = line
            self.states[key] = state
        blocked = [row.job.name for row in found if row.seen.state == BLOCKED]
        if blocked and not {WAITING, RUNNING} & {*self.states.values()}:
            print(f"{counted(blocked, 'job')} cannot run after that", flush=True)


def _line(row: Row) -> str:
    """How a job stands, in a line; where it is not well, why, and where its log is."""
    line = f"{row.job.name}: {row.seen.state}"
    last = row.state.last
    if row.seen.state == RUNNING and row.progress is not None:
        told = f"epoch {row.progress.epochs_done} of {row.progress.epochs or '?'}"
        line += f", {'validates' if row.progress.validates else told}"
    elif last.ended is not None:
        line += f" after {duration(last.ended - last.began)}"
    if row.seen.state in WRONG:
        line += f": {row.reason}\n  log: {row.log}"
    return line


def _height(line: str, columns: int) -> int:
    """Lines of the terminal that a line takes."""
    return max(1, math.ceil(len(line) / columns))


def _fitting(drawn: Sequence[str], columns: int, most: int) -> list[str]:
    """The first lines, as many as the terminal has room for; what has scrolled away cannot be drawn over."""
    fitting: list[str] = []
    used = 0
    for number, line in enumerate(drawn):
        used += _height(line, columns)
        if used > most - (number < len(drawn) - 1):
            return [*fitting, f"... {len(drawn) - number} more lines: nnunetv2_ext jobs --once"[:columns]]
        fitting.append(line)
    return fitting


def cancel(found: Sequence[Row], *, every: bool = True) -> int:
    """End jobs; tells what became of each.

    Args:
        every: tell of those that had ended, too.
    """
    if not every:
        found = [row for row in found if row.seen.state in (WAITING, RUNNING, BLOCKED)]
        print("nothing to cancel\n" * (not found), end="")
    for dataset in dict.fromkeys(row.dataset for row in found):
        of_dataset = [row for row in found if row.dataset == dataset]
        active = [row for row in of_dataset if row.seen.state in (WAITING, RUNNING, BLOCKED)]
        for name, engine in engines().items():
            if jobs := [row.job for row in active if row.job.engine == name]:
                engine.cancel(jobs_folder(dataset), jobs)
        now = {row.job.name: row.seen.state for row in rows(dataset)}
        for row in of_dataset:
            was, name = row.seen.state, row.job.name
            told = f"was {was}, is {now.get(name, was)} now" if row in active else f"is {was}, nothing to cancel"
            print(f"{name}: {told}")
    return 0


def retry(found: Sequence[Row], asked: Sequence[Row], *, every: bool = True) -> int:
    """Submit jobs again that did not finish, and those that could not run because of them.

    Args:
        found: all jobs of the data sets.
        asked: those that were asked for.
        every: tell of those that are well, too.

    Raises:
        InputError: an engine refuses.
    """
    if not every:
        asked = [row for row in asked if _ended_badly(row)]
        print("nothing to retry\n" * (not asked), end="")
    for dataset in dict.fromkeys(row.dataset for row in asked):
        of_dataset = [row for row in found if row.dataset == dataset]
        again = {row.job.name for row in asked if row.dataset == dataset and _ended_badly(row) and row.job.command}
        while more := {
            row.job.name
            for row in of_dataset
            if row.job.name not in again and row.seen.state == BLOCKED and again & {*row.job.needs}
        }:
            again |= more
        jobs = [row.job for row in of_dataset if row.job.name in again]
        for name, engine in engines().items():
            if of_engine := [job for job in jobs if job.engine == name]:
                for resources in dict.fromkeys(job.resources for job in of_engine):
                    engine.check(resources)
                engine.submit(jobs_folder(dataset), of_engine)
        for row in of_dataset:
            if row.job.name in again:
                print(f"{row.job.name}: was {row.seen.state}, submitted again")
                lacking = [r.job.name for r in of_dataset if r.job.name in row.job.needs and _stays_bad(r, again)]
                if lacking:
                    print(f"  it cannot run before {listed(lacking)}: run jobs -d {dataset} --retry for that too")
            elif row in asked:
                why = "nothing to retry" if row.job.command else f"and cannot be retried: {row.reason}"
                print(f"{row.job.name}: is {row.seen.state}, {why}")
    return 0


def _ended_badly(row: Row) -> bool:
    return row.seen.state in (FAILED, CANCELLED, TIMED_OUT, BLOCKED)


def _stays_bad(row: Row, again: set[str]) -> bool:
    return _ended_badly(row) and row.job.name not in again
