"""Time and memory from logits to labels, ours and nnU-Net's, each run in a process of its own and with one thread.

The logits are half precision, as nnU-Net's predictor leaves them: a smooth random field per class and noise, so that
every class wins somewhere and borders are everywhere. Memory is the peak above the logits (see
`nnunetv2_ext.profiling.resident_memory`), the result included.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

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
    """A row per case: seconds (median) and peak MiB (highest) of both sides, their ratios, and ours of `many` classes.

    Sides alternate. `differing` counts the voxels whose labels differ.
    """
    return [_row(case, rounds, classes, many) for case in CASES]


def _row(case: Case, rounds: int, classes: int, many: int) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side in SIDES:
            runs[side].append(_measure(case, side, classes))
    row: dict[str, Any] = {"case": case.name, "classes": classes}
    for side in SIDES:
        row[f"{side} s"] = statistics.median(run["seconds"] for run in runs[side])
        row[f"{side} MiB"] = max(run["bytes"] for run in runs[side]) / 2**20
    row["time ratio"] = row["ours s"] / row["nnU-Net s"]
    row["memory ratio"] = row["ours MiB"] / row["nnU-Net MiB"]
    row[f"ours MiB, {many} classes"] = _measure(case, "ours", many)["bytes"] / 2**20
    return row


def _measure(case: Case, side: str, classes: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks._export", case.name, side, str(classes)]
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


def run(case: Case, side: str, classes: int) -> dict[str, Any]:
    """Seconds, peak bytes and a checksum of the labels of one export in this process."""
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
    from nnunetv2.utilities.label_handling.label_handling import LabelManager
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

    from nnunetv2_ext.inference.export import Prediction, labels_of
    from nnunetv2_ext.profiling.resident_memory import rise

    torch.set_num_threads(1)
    plans = PlansManager({"transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2], "configurations": {}})
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    configuration = ConfigurationManager(
        {
            "architecture": {},
            "spacing": list(case.plans_spacing),
            "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
            "resampling_fn_probabilities_kwargs": resampling,
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
    result: dict[str, Any] = {}

    def export() -> None:
        start = time.perf_counter()
        if side == "ours":
            labels = labels_of([Prediction(logits, properties, plans, configuration)], manager)
        else:
            labels = convert_predicted_logits_to_segmentation_with_correct_shape(
                logits, plans, configuration, manager, properties, num_threads_torch=1
            )
        result["seconds"] = time.perf_counter() - start
        result["labels"] = labels

    peak = rise(export)
    return {"seconds": result["seconds"], "bytes": peak, "labels": np.asarray(result["labels"])}


if __name__ == "__main__":
    name, side, classes = sys.argv[1:]
    measured = run(next(case for case in CASES if case.name == name), side, int(classes))
    labels = measured.pop("labels")
    if "--save" in sys.argv:
        pass
    print(json.dumps(measured))
