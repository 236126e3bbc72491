"""Seconds per forward + backward and peak memory of networks beside a reference, nnU-Net's PlainConvUNet by default.

    python -m benchmarks.step --oracle
    python -m benchmarks.step --architectures PaR --shape 2 1 32 128 128
    python -m benchmarks.step --shape 2 1 12 64 64 --rounds 15 --threads 2 --json step.json
    python -m benchmarks.step --architectures MNet MNet:checkpointing
    python -m benchmarks.step -device cuda
    python -m benchmarks.step --architectures ConvFreeTransformer --reference Primus --shape 2 1 40 56 40 \
        --token-size 4 8 8
    python -m benchmarks.step --architectures ConvFreeTransformer:block --reference ConvFreeTransformer \
        --shape 1 1 40 56 40 --token-size 4 8 8

The loss is the sum over all deep-supervision outputs of their mean square; no optimizer, no data loading.
CPU: float32; every round runs each network once, in turns forwards and backwards through the list; memory is the peak
resident memory above imports, each network in processes of its own.
CUDA: autocast to float16 (as nnU-Net trains, but without its gradient scaler), without and with torch.compile; CUDA
events; peak of the allocator above what the other networks hold.
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks import _memory
from benchmarks._networks import (
    CHECKPOINTING,
    IN_BLOCKS,
    ORACLE,
    PRIMUS,
    REFERENCE,
    REFINED,
    TOKEN_SIZE,
    build,
    builder,
    check_shape,
    has_tokens,
    step,
)
from benchmarks._report import exit_status, machine, markdown_facts
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import check_output_file, write_json
from nnunetv2_ext.text import markdown_table

CUDA_WARM_UP_STEPS = 5
CUDA_STEPS_PER_ROUND = 5
CUDA_MODES = {"AMP": False, "AMP, compiled": True}
MEBIBYTE = 2**20
Runs = dict[str, Callable[[], float]]


@dataclass(frozen=True)
class Measurement:
    """One network: seconds of every round, bytes of every memory run."""

    name: str
    parameters: int
    seconds: Sequence[float]
    peaks: Sequence[int] = ()


def interleave(runs: Runs, rounds: int) -> dict[str, list[float]]:
    """Seconds per network and round; odd rounds run backwards, so that no network always follows the same one."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for n in tqdm(range(rounds), desc="rounds", file=sys.stderr):
        for name in list(runs)[:: -1 if n % 2 else 1]:
            seconds[name].append(runs[name]())
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def with_range(values: dict[str, float], form: str) -> str:
    """What `spread` found, for a table: `median (min-max)`."""
    return f"{values['median']:{form}} ({values['min']:{form}}-{values['max']:{form}})"


def count_parameters(network: nn.Module) -> int:
    """Number of trainable values."""
    return sum(parameter.numel() for parameter in network.parameters())


