"""Dice of trainers that get the same data, folds and budget, and the paired difference to the last one, the reference.

    python -m benchmarks.accuracy -d 104 -tr MNetTrainer nnUNetTrainer --folds 0 1
    python -m benchmarks.accuracy -d 104 -tr MNetTrainer:MNetPlans nnUNetTrainer:nnUNetPlans -device cuda --resume
    python -m benchmarks.accuracy -d 104 -tr ConvFreeTrainer:TokenPlans PrimusTrainer:TokenPlans

Each fold is trained and then validated by nnU-Net on whole cases; Dice is read from its validation/summary.json.
A label absent from truth and prediction has no Dice in that case and is left out, as nnU-Net does; in a difference it
counts as 1 where the other model predicts it. The difference is the mean over cases of the difference of the case's
mean Dice; its 95 % interval is a bootstrap over cases with a fixed seed, so it holds the chance in the cases, not that
in the training. Seconds are those of a whole fold, validation included. The models go to a results folder of their own
(--output), where nothing finished is ever overwritten.

Beside the trainers that nnU-Net finds there is PrimusTrainer: Primus S with tokens, patch and `training` block of
plans of ConvFreeTransformer, and with nnU-Net's initialisation (benchmarks/_primus.py). Its tokens must be powers of
two: nnunetv2_ext plan_and_preprocess -pl ConvFreePlanner --token-size 2 8 8 -overwrite_plans_name TokenPlans.
"""

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks._report import exit_status, in_points, machine, markdown_facts
from benchmarks._trainers import trainer_for
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation.comparison import compare_pair
from nnunetv2_ext.evaluation.scores import dice_scores, read_dice
from nnunetv2_ext.files import check_output_file, dataset_name, read_json, write_json
from nnunetv2_ext.text import markdown_table

RECORD = "benchmark.json"
RESULTS_VARIABLE = "nnUNet_results"
Train = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Run:
    """One trainer on one fold."""

    trainer: str
    plans: str
    fold: int
    folder: Path

    @property
    def summary(self) -> Path:
        """What nnU-Net writes last, so that it tells a finished fold."""
        return self.folder / "validation" / "summary.json"

    @property
    def record(self) -> Path:
        """Budget and seconds, written by this benchmark."""
        return self.folder / RECORD


def parse_trainers(names: Sequence[str], plans: str) -> list[tuple[str, str]]:
    """Pairs of trainer and plans from `TRAINER` or `TRAINER:PLANS`.

    Raises:
        InputError: an empty part, or the same pair twice.
    """
    pairs = []
    for name in names:
        trainer, colon, own_plans = name.partition(":")
        pair = (trainer, own_plans if colon else plans)
        if not all(pair) or pair in pairs:
            raise InputError(f"the trainer '{name}'", "TRAINER or TRAINER:PLANS, each once", "correct -tr")
        pairs.append(pair)
    return pairs


def budget(args: argparse.Namespace) -> dict[str, Any]:
    """What every trainer gets, as keys of the `training` block."""
    return {
        "epochs": args.epochs,
        "iterations_per_epoch": args.iterations,
        "val_iterations_per_epoch": args.val_iterations,
        "batch_size": args.batch_size,
    }


def plan_runs(args: argparse.Namespace, dataset: str) -> list[Run]:
    """Every trainer and fold; trainers take turns within a fold, so that a stopped benchmark can be compared.

    Raises:
        InputError: a finished fold is in the way, or with `--resume` one of another budget.
    """
    runs = []
    for fold in args.folds:
        for trainer, plans in parse_trainers(args.trainers, args.plans):
            folder = args.output / dataset / f"{trainer}__{plans}__{args.configuration}" / f"fold_{fold}"
            runs.append(Run(trainer, plans, fold, folder))
    for finished in [one for one in runs if one.summary.exists()]:
        if not args.resume:
            raise InputError(f"a finished fold in {finished.folder}", "none", "add --resume or choose another --output")
        remedy = "choose another --output or delete that fold's folder"
        record = read_json(finished.record, remedy)
        if record.get("budget") != budget(args):
            raise InputError(f"{finished.folder} with the budget {record.get('budget')}", str(budget(args)), remedy)
    return runs


def train_all(args: argparse.Namespace, dataset: str, runs: Sequence[Run], train: Train) -> None:
    """Train the folds that are not finished, and record budget and seconds beside each."""
    for number, run in enumerate(runs, start=1):
        label = f"[{number}/{len(runs)}] {run.trainer} on {run.plans}, fold {run.fold}"
        if run.summary.exists():
            print(f"{label}: already there", file=sys.stderr, flush=True)
            continue
        print(f"{label}: training", file=sys.stderr, flush=True)
        start = time.perf_counter()
        train(
            dataset,
            args.configuration,
            run.fold,
            trainer=trainer_for(run.trainer),
            plans=run.plans,
            training=budget(args),
            device=args.device,
        )
        seconds = time.perf_counter() - start
        if not run.summary.exists():
            raise RuntimeError(f"{label} ended without {run.summary}")
        record = {"budget": budget(args), "seconds": seconds, "machine": machine(args.device)}
        write_json(run.record, record, indent=2)
        print(f"{label}: {seconds:.0f} s", file=sys.stderr, flush=True)


