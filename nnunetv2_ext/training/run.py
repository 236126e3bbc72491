"""Train one fold in this process, for the benchmarks and scripts; users have nnU-Net's commands."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nnunetv2_ext
from nnunetv2_ext.block import merge_blocks, planned_block
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import dataset_name, nnunet_folder, read_json, read_plans

# what nnU-Net's own trainers, which know no `training` block, call these settings
_NNUNET_ATTRIBUTES = {
    "epochs": "num_epochs",
    "iterations_per_epoch": "num_iterations_per_epoch",
    "val_iterations_per_epoch": "num_val_iterations_per_epoch",
}


def train_fold(
    dataset: int | str,
    configuration: str,
    fold: int | str,
    *,
    trainer: str | type,
    plans: str,
    training: Mapping[str, Any] | None = None,
    device: str = "cpu",
    save_probabilities: bool = False,
) -> Path:
    """Train and validate one fold with any trainer, ours or nnU-Net's own.

    Args:
        dataset: id or name.
        trainer: its name, or the class itself where nnU-Net would not find it.
        training: keys of the `training` block that go over the plans' for this training. nnU-Net's own trainers take
            epochs, iterations_per_epoch, val_iterations_per_epoch and batch_size of it.
        device: "cpu", "cuda" or "mps".
        save_probabilities: keep the validation's probabilities, as `--npz` does.

    Returns:
        The fold's folder, which then holds checkpoint_final.pth and validation/summary.json.

    Raises:
        InputError: no such data set or plans, or a key that nnU-Net's own trainers have no place for.
    """
    instance = make_trainer(
        dataset, configuration, fold, trainer=trainer, plans=plans, training=training, device=device
    )
    instance.run_training()
    instance.perform_actual_validation(save_probabilities)
    return Path(instance.output_folder)


def make_trainer(
    dataset: int | str,
    configuration: str,
    fold: int | str,
    *,
    trainer: str | type,
    plans: str,
    training: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> Any:
    """The trainer that `train_fold` runs; same arguments and errors."""
    nnunetv2_ext.register()
    import torch
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    from nnunetv2_ext.training.trainer import ExtTrainer

    folder = nnunet_folder("nnUNet_preprocessed") / dataset_name(dataset)
    remedy = "run nnunetv2_ext plan_and_preprocess"
    content = read_plans(folder / f"{plans}.json", remedy)
    settings = dict(training or {})
    trainer_class = recursive_find_trainer_class_by_name(trainer) if isinstance(trainer, str) else trainer
    ours = issubclass(trainer_class, ExtTrainer)
    planned = content["configurations"].get(configuration)
    if planned is not None and ours:
        planned["training"] = merge_blocks(planned_block(content["configurations"], configuration), settings)
    elif planned is not None and settings.get("batch_size"):
        planned["batch_size"] = settings["batch_size"]
    instance = trainer_class(
        plans={**content, "continue_training": False},
        configuration=configuration,
        fold=fold,
        dataset_json=read_json(folder / "dataset.json", remedy),
        device=torch.device(device),
    )
    if not ours:
        for key in settings.keys() - {"batch_size"}:
            if key not in _NNUNET_ATTRIBUTES:
                raise InputError(
                    f"training key '{key}' for {trainer_class.__name__}", ", ".join(_NNUNET_ATTRIBUTES), "drop it"
                )
            setattr(instance, _NNUNET_ATTRIBUTES[key], settings[key])
    return instance
