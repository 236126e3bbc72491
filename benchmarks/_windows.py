"""The share of the network in a prediction: our sliding window beside nnU-Net's, in turns in one process."""

import contextlib
import io
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.utils import create_lists_from_splitted_dataset_folder
from torch import Tensor

from nnunetv2_ext.inference.windows import SlidingWindow
from nnunetv2_ext.text import markdown_table

NNUNET = "nnU-Net's predictor"
VARIANTS: dict[str, dict[str, int]] = {
    "ours": {},
    "ours, one stream": {"streams": 1},
    "ours, one copy in a call": {"batch_size": 1},
}


def measure(model: Path, images: Path, *, folds: Sequence[int | str], cases: int, rounds: int) -> list[dict[str, Any]]:
    """A row for nnU-Net's predictor and each of ours: time, page faults, and labels that differ from nnU-Net's.

    Args:
        model: folder of a trained model, with fold_X in it.
        images: raw images, named as nnU-Net wants them.
        cases: how many of them, from the first on.
        rounds: each runs every case once, odd ones backwards through the list.

    Returns:
        Rows of `table`: medians over the rounds, ratios within the rounds.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        stock = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
        stock.initialize_from_trained_model_folder(str(model), tuple(folds))
        volumes = _preprocessed(stock, images)[:cases]
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
            "predictor": name,
            "seconds": statistics.median(wall for wall, _, _ in taken[name]) / len(volumes),
            "time_ratio": statistics.median(a[0] / b[0] for a, b in zip(taken[name], taken[NNUNET], strict=True)),
            "cpu_seconds": statistics.median(cpu for _, cpu, _ in taken[name]) / len(volumes),
            "cpu_ratio": statistics.median(a[1] / b[1] for a, b in zip(taken[name], taken[NNUNET], strict=True)),
            "page_faults": statistics.median(faults for _, _, faults in taken[name]) / len(volumes),
            "differing": sum(int((a != b).sum()) for a, b in zip(labels[name], labels[NNUNET], strict=True)),
            "voxels": voxels,
        }
        for name in runs
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `measure` as a markdown table, per case."""
    header = ["predictor", "s", "time ratio", "CPU s", "CPU ratio", "page faults", "labels that differ"]
    return markdown_table(
        header,
        [
            [
                row["predictor"],
                f"{row['seconds']:.2f}",
                f"{row['time_ratio']:.2f}",
                f"{row['cpu_seconds']:.2f}",
                f"{row['cpu_ratio']:.2f}",
                f"{row['page_faults']:,.0f}",
                f"{row['differing']} of {row['voxels']:,}",
            ]
            for row in rows
        ],
    )


def _cost(run: Callable[[Tensor], Tensor], volumes: Sequence[Tensor]) -> tuple[float, float, int]:
    """Seconds on the clock and of the CPU, and page faults."""
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    wall, cpu = time.perf_counter(), time.process_time()
    for volume in volumes:
        run(volume)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return wall, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults


def _preprocessed(predictor: nnUNetPredictor, images: Path) -> list[Tensor]:
    preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
    settings = predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json
    files = create_lists_from_splitted_dataset_folder(str(images), predictor.dataset_json["file_ending"])
    return [torch.from_numpy(preprocessor.run_case(case, None, *settings)[0]) for case in files]
