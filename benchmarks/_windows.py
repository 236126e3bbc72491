"""The network's share of a prediction: the sliding window of nnU-Net's predictor and ours, from image to logits.

Both in one process, in turns, with the same weights, images and number of threads; preprocessing is done before.
"""

import contextlib
import io
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor

from nnunetv2_ext.inference.predictor import Predictor

IMAGES = 3
"""So many are enough, since each takes as long."""


def network_table(
    models: Sequence[Path], images: Sequence[Path], *, folds: Sequence[int], rounds: int = 3, device: str = "cpu"
) -> list[dict[str, Any]]:
    """A row per model: seconds of an image by both, their ratio, and the largest difference of two logits.

    Args:
        models: folders of trained models.
        images: files of one channel, of which the first ones are taken.
    """
    if device == "cpu":
        torch.set_num_threads(os.cpu_count() or 1)  # as both commands do
    return [_row(model, images[:IMAGES], tuple(folds), rounds, device) for model in models]


def _row(model: Path, images: Sequence[Path], folds: tuple[int, ...], rounds: int, device: str) -> dict[str, Any]:
    ours = Predictor(model, folds=folds, device=device)
    with contextlib.redirect_stdout(io.StringIO()):
        stock = nnUNetPredictor(device=torch.device(device), allow_tqdm=False)
        stock.initialize_from_trained_model_folder(str(model), use_folds=folds)
    (one,) = ours.models
    sides: dict[str, Callable[[Tensor], Tensor]] = {
        "nnU-Net": stock.predict_logits_from_preprocessed_data,
        "ours": one.window.logits,
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    difference = 0.0
    for image in images:
        ((data, _),) = ours.prepare(ours.read([image])).preprocessed.values()
        for turn in range(rounds):
            logits = {}
            for side in list(sides)[:: -1 if turn % 2 else 1]:
                start = time.perf_counter()
                logits[side] = sides[side](data)
                if device == "cuda":
                    torch.cuda.synchronize()
                seconds[side].append(time.perf_counter() - start)
            difference = max(difference, float((logits["nnU-Net"].float() - logits["ours"].float()).abs().max()))
    row: dict[str, Any] = {"model": ours.models[0].model.name}
    row |= {f"{side}, s": statistics.median(of_side) for side, of_side in seconds.items()}
    return {**row, "x": row["ours, s"] / row["nnU-Net, s"], "largest difference": difference}
