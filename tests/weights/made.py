"""Weights as they are found: published state dicts of MNet in their wrappings, checkpoints of trained backbones."""

from pathlib import Path

import numpy as np
import torch

from nnunetv2_ext.architectures import BackboneNetwork
from nnunetv2_ext.cli import main
from tests.architectures.plain_mnet import PlainMNet
from tests.training.conftest import LABELS, MNET, UNET, hand_made_plans

FEATURES = (2, 3, 4, 5, 6)


def published(merge: str = "difference", input_channels: int = 2, num_classes: int = 3) -> PlainMNet:
    """A network whose state dict has the published names."""
    torch.manual_seed(3)
    return PlainMNet(input_channels, num_classes, features_per_stage=FEATURES, merge=merge)


def in_parallel(state_dict):
    return {f"module.{key}": value for key, value in state_dict.items()}


def in_v1_checkpoint(state_dict):
    return {"epoch": 500, "state_dict": state_dict, "plot_stuff": [np.float64(0.5), np.zeros(2)], "at": Path("x")}


def in_plain_checkpoint(state_dict):
    return {"epoch": 500, "state_dict": state_dict}


# method par: PlainConvUNet on stock plans, as nnUNetTrainer and BackboneTrainer hold it, and MNet
TRAINED = {
    "nnUNetTrainer": (UNET, lambda backbone: backbone.network),
    "BackboneTrainer": (UNET, lambda backbone: backbone),
    "MNetTrainer": (MNET, lambda backbone: backbone.network),
}
DESCRIPTION = {"channel_names": {"0": "MRI"}, "numTraining": 5, "file_ending": ".nii.gz", **LABELS}


def trained(architecture=UNET, **changes):
    """A trained backbone, and the plans that it was trained with."""
    torch.manual_seed(5)
    plans = hand_made_plans(architecture, **changes)
    backbone = BackboneNetwork(
        1,
        3,
        backbone=architecture["network_class_name"],
        spatial_shape=plans["configurations"]["3d_fullres"]["patch_size"],
        backbone_kwargs=architecture["arch_kwargs"],
    )
    return backbone, plans


def checkpoint(network, plans, trainer="nnUNetTrainer", configuration="3d_fullres"):
    """What nnU-Net's trainer saves, with the numbers of numpy in its logs."""
    losses = [np.float64(-0.5), np.float32(-0.6), np.float64(-0.7)]
    return {
        "network_weights": network.state_dict(),
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": {"val_losses": losses, "dice_per_class_or_region": [[np.float64(0.1), np.float32(0)]]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 3,
        "init_args": {
            "plans": plans,
            "configuration": configuration,
            "fold": 0,
            "dataset_json": DESCRIPTION,
            "device": torch.device("cpu"),
        },
        "trainer_name": trainer,
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }


def start_of_par(tmp_path, content, *flags):
    source, output = tmp_path / "checkpoint_final.pth", tmp_path / "start.pth"
    torch.save(content, source)
    return main(["import_weights", "par", str(source), "-o", str(output), *flags]), output
