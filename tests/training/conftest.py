"""Trainers of ours on hand-made plans: nothing is planned or preprocessed, and no sample is ever read."""

import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunetv2_ext.trainers.mnet import MNetTrainer
from nnunetv2_ext.training.trainer import ExtTrainer

DATASET = "Dataset901_Boxes"
MNET: dict[str, Any] = {
    "network_class_name": "nnunetv2_ext.architectures.MNet",
    "arch_kwargs": {"features_per_stage": [2, 3, 4, 5, 6], "merge": "sum", "min_pool_slices": 4},
    "_kw_requires_import": [],
}
UNET: dict[str, Any] = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "n_stages": 3,
        "features_per_stage": [4, 8, 8],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * 3,
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
        "n_conv_per_stage": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}
LABELS: dict[str, Any] = {"labels": {"background": 0, "left": 1, "right": 2}}
REGIONS: dict[str, Any] = {"labels": {"background": 0, "whole": [1, 2], "right": 2}, "regions_class_order": [1, 2]}


def hand_made_plans(architecture: dict[str, Any] = MNET, **changes: Any) -> dict[str, Any]:
    """Plans with `3d_fullres` of the given architecture, a `2d` one and a cascade; `changes` go into `3d_fullres`."""
    full = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "patch_size": [8, 32, 32],
        "batch_size": 2,
        "spacing": [5.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": False,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
        "architecture": architecture,
    } | changes
    return deepcopy(
        {
            "dataset_name": DATASET,
            "plans_name": "MNetPlans" if architecture is MNET else "nnUNetPlans",
            "image_reader_writer": "SimpleITKIO",
            "label_manager": "LabelManager",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "continue_training": False,
            "configurations": {
                "2d": {**full, "patch_size": [32, 32]},
                "3d_fullres": full,
                "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
            },
        }
    )


def log_epoch(trainer: Any, dice: float = 0.5) -> None:
    """Log what an epoch of nnU-Net logs before it saves, but for what is logged already."""
    epoch = trainer.current_epoch
    for key, value in {
        "epoch_start_timestamps": time.time(),
        "lrs": 0.01,
        "train_losses": -0.1,
        "val_losses": -0.1,
        "dice_per_class_or_region": [dice, dice],
        "mean_fg_dice": dice,
    }.items():
        if len(trainer.logger.get_value(key, step=None)) <= epoch:
            trainer.logger.log(key, value, epoch)


class Build:
    """Builds trainers, MNetTrainers unless told otherwise, in nnU-Net's folders below `folder`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.preprocessed = folder / "nnUNet_preprocessed" / DATASET
        self.fold = folder / "nnUNet_results" / DATASET / "MNetTrainer__MNetPlans__3d_fullres" / "fold_0"

    def __call__(
        self,
        plans: dict[str, Any] | None = None,
        *,
        trainer: type[ExtTrainer] | None = None,
        configuration: str = "3d_fullres",
        labels: dict[str, Any] = LABELS,
        resume: bool = False,
        fold: int = 0,
        **changes: Any,
    ) -> Any:
        plans = hand_made_plans(**changes) if plans is None else plans
        dataset_json = {"channel_names": {"0": "MRI"}, "numTraining": 5, "file_ending": ".nii.gz", **labels}
        return (trainer or MNetTrainer)(
            {**plans, "continue_training": resume}, configuration, fold, deepcopy(dataset_json), torch.device("cpu")
        )

    def initialized(self, *args: Any, **options: Any) -> Any:
        data = self.preprocessed / "nnUNetPlans_3d_fullres"
        data.mkdir(parents=True, exist_ok=True)
        (data / "case.b2nd").touch()
        trainer = self(*args, **options)
        trainer.initialize()
        return trainer

    def log(self) -> str:
        return "\n".join(path.read_text() for path in self.folder.rglob("training_log_*.txt"))


@pytest.fixture
def build(nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    yield Build(nnunet_folders)
