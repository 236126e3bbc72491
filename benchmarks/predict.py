"""`nnunetv2_ext predict` beside `nnUNetv2_predict`: the same weights and images, whole commands in fresh processes.

    python -m benchmarks.predict --demo demo
    python -m benchmarks.predict --demo demo --cases 40 --rounds 1
    python -m benchmarks.predict --demo demo --models MNet -device cuda --json predict.json
    python -m benchmarks.predict --network --export --no-commands

The models are those of a finished `nnunetv2_ext demo` (MNet and nnU-Net's network, two folds each), which is only read;
without --demo a short one is made first. Images are the demo's unseen phantoms, or with --cases as many new ones.
Every round runs nnU-Net's command as it is, nnU-Net's with -npp 1 -nps 1, and ours, in turns forwards and backwards.
Times are medians over the rounds. Labels are compared voxel by voxel, in the last round. --memory adds a round, without
times, that measures it: the highest sum over the processes of a command, without what libraries take.

Parts of the work on their own: --network the sliding window, --export from logits to labels.
"""

import argparse
import dataclasses
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from benchmarks._commands import Cost
from benchmarks._commands import run as run_command
from benchmarks._report import exit_status, machine, markdown_facts, table_of
from nnunetv2_ext.cli.demo import DATASET, TITLES
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import check_output_file, write_json
from nnunetv2_ext.inference.models import parse_models
from nnunetv2_ext.jobs.whole_run import PRESETS
from nnunetv2_ext.testing.trainer import Shell
from nnunetv2_ext.text import listed, markdown_table

MODELS, FOLDS = (
    dict(zip(TITLES, parse_models(PRESETS["quick"].models), strict=True)),
    tuple(map(int, PRESETS["quick"].folds)),
)
STOCK, FEW_PROCESSES, OURS = "nnUNetv2_predict", "nnUNetv2_predict -npp 1 -nps 1", "nnunetv2_ext predict"
SIDES = (STOCK, FEW_PROCESSES, OURS)
ENDING = ".nii.gz"
# what ours may cost, as shares of nnU-Net's: of up to so many cases, and of more
FEW = 8
TIME = {True: {STOCK: 0.65, FEW_PROCESSES: 0.8}, False: {STOCK: 0.85}}
FIRST = 0.5
EQUAL = 0.99999
SHORT = "--epochs 3 --iterations 20 --training-cases 10"


@dataclasses.dataclass(frozen=True)
class Compared:
    """One model: what every side cost in every round, and how alike the labels are."""

    model: str
    costs: dict[str, list[Cost]]
    memory: dict[str, int]
    """Bytes; empty where it was not measured."""
    equal: dict[str, float]
    """Share of voxels whose labels are those of nnU-Net's command as it is."""

    def median(self, side: str, what: str) -> float:
        return statistics.median(getattr(cost, what) for cost in self.costs[side])

    def ratio(self, side: str, what: str) -> float:
        """Ours as a share of a side's."""
        return self.median(OURS, what) / self.median(side, what)


def compare(shell: Shell, title: str, images: Path, args: argparse.Namespace, work: Path) -> Compared:
    """Run every side on a model so many times."""
    model = MODELS[title]
    flags = f"-i {images} -d {DATASET} -tr {model.trainer} -p {model.plans} -c {model.configuration}"
    flags += f" -f {' '.join(map(str, FOLDS))} -device {args.device}"
    costs: dict[str, list[Cost]] = {side: [] for side in SIDES}
    outputs = {side: work / f"{model.trainer}_{number}" for number, side in enumerate(SIDES)}

    def cost(side: str, *, memory: bool = False) -> Cost:
        shutil.rmtree(outputs[side], ignore_errors=True)
        command = f"{side} {flags} -o {outputs[side]}"
        return run_command(shell, command, output=outputs[side], ending=ENDING, memory=memory)

    for n in tqdm(range(args.rounds), desc=title, file=sys.stderr):
        for side in SIDES[:: -1 if n % 2 else 1]:
            costs[side].append(cost(side))
    memory = {side: cost(side, memory=True).memory for side in SIDES} if args.memory else {}
    equal = {side: share_of_equal_labels(outputs[STOCK], outputs[side], images) for side in SIDES}
    return Compared(title, costs, memory, equal)


