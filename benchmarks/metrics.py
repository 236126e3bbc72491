"""All metrics of two labels beside MedPy's hd, hd95 and assd: time and memory.

    python -m benchmarks.metrics
    python -m benchmarks.metrics --shape 36 50 35 --spacing 1 1 1 --rounds 5 --json metrics.json

Label 1 is an organ, label 2 are lesions in it; the prediction has a displaced surface, misses some lesions, has some
that are none, and a few wrong voxels in two corners of the image, so that cutting away the outside wins nothing. Every
round runs each side in a fresh process, in turns forwards and backwards. Seconds are those of the calls, memory is the
highest rise above what masks and libraries take. A round of MedPy takes minutes at the default size.
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter, zoom

from benchmarks._report import exit_status, machine, markdown_facts
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation.metrics import measure
from nnunetv2_ext.files import check_output_file, write_json
from nnunetv2_ext.resident_memory import rise
from nnunetv2_ext.text import markdown_table

OURS, MEDPY = "nnunetv2_ext, all metrics", "MedPy, hd, hd95 and assd"
SIDES = {"ours": OURS, "medpy": MEDPY}
TIME, MEMORY = 0.2, 0.5
"""What ours may cost, as shares of MedPy's."""
LESIONS = 30
Masks = tuple[np.ndarray, np.ndarray]


class Cost(NamedTuple):
    """What the metrics of both labels took."""

    seconds: float
    memory: int
    """Bytes."""


def masks(shape: Sequence[int], seed: int) -> list[Masks]:
    """Reference and prediction of both labels.

    Args:
        shape: (Z, Y, X).
    """
    random = np.random.default_rng(seed)
    places = [np.linspace(-1, 1, size, dtype=np.float32) for size in shape]
    squares = sum(place**2 for place in np.meshgrid(*places, indexing="ij", sparse=True))
    bumps, errors = _noise(random, shape), _noise(random, shape)
    organ, predicted = squares < 0.4 + 0.1 * bumps, squares < 0.4 + 0.1 * bumps + 0.03 * errors
    lesions, found = np.zeros(shape, bool), np.zeros(shape, bool)
    for number in range(LESIONS):
        centre, radius = random.uniform(-0.3, 0.3, 3), random.uniform(0.03, 0.08)
        offset = random.normal(0, 0.01, 3)
        if number % 5:  # the others are missed
            found |= _ball(places, centre + offset, radius)
        if number % 7:  # the others are none
            lesions |= _ball(places, centre, radius)
    for prediction in (predicted, found):
        prediction[0, 0, 0] = prediction[-1, -1, -1] = True
    return [(organ, predicted), (lesions, found)]


def _noise(random: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    """Smooth noise with a standard deviation of 1."""
    coarse = gaussian_filter(random.standard_normal([16, 16, 16]), 1.5)
    fine = zoom(coarse, np.divide(shape, coarse.shape), order=1, output=np.float32)
    return np.asarray(fine / coarse.std(), np.float32)


def _ball(places: Sequence[np.ndarray], centre: np.ndarray, radius: float) -> np.ndarray:
    axes = [(place - middle) ** 2 for place, middle in zip(places, centre, strict=True)]
    return np.asarray(sum(np.meshgrid(*axes, indexing="ij", sparse=True)) < radius**2)


def ours(reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]) -> dict[str, float]:
    """Every metric of one label."""
    return {metric: one.value for metric, one in measure(reference, prediction, spacing).items()}


def medpy(reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]) -> dict[str, float]:
    """MedPy's three surface metrics of one label."""
    package = importlib.import_module("medpy.metric.binary")
    return {name: float(getattr(package, name)(prediction, reference, spacing)) for name in ("hd", "hd95", "assd")}


def cost(of_label: Callable[..., dict[str, float]], args: argparse.Namespace) -> dict[str, Any]:
    """Time and memory of one side in this process, and the values."""
    small, large = masks((8, 8, 8), 0), masks(args.shape, args.seed)
    of_label(*small[0], args.spacing)  # its imports are no part of the figure
    values: list[dict[str, float]] = []
    seconds = 0.0

    def run() -> None:
        nonlocal seconds
        start = time.perf_counter()
        values.extend(of_label(*label, args.spacing) for label in large)
        seconds = time.perf_counter() - start

    memory = rise(run)
    return {"seconds": seconds, "memory": memory, "values": values}


