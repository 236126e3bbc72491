"""Models on whole images and inside the boxes of models of a region: the same weights, seconds, Dice, what boxes hold.

    python -m benchmarks.roi
    python -m benchmarks.roi --folder roi --epochs 40 --iterations 250 -device cuda
    python -m benchmarks.roi --folder nnunet -d 9 --fine HierarchicalTrainer:HierarchicalPlans:3d_fullres \
        --regions DetectorTrainer:DetectorPlans:3d_roi -f 0 --fine-folds 0

Without -d the data are phantoms in a large field of view, 24 to train with and 8 unseen ones, and the models those of
--fine and --regions below, trained by real commands for some minutes unless --folder holds them. With -d it is a data
set of one's own in nnU-Net's three folders within --folder, with trained models, calibrated regions, and unseen images
with labels in imagesTs and labelsTs.

Every model predicts each unseen case on the whole image and inside each region, on the grid of the box; with the first
region also on the grid of the image, and without growth. Ways in turns, in one process; seconds are of a whole case:
reading, both preprocessings, both models, export; windows are not mirrored. A second table tells what the regions are
worth by themselves: the IoU of the box around all foreground, without margin, and the cases that they miss.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk
import torch
from tqdm import tqdm

from benchmarks._report import exit_status, in_points, machine, markdown_facts, shown, table_of
from nnunetv2_ext.data.description import IGNORE
from nnunetv2_ext.data.phantom import write_phantoms
from nnunetv2_ext.data.splits import SPLITS
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation.comparison import compare_pair
from nnunetv2_ext.evaluation.scores import dice_scores
from nnunetv2_ext.files import REFERENCES, check_output_file, read_json, write_json
from nnunetv2_ext.geometry.boxes import Box, bounding_box
from nnunetv2_ext.inference.models import parse_models
from nnunetv2_ext.inference.predictor import Predictor
from nnunetv2_ext.inference.region import region_of_model
from nnunetv2_ext.inference.roi import ROI
from nnunetv2_ext.inference.single import Options
from nnunetv2_ext.testing.trainer import Shell
from nnunetv2_ext.text import listed, markdown_table

PHANTOMS = "Dataset007_Large"
FIELD = (4, 2, 2)
GRID = 64
PATCH = "12 56 56"
HELD_OUT = 10
"""Cases of fold 0 that nobody is trained on, and regions are calibrated with."""
WIDTHS = """--backbone-kwargs '{"features_per_stage": [16, 32, 64, 96]}'"""
FINE = {
    "BackboneTrainer:BackbonePlans:3d_fullres": f"-pl BackbonePlanner --patch-size {PATCH} {WIDTHS}",
    "HierarchicalTrainer:HierarchicalPlans:3d_fullres": f"-pl HierarchicalPlanner --patch-size {PATCH}",
}
DETECTOR = f"-pl ROIPlanner --network detector --grid {GRID}"
REGIONS = {
    "BackboneTrainer:ROIPlans:3d_roi": f"-pl ROIPlanner --grid {GRID}",
    "DetectorTrainer:DetectorPlans:3d_roi": DETECTOR,
    "DetectorTrainer:DetectorCentralPlans:3d_roi": f"{DETECTOR} --view central -overwrite_plans_name "
    "DetectorCentralPlans",
}
"""Models by name, and the flags that plan them for the phantoms."""
BRIEF = {
    "val_iterations_per_epoch": 1,
    "batch_size": 3,
    "oversample_foreground": 0.5,
    "optimizer": {"name": "AdamW", "lr": 1e-3, "weight_decay": 1e-2},  # in so few steps nnU-Net's finds nothing
    "scheduler": {"name": "warmup_poly", "warmup_iterations": 20},
}
# what is to come of it, see docs/measured/roi.md
TIME, DICE, INSIDE, WORST, SHARE, IOU = 0.5, -0.5, 0.999, 0.99, 1 / 3, 0.7


class Way(NamedTuple):
    """How a case is predicted: by which model, in the boxes of which region, None for the whole image, and how."""

    fine: str
    region: str | None = None
    how: str = "whole image"
    roi: ROI | None = None


class Seen(NamedTuple):
    """One case predicted one way."""

    seconds: float
    dice: dict[str, float]
    inside: float
    """The share of the foreground that the predicted boxes hold."""
    share: float
    """Of the image that is in them."""
    windows: float
    """Of the fine model, as a share of those of the whole image."""
    memory: int
    """Bytes of GPU memory at the most, 0 on a CPU."""


class Case(NamedTuple):
    """An unseen image and its labels (Z, Y, X)."""

    name: str
    images: list[Path]
    truth: np.ndarray


def ways_of(fine: Sequence[str], regions: Sequence[str]) -> list[Way]:
    """All ways, each model's whole image before its regions."""
    ways = []
    for model in fine:
        ways.append(Way(model))
        ways += [Way(model, region, "grid box", ROI()) for region in regions]
        if regions:
            ways.append(Way(model, regions[0], "grid image", ROI(grid="image")))
            ways.append(Way(model, regions[0], "grid box, no growth", ROI(growth=False)))
    return ways