def share_of_equal_labels(first: Path, second: Path, images: Path) -> float:
    """The share of voxels, of all cases together, that have the same label in two folders of predictions."""
    equal = voxels = 0
    for image in sorted(images.glob(f"*_0000{ENDING}")):
        name = image.name.replace(f"_0000{ENDING}", ENDING)
        one, other = (sitk.GetArrayFromImage(sitk.ReadImage(str(folder / name))) for folder in (first, second))
        equal += np.count_nonzero(one == other)
        voxels += one.size
    return equal / voxels


def table(compared: Sequence[Compared]) -> str:
    """A row per model and side; ratios are ours to that side."""
    header = ["model, command", "s", "x", "first case, s", "x", "processor, s", "x"]
    header += ["memory, MiB", "x"] * any(one.memory for one in compared) + ["equal labels"]
    rows = []
    for one in compared:
        for side in SIDES:
            seconds = [cost.seconds for cost in one.costs[side]]
            row = [f"{one.model}, {side}"]
            for what in ("seconds", "first", "processor"):
                row += [f"{one.median(side, what):.1f}", "" if side == OURS else f"{one.ratio(side, what):.2f}"]
            row[1] += f" ({min(seconds):.1f}-{max(seconds):.1f})" if len(seconds) > 1 else ""
            if one.memory:
                peak = one.memory[side]
                row += [f"{peak / 2**20:.0f}", "" if side == OURS or not peak else f"{one.memory[OURS] / peak:.2f}"]
            rows.append([*row, f"{100 * one.equal[side]:.4f} %"])
    return markdown_table(header, rows)


def verdicts(compared: Sequence[Compared], cases: int) -> str:
    """What was to be reached, and whether it was, as a Markdown table."""
    rows = []
    for one in compared:
        wanted = [(f"time, of {side}", one.ratio(side, "seconds"), goal) for side, goal in TIME[cases <= FEW].items()]
        wanted.append((f"first case, of {STOCK}", one.ratio(STOCK, "first"), FIRST))
        for what, ratio, goal in wanted:
            rows.append(
                [f"{one.model}: {what}", f"at most {goal:.2f}", f"{ratio:.2f}", "yes" if ratio <= goal else "no"]
            )
        equal = one.equal[OURS]
        shown = (f"at least {100 * EQUAL:.3f} %", f"{100 * equal:.4f} %")
        rows.append([f"{one.model}: equal labels", *shown, "yes" if equal >= EQUAL else "no"])
    return markdown_table(["figure", "expected", "measured", "reached"], rows)


def make_demo(work: Path) -> Path:
    """A demo with short trainings, in a folder of the benchmark's."""
    print("a short demo is made first; give the folder of a finished one with --demo", file=sys.stderr, flush=True)
    demo = work / "demo"
    Shell(work).run(f"nnunetv2_ext demo --output {demo} --unseen-cases {FEW} {SHORT}")
    return demo


def images_of(args: argparse.Namespace, demo: Path, work: Path) -> Path:
    """The folder of images: the demo's unseen phantoms, or so many drawn with another seed."""
    if args.cases is None:
        return demo / "nnUNet_raw" / DATASET / "imagesTs"
    from nnunetv2_ext.data.phantom import write_phantoms

    write_phantoms(work / "Dataset998_Drawn", training=1, test=args.cases, seed=args.seed)
    return work / "Dataset998_Drawn" / "imagesTs"


