"""nnunetv2_ext: networks, planners and trainers for anisotropic volumes, as a plugin for nnU-Net v2.

What this module offers is imported when it is asked for, so that `import nnunetv2_ext` itself stays light.
"""

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunetv2_ext.architectures import BackboneNetwork, ConvFreeTransformer, MNet, PaR, PaRNetwork
    from nnunetv2_ext.errors import InputError
    from nnunetv2_ext.inference.predictor import Predictor
    from nnunetv2_ext.losses import ThinThickLoss
    from nnunetv2_ext.planning.api import plan_and_preprocess
    from nnunetv2_ext.testing import check_network, check_trainer
    from nnunetv2_ext.training.run import train_fold

__version__ = "0.1.0"

__all__ = [
    "BackboneNetwork",
    "ConvFreeTransformer",
    "InputError",
    "MNet",
    "PaR",
    "PaRNetwork",
    "Predictor",
    "ThinThickLoss",
    "check_network",
    "check_trainer",
    "plan_and_preprocess",
    "register",
    "train_fold",
]

_HOMES = {
    **dict.fromkeys(("BackboneNetwork", "ConvFreeTransformer", "MNet", "PaR", "PaRNetwork"), "architectures"),
    "InputError": "errors",
    "Predictor": "inference.predictor",
    "ThinThickLoss": "losses",
    **dict.fromkeys(("check_network", "check_trainer"), "testing"),
    "plan_and_preprocess": "planning.api",
    "train_fold": "training.run",
}
DISCOVERY_FOLDER = Path(__file__).parent / "discovery"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def external_trainer_folders() -> str:
    """The value of `nnUNet_extTrainer` that lets nnU-Net find our trainers: what it already holds, then our folder."""
    held = [folder for folder in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep) if folder.strip()]
    if str(DISCOVERY_FOLDER) not in held:
        held.append(str(DISCOVERY_FOLDER))
    return os.pathsep.join(held)


def register() -> None:
    """Make our trainers known to nnU-Net in this process and in the processes it starts (notebooks, scripts)."""
    os.environ["nnUNet_extTrainer"] = external_trainer_folders()
