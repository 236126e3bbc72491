"""Peak memory of one network on CPU, measured in the process that runs this module.

Two steps (forward, backward; no optimizer), network, input and gradients included, as
`nnunetv2_ext.resident_memory` defines it.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks._networks import TOKEN_SIZE, build, builder, step
from nnunetv2_ext.resident_memory import rise


def peak_bytes(name: str, shape: Sequence[int], classes: int, token_size: Sequence[int] = TOKEN_SIZE) -> int:
    """Peak memory of the network called `name` in this process, see the module's first lines."""
    builder(name, token_size)  # its imports are no part of the figure

    def run() -> None:
        network = build(name, shape, classes, token_size)
        x = torch.randn(*shape)
        for _ in range(2):
            step(network, x)

    return rise(run)


def measure(
    name: str, shape: Sequence[int], classes: int, *, threads: int, token_size: Sequence[int] = TOKEN_SIZE
) -> int:
    """`peak_bytes` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks._memory", name, "--threads", str(threads), "--classes", str(classes)]
    output = subprocess.run(
        [*command, "--shape", *map(str, shape), "--token-size", *map(str, token_size)],
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
    parser.add_argument("--token-size", type=int, nargs=3, required=True)
    parser.add_argument("--classes", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    print(peak_bytes(args.name, args.shape, args.classes, args.token_size))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