def check(args: argparse.Namespace) -> None:
    """Refuse what would fail only later.

    Raises:
        InputError: a number out of range, no finished demo, an output file that cannot be written.
    """
    check_output_file(args.json, "--json")
    for flag, value in (("--rounds", args.rounds), ("--cases", 1 if args.cases is None else args.cases)):
        if value < 1:
            raise InputError(f"{flag} {value}", "a positive number", "correct it")
    if args.demo is None:
        return
    for title in args.models:
        for fold in FOLDS:
            checkpoint = model_folder(args.demo, title) / f"fold_{fold}" / "checkpoint_final.pth"
            if not checkpoint.is_file():
                remedy = f"run nnunetv2_ext demo --output {args.demo}, or leave --demo away"
                raise InputError(f"no file {checkpoint}", "the folder of a finished demo", remedy)


def model_folder(demo: Path, title: str) -> Path:
    """Of a trained model of the demo."""
    return demo / "nnUNet_results" / DATASET / MODELS[title].folder_name


def compare_commands(args: argparse.Namespace, demo: Path, images: Path, work: Path) -> dict[str, Any]:
    """Print the tables of the whole commands; what stands in the JSON file of them."""
    shell = Shell(demo)
    if "OMP_WAIT_POLICY" not in os.environ:
        del shell.environment["OMP_WAIT_POLICY"]  # as a user's, who does not know of it
    compared = [compare(shell, title, images, args, work) for title in args.models]
    cases = len(list(images.glob(f"*_0000{ENDING}")))
    about = {"cases": cases, "folds": listed(FOLDS, separator=" "), "rounds": args.rounds, "device": args.device}
    print(f"{markdown_facts(about)}\n\n{table(compared)}\n\n{verdicts(compared, cases)}\n")
    return {**about, "models": [dataclasses.asdict(one) for one in compared]}


def compare_parts(args: argparse.Namespace, demo: Path | None, images: Path | None) -> dict[str, list[dict[str, Any]]]:
    """Print the tables of the parts that were asked for, and return their rows."""
    parts = {}
    if args.network and demo is not None and images is not None:
        from benchmarks._windows import network_table

        models, files = [model_folder(demo, title) for title in args.models], sorted(images.glob(f"*{ENDING}"))
        parts["network"] = network_table(models, files, folds=FOLDS, rounds=args.rounds, device=args.device)
    if args.export:
        from benchmarks._export import export_table

        parts["export"] = export_table(rounds=args.rounds)
    for part, rows in parts.items():
        print(f"{part}\n\n{table_of(rows)}\n")
    return parts


def run(args: argparse.Namespace) -> int:
    """Measure what was asked for, print the tables, write the JSON."""
    check(args)
    about = machine(args.device)
    print(f"{markdown_facts(about)}\n")
    content: dict[str, Any] = {"machine": about}
    with tempfile.TemporaryDirectory(dir=args.output) as folder:
        work, demo, images = Path(folder), None, None
        if args.commands or args.network:
            demo = make_demo(work) if args.demo is None else args.demo.resolve()
            images = images_of(args, demo, work)
            if args.commands:
                content["commands"] = compare_commands(args, demo, images, work)
        content |= compare_parts(args, demo, images)
    if args.json is not None:
        write_json(args.json, content)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Bad input ends in one sentence on stderr and exit status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    titles = [*MODELS]
    parser.add_argument("--demo", type=Path, metavar="FOLDER", help="a finished demo (default: a short one is made)")
    parser.add_argument("--models", nargs="+", choices=titles, default=titles, help=f"default {listed(titles)}")
    parser.add_argument("--cases", type=int, metavar="N", help="draw N phantoms (default: the demo's unseen ones)")
    parser.add_argument("--seed", type=int, default=1, help="of drawn phantoms (default 1)")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--memory", action="store_true", help="one more round, for the memory")
    parser.add_argument("-device", default="cpu", help="default cpu")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where to make a folder for the time it takes")
    parser.add_argument("--no-commands", dest="commands", action="store_false", help="only the parts asked for")
    parser.add_argument("--network", action="store_true", help="also the sliding window on its own")
    parser.add_argument("--export", action="store_true", help="also from logits to labels on their own")
    parser.add_argument("--json", type=Path, help="file for the same figures, of every round")
    return exit_status(parser, argv, run)


if __name__ == "__main__":
    raise SystemExit(main())
