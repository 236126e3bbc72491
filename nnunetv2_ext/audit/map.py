"""The map of a data set: its cases trained into latents, and what the map predicts for each of them."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tqdm import tqdm

from nnunetv2_ext.architectures.hypersort import parameter_count
from nnunetv2_ext.audit.blocks import Blocks, read_blocks
from nnunetv2_ext.audit.predicted import on_grid, write_label
from nnunetv2_ext.audit.readings import Reading, Task, predictions
from nnunetv2_ext.audit.result import LatentMap
from nnunetv2_ext.audit.scores import ranks
from nnunetv2_ext.audit.training import READABLE, MapSettings, MapTraining
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation.segmentations import Labels
from nnunetv2_ext.files import unwritable
from nnunetv2_ext.inference.export import Prediction, labels_of
from nnunetv2_ext.locks import held

CHECKPOINT, PREDICTIONS = "map.pth", "predictions"


@dataclass(frozen=True)
class MapResult:
    """A finished map."""

    map: LatentMap
    labels: tuple[str, ...]
    """Their names, in the order of the columns."""
    readings: Sequence[Reading]
    predictions: Mapping[str, Path]
    """The label file that the map predicts for each case, on the grid of its label."""
    notes: tuple[str, ...] = ()
    """What a reader must know, a sentence each."""

    @property
    def disagreement(self) -> np.ndarray:
        """The mean over the readings: (cases, labels); NaN where label and prediction were always empty."""
        return _mean([reading.disagreement for reading in self.readings])

    @property
    def ranks(self) -> np.ndarray:
        """The mean over the readings of the mean rank by disagreement and by rarity: (cases, labels)."""
        return _mean(
            [
                (np.apply_along_axis(ranks, 0, one.disagreement) + ranks(one.rarity)[:, None]) / 2
                for one in self.readings
            ]
        )


def _mean(values: Sequence[np.ndarray]) -> np.ndarray:
    """Over the first axis, of what is not NaN."""
    stacked = np.stack(values)
    known = (~np.isnan(stacked)).sum(axis=0)
    return np.where(known, np.nansum(stacked, axis=0) / np.maximum(known, 1), np.nan)


def run_map(
    data: Path,
    plans: Mapping[str, Any],
    configuration: str,
    dataset_json: Mapping[str, Any],
    labels: Labels,
    output: Path,
    *,
    settings: MapSettings,
    device: str = "cpu",
    progress: bool = False,
    overwrite: bool = False,
) -> MapResult:
    """Train the map of a data set, or go on with one that was stopped, and write what it predicts.

    Args:
        data: folder of the configuration's data, in that of the preprocessed data set.
        labels: of its dataset.json.
        output: an existing folder for the checkpoint and the predictions.
        overwrite: begin anew whatever is there.

    Raises:
        InputError: 2D data, fewer than ten cases, images with NaN, a hyper-network above `max_parameters`, or a
            checkpoint of other data or settings.
    """
    manager = PlansManager(dict(plans))
    planned, label_manager = manager.get_configuration(configuration), manager.get_label_manager(dict(dataset_json))
    if len(planned.patch_size) != 3:
        raise InputError(f"the configuration {configuration} of slices", "a 3D one", "choose one with -m")
    blocks = read_blocks(data, planned.spacing, voxels=settings.voxels, progress=progress)
    task = task_of(labels, label_manager)
    _check_size(blocks, task, settings)
    with held(output, "map", "a map"):
        if overwrite:
            (output / CHECKPOINT).unlink(missing_ok=True)
            shutil.rmtree(output / PREDICTIONS, ignore_errors=True)
        try:
            training = MapTraining(blocks, task, settings, output / CHECKPOINT, device=torch.device(device))
            training.run(progress=progress)
        except OSError as error:
            raise unwritable(output, error) from None
        last = training.readings[-1]
        (output / PREDICTIONS).mkdir(exist_ok=True)
        files = {}
        predicted = predictions(training.network, blocks, last.clusters, training.device)
        for block, logits in tqdm(predicted, desc="predictions", total=len(blocks.of), disable=not progress):
            files[block.case] = output / PREDICTIONS / f"{block.case}{labels.ending}"
            if not files[block.case].is_file():
                whole = on_grid(logits, block, blocks.frame, regions=task.regions)
                member = Prediction(whole, dict(block.properties), manager, planned)
                write_label(labels_of([member], label_manager), files[block.case], manager, block.properties)
    where = last.clusters
    found = LatentMap(blocks.cases, last.latents, where.of, where.silhouette, last.rarity)
    notes: tuple[str, ...] = ()
    if last.dice < READABLE:
        told = f"{last.dice:.2f} after {last.epoch} epoch{'s' * (last.epoch != 1)}, below {READABLE}"
        notes = (f"The map has hardly learned what the labels are (mean Dice {told}): its list says little.",)
    return MapResult(found, tuple(labels.of), training.readings, files, notes)


def task_of(labels: Labels, label_manager: LabelManager) -> Task:
    """What the network of a map is to learn, after nnU-Net's reading of the same dataset.json."""
    order = tuple(label_manager.regions_class_order or ()) if label_manager.has_regions else ()
    outputs = label_manager.all_regions if label_manager.has_regions else label_manager.all_labels
    heads = [tuple(map(int, one)) if isinstance(one, tuple | list) else (int(one),) for one in outputs]
    return Task(labels.values, heads, bool(label_manager.has_regions), order, labels.ignore)


def _check_size(blocks: Blocks, task: Task, settings: MapSettings) -> None:
    count = parameter_count(
        len(blocks.of[0].image), len(task.heads), n_down=blocks.frame.levels, n_fix=1, features=settings.channels
    )
    if count > settings.max_parameters:
        raise InputError(
            f"a hyper-network of {count / 1e6:.1f} million parameters",
            f"{settings.max_parameters / 1e6:.1f} million at the most",
            "choose fewer --channels or --voxels, or a higher --max-parameters",
        )
