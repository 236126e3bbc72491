"""What the folder of a trained model tells: how it was planned and trained, and its curves, fold by fold."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch

from nnunetv2_ext.block import planned_block, resolve_block
from nnunetv2_ext.errors import InputError, is_whole
from nnunetv2_ext.evaluation.summary import Summary
from nnunetv2_ext.files import read_json
from nnunetv2_ext.inference.record import sources
from nnunetv2_ext.registry import TRAINERS
from nnunetv2_ext.text import duration, listed
from nnunetv2_ext.weights.checkpoint import prediction_faults, read_checkpoint
from nnunetv2_ext.weights.files import BEST, FINAL, LATEST
from nnunetv2_ext.weights.safe import AGAIN, TRAINING, trained_folds

CURVES = ("train_losses", "val_losses", "mean_fg_dice", "ema_fg_dice")
"""What nnU-Net logs once an epoch: losses, the pseudo Dice of random patches, and its moving average."""
REMEDY = "copy the model again"


class Fold(NamedTuple):
    """The training of one fold."""

    name: str
    epochs: int | None = None
    curves: Mapping[str, Sequence[float]] = {}
    """Of `CURVES`, those that the checkpoint holds."""
    seconds: float | None = None
    ended: str = ""
    """The day on which the last epoch ended."""
    checkpoint: str = FINAL


class Trained(NamedTuple):
    """A trained model."""

    name: str
    """That of its folder, `TRAINER:PLANS:CONFIG`."""
    settings: Mapping[str, str]
    """In words, by name; empty where nothing is known."""
    folds: Sequence[Fold]
    faults: Sequence[str]
    """Why something is not known, a sentence each."""


def prediction_folders(summary: Summary) -> list[Path]:
    """Where the predictions of a model lie: one folder, or that of each fold."""
    return sorted({prediction.parent for _, prediction in summary.files.values()})


def model_folders(summary: Summary) -> dict[Path, tuple[str, ...]]:
    """The trained models behind an evaluated one, with their folds: as it tells, or by what `predict` wrote."""
    found: dict[Path, tuple[str, ...]] = {}
    for folder in prediction_folders(summary):
        found |= {source.folder: source.folds for source in sources(folder)}
    if not summary.model_folders:
        return found
    return {folder: summary.folds or found.get(folder, ()) for folder in summary.model_folders}


def describe_model(folder: Path, folds: Sequence[str] = ()) -> Trained:
    """What a model folder tells, nnU-Net's or one that `safe_export` wrote; nothing in its files is run.

    Args:
        folds: names after `fold_`; none: all that were trained.
    """
    name = folder.name.replace("__", ":")
    if not folder.is_dir():
        return Trained(name, {}, (), (f"Its folder {folder} is not there, which tells how it was trained.",))
    there = sorted(path.name.removeprefix("fold_") for path in folder.glob("fold_*") if path.is_dir())
    settings: dict[str, str] = {}
    known, faults = [], []
    for fold in folds or there:
        try:
            checkpoint, content = _read(folder, fold)
        except InputError as error:
            faults.append(f"Fold {fold}: {error}")
            continue
        settings = settings or _settings(folder, content)
        known.append(_fold(fold, checkpoint, content))
    if not (folds or there):
        faults.append(f"No fold in {folder}.")
    if known:
        settings["folds"] = listed(fold.name for fold in known)
        settings["epochs trained"] = listed("?" if fold.epochs is None else fold.epochs for fold in known)
        if any(fold.seconds for fold in known):
            settings["training time"] = listed("?" if not fold.seconds else duration(fold.seconds) for fold in known)
        if ended := [fold.ended for fold in known if fold.ended]:
            settings["trained on"] = max(ended)
        if unfinished := [f"fold {fold.name}: {fold.checkpoint}" for fold in known if fold.checkpoint != FINAL]:
            settings["not finished"] = listed(unfinished)
    return Trained(name, settings, tuple(known), tuple(faults))


def _read(folder: Path, fold: str) -> tuple[str, Mapping[str, Any]]:
    """The name of a fold's furthest checkpoint, and its content.

    Raises:
        InputError: it is missing or damaged.
    """
    exported = folder / f"fold_{fold}" / TRAINING
    if exported.is_file():
        content = read_json(exported, AGAIN)
        if faults := prediction_faults({"network_weights": {"": torch.zeros(1)}, "trainer_name": "", **content}):
            raise InputError(f"a damaged {exported} ({faults[0]})", "what safe_export writes", AGAIN)
        return FINAL, content
    names = [name for name in (FINAL, LATEST, BEST) if (folder / f"fold_{fold}" / name).is_file()] or [FINAL]
    trained_folds(folder, [fold], names[0])  # tells which folds there are
    return names[0], read_checkpoint(folder / f"fold_{fold}" / names[0], resume=False, remedy=REMEDY)


def _fold(name: str, checkpoint: str, content: Mapping[str, Any]) -> Fold:
    log, epochs = content.get("logging"), content.get("current_epoch")
    log = log if isinstance(log, dict) else {}
    curves = {key: [float(value) for value in log[key]] for key in CURVES if _is_curve(log.get(key))}
    starts, ends = log.get("epoch_start_timestamps"), log.get("epoch_end_timestamps")
    if not (_is_curve(starts) and _is_curve(ends)):
        return Fold(name, epochs if is_whole(epochs, least=0) else None, curves, checkpoint=checkpoint)
    seconds = sum(end - start for start, end in zip(starts, ends, strict=False))
    ended = datetime.fromtimestamp(float(ends[-1]), timezone.utc).date().isoformat()
    return Fold(name, epochs if is_whole(epochs, least=0) else len(ends), curves, float(seconds), ended, checkpoint)


def _is_curve(values: Any) -> TypeGuard[list[float]]:
    return isinstance(values, list) and bool(values) and all(isinstance(value, Real) for value in values)


def _settings(folder: Path, content: Mapping[str, Any]) -> dict[str, str]:
    """How the model was planned, by the plans that its checkpoint holds."""
    made = content["init_args"]
    plans, name = made["plans"], made["configuration"]
    trainer = content.get("trainer_name", folder.name.partition("__")[0])
    configurations = plans["configurations"]
    planned: dict[str, Any] = {}
    above, others = name, dict(configurations)
    while isinstance(part := others.pop(above, None), dict):  # a configuration may inherit from another
        planned, above = {**part, **planned}, part.get("inherits_from")
    architecture = planned.get("architecture")
    architecture = architecture if isinstance(architecture, dict) else {}
    told: dict[str, Any] = {
        "data set": plans.get("dataset_name"),
        "trainer": trainer,
        "plans": plans.get("plans_name"),
        "configuration": name,
        "network": str(architecture.get("network_class_name", "")).rpartition(".")[2],
        "parameters": _parameters(content.get("network_weights")),
        "patch": _by(planned.get("patch_size"), "voxels"),
        "batch": planned.get("batch_size"),
        "spacing": _by(planned.get("spacing"), "mm"),
        "median image": _by(planned.get("median_image_size_in_voxels"), "voxels"),
        "normalisation": listed(planned.get("normalization_schemes") or ()),
        "features": listed(_features(architecture)),
        **_training(configurations, name, trainer),
        "planned by": _planned_by(plans),
    }
    return {key: str(value) for key, value in told.items() if value not in (None, "")}


def _by(numbers: Any, unit: str) -> str:
    return f"{listed(map(float, numbers), separator=' x ')} {unit}" if isinstance(numbers, list) and numbers else ""


def _features(architecture: Mapping[str, Any]) -> list[Any]:
    features = (architecture.get("arch_kwargs") or {}).get("features_per_stage")
    return features if isinstance(features, list) else []


def _parameters(weights: Any) -> str:
    """Numbers in the weights, those of two names once."""
    if not isinstance(weights, dict):
        return ""
    tensors = {(tensor.data_ptr(), tensor.numel()): tensor.numel() for tensor in weights.values()}
    return f"{sum(tensors.values()) / 1e6:.3g} million"


def _training(configurations: Mapping[str, Any], name: str, trainer: Any) -> dict[str, str]:
    """The training block, of the trainers that follow one."""
    ours = next((entry for entry in TRAINERS if entry.name == trainer), None)
    if ours is None:
        return {}
    try:
        block = resolve_block(planned_block(configurations, name), ours.load().published_block)
    except (InputError, LookupError):
        return {}
    told = {}
    for key, value in block.items():
        key = key.replace("_", " ")
        if isinstance(value, Mapping):
            words = [f"{word.replace('_', ' ')} {_short(number)}" for word, number in value.items() if word != "name"]
            told[key] = listed([*([value["name"]] if "name" in value else []), *words])
        elif value is not None and value is not False:
            told[key] = _short(value)
    return told


def _short(value: Any) -> str:
    if isinstance(value, list):
        return listed(_short(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _planned_by(plans: Mapping[str, Any]) -> str:
    made = plans.get("made_by")
    if isinstance(made, dict):
        return f"{made.get('planner')} (nnunetv2_ext {made.get('version')})"
    return str(plans.get("experiment_planner_used", ""))