def in_a_process(side: str, args: argparse.Namespace) -> dict[str, Any]:
    """`cost` in a fresh process."""
    numbers = ["--shape", *map(str, args.shape), "--spacing", *map(str, args.spacing), "--seed", str(args.seed)]
    command = [sys.executable, "-m", "benchmarks.metrics", "--side", side, *numbers]
    root = Path(__file__).resolve().parents[1]
    output = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def table(costs: dict[str, list[Cost]]) -> str:
    """A row per side; ratios are ours to MedPy's."""
    rows = []
    for side, name in SIDES.items():
        ratios = [f"{ratio:.2f}" for ratio in ratio_of(costs)] if side == "ours" else ["", ""]
        seconds, memory = _medians(costs[side])
        rows.append([name, f"{seconds:.3g}", ratios[0], f"{memory / 2**20:.0f}", ratios[1]])
    return markdown_table(["what", "s", "x", "memory, MiB", "x"], rows)


def ratio_of(costs: dict[str, list[Cost]]) -> tuple[float, float]:
    """Ours as a share of MedPy's: time, memory."""
    (seconds, memory), (their_seconds, their_memory) = (_medians(costs[side]) for side in SIDES)
    return seconds / their_seconds, memory / their_memory if their_memory else math.nan


def _medians(costs: Sequence[Cost]) -> tuple[float, float]:
    return statistics.median(one.seconds for one in costs), statistics.median(one.memory for one in costs)


def verdicts(costs: dict[str, list[Cost]]) -> str:
    """What was to be reached, and whether it was."""
    rows = [
        [what, f"at most {goal:.2f}", f"{ratio:.2f}", "yes" if ratio <= goal else "no"]
        for what, ratio, goal in zip(("time ratio", "memory ratio"), ratio_of(costs), (TIME, MEMORY), strict=True)
    ]
    return markdown_table(["figure", "expected", "measured", "reached"], rows)


def values_of(found: dict[str, dict[str, Any]]) -> str:
    """The surface metrics of both sides, which have other definitions."""
    rows = []
    for label in range(2):
        for one, other in (("HD", "hd"), ("HD95", "hd95"), ("ASSD", "assd")):
            values = (found["ours"]["values"][label][one], found["medpy"]["values"][label][other])
            rows.append([f"label {label + 1}, {one}", *(f"{value:.3f}" for value in values)])
    return markdown_table(["mm", *SIDES.values()], rows)


def run(args: argparse.Namespace) -> int:
    """One side's cost as JSON, or both in turns as tables."""
    if args.side is not None:
        print(json.dumps(cost({"ours": ours, "medpy": medpy}[args.side], args)))
        return 0
    check(args)
    about = machine() | {"medpy": importlib.metadata.version("medpy"), "rounds": args.rounds}
    about |= {"shape": " x ".join(map(str, args.shape)), "spacing": " x ".join(map(str, args.spacing))}
    print(f"{markdown_facts(about)}\n", flush=True)
    costs: dict[str, list[Cost]] = {side: [] for side in SIDES}
    found = {}
    for number in range(args.rounds):
        for side in [*SIDES][:: -1 if number % 2 else 1]:
            found[side] = in_a_process(side, args)
            costs[side].append(Cost(found[side]["seconds"], found[side]["memory"]))
    print(f"{table(costs)}\n\n{verdicts(costs)}\n\n{values_of(found)}")
    if args.json is not None:
        write_json(args.json, {"machine": about, "costs": costs, "values": found})
    return 0


def check(args: argparse.Namespace) -> None:
    """Refuse what would fail only later.

    Raises:
        InputError: no MedPy, a number out of range, an output file that cannot be written.
    """
    if importlib.util.find_spec("medpy") is None:
        raise InputError("no MedPy in this environment", "the package to compare with", "run pip install medpy")
    for flag, values, least in (("--rounds", [args.rounds], 1), ("--shape", args.shape, 8)):
        if min(values) < least:
            raise InputError(f"{flag} {' '.join(map(str, values))}", f"whole numbers, {least} or more", "correct it")
    if not all(0 < one < math.inf for one in args.spacing):
        raise InputError(f"--spacing {' '.join(map(str, args.spacing))}", "numbers of mm above 0", "correct it")
    check_output_file(args.json, "--json")


def main(argv: Sequence[str] | None = None) -> int:
    """Bad input ends in one sentence on stderr and exit status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.metrics", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", type=int, nargs=3, default=[100, 512, 512], help="default 100 512 512")
    parser.add_argument("--spacing", type=float, nargs=3, default=[5, 0.8, 0.8], metavar="MM", help="default 5 0.8 0.8")
    parser.add_argument("--rounds", type=int, default=1, help="default 1")
    parser.add_argument("--seed", type=int, default=0, help="of the masks (default 0)")
    parser.add_argument("--side", choices=SIDES, help="print time and memory of one side alone, as JSON")
    parser.add_argument("--json", type=Path, help="file for the same figures, of every round")
    return exit_status(parser, argv, run)


if __name__ == "__main__":
    raise SystemExit(main())
