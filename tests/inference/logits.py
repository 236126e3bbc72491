"""Random logits of a case, and what nnU-Net makes of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch.nn import functional

from nnunetv2_ext.inference.export import Prediction, write_probabilities

RESAMPLING = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
DATA = {**RESAMPLING, "order": 3}


def labels(classes: int, **more: Any) -> LabelManager:
    """Background and so many classes less one."""
    return LabelManager({"background": 0, **{f"label {k}": k for k in range(1, classes)}, **more}, None)


def made(
    grid: Sequence[int],
    image: Sequence[int],
    *,
    heads: int = 3,
    plans_spacing: Sequence[float] = (1.0, 1.0, 1.0),
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    order: Sequence[int] = (0, 1, 2),
    around: Sequence[tuple[int, int]] = ((0, 0), (0, 0), (0, 0)),
    dtype: torch.dtype = torch.half,
    noise: float = 1.0,
    seed: int = 0,
    function: str = "resample_data_or_seg_to_shape",
    options: dict[str, Any] = RESAMPLING,
    data_function: str = "resample_data_or_seg_to_shape",
    data_options: dict[str, Any] = DATA,
    weight: float = 1.0,
) -> Prediction:
    """Random logits on `grid`, to be exported to `image` with `around` it what was cropped.

    Grid, image and `around` are in the order of the plans, spacing in the image's, as in nnU-Net.
    """
    generator = torch.Generator().manual_seed(seed)
    smooth = functional.interpolate(torch.randn((1, heads, 2, 3, 3), generator=generator) * 4, tuple(grid))[0]
    logits = smooth + noise * torch.randn((heads, *grid), generator=generator)
    configuration = {
        "architecture": {},
        "spacing": list(plans_spacing),
        "resampling_fn_data": data_function,
        "resampling_fn_data_kwargs": data_options,
        "resampling_fn_probabilities": function,
        "resampling_fn_probabilities_kwargs": options,
    }
    plans = {"transpose_forward": list(order), "transpose_backward": np.argsort(order).tolist(), "configurations": {}}
    properties = {
        "spacing": list(spacing),
        "shape_before_cropping": tuple(low + size + high for size, (low, high) in zip(image, around, strict=True)),
        "shape_after_cropping_and_before_resampling": tuple(image),
        "bbox_used_for_cropping": [[low, low + size] for size, (low, _) in zip(image, around, strict=True)],
    }
    return Prediction(logits.to(dtype), properties, PlansManager(plans), ConfigurationManager(configuration), weight)


def stock(prediction: Prediction, manager: LabelManager, *, probabilities: bool = False) -> Any:
    """nnU-Net's own export."""
    return convert_predicted_logits_to_segmentation_with_correct_shape(
        prediction.logits,
        prediction.plans_manager,
        prediction.configuration_manager,
        manager,
        prediction.properties,
        return_probabilities=probabilities,
        num_threads_torch=torch.get_num_threads(),
    )


def written(predictions: Sequence[Prediction], manager: LabelManager, folder: Path, **options: Any) -> np.ndarray:
    """What `write_probabilities` writes, as numpy reads it."""
    path = folder / "case.npz"
    write_probabilities(predictions, manager, path, **options)
    with np.load(path) as file:
        assert file.files == ["probabilities"]
        return file["probabilities"]
