"""One trained model: how its window goes over an image, from the image to the logits."""

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from torch import Tensor

from nnunetv2_ext.data.raw import MOST_VOXELS
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.inference.images import Image
from nnunetv2_ext.inference.models import Loaded
from nnunetv2_ext.inference.windows import SlidingWindow
from nnunetv2_ext.planning.sharing import settings
from nnunetv2_ext.text import listed

MOST_TIMES = 64
"""By so much may resampling multiply the voxels of a large image: four along each axis."""


@dataclass(frozen=True)
class Options:
    """How a sliding window goes over an image; nnU-Net's defaults."""

    step_size: float = 0.5
    """Of the window, in shares of the patch."""
    mirroring: bool = True
    """Average over mirrored copies, along the axes that the training mirrored along."""
    on_device: bool = True
    """Keep the logits of the whole image on the GPU."""
    skip_empty: bool = False
    """Windows of one value throughout are background, without asking the network."""
    linear_z: bool = False
    """Interpolate between slices where nnU-Net takes the nearest one."""

    def __post_init__(self) -> None:
        if not 0 < self.step_size <= 1:
            raise InputError(f"a step size of {self.step_size:g}", "above 0, at most 1", "choose 0.5")


class ModelPredictor:
    """One trained model: from an image to the logits on the grid of its plans."""

    def __init__(self, model: Loaded, device: torch.device, options: Options, previous: "ModelPredictor | None" = None):
        self.model = model
        self.previous = previous
        """Of a cascade, the first stage, whose labels this one reads; None where they are passed."""
        trained, manager, configuration = model.trained, model.plans_manager, model.configuration_manager
        self.preprocessing = json.dumps(settings(manager.plans, configuration.configuration), default=str)
        """What tells preprocessed data apart: those of models with the same text are the same."""
        self.window = SlidingWindow(
            model.network(),
            manager,
            configuration,
            trained.dataset_json,
            trained.trainer_name,
            trained.mirroring_axes,
            list(trained.weights.values()),
            device=device,
            step_size=options.step_size,
            mirroring=options.mirroring,
            on_device=options.on_device,
            skip_empty=options.skip_empty,
        )

    def preprocess(self, image: Image, labels: np.ndarray | None = None) -> tuple[Tensor, dict[str, Any]]:
        """An image as the network reads it, (channels, z, y, x), and nnU-Net's properties of it.

        Args:
            labels: (z, y, x), those of the stage before, which become channels.

        Raises:
            InputError: a spacing with which the image would fill all memory.
        """
        manager, configuration = self.model.plans_manager, self.model.configuration_manager
        _check_spacing(image, manager.transpose_forward, configuration.spacing)
        try:
            data, segmentation, properties = configuration.preprocessor_class(verbose=False).run_case_npy(
                image.voxels,
                None if labels is None else labels[None].astype(np.float32),
                deepcopy(image.properties),
                manager,
                configuration,
                self.model.trained.dataset_json,
            )
        except ValueError as error:
            if "zero-size" not in str(error):
                raise
            size, spacing = listed(image.voxels.shape[1:]), listed(map(float, image.properties["spacing"]))
            raise InputError(
                f"an image of {size} voxels of {spacing} mm, of which nothing is left at the plans' spacing",
                f"a voxel or more of {listed(map(float, configuration.spacing))} mm along each axis",
                "check its spacing, or predict it with a model of finer plans",
            ) from None
        if labels is not None:
            foreground = self.model.label_manager.foreground_labels
            data = np.vstack((data, convert_labelmap_to_one_hot(segmentation[0], foreground, data.dtype)))
        return torch.from_numpy(np.ascontiguousarray(data, np.float32)), properties


def _check_spacing(image: Image, axes: Sequence[int], spacing: Sequence[float]) -> None:
    """Refuse an image whose spacing is of another unit than the plans': a process that fills the memory is killed."""
    size, told = (
        np.array(values, float)[list(axes)] for values in (image.voxels.shape[1:], image.properties["spacing"])
    )
    target = [*told[: 3 - len(spacing)], *spacing]  # a 2D configuration keeps the slices
    resampled = float(np.prod(size * told / target))
    if resampled > max(MOST_VOXELS, MOST_TIMES * float(np.prod(size))):
        shown = [listed(np.round(values, 4).tolist(), separator=" x ") for values in (told, spacing)]
        raise InputError(
            f"a spacing of {shown[0]} mm, with which the image has {resampled:.1e} voxels on the grid of the plans",
            f"one near the plans', {shown[1]} mm",
            "correct its header: is it in mm?",
        )