def trained(results: Path, name: str) -> Path:
    """The folder of the model `TRAINER:PLANS:CONFIGURATION` among the results of a data set."""
    (model,) = parse_models([name])
    return results / model.folder_name


def train(folder: Path, args: argparse.Namespace) -> None:
    """Draw the phantoms and train all models by real commands on fold 0; the regions are calibrated on what it held."""
    shell = Shell(folder)
    if not (folder / "nnUNet_raw" / PHANTOMS).is_dir():
        write_phantoms(folder / "nnUNet_raw" / PHANTOMS, training=24, test=8, field=FIELD)
    preprocessed, results = (folder / part / PHANTOMS for part in ("nnUNet_preprocessed", "nnUNet_results"))
    budget = {"epochs": args.epochs, "iterations_per_epoch": args.iterations}
    for model, flags in {**REGIONS, **FINE}.items():
        summary = trained(results, model) / "fold_0" / "validation" / "summary.json"
        if model not in (*args.fine, *args.regions) or summary.is_file():
            continue
        trainer, plans, configuration = model.split(":")
        shell.run(f"nnunetv2_ext plan_and_preprocess -d 7 {flags} --no_pbar")
        names = sorted(path.name.partition(".")[0] for path in (preprocessed / REFERENCES).iterdir())
        write_json(preprocessed / SPLITS, [{"train": names[HELD_OUT:], "val": names[:HELD_OUT]}])
        content = read_json(preprocessed / f"{plans}.json", "plan again")
        block = content["configurations"][configuration]["training"]
        content["configurations"][configuration]["training"] = {**block, **BRIEF, **budget}
        write_json(preprocessed / f"{plans}.json", content)
        print(f"training {model}", file=sys.stderr, flush=True)
        shell.run(f"nnUNetv2_train 7 {configuration} 0 -tr {trainer} -p {plans} -device {args.device}")
        if model in REGIONS:
            shell.run(f"nnunetv2_ext calibrate_roi -d 7 -m {model} -f 0")


def cases_of(raw: Path) -> Iterator[Case]:
    """The unseen cases of a raw data set."""
    ending = read_json(raw / "dataset.json", "a raw data set")["file_ending"]
    for labels in sorted((raw / "labelsTs").glob(f"*{ending}")):
        name = labels.name.removesuffix(ending)
        images = sorted((raw / "imagesTs").glob(f"{name}_[0-9][0-9][0-9][0-9]{ending}"))
        yield Case(name, images, sitk.GetArrayFromImage(sitk.ReadImage(str(labels))))


def values_of(raw: Path) -> dict[str, list[int]]:
    """The values of each label or region of the foreground."""
    named = read_json(raw / "dataset.json", "a raw data set")["labels"]
    values = {name: value if isinstance(value, list) else [value] for name, value in named.items() if name != IGNORE}
    return {name: value for name, value in values.items() if value != [0]}


def predictors(results: Path, args: argparse.Namespace) -> tuple[dict[Way, Predictor], dict[str, Predictor]]:
    """The fine models every way, and the models of the regions."""
    options = Options(mirroring=False)
    common: dict[str, Any] = {"device": args.device, "options": options}
    regions = {name: Predictor(trained(results, name), folds=args.folds, **common) for name in args.regions}
    made = {}
    for way in ways_of(args.fine, args.regions):
        region = None
        if way.region is not None and way.roi is not None:
            region = region_of_model(way.roi, regions[way.region], args.margin)
        made[way] = Predictor(trained(results, way.fine), folds=args.fine_folds, region=region, **common)
    return made, regions


