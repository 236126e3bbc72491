"""A fine model on the whole image and inside the boxes of a coarse one, on phantoms in a large field of view.

The same weights every way, in one process, ways in turns; seconds are of a whole case: reading, both preprocessings,
both models, export; windows are not mirrored. Both are trained for some minutes by nnU-Net's command, unless a folder
holds them already.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk
import torch

from benchmarks._report import in_points
from nnunetv2_ext.data.phantom import LABELS, write_phantoms
from nnunetv2_ext.evaluation.comparison import compare_pair
from nnunetv2_ext.evaluation.scores import dice_scores
from nnunetv2_ext.files import read_json, write_json
from nnunetv2_ext.inference.predictor import Predictor
from nnunetv2_ext.inference.region import Region, region_of_model
from nnunetv2_ext.inference.roi import ROI
from nnunetv2_ext.inference.single import Options
from nnunetv2_ext.testing.trainer import Shell

NUMBER, DATASET = 7, "Dataset007_Large"
FIELD = (4, 2, 2)
COARSE, FINE = "BackboneTrainer__ROIPlans__3d_roi", "BackboneTrainer__BackbonePlans__3d_fullres"
COARSE_FOLD, FINE_FOLD = 0, 1
FINE_FLAGS = (
    """-pl BackbonePlanner --patch-size 12 56 56 --backbone-kwargs '{"features_per_stage": [16, 32, 64, 96]}'"""
)
BRIEF = {
    "epochs": 8,
    "val_iterations_per_epoch": 1,
    "batch_size": 3,
    "oversample_foreground": 0.5,
    "optimizer": {"name": "AdamW", "lr": 1e-3, "weight_decay": 1e-2},  # in so few steps nnU-Net's finds nothing
}
WAYS: dict[str, ROI | None] = {
    "whole image": None,
    "grid box": ROI(),
    "grid image": ROI(grid="image"),
    "grid box, no growth": ROI(growth=False),
}
NAMES = {value: name for name, value in LABELS.items() if value}


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


def train(folder: Path, *, device: str = "cpu", training: int = 24, unseen: int = 8) -> None:
    """Draw the phantoms and train both models by real commands; the coarse one is calibrated on ten of them."""
    shell = Shell(folder)
    write_phantoms(folder / "nnUNet_raw" / DATASET, training=training, test=unseen, field=FIELD)
    for command, plans, configuration, iterations in (
        ("-pl ROIPlanner --grid 64", "ROIPlans", "3d_roi", 40),
        (FINE_FLAGS, "BackbonePlans", "3d_fullres", 60),
    ):
        shell.run(f"nnunetv2_ext plan_and_preprocess -d {NUMBER} {command} --no_pbar")
        preprocessed = folder / "nnUNet_preprocessed" / DATASET
        names = sorted(path.name.partition(".")[0] for path in (preprocessed / "gt_segmentations").iterdir())
        splits = [{"train": names[held:], "val": names[:held]} for held in (10, 1)]
        write_json(preprocessed / "splits_final.json", splits)
        content = read_json(preprocessed / f"{plans}.json", "plan again")
        block = content["configurations"][configuration]["training"]
        content["configurations"][configuration]["training"] = {**block, **BRIEF, "iterations_per_epoch": iterations}
        write_json(preprocessed / f"{plans}.json", content)
    for model, fold in ((COARSE, COARSE_FOLD), (FINE, FINE_FOLD)):
        trainer, plans, configuration = model.split("__")
        shell.run(f"nnUNetv2_train {NUMBER} {configuration} {fold} -tr {trainer} -p {plans} -device {device}")
    shell.run(f"nnunetv2_ext calibrate_roi -d {NUMBER} -m {COARSE.replace('__', ':')} -f {COARSE_FOLD}")


def predictors(folder: Path, device: str) -> dict[str, Predictor]:
    """The fine model every way, and the region that the coarse one draws."""
    results = folder / "nnUNet_results" / DATASET
    options = Options(mirroring=False)
    coarse = Predictor(results / COARSE, folds=[COARSE_FOLD], device=device, options=options)
    made = {}
    for name, roi in WAYS.items():
        region: Region | None = None if roi is None else region_of_model(roi, coarse, None)
        made[name] = Predictor(results / FINE, folds=[FINE_FOLD], device=device, options=options, region=region)
    return made


def look(predictor: Predictor, image: Path, truth: np.ndarray) -> Seen:
    """Predict a case and score it."""
    on_gpu = predictor.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    case = predictor.logits(predictor.prepare(predictor.read([image])))
    labels = predictor.labels(case)
    seconds = time.perf_counter() - start
    dice = {}
    for value, name in NAMES.items():
        found, there = labels == value, truth == value
        dice[name] = 2 * float((found & there).sum()) / float(found.sum() + there.sum() or np.nan)
    held, windows = np.ones(truth.shape, bool), 1.0
    for entry in predictor.region_report(case).values():
        held[:] = False
        for low, high in entry["boxes_voxels"]:
            held[tuple(map(slice, low, high))] = True
        windows = entry["windows_computed"] / entry["windows_of_all"]
    memory = torch.cuda.max_memory_allocated() if on_gpu else 0
    inside = float(held[truth > 0].mean()) if (truth > 0).any() else 1.0
    return Seen(seconds, dice, inside, float(held.mean()), windows, memory)


def roi_table(*, rounds: int = 3, folder: Path | None = None, device: str = "cpu") -> list[dict[str, Any]]:
    """A row per way: seconds of a case, their ratio to the whole image, Dice, and what the boxes hold.

    Args:
        folder: holds nnU-Net's three folders as `train` leaves them; None: trained in a temporary one.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            train(Path(temporary), device=device)
            return roi_table(rounds=rounds, folder=Path(temporary), device=device)
    raw = folder / "nnUNet_raw" / DATASET
    images = sorted((raw / "imagesTs").glob("*_0000.nii.gz"))
    ways = predictors(folder, device)
    seen: dict[str, dict[str, list[Seen]]] = {name: {} for name in ways}
    for turn in range(rounds):
        for image in images:
            case = image.name.removesuffix("_0000.nii.gz")
            truth = sitk.GetArrayFromImage(sitk.ReadImage(str(raw / "labelsTs" / f"{case}.nii.gz")))
            for name in list(ways)[:: -1 if turn % 2 else 1]:
                seen[name].setdefault(case, []).append(look(ways[name], image, truth))
    reference, *_ = seen.values()
    return [_row(name, cases, reference) for name, cases in seen.items()]


