"""Inside an allocation of SLURM: the supervisor under submitit, told of the time limit, and what follows its end.

`python -m nnunetv2_ext.jobs.allocation FOLDER NAME CODE` is run by the script around a supervisor that did not end well.
"""

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_ext.jobs import record, supervisor
from nnunetv2_ext.jobs.squeue import Silence, ask

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

AGAIN = "time limit: in the queue again"


class Task:
    """What submitit pickles and calls: paths alone, so that any later version of this module reads it."""

    def __init__(self, folder: str, name: str):
        self.folder, self.name = folder, name

    def __call__(self) -> None:
        """Run the job; ends the process with its exit status, which those that need it are started by."""
        raise SystemExit(supervisor.supervise(Path(self.folder), self.name))

    def checkpoint(self) -> "DelayedSubmission":
        """Stop the command just before the time limit; submitit then puts the job into the queue again."""
        from submitit.helpers import DelayedSubmission

        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent by the requeue, and no cancel
        supervisor.stop(record.WAITING, AGAIN)
        return DelayedSubmission(self)