def summarise(measurements: Sequence[Measurement], reference: str = REFERENCE) -> list[dict[str, Any]]:
    """One row per network: spreads of seconds and bytes, and ratios to the reference and, if it ran, to the oracle.

    A time ratio is the median of the ratios within each round; a memory ratio divides medians.
    """
    by_name = {measurement.name: measurement for measurement in measurements}
    rows = []
    for one in measurements:
        row: dict[str, Any] = {
            "network": one.name,
            "parameters": one.parameters,
            "seconds": spread(one.seconds),
            "peak_mib": spread([peak / MEBIBYTE for peak in one.peaks]) if one.peaks else None,
        }
        for key, other in (("reference", by_name[reference]), ("oracle", by_name.get(ORACLE))):
            if other is not None:
                ratios = [own / others for own, others in zip(one.seconds, other.seconds, strict=True)]
                row[f"time_to_{key}"] = spread(ratios)
                if one.peaks and other.peaks:
                    mine, theirs = statistics.median(one.peaks), statistics.median(other.peaks)
                    row[f"memory_to_{key}"] = mine / theirs
                    row[f"mib_over_{key}"] = (mine - theirs) / MEBIBYTE
        rows.append(row)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `summarise` as a markdown table; a spread reads `median (min-max)`."""

    def cell(value: Any, form: str) -> str:
        if value is None:
            return "-"
        if isinstance(value, dict):
            return with_range(value, form)
        return f"{value:{form}}"

    columns = {
        "parameters": ("parameters", ","),
        "seconds": ("s per step", ".3f"),
        "time_to_reference": ("time / reference", ".2f"),
        "time_to_oracle": (f"time / {ORACLE}", ".2f"),
        "peak_mib": ("peak memory, MiB", ".0f"),
        "mib_over_reference": ("over reference, MiB", "+.0f"),
        "memory_to_reference": ("memory / reference", ".2f"),
        "memory_to_oracle": (f"memory / {ORACLE}", ".2f"),
    }
    shown = {key: value for key, value in columns.items() if any(row.get(key) is not None for row in rows)}
    header = ["network", *(title for title, _ in shown.values())]
    return markdown_table(
        header, [[row["network"], *(cell(row.get(key), form) for key, (_, form) in shown.items())] for row in rows]
    )


def cpu_seconds(network: nn.Module, x: Tensor) -> float:
    """Seconds of one step; its gradients are then dropped, so that the next network finds the memory free."""
    start = time.perf_counter()
    step(network, x)
    seconds = time.perf_counter() - start
    network.zero_grad(set_to_none=True)
    return seconds


def cuda_seconds(network: nn.Module, x: Tensor, *, steps: int) -> float:
    """Mean seconds of a few steps under autocast, by CUDA events; the gradients are then dropped."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(steps):
        with torch.autocast("cuda", dtype=torch.float16):
            step(network, x)
    end.record()
    torch.cuda.synchronize(x.device)
    network.zero_grad(set_to_none=True)
    return start.elapsed_time(end) / 1000 / steps