def _row(name: str, cases: dict[str, list[Seen]], reference: dict[str, list[Seen]]) -> dict[str, Any]:
    last = {case: of_case[-1] for case, of_case in cases.items()}
    seconds, whole = (
        statistics.mean(statistics.median(one.seconds for one in of_case) for of_case in of.values())
        for of in (cases, reference)
    )
    whole_image = next(iter(WAYS))
    ways = {whole_image: reference, name: cases}
    scores = dice_scores({way: {case: seen[-1].dice for case, seen in of.items()} for way, of in ways.items()})
    row = {
        "way": name,
        "s": seconds,
        "time ratio": seconds / whole,
        "windows": statistics.mean(one.windows for one in last.values()),
        "Dice": scores.mean_of_labels(name, "Dice"),
        **{f"Dice {label}": scores.mean(name, label, "Dice") for label in scores.labels},
        "difference": in_points(compare_pair(scores, name, whole_image).difference._asdict()),
        "inside, mean": f"{statistics.mean(one.inside for one in last.values()):.4f}",
        "inside, worst": f"{min(one.inside for one in last.values()):.4f}",
        "share of image": statistics.mean(one.share for one in last.values()),
    }
    if memory := max(one.memory for one in last.values()):
        row["GPU MiB"] = memory / 2**20
    return row
