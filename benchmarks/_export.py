"""Time and memory from logits to labels, ours and nnU-Net's, each run in a process of its own and with one thread.

The logits are half precision, as nnU-Net's predictor leaves them: a smooth random field per class and noise, so that
every class wins somewhere and borders are everywhere. Memory is the peak above the logits (see
`nnunetv2_ext.resident_memory`), the result included.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch.nn import functional

from nnunetv2_ext.inference.export import Prediction, labels_of
from nnunetv2_ext.resident_memory import rise

SIDES = ("nnU-Net", "ours")


class Case(NamedTuple):
    """Logits and the image that they are exported to."""

    name: str
    logits: tuple[int, int, int]
    image: tuple[int, int, int]
    plans_spacing: tuple[float, float, float]
    spacing: tuple[float, float, float]


CASES = (
    Case("isotropic", (60, 256, 256), (100, 400, 400), (5 / 3, 1.5625, 1.5625), (1.0, 1.0, 1.0)),
    Case("thick slices", (24, 256, 256), (40, 512, 512), (5.0, 1.0, 1.0), (3.0, 0.5, 0.5)),
)


def export_table(*, rounds: int = 3, classes: int = 8, many: int = 100) -> list[dict[str, Any]]:
    """One row per case: seconds (median) and peak MiB (highest) of both sides, ours in shares of nnU-Net's.

    Sides alternate. `differing` counts voxels whose labels differ; the last column is our peak for `many` classes.
    """
    return [_row(case, rounds, classes, many) for case in CASES]


def _row(case: Case, rounds: int, classes: int, many: int) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        files = {side: Path(folder, f"{side}.npy") for side in SIDES}
        for _ in range(rounds):
            for side in SIDES:
                runs[side].append(_measure(case, side, classes, files[side]))
        differing = int(np.count_nonzero(np.load(files["nnU-Net"]) != np.load(files["ours"])))
        peak_of_many = _measure(case, "ours", many, files["ours"])["bytes"]
    seconds = {side: statistics.median(run["seconds"] for run in runs[side]) for side in SIDES}
    peaks = {side: max(run["bytes"] for run in runs[side]) / 2**20 for side in SIDES}
    return {
        "case": case.name,
        "classes": classes,
        **{f"{side} s": seconds[side] for side in SIDES},
        "time ratio": seconds["ours"] / seconds["nnU-Net"],
        **{f"{side} MiB": peaks[side] for side in SIDES},
        "memory ratio": peaks["ours"] / peaks["nnU-Net"],
        "differing": differing,
        f"ours MiB, {many} classes": peak_of_many / 2**20,
    }


def _measure(case: Case, side: str, classes: int, labels: Path) -> dict[str, Any]:
    """Seconds and peak bytes of one export in a fresh process, which writes the labels to a file."""
    command = [sys.executable, "-m", "benchmarks._export", case.name, side, str(classes), str(labels)]
    root = Path(__file__).resolve().parents[1]
    output = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def made_logits(classes: int, shape: tuple[int, int, int], *, noise: float = 0.5) -> torch.Tensor:
    """Half-precision logits (classes, *shape): a smooth field of a standard deviation near 5, and noise."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.empty((classes, *shape), dtype=torch.half)
    coarse = [max(2, size // 24) for size in shape]
    for head in logits:
        field = torch.randn((1, 1, *coarse), generator=generator) * 8
        field = functional.interpolate(field, shape, mode="trilinear")[0, 0]
        head.copy_(field + noise * torch.randn(shape, generator=generator))
    return logits


def run(case: Case, side: str, classes: int) -> tuple[dict[str, Any], np.ndarray]:
    """Seconds and peak bytes of one export in this process, and the labels."""
    plans = PlansManager({"transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2], "configurations": {}})
    configuration = ConfigurationManager(
        {
            "architecture": {},
            "spacing": list(case.plans_spacing),
            "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
            "resampling_fn_probabilities_kwargs": {
                "is_seg": False,
                "order": 1,
                "order_z": 0,
                "force_separate_z": None,
            },
        }
    )
    properties = {
        "spacing": list(case.spacing),
        "shape_before_cropping": case.image,
        "shape_after_cropping_and_before_resampling": case.image,
        "bbox_used_for_cropping": [[0, size] for size in case.image],
    }
    manager = LabelManager({"background": 0, **{f"label {k}": k for k in range(1, classes)}}, None)
    logits = made_logits(classes, case.logits)
    seconds, labels = 0.0, np.zeros(0)

    def export() -> None:
        nonlocal seconds, labels
        start = time.perf_counter()
        if side == "ours":
            labels = labels_of([Prediction(logits, properties, plans, configuration)], manager)
        else:
            labels = convert_predicted_logits_to_segmentation_with_correct_shape(
                logits, plans, configuration, manager, properties, num_threads_torch=1
            )
        seconds = time.perf_counter() - start

    peak = rise(export)
    return {"seconds": seconds, "bytes": peak}, labels


if __name__ == "__main__":
    name, side, classes, file = sys.argv[1:]
    torch.set_num_threads(1)
    measured, labels = run(next(case for case in CASES if case.name == name), side, int(classes))
    np.save(file, labels)
    print(json.dumps(measured))
