"""The one explicit list of architectures, trainers, planners and backbones. Registered means tested."""

import importlib
from dataclasses import dataclass
from typing import Any

from nnunetv2_ext.errors import InputError


@dataclass(frozen=True)
class Entry:
    """A name that users type, where its class lives, and one line on what it is."""

    name: str
    path: str
    summary: str
    extra: str | None = None
    """The optional dependency group (`pip install nnunetv2_ext[extra]`) that this entry needs."""

    def load(self) -> Any:
        """Import and return the class.

        Raises:
            InputError: an optional dependency is missing; the message names the extra to install.
        """
        module, _, attribute = self.path.rpartition(".")
        try:
            return getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            if self.extra is None:
                raise
            raise InputError(
                f"no module '{error.name}'",
                f"it for {self.name}",
                f"run pip install 'nnunetv2_ext[{self.extra}]'",
            ) from error


ARCHITECTURES = (
    Entry("MNet", "nnunetv2_ext.architectures.mnet.MNet", "2D and 3D streams fused in a 5 x 5 mesh (IJCAI 2022)"),
    Entry("BackboneNetwork", "nnunetv2_ext.architectures.backbones.BackboneNetwork", "any backbone of the list below"),
    Entry(
        "PaRNetwork", "nnunetv2_ext.architectures.par.PaRNetwork", "a backbone and the axial refiner on it (IJCAI 2025)"
    ),
    Entry(
        "ConvFreeTransformer",
        "nnunetv2_ext.architectures.convfree.ConvFreeTransformer",
        "attention and linear layers alone (MICCAI 2021)",
    ),
)
TRAINERS = (
    Entry("MNetTrainer", "nnunetv2_ext.trainers.mnet.MNetTrainer", "MNet with its published schedule, on any 3D plans"),
    Entry("PaRTrainer", "nnunetv2_ext.trainers.par.PaRTrainer", "the axial refiner on the network of any 3D plans"),
    Entry("BackboneTrainer", "nnunetv2_ext.trainers.backbone.BackboneTrainer", "the network of any 3D plans as it is"),
    Entry(
        "ConvFreeTrainer",
        "nnunetv2_ext.trainers.convfree.ConvFreeTrainer",
        "the convolution-free transformer, on any 3D plans that a token divides",
    ),
    Entry(
        "ThinThickTrainer",
        "nnunetv2_ext.trainers.thin_thick.ThinThickTrainer",
        "thin slices from thick annotations, with the network of any 3D plans (2025)",
    ),
)
PLANNERS = (
    Entry("MNetPlanner", "nnunetv2_ext.plans.mnet.MNetPlanner", "plans patch and batch for MNet from its own memory"),
    Entry("PaRPlanner", "nnunetv2_ext.plans.par.PaRPlanner", "plans for the refiner on the --backbone of your choice"),
    Entry("BackbonePlanner", "nnunetv2_ext.plans.backbone.BackbonePlanner", "plans for the --backbone of your choice"),
    Entry(
        "ConvFreePlanner",
        "nnunetv2_ext.plans.convfree.ConvFreePlanner",
        "plans for the convolution-free transformer of the --size of your choice",
    ),
    Entry(
        "ThinThickPlanner",
        "nnunetv2_ext.plans.thin_thick.ThinThickPlanner",
        "plans for thin images with thick annotations and the --backbone of your choice",
    ),
)
_UNETS = "dynamic_network_architectures.architectures.unet"
_MONAI = "monai.networks.nets"
BACKBONES = (
    Entry("PlainConvUNet", f"{_UNETS}.PlainConvUNet", "nnU-Net's own U-Net (Nature Methods 2021)"),
    Entry("ResidualEncoderUNet", f"{_UNETS}.ResidualEncoderUNet", "nnU-Net's residual encoder, planned for 8 GB"),
    Entry("ResidualEncoderUNetM", f"{_UNETS}.ResidualEncoderUNet", "the same, nnU-Net's preset M of 8 GB"),
    Entry("ResidualEncoderUNetL", f"{_UNETS}.ResidualEncoderUNet", "nnU-Net's preset L of 24 GB (MICCAI 2024)"),
    Entry("ResidualEncoderUNetXL", f"{_UNETS}.ResidualEncoderUNet", "nnU-Net's preset XL of 40 GB (MICCAI 2024)"),
    Entry("MNet", "nnunetv2_ext.architectures.mnet.MNet", "2D and 3D streams fused in a 5 x 5 mesh (IJCAI 2022)"),
    Entry("UNet", f"{_MONAI}.unet.UNet", "residual 3D U-Net (MICCAI 2016, STACOM 2018)", extra="monai"),
    Entry("VNet", f"{_MONAI}.vnet.VNet", "V-Net (3DV 2016)", extra="monai"),
    Entry("SegResNet", f"{_MONAI}.segresnet.SegResNet", "residual encoder-decoder (BraTS 2018)", extra="monai"),
    Entry("UNETR", f"{_MONAI}.unetr.UNETR", "ViT encoder, convolutional decoder (WACV 2022)", extra="monai"),
    Entry("SwinUNETR", f"{_MONAI}.swin_unetr.SwinUNETR", "Swin encoder, convolutional decoder (2022)", extra="monai"),
    Entry("MedNeXt", f"{_MONAI}.mednext.MedNeXt", "large-kernel ConvNeXt U-Net (MICCAI 2023)", extra="monai"),
)
KINDS = {"architecture": ARCHITECTURES, "trainer": TRAINERS, "planner": PLANNERS, "backbone": BACKBONES}


def find(kind: str, name: str) -> Entry:
    """The entry called `name` among the architectures, trainers, planners or backbones.

    Raises:
        InputError: unknown name; the message lists the known ones.
    """
    known = {entry.name: entry for entry in KINDS[kind]}
    if name not in known:
        raise InputError(f"the {kind} '{name}'", f"one of {', '.join(known)}", "see `nnunetv2_ext list`")
    return known[name]
