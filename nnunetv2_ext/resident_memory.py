"""Peak memory of something that runs on the CPU, as the rise of this process's resident memory.

Definition: highest resident memory while it runs, above the resident memory after the imports and one tiny convolution
(which starts the thread pool and the convolution library). The allocator keeps the system's defaults, so fragmentation
counts, as it does for a user. Best in a fresh process: memory that was freed before is used again unseen, unless the
allocator (glibc's) gives it back on request.
"""

import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

PROC = Path("/proc/self")


def resident(key: str) -> int:
    """Resident memory in bytes: `VmRSS` now, `VmHWM` at its highest."""
    for line in (PROC / "status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {key} in {PROC / 'status'}")


def highest_ever() -> int:
    """Highest resident memory in bytes since the process began, on any Unix."""
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def rise(run: Callable[[], object]) -> int:
    """The bytes by which the resident memory rises while `run` does, at its highest."""
    nn.Conv3d(1, 8, 3)(torch.zeros(1, 1, 8, 8, 8)).square().mean().backward()
    gc.collect()
    if give_back := getattr(ctypes.CDLL(None), "malloc_trim", None):
        give_back(0)
    highest = highest_from_now()
    baseline = highest()
    run()
    return highest() - baseline


def highest_from_now(*, anew: bool = True) -> Callable[[], int]:
    """A function that tells the highest resident memory in bytes since this call, or the last one that was `anew`.

    Where the system keeps no such figure it is the highest since the process began.
    """
    try:
        if anew:
            (PROC / "clear_refs").write_text("5")  # VmHWM starts again from what is resident now
        resident("VmHWM")
    except OSError:
        return highest_ever
    return lambda: resident("VmHWM")
