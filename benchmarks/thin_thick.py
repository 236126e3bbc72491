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
import dataclasses
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from benchmarks._report import check_writable, exit_status, machine, markdown_facts
from benchmarks._statistics import bootstrap, dice_per_label, in_points, mean_dice, paired_differences, read_summary
from benchmarks.step import interleave, spread, with_range
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import FOLDER_VARIABLES, dataset_name, nnunet_folder, read_json, write_json
from nnunetv2_ext.text import markdown_table

CONFIGURATION = "3d_fullres"
CONVFREE = "ConvFreeTransformer"
TRUTH, THICK, LAID, THIN_THICK = "truth", "thick", "laid", "thin_thick"
VARIANTS: dict[str, dict[str, Any]] = {
    THIN_THICK: {},
    "no_thick": {"thick_weight": 0.0},
    "no_thin": {"thin_weight": 0.0},
    "no_features": {"features_weight": 0.0},
    "thin_alone": {"thick_weight": 0.0, "features_weight": 0.0},
    "thick_weight_1": {"thick_weight": 1.0},
    "beta_1": {"beta": 1.0},
    "no_ramp_up": {"ramp_up_epochs": 0},
    "thin_grid": {"thick_image": "thin_grid", "slabs": None},
}
WAYS = (TRUTH, THICK, LAID, *VARIANTS)
ENDING = ".nii.gz"
RECORD, SUMMARY = "benchmark.json", "thin/summary.json"
THIN_ID = 1


def dataset_ids(factor: int, random_start: bool) -> tuple[int, int]:
    """Ids of the thick data set, and of the thin images with its annotations."""
    first = 10 * factor + (4 if random_start else 2)
    return first, first + 1


@dataclasses.dataclass(frozen=True)
class Run:
    """One training: a network, a way to learn, a factor (0 for the thin truth, which has none) and a fold."""

    network: str
    way: str
    factor: int
    fold: int
    random_start: bool = False

    @property
    def dataset(self) -> int:
        """Id of the data set that it learns from."""
        if self.way == TRUTH:
            return THIN_ID
        thick, thin_thick = dataset_ids(self.factor, self.random_start)
        return thick if self.way == THICK else thin_thick

    @property
    def method(self) -> str:
        """What planner, trainer and plans begin with."""
        if self.way in VARIANTS:
            return "ThinThick"
        return "ConvFree" if self.network == CONVFREE else "Backbone"

    @property
    def plans(self) -> str:
        return f"{self.method}{self.network}Bench"

    def results(self, output: Path) -> Path:
        """nnUNet_results of this way; those of different ways would have one name."""
        return output / "results" / self.way

    def folder(self, output: Path) -> Path:
        model = f"{self.method}Trainer__{self.plans}__{CONFIGURATION}"
        return self.results(output) / dataset_name(self.dataset) / model / f"fold_{self.fold}"


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


def budget(args: argparse.Namespace) -> dict[str, Any]:
    """What every training gets, as keys of the `training` block."""
    keys = {
        "epochs": args.epochs,
        "iterations_per_epoch": args.iterations,
        "val_iterations_per_epoch": 1,
        "batch_size": args.batch_size,
    }
    if args.adamw is not None:
        keys["optimizer"] = {"name": "AdamW", "lr": args.adamw}
    return keys


