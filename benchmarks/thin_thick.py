"""Thin Dice of networks that learned from thick annotations, beside bounds from below and above; or the cost of a step.

    python -m benchmarks.thin_thick -d 4 --factors 4 8 --folds 0 1
    python -m benchmarks.thin_thick -d 4 --factors 4 --networks ConvFreeTransformer --folds 0 --resume
    python -m benchmarks.thin_thick -d 4 --factors 4 8 --folds 0 --ways thin_thick no_thick no_thin no_features beta_1
    python -m benchmarks.thin_thick -d 4 --factors 4 8 --folds 0 1 --random-start
    python -m benchmarks.thin_thick -d 4 --factors 4 --steps 9

The data set -d is thin with a thin truth. Its slices and labels are averaged to slabs of --factors slices, and a
network of one architecture learns in several ways, all with the same folds and budget:

    truth       from the thin truth: the bound from above
    thick       from the thick images and their annotations
    laid        from the thin images, with the thick annotations laid on the thin grid
    thin_thick  ThinThickTrainer
    no_thick, no_thin, no_features, thin_alone, thick_weight_1, beta_1, no_ramp_up, thin_grid
                the same with weights of 0 or 1, with beta 1, with beta and weights whole from the start, or with the
                thick image on the thin grid

Each then predicts the thin images of the fold's validation cases, as nnUNetv2_predict does without mirroring, and is
scored against the thin truth. Differences are those to `laid`, paired by case, with a 95 % bootstrap interval over the
cases (the chance in the cases, not that in the training). `closed` is the share of the gap between `laid` and `truth`.
All data and models go below --output; finished trainings are kept with --resume.

By default the slabs of every case start at its first slice. Where the images are cropped to the organ, as those of the
hippocampus data are, slabs then lie alike in all organs. With --random-start each case's begin at a slice drawn from
its first --factors ones, and what lies before them is in no slab.

--steps: seconds of whole training steps (data at hand, optimizer included) of the thin-thick trainer over those of the
same network on the same thin patches, taking turns.
"""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks._report import exit_status, in_points, machine, markdown_facts
from benchmarks._slab_steps import steps_table, time_steps
from benchmarks._slabs import (
    ENDING,
    LAID,
    THICK,
    THIN_ID,
    THIN_THICK,
    TRUTH,
    WAYS,
    Run,
    budget,
    plan,
    prepare,
    trainer_of,
)
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation.comparison import compare_pair
from nnunetv2_ext.evaluation.scores import dice_scores, read_dice
from nnunetv2_ext.files import check_output_file, dataset_name, read_json, write_json
from nnunetv2_ext.text import markdown_table

RECORD, SUMMARY = "benchmark.json", "thin/summary.json"


def plan_runs(args: argparse.Namespace) -> list[Run]:
    """All trainings; ways take turns within a fold, so that a stopped benchmark can be compared."""
    runs = [
        Run(network, way, 0 if way == TRUTH else factor, fold, args.random_start and way != TRUTH)
        for network in args.networks
        for fold in args.folds
        for factor in args.factors
        for way in args.ways
    ]
    return list(dict.fromkeys(runs))


def learn(run: Run, args: argparse.Namespace) -> None:
    """Train one fold, predict its validation cases' thin images and score them."""
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    start = time.perf_counter()
    trainer = trainer_of(run, args)
    trainer.run_training()
    seconds = time.perf_counter() - start
    fold = run.folder(args.output)
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device(args.device), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(fold.parent), use_folds=(run.fold,))
    thin = args.output / "nnUNet_raw" / dataset_name(THIN_ID)
    predictions = (fold / SUMMARY).parent
    shutil.rmtree(predictions, ignore_errors=True)
    predictions.mkdir()
    cases = trainer.do_split()[1]
    images = [sorted(map(str, (thin / "imagesTr").glob(f"{case}_????{ENDING}"))) for case in cases]
    predictor.predict_from_files_sequential(images, [str(predictions / case) for case in cases])
    labels = [value for value in read_json(thin / "dataset.json", "correct -d")["labels"].values() if value]
    compute_metrics_on_folder(
        str(thin / "labelsTr"), str(predictions), str(fold / SUMMARY), SimpleITKIO(), ENDING, labels, num_processes=1
    )
    record = {"budget": budget(args), "width": args.width, "seconds": seconds, "machine": machine(args.device)}
    write_json(fold / RECORD, record, indent=2)


