"""The numbers of processes that users give to nnU-Net in variables."""

import os

from nnunetv2_ext.errors import InputError

WORKERS, PROCESSES = "nnUNet_n_proc_DA", "nnUNet_def_n_proc"
LEAST = {WORKERS: 0, PROCESSES: 1}
"""The variables of the data workers and of the processes of everything else, with their smallest values."""


def check_processes(variable: str) -> int | None:
    """The number that a variable holds, or None where it is not set.

    Raises:
        InputError: no number, or one that nnU-Net fails with or waits for ever on.
    """
    value, least = os.environ.get(variable), LEAST[variable]
    if value is None:
        return None
    if not value.strip().isdecimal() or int(value) < least:
        remedy = f"run export {variable}={os.cpu_count() or 1}"
        raise InputError(f"{variable}={value}", f"a number of processes from {least}", remedy)
    return int(value)
