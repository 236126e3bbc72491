"""Backbones by name: the one list, collected from the records of each origin. `network` holds the wrapper."""

from nnunetv2_ext.architectures.backbones import monai, nnunet, ours
from nnunetv2_ext.architectures.backbones.record import Backbone
from nnunetv2_ext.entry import named

DEFAULT_BACKBONE = "PlainConvUNet"

BACKBONES: list[Backbone] = [*nnunet.BACKBONES, *ours.BACKBONES, *monai.BACKBONES]


def find_backbone(name: str) -> Backbone:
    """The record of that name.

    Raises:
        InputError: unknown name; the message lists the known ones.
    """
    return named("backbone", BACKBONES, name)