def learn_all(args: argparse.Namespace, runs: Sequence[Run]) -> None:
    """Plan, then train the runs that are not finished.

    Raises:
        InputError: a finished run is in the way, or with `--resume` one of another budget.
    """
    for run in runs:
        plan(run, args)
    for number, run in enumerate(runs, start=1):
        label = f"[{number}/{len(runs)}] {run.network}, {run.way}, factor {run.factor or '-'}, fold {run.fold}"
        folder = run.folder(args.output)
        if (folder / RECORD).is_file():
            if not args.resume:
                raise InputError(f"a finished training in {folder}", "none", "add --resume or choose another --output")
            record = read_json(folder / RECORD, "remove it")
            held, asked = (record["budget"], record["width"]), (budget(args), args.width)
            if held != asked:
                raise InputError(f"{folder} with {held}", str(asked), "choose another --output")
            continue
        print(label, file=sys.stderr, flush=True)
        os.environ["nnUNet_results"] = str(run.results(args.output).resolve())
        run.results(args.output).mkdir(parents=True, exist_ok=True)
        learn(run, args)


def compare(args: argparse.Namespace, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each network, factor and way, over all folds."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_model(run.network, run.factor, run.way), []).append(run)
    of_run = {run: read_dice(run.folder(args.output) / SUMMARY, "train this fold again") for run in runs}
    cases = {
        model: {case: dice for run in group for case, dice in of_run[run].items()} for model, group in groups.items()
    }
    scores = dice_scores(cases)
    rows = []
    for network in args.networks:
        for factor in args.factors:
            reference, truth = _model(network, factor, LAID), _model(network, 0, TRUTH)
            for way in args.ways:
                model, difference, closed = _model(network, 0 if way == TRUTH else factor, way), None, None
                mean = scores.mean_of_labels(model, "Dice")
                if reference in groups and way != LAID:
                    difference = compare_pair(scores, model, reference).difference._asdict()
                if reference in groups and truth in groups and way not in (LAID, TRUTH):
                    bounds = [scores.mean_of_labels(bound, "Dice") for bound in (reference, truth)]
                    closed = (mean - bounds[0]) / (bounds[1] - bounds[0])
                of_folds = dice_scores({str(run.fold): of_run[run] for run in groups[model]})
                rows.append(
                    {
                        "network": network,
                        "factor": factor,
                        "way": way,
                        "cases": len(cases[model]),
                        "dice_per_label": {label: scores.mean(model, label, "Dice") for label in scores.labels},
                        "mean_dice": mean,
                        "mean_dice_per_fold": {
                            run.fold: of_folds.mean_of_labels(str(run.fold), "Dice") for run in groups[model]
                        },
                        "difference": difference,
                        "closed": closed,
                        "seconds": [
                            read_json(run.folder(args.output) / RECORD, "train again")["seconds"]
                            for run in groups[model]
                        ],
                        "dice_per_case": cases[model],
                    }
                )
    return rows


def _model(network: str, factor: int, way: str) -> str:
    """The name of a way's model in the scores."""
    return f"{network}, factor {factor}, {way}"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `compare` as a markdown table, Dice in percent and differences in points."""
    folds = list(dict.fromkeys(fold for row in rows for fold in row["mean_dice_per_fold"]))
    header = ["way", "network", "factor", "cases", *(f"fold {fold}" for fold in folds), "mean"]
    cells = []
    for row in rows:
        difference, shown = row["difference"], "reference" if row["way"] == LAID else "-"
        if difference is not None:
            shown = in_points(difference)
        closed = "-" if row["closed"] is None else f"{100 * row['closed']:.0f} %"
        per_fold = [row["mean_dice_per_fold"].get(fold) for fold in folds]
        cells.append(
            [row["way"], row["network"], str(row["factor"]), str(row["cases"])]
            + ["-" if dice is None else f"{100 * dice:.2f}" for dice in (*per_fold, row["mean_dice"])]
            + [shown, closed, " ".join(f"{seconds:.0f}" for seconds in row["seconds"])]
        )
    return markdown_table([*header, f"to {LAID} [95 %]", "closed", "s per training"], cells)


def check(args: argparse.Namespace) -> None:
    """Refuse what would fail only later.

    Raises:
        InputError: numbers below 1, an unknown way, no writable JSON.
    """
    check_output_file(args.json, "--json")
    numbers = {"--epochs": args.epochs, "--iterations": args.iterations, "--batch-size": args.batch_size}
    for flag, value in numbers.items():
        if value < 1:
            raise InputError(f"{flag} {value}", "a positive number", "correct it")
    if min(args.factors) < 2:
        raise InputError(f"--factors {' '.join(map(str, args.factors))}", "slices per slab from 2", "correct them")


def run(args: argparse.Namespace) -> int:
    """Train what is missing (or time steps), print the table, write the JSON."""
    check(args)
    user = args.dataset
    prepare(args)
    about = machine(args.device)
    facts = {"data set": user, "folds": args.folds, **budget(args), "width": args.width, "device": args.device}
    facts["random start"] = args.random_start
    if args.steps:
        rows = time_steps(args)
        print(f"{markdown_facts(facts)}\n{markdown_facts(about)}\n\n{steps_table(rows)}")
    else:
        runs = plan_runs(args)
        learn_all(args, runs)
        rows = compare(args, runs)
        print(f"{markdown_facts(facts)}\n{markdown_facts(about)}\n\n{table(rows)}")
    if args.json is not None:
        write_json(args.json, {"machine": about, **facts, "rows": rows})
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Bad input ends in one sentence on stderr and exit status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.thin_thick",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-d", dest="dataset", required=True, help="id or name of a thin data set with a thin truth")
    parser.add_argument("--factors", type=int, nargs="+", default=[4, 8], help="thin slices per slab (default 4 8)")
    parser.add_argument("--random-start", action="store_true", help="slabs that start at another slice in each case")
    parser.add_argument("--networks", nargs="+", default=["PlainConvUNet"], help="backbones, or ConvFreeTransformer")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[TRUTH, THICK, LAID, THIN_THICK])
    parser.add_argument("--folds", type=int, nargs="+", default=[0], help="default 0")
    parser.add_argument("--epochs", type=int, default=10, help="default 10")
    parser.add_argument("--iterations", type=int, default=50, help="per epoch (default 50)")
    parser.add_argument("--batch-size", type=int, default=2, help="default 2")
    parser.add_argument(
        "--adamw", type=float, metavar="LR", help="AdamW at this learning rate for all (default: the plans' optimizer)"
    )
    parser.add_argument(
        "--width", type=int, help="features of a U-Net's first stage, doubled in each (default: planned)"
    )
    parser.add_argument("--patch-size", type=int, nargs=3, metavar="VOXELS", help="z y x of thin patches")
    parser.add_argument("--steps", type=int, default=0, metavar="ROUNDS", help="time so many steps instead")
    parser.add_argument("-device", default="cpu", help="default cpu")
    parser.add_argument("--output", type=Path, default=Path("benchmark_results/thin_thick"))
    parser.add_argument("--resume", action="store_true", help="keep trainings already finished with this budget")
    parser.add_argument("--json", type=Path, help="file for the same figures, and every case's")
    return exit_status(parser, argv, run)


if __name__ == "__main__":
    raise SystemExit(main())
