"""Peak memory of one network on CPU, measured in the process that runs this module.

Definition: highest resident memory during two steps (forward, backward; no optimizer), network, input and gradients
included, above the resident memory after the imports and one tiny convolution (which starts the thread pool and the
convolution library). The allocator keeps the system's defaults, so fragmentation counts, as it does for a user.
"""

import argparse
import gc
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from benchmarks._networks import build, network_class, step

PROC = Path("/proc/self")


def resident(key: str) -> int:
    """Resident memory in bytes: `VmRSS` now, `VmHWM` at its highest."""
    for line in (PROC / "status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {key} in {PROC / 'status'}")


def highest_ever() -> int:
    """Highest resident memory in bytes since the process began, on any Unix."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_bytes(name: str, shape: Sequence[int], classes: int) -> int:
    """Peak memory of the network called `name` in this process, see the module's first lines."""
    network_class(name)
    step(nn.Conv3d(1, 8, 3), torch.zeros(1, 1, 8, 8, 8))
    gc.collect()
    try:
        (PROC / "clear_refs").write_text("5")  # VmHWM starts again from what is resident now
        baseline, peak = resident("VmRSS"), lambda: resident("VmHWM")
    except OSError:
        # no such file: the imports' own peak is the baseline, which can only lower the figure
        baseline, peak = highest_ever(), highest_ever
    network = build(name, shape, classes)
    x = torch.randn(*shape)
    for _ in range(2):
        step(network, x)
    return peak() - baseline


def measure(name: str, shape: Sequence[int], classes: int, *, threads: int) -> int:
    """`peak_bytes` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks._memory", name, "--threads", str(threads), "--classes", str(classes)]
    output = subprocess.run(
        [*command, "--shape", *map(str, shape)],
        cwd=Path(__file__).resolve().parents[1],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    return json.loads(output.splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> int:
    """Print the peak in bytes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--shape", type=int, nargs=5, required=True)
    parser.add_argument("--classes", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    print(peak_bytes(args.name, args.shape, args.classes))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
