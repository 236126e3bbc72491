"""nnunetv2_ext: networks, planners and trainers for anisotropic volumes, as a plugin for nnU-Net v2."""

import os
from pathlib import Path

__version__ = "0.1.0"

DISCOVERY_FOLDER = Path(__file__).parent / "discovery"


def external_trainer_folders() -> str:
    """The value of `nnUNet_extTrainer` that lets nnU-Net find our trainers: what it already holds, then our folder."""
    held = [folder for folder in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep) if folder.strip()]
    if str(DISCOVERY_FOLDER) not in held:
        held.append(str(DISCOVERY_FOLDER))
    return os.pathsep.join(held)


def register() -> None:
    """Make our trainers known to nnU-Net in this process and in the processes it starts (notebooks, scripts)."""
    os.environ["nnUNet_extTrainer"] = external_trainer_folders()