def measure_cpu(
    names: Sequence[str],
    shape: Sequence[int],
    classes: int,
    rounds: int,
    memory_runs: int,
    *,
    token_size: Sequence[int] = TOKEN_SIZE,
) -> list[Measurement]:
    """Time all networks in this process, then each one's memory in processes of its own."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    networks = {name: build(name, shape, classes, token_size) for name in names}
    for network in networks.values():
        cpu_seconds(network, x)
    runs: Runs = {name: partial(cpu_seconds, network, x) for name, network in networks.items()}
    seconds = interleave(runs, rounds)
    # one process at a time, in turns, so that a disturbance does not hit one network alone
    peaks: dict[str, list[int]] = {name: [] for name in names}
    for name in tqdm(list(names) * memory_runs, desc="memory", file=sys.stderr):
        peak = _memory.measure(name, shape, classes, threads=torch.get_num_threads(), token_size=token_size)
        peaks[name].append(peak)
    return [Measurement(name, count_parameters(networks[name]), seconds[name], peaks[name]) for name in names]


def measure_cuda(
    names: Sequence[str],
    shape: Sequence[int],
    classes: int,
    rounds: int,
    *,
    compiled: bool,
    device: str,
    token_size: Sequence[int] = TOKEN_SIZE,
) -> list[Measurement]:
    """Memory of each network once it is warm, then the time of all in turns; `compiled`: through torch.compile."""
    torch.cuda.set_device(torch.device(device).index or 0)
    torch.backends.cudnn.benchmark = True
    torch.randn(64, 64, device=device).matmul(torch.randn(64, 64, device=device))  # the library's workspace
    peaks, parameters = {}, {}
    runs: Runs = {}
    for name in names:
        gc.collect()
        held = torch.cuda.memory_allocated()
        x = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(device)
        network = build(name, shape, classes, token_size).to(device)
        parameters[name] = count_parameters(network)
        called: Any = torch.compile(network) if compiled else network
        cuda_seconds(called, x, steps=CUDA_WARM_UP_STEPS)
        torch.cuda.reset_peak_memory_stats()
        cuda_seconds(called, x, steps=2)
        peaks[name] = torch.cuda.max_memory_allocated() - held
        runs[name] = partial(cuda_seconds, called, x, steps=CUDA_STEPS_PER_ROUND)
    seconds = interleave(runs, rounds)
    return [Measurement(name, parameters[name], seconds[name], [peaks[name]]) for name in names]


def run(args: argparse.Namespace) -> int:
    """Measure, print the tables, write the JSON."""
    check_output_file(args.json, "--json")
    names = list(dict.fromkeys([args.reference, *([ORACLE] if args.oracle else []), *args.architectures]))
    check_shape(args.shape, names)
    if args.rounds < 1 or args.classes < 2 or args.memory_runs < 0:
        raise InputError(
            f"--rounds {args.rounds} --classes {args.classes} --memory-runs {args.memory_runs}",
            "at least 1 round, 2 classes, 0 memory runs",
            "correct it",
        )
    for name in names:
        builder(name, args.token_size)
    if args.device != "cpu" and not (args.device.startswith("cuda") and torch.cuda.is_available()):
        raise InputError(f"-device {args.device}", "cpu, or cuda where PyTorch sees one", "use -device cpu")
    if args.threads is not None:
        if args.threads < 1:
            raise InputError(f"--threads {args.threads}", "a positive number", "correct it")
        torch.set_num_threads(args.threads)
    about = machine(args.device)
    setting = f"shape {tuple(args.shape)}, {args.classes} classes, {args.rounds} rounds, {args.device}"
    if any(map(has_tokens, names)):
        setting += f", tokens {tuple(args.token_size)}"
    sizes = (names, args.shape, args.classes, args.rounds)
    if args.device == "cpu":
        measured = {"float32": measure_cpu(*sizes, args.memory_runs, token_size=args.token_size)}
    else:
        measured = {
            mode: measure_cuda(*sizes, compiled=compiled, device=args.device, token_size=args.token_size)
            for mode, compiled in CUDA_MODES.items()
        }
    tables = {mode: summarise(measurements, args.reference) for mode, measurements in measured.items()}
    print(f"Forward + backward, {setting}; reference {args.reference}; median (min-max).\n{markdown_facts(about)}")
    for mode, rows in tables.items():
        print(f"\n{mode}\n\n{table(rows)}")
    options = {key: value for key, value in vars(args).items() if key != "json"}
    if args.json is not None:
        write_json(
            args.json,
            {
                "machine": about,
                "options": options,
                "tables": tables,
                "seconds": {mode: {one.name: one.seconds for one in ones} for mode, ones in measured.items()},
            },
        )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Bad input ends in one sentence on stderr and exit status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--architectures",
        nargs="+",
        default=["MNet", REFINED],
        metavar="NAME",
        help=f"architectures or backbones of nnunetv2_ext list; {REFINED}: the refiner on {REFERENCE}, "
        f"{REFINED}:NAME: on another backbone; {IN_BLOCKS}; {PRIMUS}, size S; NAME{CHECKPOINTING}: with activation "
        f"checkpointing (default: MNet {REFINED})",
    )
    parser.add_argument(
        "--reference",
        default=REFERENCE,
        metavar="NAME",
        help=f"the network that ratios are to, run in any case (default {REFERENCE})",
    )
    parser.add_argument(
        "--token-size",
        type=int,
        nargs=3,
        default=list(TOKEN_SIZE),
        metavar=("Z", "Y", "X"),
        help="voxels per token, for networks of tokens (default 8 8 8)",
    )
    parser.add_argument(
        "--shape", type=int, nargs=5, default=[2, 1, 16, 128, 128], metavar=("BATCH", "CHANNELS", "Z", "Y", "X")
    )
    parser.add_argument("--classes", type=int, default=3, help="classes with background (default 3)")
    parser.add_argument("--rounds", type=int, default=7, help="default 7")
    parser.add_argument("--memory-runs", type=int, default=3, help="CPU: processes per network (default 3, 0: none)")
    parser.add_argument("-device", default="cpu", help="cpu, cuda or cuda:N (default cpu)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's)")
    parser.add_argument("--oracle", action="store_true", help=f"also the {ORACLE} kept in tests")
    parser.add_argument("--json", type=Path, help="file for the same figures, and every round's")
    return exit_status(parser, argv, run)


if __name__ == "__main__":
    raise SystemExit(main())