def look(predictor: Predictor, case: Case, values: Mapping[str, list[int]]) -> Seen:
    """Predict a case and score it."""
    on_gpu = predictor.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    predicted = predictor.logits(predictor.prepare(predictor.read(case.images)))
    labels = predictor.labels(predicted)
    seconds = time.perf_counter() - start
    dice = {}
    for name, of_label in values.items():
        found, there = np.isin(labels, of_label), np.isin(case.truth, of_label)
        dice[name] = 2 * float((found & there).sum()) / float(found.sum() + there.sum() or np.nan)
    held, windows = np.ones(case.truth.shape, bool), 1.0
    for entry in predictor.region_report(predicted).values():
        held[:] = False
        for low, high in entry["boxes_voxels"]:
            held[tuple(map(slice, low, high))] = True
        windows = entry["windows_computed"] / entry["windows_of_all"]
    memory = torch.cuda.max_memory_allocated() if on_gpu else 0
    foreground = case.truth > 0
    inside = float(held[foreground].mean()) if foreground.any() else 1.0
    return Seen(seconds, dice, inside, float(held.mean()), windows, memory)


def row_of(way: Way, cases: dict[str, list[Seen]], whole: dict[str, list[Seen]]) -> dict[str, Any]:
    """The table's row: medians over rounds, means over cases, Dice against the same model on the whole image."""
    last = {case: of_case[-1] for case, of_case in cases.items()}
    seconds, reference = (
        statistics.mean(statistics.median(one.seconds for one in of_case) for of_case in of.values())
        for of in (cases, whole)
    )
    scores = dice_scores(
        {key: {case: seen[-1].dice for case, seen in of.items()} for key, of in (("whole", whole), ("way", cases))}
    )
    difference = compare_pair(scores, "way", "whole").difference._asdict()
    row = {
        "model": way.fine.partition(":")[0],
        "region": "" if way.region is None else way.region.split(":")[1],
        "way": way.how,
        "s": seconds,
        "time ratio": seconds / reference,
        "windows": statistics.mean(one.windows for one in last.values()),
        "Dice": scores.mean_of_labels("way", "Dice"),
        **{f"Dice {label}": scores.mean("way", label, "Dice") for label in scores.labels},
        "difference": in_points(difference),
        "inside, mean": f"{statistics.mean(one.inside for one in last.values()):.4f}",
        "inside, worst": f"{min(one.inside for one in last.values()):.4f}",
        "share of image": statistics.mean(one.share for one in last.values()),
    }
    if memory := max(one.memory for one in last.values()):
        row["GPU MiB"] = memory / 2**20
    return row


def iou(one: Box, other: Box) -> float:
    """Volume of what two boxes share, as a share of what they cover together."""
    low, high = np.maximum(one.low, other.low), np.minimum(one.high, other.high)
    shared = float(np.prod(np.maximum(high - low, 0)))
    return shared / (float(np.prod(one.shape)) + float(np.prod(other.shape)) - shared)


def boxes_table(regions: Mapping[str, Predictor], cases: Sequence[Case]) -> list[dict[str, Any]]:
    """A row per region: the IoU of the box around all foreground that is predicted with that of the truth.

    A detector writes boxes as labels, so that of an organ within another's box no voxel may be left.
    """
    rows = []
    for model, predictor in regions.items():
        found: list[float] = []
        seconds = []
        for case in cases:
            start = time.perf_counter()
            labels = predictor.labels(predictor.logits(predictor.prepare(predictor.read(case.images))))
            seconds.append(time.perf_counter() - start)
            if (truth := bounding_box(case.truth > 0)) is not None:
                predicted = bounding_box(labels > 0)
                found.append(0.0 if predicted is None else iou(predicted, truth))
        row = {"region": model.split(":")[1], "s": statistics.median(seconds), "boxes": len(found)}
        rows.append({**row, "IoU, mean": statistics.mean(found), "IoU, worst": min(found), "misses": found.count(0.0)})
    return rows


def verdicts(rows: Sequence[Mapping[str, Any]], boxes: Sequence[Mapping[str, Any]]) -> str:
    """What was to be reached, and whether it was, as a Markdown table."""
    checked = []
    for row in rows:
        if row["way"] != "grid box":
            continue
        low = float(row["difference"].split("[")[1].split(",")[0])
        name = f"{row['model']} in {row['region']}"
        checked += [
            (f"{name}: time ratio", f"at most {TIME}", row["time ratio"], row["time ratio"] <= TIME),
            (f"{name}: Dice, lower end", f"at least {DICE} points", low, low >= DICE),
            (f"{name}: inside, mean", f"at least {INSIDE}", row["inside, mean"], float(row["inside, mean"]) >= INSIDE),
            (f"{name}: inside, worst", f"at least {WORST}", row["inside, worst"], float(row["inside, worst"]) >= WORST),
            (f"{name}: share", f"at most {SHARE:.2f}", row["share of image"], row["share of image"] <= SHARE),
        ]
    for row in boxes:
        reached = row["IoU, mean"] >= IOU and not row["misses"]
        checked.append((f"{row['region']}: IoU", f"at least {IOU}, no miss", row["IoU, mean"], reached))
    cells = [[what, goal, shown(value), "yes" if reached else "no"] for what, goal, value, reached in checked]
    return markdown_table(["figure", "expected", "measured", "reached"], cells)


