"""What a training needs beside a right plan: a device, workers, memory to share, whole files.

Each is looked at before the training begins, where nnU-Net would end in a worker's traceback, or never.
"""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from pydoc import ErrorDuringImport, locate
from typing import Any

import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nnunetv2_ext.errors import InputError, is_whole
from nnunetv2_ext.files import read_pickle
from nnunetv2_ext.text import listed, one_line

SHARED_MEMORY = Path("/dev/shm")


def check_device(device: torch.device) -> None:
    """Refuse a GPU that is not there.

    Raises:
        InputError: no CUDA or no MPS.
    """
    missing = (device.type == "cuda" and not torch.cuda.is_available()) or (
        device.type == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise InputError(
            f"-device {device.type}, which torch does not see",
            "a device of this machine",
            "add -device cpu, or install a torch that fits the driver",
        )


def check_configuration(name: str, configuration: Mapping[str, Any]) -> None:
    """Refuse sizes and a network that no training can be made of.

    Args:
        configuration: one of the plans', with what it inherits.

    Raises:
        InputError: a patch, a batch size or an architecture that is missing or of a wrong kind.
    """
    patch, batch = configuration.get("patch_size"), configuration.get("batch_size")
    architecture = configuration.get("architecture")
    remedy = "correct it in the plans, or plan again"
    if not (isinstance(patch, list | tuple) and len(patch) in (2, 3) and all(map(is_whole, patch))):
        raise InputError(f"the patch_size {patch!r} of {name}", "two or three whole numbers from 1", remedy)
    if not is_whole(batch):
        raise InputError(f"the batch_size {batch!r} of {name}", "a whole number from 1", remedy)
    keys = {"network_class_name": str, "arch_kwargs": dict, "_kw_requires_import": list | tuple}
    if not isinstance(architecture, dict) or not all(
        isinstance(architecture.get(key), kind) for key, kind in keys.items()
    ):
        raise InputError(
            f"no whole architecture in {name}", f"an object with the keys {listed(keys)}", "plan the data set again"
        )


def check_network_exists(name: str) -> None:
    """Refuse plans that name a network which is not there; another one would be trained in its place.

    Raises:
        InputError: no such class, or its module cannot be imported.
    """
    try:
        found, reason = locate(name), ""
    except ErrorDuringImport as error:
        found, reason = None, f" ({one_line(error, last=True)})"
    if found is None:
        raise InputError(
            f"plans of the network {name}, which does not exist{reason}",
            "one that can be imported",
            "correct architecture.network_class_name in the plans, or plan again",
        )


def told_of_batch(network: nn.Module, batch_size: int) -> str:
    """In a sentence, that batch normalisation has one image to learn from; empty where it has more, or is not there.

    Args:
        batch_size: of all GPUs together, over which nnU-Net synchronises the statistics.
    """
    if batch_size > 1 or not any(isinstance(module, _BatchNorm) for module in network.modules()):
        return ""
    return (
        "batch normalisation at a batch of 1 trains on the statistics of single images, and predicts with others; "
        "train with a batch of 2 or more, on a smaller patch if need be, or choose a network without it"
    )


def check_shared_memory(batch_bytes: float) -> None:
    """Refuse a /dev/shm that cannot hold the batches which nnU-Net's workers keep ready.

    Args:
        batch_bytes: of a batch of images and targets.

    Raises:
        InputError: one of the two groups of workers could fill it and keep the other one waiting for ever.
    """
    workers = get_allowed_n_proc_DA()
    if not workers or not SHARED_MEMORY.is_dir():
        return
    queued = max(6, workers // 2) + workers  # those that nnU-Net lets wait, and one in the hands of each worker
    needed, free = (queued + 1) * batch_bytes, shutil.disk_usage(SHARED_MEMORY).free
    if free < needed:
        raise InputError(
            f"{_megabytes(free)} MB free in {SHARED_MEMORY}",
            f"{_megabytes(needed)} MB for the batches that {workers} data workers keep ready",
            "start the container with --shm-size=8g or --ipc=host, or run export nnUNet_n_proc_DA=0, which is slower",
        )


def _megabytes(count: float) -> str:
    return f"{math.ceil(count / 1e5) / 10:g}"


def check_cases(dataset: Any, preprocess: str) -> None:
    """Refuse damaged or missing files of preprocessed cases.

    Opens each file, but reads no voxels.

    Args:
        dataset: nnU-Net's, of one part of a fold.
        preprocess: what to do about them.

    Raises:
        InputError: the first file that cannot be opened.
    """
    folder, before = Path(dataset.source_folder), dataset.folder_with_segs_from_previous_stage
    for name in dataset.identifiers:
        properties = read_pickle(folder / f"{name}.pkl", preprocess)
        if not isinstance(properties, dict) or "class_locations" not in properties:
            raise InputError(f"no class_locations in {folder / name}.pkl", "nnU-Net's properties of a case", preprocess)
        if not isinstance(dataset, nnUNetDatasetBlosc2):
            continue
        files = [folder / f"{name}.b2nd", folder / f"{name}_seg.b2nd"]
        if before is not None:
            files.append(Path(before) / f"{name}.b2nd")
        for file in files:
            _check_blosc2(file, preprocess if file.parent == folder else "train all folds of the previous stage")


def _check_blosc2(file: Path, remedy: str) -> None:
    import blosc2

    if not file.is_file():
        raise InputError(f"no file {file}", "a preprocessed case", remedy)
    try:
        blosc2.open(urlpath=str(file), mode="r")
    except Exception as error:  # blosc2 raises anything for damaged bytes
        raise InputError(f"the damaged file {file} ({one_line(error)})", "a whole one", remedy) from error