def prepare(args: argparse.Namespace) -> None:
    """nnU-Net's folders below --output, and in them the thin data set and those made of it."""
    from nnunetv2_ext.data.thick import make_thick
    from nnunetv2_ext.data.thin_thick import convert_thin_thick

    source = nnunet_folder("nnUNet_raw") / dataset_name(args.dataset)
    ending = read_json(source / "dataset.json", "correct -d")["file_ending"]
    if ending != ENDING:
        raise InputError(f"a data set of {ending} files", f"one of {ENDING}", "choose another")
    for variable in FOLDER_VARIABLES:
        (args.output / variable).mkdir(parents=True, exist_ok=True)
        os.environ[variable] = str((args.output / variable).resolve())
    thin = args.output / "nnUNet_raw" / f"Dataset{THIN_ID:03d}_Thin"
    if not (thin / "dataset.json").is_file():
        for folder in ("imagesTr", "labelsTr"):
            shutil.copytree(source / folder, thin / folder, dirs_exist_ok=True)
        shutil.copy(source / "dataset.json", thin)
    labels = read_json(thin / "dataset.json", "correct -d")["labels"]
    for factor in args.factors:
        thick_id, thin_thick_id = dataset_ids(factor, args.random_start)
        thick = thin.with_name(f"Dataset{thick_id:03d}_Thick")
        if not thick.is_dir():
            source_id, begun = THIN_ID, thin.with_name(f"Dataset{thick_id + 2:03d}_Begun")
            if args.random_start:
                source_id = thick_id + 2
                begin_at_random(thin, begun, factor)
            make_thick(source_id, thick_id, factor=factor, name="Thick", processes=2)
            shutil.rmtree(begun, ignore_errors=True)
        if not thin.with_name(f"Dataset{thin_thick_id:03d}_ThinThick").is_dir():
            convert_thin_thick(
                thin / "imagesTr",
                thick / "labelsTr",
                thin_thick_id,
                name="ThinThick",
                label_names=sorted(labels, key=labels.get),
                processes=2,
            )


def begin_at_random(thin: Path, target: Path, factor: int) -> None:
    """A copy of a data set in which each case begins at one of its first `factor` slices."""
    random = np.random.default_rng(factor)
    for label in sorted((thin / "labelsTr").glob(f"*{ENDING}")):
        start = int(random.integers(factor))
        case = label.name.removesuffix(ENDING)
        for path in (label, *sorted((thin / "imagesTr").glob(f"{case}_????{ENDING}"))):
            file = target / path.parent.name / path.name
            file.parent.mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(sitk.ReadImage(str(path))[:, :, start:], str(file))
    shutil.copy(thin / "dataset.json", target)


def plan(run: Run, args: argparse.Namespace) -> None:
    """Plan and preprocess a run's data set, once."""
    from nnunetv2_ext.planning.api import plan_and_preprocess

    folder = args.output / "nnUNet_preprocessed" / dataset_name(run.dataset)
    planned = folder / f"{run.plans}.json"
    if planned.is_file():
        return
    options: dict[str, Any] = {}
    if run.method != "ConvFree":
        options["backbone"] = run.network
    if args.patch_size and run.way != THICK:
        options["patch_size"] = args.patch_size
    plan_and_preprocess(
        run.dataset,
        planner=f"{run.method}Planner",
        options=options,
        configurations=[CONFIGURATION],
        processes=[2],
        fingerprint_processes=2,
        plans_name=run.plans,
    )
    content = read_json(planned, "plan again")
    arguments = content["configurations"][CONFIGURATION]["architecture"]["arch_kwargs"].get("backbone_kwargs", {})
    if args.width and "features_per_stage" in arguments:
        arguments["features_per_stage"] = [args.width * 2**stage for stage in range(arguments["n_stages"])]
    write_json(planned, content)


def trainer_of(run: Run, args: argparse.Namespace) -> Any:
    """The run's trainer, with the budget and what its way changes."""
    from nnunetv2_ext.training.run import make_trainer

    changed = {"thin_thick": VARIANTS[run.way]} if VARIANTS.get(run.way) else {}
    return make_trainer(
        run.dataset,
        CONFIGURATION,
        run.fold,
        trainer=f"{run.method}Trainer",
        plans=run.plans,
        training={**budget(args), **changed},
        device=args.device,
    )


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
    groups: dict[tuple[str, int, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.network, run.factor, run.way), []).append(run)
    cases = {
        key: {case: dice for run in group for case, dice in read_summary(run.folder(args.output) / SUMMARY).items()}
        for key, group in groups.items()
    }
    rows = []
    for network in args.networks:
        for factor in args.factors:
            reference, truth = cases.get((network, factor, LAID)), cases.get((network, 0, TRUTH))
            for way in args.ways:
                key = (network, 0 if way == TRUTH else factor, way)
                here, difference, closed = cases[key], None, None
                if reference is not None and way != LAID:
                    difference = dataclasses.asdict(bootstrap(paired_differences(here, reference)))
                if reference is not None and truth is not None and way not in (LAID, TRUTH):
                    closed = (mean_dice(here) - mean_dice(reference)) / (mean_dice(truth) - mean_dice(reference))
                folds = {run.fold: mean_dice(read_summary(run.folder(args.output) / SUMMARY)) for run in groups[key]}
                rows.append(
                    {
                        "network": network,
                        "factor": factor,
                        "way": way,
                        "cases": len(here),
                        "dice_per_label": dice_per_label(here),
                        "mean_dice": mean_dice(here),
                        "mean_dice_per_fold": folds,
                        "difference": difference,
                        "closed": closed,
                        "seconds": [
                            read_json(run.folder(args.output) / RECORD, "train again")["seconds"] for run in groups[key]
                        ],
                        "dice_per_case": here,
                    }
                )
    return rows


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