def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The rows of both tables, from models that are there.

    Raises:
        InputError: no such data set.
    """
    raw = next((folder / "nnUNet_raw").glob(f"Dataset{args.dataset:03d}_*"), None)
    if raw is None:
        raise InputError(f"no data set {args.dataset} in {folder / 'nnUNet_raw'}", "one there", "correct -d")
    values, cases = values_of(raw), list(cases_of(raw))
    ways, regions = predictors(folder / "nnUNet_results" / raw.name, args)
    seen: dict[Way, dict[str, list[Seen]]] = {way: {} for way in ways}
    for turn in range(args.rounds):
        for case in tqdm(cases, desc=f"round {turn + 1}", file=sys.stderr):
            for way in list(ways)[:: -1 if turn % 2 else 1]:
                seen[way].setdefault(case.name, []).append(look(ways[way], case, values))
    rows = [row_of(way, of_cases, seen[Way(way.fine)]) for way, of_cases in seen.items()]
    return {"cases": len(cases), "rows": rows, "boxes": boxes_table(regions, cases)}


def run(args: argparse.Namespace) -> int:
    """Train what is missing, measure, print the tables, write the JSON.

    Raises:
        InputError: a number out of range, no folder for a data set of one's own, no room for the JSON file.
    """
    check_output_file(args.json, "--json")
    own = args.dataset is not None
    if min(args.rounds, args.epochs, args.iterations) < 1:
        raise InputError(
            f"--rounds {args.rounds} --epochs {args.epochs} --iterations {args.iterations}", "1 or more", "correct it"
        )
    if own and args.folder is None:
        raise InputError("-d without --folder", "the folder that holds nnU-Net's three", "name it")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (Path(temporary) if args.folder is None else args.folder).resolve()
        if not own:
            folder.mkdir(parents=True, exist_ok=True)
            train(folder, args)
            args.dataset = 7
        about, measured = machine(args.device), measure(folder, args)
    facts = {"cases": measured["cases"], "rounds": args.rounds, "device": args.device}
    rows, boxes = measured["rows"], measured["boxes"]
    print(f"{markdown_facts(facts)}\n{markdown_facts(about)}\n\n{table_of(rows)}")
    if boxes:
        print(f"\n{table_of(boxes)}\n\n{verdicts(rows, boxes)}")
    if args.json is not None:
        write_json(args.json, {"machine": about, **facts, **measured})
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Bad input ends in one sentence on stderr and exit status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.roi", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    name = "TRAINER:PLANS:CONFIGURATION"
    parser.add_argument(
        "--folder", type=Path, help="keeps data and models for the next time (default: a temporary one)"
    )
    parser.add_argument(
        "-d", dest="dataset", type=int, metavar="ID", help="a data set of one's own (default: phantoms)"
    )
    parser.add_argument("--fine", nargs="+", default=[*FINE], metavar=name, help=f"default {listed(FINE)}")
    parser.add_argument(
        "--regions", nargs="*", default=[*REGIONS], metavar=name, help=f"none: whole images (default {listed(REGIONS)})"
    )
    parser.add_argument("-f", dest="folds", nargs="+", default=["0"], help="of the regions (default 0)")
    parser.add_argument("--fine-folds", nargs="+", default=["0"], help="default 0")
    parser.add_argument("--margin", type=float, metavar="MM", help="of all regions (default: as calibrated)")
    parser.add_argument("--epochs", type=int, default=8, help="of trainings (default 8)")
    parser.add_argument("--iterations", type=int, default=60, help="of an epoch (default 60)")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("-device", default="cpu", help="default cpu")
    parser.add_argument("--json", type=Path, help="file for the same figures")
    return exit_status(parser, argv, run)


if __name__ == "__main__":
    raise SystemExit(main())
