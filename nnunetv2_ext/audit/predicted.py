"""What a map predicts for a block, as a label file on the grid of the case's own."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor

from nnunetv2_ext.audit.blocks import Block, Frame
from nnunetv2_ext.data.volumes import write_label_file
from nnunetv2_ext.files import unwritable
from nnunetv2_ext.inference.windows import SURE

LARGEST = 6e4
"""Of a logit, which half precision holds."""


def on_grid(logits: Tensor, block: Block, frame: Frame, *, regions: bool) -> Tensor:
    """Logits of a block in the preprocessed image, background around it: (heads, *block) -> (heads, *grid), half."""
    whole = torch.full((len(logits), *block.grid), -SURE, dtype=torch.half)
    if not regions:
        whole[0] = SURE
    inside = block.box.clipped(block.grid)
    assert inside is not None
    crop = F.interpolate(logits[None].float().cpu(), frame.crop, mode="trilinear")[0]
    there, here = inside.slices, inside.seen_from(block.box.low).slices
    part = crop[:, here[0], here[1], here[2]]
    whole[:, there[0], there[1], there[2]] = part.clamp(-LARGEST, LARGEST).half()
    return whole


def write_label(label: np.ndarray, path: Path, manager: PlansManager, properties: Mapping[str, Any]) -> None:
    """Write a label file, whole or not at all; what its writer puts beside it comes first.

    Args:
        label: (Z, Y, X) as nnU-Net's reader has the image.
        properties: nnU-Net's, of the preprocessed case.

    Raises:
        InputError: it cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".part_", dir=path.parent) as part:
            write_label_file(manager.image_reader_writer_class(), label, Path(part, path.name), properties)
            for written in sorted(Path(part).iterdir(), key=lambda one: one.name == path.name):
                written.replace(path.parent / written.name)
    except OSError as error:
        raise unwritable(path, error) from None