class _OneBatch:
    """Hands out the same batch again and again, as a loader would."""

    def __init__(self, batch: dict[str, Any]):
        self.batch = batch

    def __call__(self) -> dict[str, Any]:
        target = self.batch["target"]
        target = [one.clone() for one in target] if isinstance(target, list) else target.clone()
        return {**self.batch, "data": self.batch["data"].clone(), "target": target}


def time_steps(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each network, factor and presentation: the cost of a step over that of a plain one."""
    os.environ["nnUNet_n_proc_DA"] = "0"
    rows = []
    for network in args.networks:
        for factor in args.factors:
            ways = [LAID, THIN_THICK, *(["thin_grid"] if network != CONVFREE else [])]
            runs, slices = {}, {}
            for way in ways:
                run = Run(network, way, factor, args.folds[0], args.random_start)
                plan(run, args)
                os.environ["nnUNet_results"] = str((args.output / "timing" / way).resolve())
                Path(os.environ["nnUNet_results"]).mkdir(parents=True, exist_ok=True)
                trainer = trainer_of(run, args)
                trainer.on_train_start()
                trainer.network.train()
                batch = _OneBatch(next(trainer.dataloader_train))
                runs[way] = _timed(trainer, batch, args.device)
                if way != LAID:
                    thick = trainer.number_of_slabs
                    thin = trainer.configuration_manager.patch_size[0]
                    slices[way] = (thin if trainer.thick_on_thin_grid else thick, thin)
            seconds = interleave(runs, args.steps)
            for way, (thick, thin) in slices.items():
                ratios = [own / plain for own, plain in zip(seconds[way], seconds[LAID], strict=True)]
                rows.append(
                    {
                        "network": network,
                        "factor": factor,
                        "way": way,
                        "thick_slices": thick,
                        "thin_slices": thin,
                        "seconds": spread(seconds[way]),
                        "plain_seconds": spread(seconds[LAID]),
                        "ratio": spread(ratios),
                        "bound": 1.15 + thick / thin,
                    }
                )
    return rows


def _timed(trainer: Any, batch: _OneBatch, device: str) -> Any:
    def seconds() -> float:
        given = batch()
        _wait(device)
        start = time.perf_counter()
        trainer.train_step(given)
        _wait(device)
        return time.perf_counter() - start

    seconds()
    return seconds


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def steps_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `time_steps` as a markdown table; a spread reads `median (min-max)`."""
    header = ["network", "factor", "way", "thick / thin slices", "s per step", "plain s", "ratio", "bound"]
    cells = [
        [row["network"], str(row["factor"]), row["way"], f"{row['thick_slices']} / {row['thin_slices']}"]
        + [with_range(row[key], ".2f") for key in ("seconds", "plain_seconds", "ratio")]
        + [f"{row['bound']:.2f}"]
        for row in rows
    ]
    return markdown_table(header, cells)


def check(args: argparse.Namespace) -> None:
    """Refuse what would fail only later.

    Raises:
        InputError: numbers below 1, an unknown way, no writable JSON.
    """
    check_writable(args.json)
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
    parser.add_argument("--device", default="cpu", help="default cpu")
    parser.add_argument("--output", type=Path, default=Path("benchmark_results/thin_thick"))
    parser.add_argument("--resume", action="store_true", help="keep trainings already finished with this budget")
    parser.add_argument("--json", type=Path, help="file for the same figures, and every case's")
    return exit_status(parser, argv, run)


if __name__ == "__main__":
    raise SystemExit(main())