def compare(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One row per trainer, the last one being the reference of the differences."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(f"{run.trainer}:{run.plans}", []).append(run)
    cases = {
        model: {name: dice for run in group for name, dice in read_dice(run.summary, "train this fold again").items()}
        for model, group in groups.items()
    }
    scores, reference = dice_scores(cases), list(groups)[-1]
    rows = []
    for model, group in groups.items():
        labels = dict.fromkeys(label for of_case in cases[model].values() for label in of_case)
        rows.append(
            {
                "trainer": group[0].trainer,
                "plans": group[0].plans,
                "cases": len(cases[model]),
                "dice_per_label": {label: scores.mean(model, label, "Dice") for label in labels},
                "mean_dice": scores.mean_of_labels(model, "Dice"),
                "difference": None
                if model == reference
                else compare_pair(scores, model, reference).difference._asdict(),
                "seconds_per_fold": {run.fold: read_json(run.record, "train again")["seconds"] for run in group},
                "dice_per_case": cases[model],
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `compare` as a markdown table, Dice in percent and differences in points."""
    labels = list(dict.fromkeys(label for row in rows for label in row["dice_per_label"]))
    header = ["trainer", "plans", "cases", *(f"label {label}" for label in labels), "mean", "difference [95 %]"]
    cells = []
    for row in rows:
        difference = row["difference"]
        shown = "reference"
        if difference is not None:
            shown = in_points(difference)
        dice = [100 * row["dice_per_label"].get(label, float("nan")) for label in labels]
        seconds = " ".join(f"{value:.0f}" for value in row["seconds_per_fold"].values())
        cells.append(
            [row["trainer"], row["plans"], str(row["cases"])]
            + [f"{value:.2f}" for value in (*dice, 100 * row["mean_dice"])]
            + [shown, seconds]
        )
    return markdown_table([*header, "s per fold"], cells)


def expectation(rows: Sequence[dict[str, Any]], points: float) -> str:
    """One line per trainer but the reference: whether the interval holds a difference of so many points."""
    lines = []
    for row in rows[:-1]:
        inside = row["difference"]["low"] <= points / 100 <= row["difference"]["high"]
        lines.append(f"{row['trainer']}: {points:+.2f} points {'lie' if inside else 'do not lie'} in the interval.")
    return "\n".join(lines)


def check(args: argparse.Namespace) -> None:
    """Refuse what would fail only after a training, and an output folder that holds the user's own models.

    Raises:
        InputError: see above.
    """
    check_output_file(args.json, "--json")
    numbers = {
        "--epochs": args.epochs,
        "--iterations": args.iterations,
        "--val-iterations": args.val_iterations,
        "--batch-size": args.batch_size,
    }
    for flag, value in numbers.items():
        if value < 1:
            raise InputError(f"{flag} {value}", "a positive number", "correct it")
    if min(args.folds) < 0 or len(set(args.folds)) < len(args.folds):
        raise InputError(f"--folds {' '.join(map(str, args.folds))}", "fold numbers from 0, each once", "correct it")
    users = os.environ.get(RESULTS_VARIABLE)
    if users and Path(users).resolve() == args.output.resolve():
        raise InputError(f"--output {args.output}, which is nnUNet_results", "a folder of its own", "choose another")
    parse_trainers(args.trainers, args.plans)


def run(args: argparse.Namespace, train: Train | None = None) -> int:
    """Train what is missing, print the table, write the JSON; `train` stands in for `train_fold`."""
    check(args)
    dataset = dataset_name(args.dataset)
    runs = plan_runs(args, dataset)
    args.output.mkdir(parents=True, exist_ok=True)
    os.environ[RESULTS_VARIABLE] = str(args.output.resolve())  # nnU-Net reads it when a trainer is made
    if train is None:
        from nnunetv2_ext.training.run import train_fold

        train = train_fold
    train_all(args, dataset, runs, train)
    rows = compare(runs)
    about = machine(args.device)
    facts = {"data set": dataset, "configuration": args.configuration, "folds": args.folds, **budget(args)}
    print(f"{markdown_facts({**facts, 'device': args.device})}\n{markdown_facts(about)}\n\n{table(rows)}")
    if args.expect is not None:
        print(f"\n{expectation(rows, args.expect)}")
    if args.json is not None:
        write_json(args.json, {"machine": about, **facts, "device": args.device, "rows": rows})
    return 0


def main(argv: Sequence[str] | None = None, train: Train | None = None) -> int:
    """Bad input ends in one sentence on stderr and exit status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-d", dest="dataset", required=True, help="data set id or name, already preprocessed")
    parser.add_argument("-tr", dest="trainers", nargs="+", required=True, metavar="TRAINER[:PLANS]")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans", help="plans of trainers given without their own")
    parser.add_argument("-c", dest="configuration", default="3d_fullres", help="default 3d_fullres")
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1], help="default 0 1")
    parser.add_argument("--epochs", type=int, default=20, help="default 20")
    parser.add_argument("--iterations", type=int, default=50, help="per epoch (default 50)")
    parser.add_argument("--val-iterations", type=int, default=5, help="per epoch (default 5)")
    parser.add_argument("--batch-size", type=int, default=4, help="default 4")
    parser.add_argument("-device", default="cpu", help="default cpu")
    parser.add_argument(
        "--output", type=Path, default=Path("benchmark_results"), help="results folder (default ./benchmark_results)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="keep folds already finished with this budget; the others start anew"
    )
    parser.add_argument("--expect", type=float, metavar="POINTS", help="say whether the interval holds this difference")
    parser.add_argument("--json", type=Path, help="file for the same figures, and every case's")
    return exit_status(parser, argv, partial(run, train=train))


if __name__ == "__main__":
    raise SystemExit(main())
