"""Models of small random networks in nnU-Net's folders, without data and training, and images for them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_ext.inference.models import trainer_class

NAME, NUMBER = "Dataset710_Small", 710
LABELS: dict[str, Any] = {"background": 0, "liver": 1, "tumour": 2}
DESCRIPTION = {"channel_names": {"0": "MR"}, "labels": LABELS, "numTraining": 5, "file_ending": ".nii.gz"}
SPACING = (3.5, 1.2, 0.9)  # of images, z, y, x; the plans' is 3, 1, 1


def _configuration(patch: Sequence[int], spacing: Sequence[float], strides: Sequence[Any], **more: Any) -> Any:
    axes = len(patch)
    resampling = {"order_z": 0, "force_separate_z": None}
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": len(strides),
            "features_per_stage": [4, 6, 8][: len(strides)],
            "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
            "kernel_sizes": [[3] * axes] * len(strides),
            "strides": strides,
            "n_conv_per_stage": [1] * len(strides),
            "n_conv_per_stage_decoder": [1] * (len(strides) - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    return {
        "data_identifier": "nnUNetPlans_any",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [*patch],
        "median_image_size_in_voxels": [8.0, 32.0, 32.0][-axes:],
        "spacing": [*spacing],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **resampling},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **resampling},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, **resampling},
        "architecture": architecture,
        "batch_dice": False,
        **more,
    }


def plans(channels: int = 1, reader: str = "SimpleITKIO", transpose: Sequence[int] = (0, 1, 2)) -> dict[str, Any]:
    """Plans of 2d, 3d_fullres and a cascade."""
    strides = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
    low = _configuration((6, 16, 16), (3.0, 1.6, 1.6), strides, next_stage="3d_cascade_fullres")
    configurations: dict[str, Any] = {
        "2d": _configuration((24, 20), (1.0, 1.0), [[1, 1], [2, 2]]),
        "3d_fullres": _configuration((6, 24, 20), (3.0, 1.0, 1.0), strides),
        "3d_lowres": low,
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    }
    for configuration in configurations.values():
        for key in ("normalization_schemes", "use_mask_for_norm"):
            if key in configuration:
                configuration[key] = configuration[key] * channels
    names = ("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std")
    return {
        "dataset_name": NAME,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [3.0, 1.0, 1.0],
        "original_median_shape_after_transp": [8, 32, 32],
        "image_reader_writer": reader,
        "transpose_forward": [*transpose],
        "transpose_backward": [int(axis) for axis in np.argsort(transpose)],
        "configurations": configurations,
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(n): dict.fromkeys(names, 1.0) for n in range(channels)},
    }


def write_model(
    root: Path,
    configuration: str = "3d_fullres",
    *,
    trainer: str = "nnUNetTrainer",
    name: str = NAME,
    description: Mapping[str, Any] = DESCRIPTION,
    of_plans: Mapping[str, Any] | None = None,
    folds: Sequence[int] = (0,),
    drawn: str = "",
) -> Path:
    """A model folder as a training leaves it, its networks as they are before the first step.

    Args:
        root: the folder that nnUNet_results lies in.
        of_plans: by default `plans()`.
        drawn: part of the names of the weights that are drawn so wide that logits tell classes apart.
    """
    content = {**plans(), **(of_plans or {}), "dataset_name": name}
    model = root / "nnUNet_results" / name / f"{trainer}__nnUNetPlans__{configuration}"
    manager = PlansManager(content)
    labels, planned = manager.get_label_manager(description), manager.get_configuration(configuration)
    for fold in folds:
        torch.manual_seed(fold + sum(map(ord, configuration)))
        network = trainer_class(trainer).build_network_architecture(
            manager,
            planned,
            determine_num_input_channels(manager, planned, description),
            labels.num_segmentation_heads,
            enable_deep_supervision=True,
        )
        with torch.no_grad():
            for key, parameter in network.named_parameters():
                if drawn in key and parameter.ndim > 1:
                    parameter.normal_(0, (2 / parameter[0].numel()) ** 0.5)
        checkpoint = {
            "network_weights": network.state_dict(),
            "trainer_name": trainer,
            "init_args": {"plans": content, "configuration": configuration, "fold": fold, "dataset_json": description},
            "inference_allowed_mirroring_axes": tuple(range(len(planned.patch_size))),
        }
        (model / f"fold_{fold}").mkdir(parents=True)
        torch.save(checkpoint, model / f"fold_{fold}" / "checkpoint_final.pth")
    (model / "plans.json").write_text(json.dumps(content))
    (model / "dataset.json").write_text(json.dumps(description))
    return model


def write_image(path: Path, seed: int, shape: Sequence[int] = (7, 26, 28), spacing: Sequence[float] = SPACING) -> None:
    """One channel: blocks of different brightness and noise, so that every label occurs."""
    random = np.random.default_rng(seed)
    blocks = np.kron(random.normal(0, 100, [-(-length // 4) for length in shape]), np.ones([4] * len(shape)))
    voxels = blocks[tuple(map(slice, shape))] + random.normal(0, 10, shape)
    image = sitk.GetImageFromArray(voxels.astype(np.float32))
    image.SetSpacing([float(length) for length in spacing[::-1]])
    image.SetOrigin([-12.5, 40.25, 7.0][: len(shape)])
    sitk.WriteImage(image, str(path))


def write_images(folder: Path, cases: int, *, channels: int = 1, ending: str = ".nii.gz", **of_image: Any) -> Path:
    """A new folder of cases c0, c1, ..."""
    folder.mkdir(parents=True)
    for case in range(cases):
        for channel in range(channels):
            write_image(folder / f"c{case}_{channel:04d}{ending}", 10 * case + channel, **of_image)
    return folder
