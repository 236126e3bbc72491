"""The share of the network in a prediction: our sliding window beside nnU-Net's, in turns in one process."""

import contextlib
import io
import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor

from nnunetv2_ext import register
from nnunetv2_ext.inference.windows import SlidingWindow

IMAGES = 3
"""So many are enough, since each takes as long."""
NNUNET = "nnU-Net's predictor"
VARIANTS: dict[str, dict[str, int]] = {
    "ours": {},
    "ours, one stream": {"streams": 1},
    "ours, one copy in a call": {"batch_size": 1},
}


def network_table(
    models: Sequence[Path], images: Sequence[Path], *, folds: Sequence[int | str], rounds: int = 3, device: str = "cpu"
) -> list[dict[str, Any]]:
    """A row for each model and predictor: time, page faults, and labels that differ from nnU-Net's.

    Args:
        models: folders of trained models, with fold_X in them.
        images: files of one channel, of which the first ones are taken.
        rounds: each runs every case once, odd ones backwards through the predictors.

    Returns:
        Medians over the rounds of seconds a case; ratios within the rounds.
    """
    register()
    if device == "cpu":
        torch.set_num_threads(os.cpu_count() or 1)  # as both commands do
    return [row for model in models for row in _rows(model, images[:IMAGES], folds, rounds, device)]


def _rows(
    model: Path, images: Sequence[Path], folds: Sequence[int | str], rounds: int, device: str
) -> list[dict[str, Any]]:
    with contextlib.redirect_stdout(io.StringIO()):
        stock = nnUNetPredictor(device=torch.device(device), allow_tqdm=False)
        stock.initialize_from_trained_model_folder(str(model), tuple(folds))
    volumes = _preprocessed(stock, images)
    runs: dict[str, Callable[[Tensor], Tensor]] = {NNUNET: stock.predict_logits_from_preprocessed_data}
    for name, attributes in VARIANTS.items():
        window = SlidingWindow(
            deepcopy(stock.network),
            stock.plans_manager,
            stock.configuration_manager,
            stock.dataset_json,
            stock.trainer_name,
            stock.allowed_mirroring_axes,
            stock.list_of_parameters,
            device=stock.device,
        )
        for key, value in attributes.items():
            setattr(window, key, value)
        runs[name] = window.logits
    labels = {name: [run(volume).argmax(0) for volume in volumes] for name, run in runs.items()}  # and warm
    taken: dict[str, list[tuple[float, float, int]]] = {name: [] for name in runs}
    for n in range(rounds):
        for name in list(runs)[:: -1 if n % 2 else 1]:
            taken[name].append(_cost(runs[name], volumes))
    voxels = sum(one.numel() for one in labels[NNUNET])
    return [
        {
            "model": model.name.partition("__")[0],
            "predictor": name,
            "s": statistics.median(wall for wall, _, _ in taken[name]) / len(volumes),
            "x": statistics.median(a[0] / b[0] for a, b in zip(taken[name], taken[NNUNET], strict=True)),
            "CPU s": statistics.median(cpu for _, cpu, _ in taken[name]) / len(volumes),
            "CPU x": statistics.median(a[1] / b[1] for a, b in zip(taken[name], taken[NNUNET], strict=True)),
            "page faults": int(statistics.median(faults for _, _, faults in taken[name]) / len(volumes)),
            "labels that differ": sum(int((a != b).sum()) for a, b in zip(labels[name], labels[NNUNET], strict=True)),
            "of": voxels,
        }
        for name in runs
    ]


def _cost(run: Callable[[Tensor], Tensor], volumes: Sequence[Tensor]) -> tuple[float, float, int]:
    """Seconds on the clock and of the CPU, and page faults."""
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    wall, cpu = time.perf_counter(), time.process_time()
    for volume in volumes:
        run(volume)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return wall, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults


def _preprocessed(predictor: nnUNetPredictor, images: Sequence[Path]) -> list[Tensor]:
    preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
    settings = predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json
    return [torch.from_numpy(preprocessor.run_case([str(image)], None, *settings)[0]) for image in images]
