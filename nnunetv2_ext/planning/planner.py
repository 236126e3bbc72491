"""The base of our planners: nnU-Net's rules for spacing, our network, our search for patch and batch."""

import json
import warnings
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.paths import nnunet_folder, read_json
from nnunetv2_ext.planning.memory import memory_gb
from nnunetv2_ext.registry import find
from nnunetv2_ext.training.schedule import check_schedule, merge_schedule, resolve_schedule

# where two configurations agree on these, they read the same preprocessed data
_PREPROCESSING_KEYS = (
    "preprocessor_name",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_seg",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg_kwargs",
)
STOCK_PLANS = "nnUNetPlans"


class ExtPlanner(ExperimentPlanner):
    """nnU-Net's planner for a network with our contract; 3D configurations only.

    Spacing, transposition, normalisation, resampling and the low-resolution stage follow nnU-Net. A method subclasses
    it with its network, its trainer and its memory estimate.
    """

    architecture: ClassVar[str]
    """The network's name in the registry."""
    trainer: ClassVar[str]
    """The trainer whose published schedule goes into the plans."""
    plans_name: ClassVar[str]
    """The plans identifier, see `default_plans_name`."""
    min_patch: ClassVar[tuple[int, int, int]] = (1, 32, 32)
    """Below this the search does not shrink a patch (voxels)."""
    patch_divisor: ClassVar[tuple[int, int, int]] = (1, 1, 1)
    """Patches are rounded up to multiples of this."""

    # What the user sets; on a subclass (`with_options`), since nnU-Net builds the planner.
    options: ClassVar[tuple[str, ...]] = ("patch_size",)
    """The attributes that the user may set beside the schedule."""
    schedule: ClassVar[dict[str, Any]] = {}
    """The user's part of the `training` block."""
    patch_size: ClassVar[list[int] | None] = None
    """The user's patch (z, y, x) instead of the search's."""

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float | None = None,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str | None = None,
        overwrite_target_spacing: list[float] | None = None,
        suppress_transpose: bool = False,
    ):
        super().__init__(
            dataset_name_or_id,
            self.default_memory_target() if gpu_memory_target_in_gb is None else gpu_memory_target_in_gb,
            preprocessor_name,
            plans_name or self.default_plans_name(),
            overwrite_target_spacing,
            suppress_transpose,
        )
        self._counts: dict[str, tuple[float, int]] = {}
        if self.schedule.get("freeze_backbone"):
            network = find("architecture", self.architecture).load()
            if not hasattr(network, "freeze_backbone"):
                raise InputError(
                    f"freeze_backbone for {type(self).__name__}",
                    "a planner of a refined network, PaRPlanner",
                    "drop it",
                )

    def default_memory_target(self) -> float:
        """GPU memory (GB) that patch and batch may fill, unless the user gives another."""
        return 8

    def default_plans_name(self) -> str:
        """The plans identifier, unless the user gives another."""
        return self.plans_name

    def architecture_kwargs(self, patch_size: list[int], spacing: np.ndarray) -> dict[str, Any]:
        """The network's keyword arguments for the plans.

        Args:
            patch_size: (z, y, x) in voxels.
            spacing: (z, y, x) in mm.
        """
        raise NotImplementedError

    def feature_map_size(
        self, patch_size: list[int], spacing: np.ndarray, input_channels: int, output_channels: int
    ) -> float:
        """Elements of feature maps per sample, in the measure of `nnunetv2_ext.planning.memory`.

        Counted on the network itself, unless a subclass knows a formula.
        """
        return self._counted(patch_size, spacing, input_channels, output_channels)[0]

    def weights_gb(
        self, patch_size: list[int], spacing: np.ndarray, input_channels: int, output_channels: int
    ) -> float:
        """GPU memory (GB) of weights, gradients and optimizer, which patch and batch leave free.

        0 by default: the reference of nnU-Net's measure holds those of a U-Net.
        """
        return 0.0

    def _counted(
        self, patch_size: list[int], spacing: np.ndarray, input_channels: int, output_channels: int
    ) -> tuple[float, int]:
        """Elements of feature maps per sample and number of parameters of the network, built without values."""
        kwargs = self.architecture_kwargs(patch_size, spacing)
        key = json.dumps([[int(size) for size in patch_size], input_channels, output_channels, kwargs])
        if key not in self._counts:  # nnU-Net asks again for every spacing of 3d_lowres that it tries
            with torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # initialising what has no values
                network = find("architecture", self.architecture).load()(input_channels, output_channels, **kwargs)
            parameters = sum(parameter.numel() for parameter in network.parameters())
            self._counts[key] = (network.compute_conv_feature_map_size(patch_size), parameters)
        return self._counts[key]

    def fitted_patch(self, patch_size: np.ndarray, spacing: np.ndarray) -> np.ndarray:
        """The patch rounded up to a size that the network takes."""
        divisor = np.array(self.patch_divisor)
        return np.maximum(np.ceil(patch_size / divisor) * divisor, self.min_patch).astype(int)

    def suits(self, patch_size: np.ndarray, spacing: np.ndarray) -> bool:
        """Whether the search may end with this patch; one that the network takes, but badly, may be passed over."""
        return True

    def published_schedule(self) -> Mapping[str, Any]:
        """What the method does otherwise than nnU-Net."""
        return find("trainer", self.trainer).load().published_schedule

    def training_block(self, schedule: Mapping[str, Any], configuration: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration's `training` block, from the resolved schedule that all configurations share."""
        return deepcopy(dict(schedule))

    def further_entries(self, arch_kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """What a method adds to a configuration, from the network's keyword arguments."""
        return {}

    def plan_experiment(self) -> dict[str, Any]:
        shapes = np.array(self.dataset_fingerprint["shapes_after_crop"])
        if shapes.shape[1] != 3 or np.median(shapes, axis=0).min() <= 1:
            raise InputError(
                f"the data set {self.dataset_name} of 2D images (median shape {np.median(shapes, axis=0).tolist()})",
                f"volumes for {type(self).__name__}",
                "plan it with nnU-Net's own ExperimentPlanner",
            )
        return super().plan_experiment()

    def get_plans_for_configuration(
        self,
        spacing: Any,
        median_shape: Any,
        data_identifier: str,
        approximate_n_voxels_dataset: float,
        _cache: dict[str, Any],
    ) -> dict[str, Any]:
        if len(spacing) == 2:  # nnU-Net plans a 2d configuration in any case; `save_plans` drops it
            return {}
        channels = self.dataset_json.get("channel_names", self.dataset_json.get("modality"))
        sizes = (len(channels), len(self.dataset_json["labels"]))
        spacing_mm, median = np.asarray(spacing, float), np.asarray(median_shape, float)
        if self.patch_size is None:
            patch_size = self._search_patch(spacing_mm, median, sizes)
        elif data_identifier == self.generate_data_identifier("3d_lowres"):  # of any spacing that nnU-Net tries
            patch_size = self.fitted_patch(np.array(self.patch_size), spacing_mm).tolist()
        else:
            patch_size = self._checked_patch(self.patch_size, spacing_mm)
        per_sample = memory_gb(self.feature_map_size(patch_size, spacing_mm, *sizes), 1)
        weights = self.weights_gb(patch_size, spacing_mm, *sizes)
        fitting = int((self.UNet_vram_target_GB - weights) / per_sample)
        # nnU-Net's guard against over-fitting: a batch sees at most 5 % of the data set
        covering = round(approximate_n_voxels_dataset * self.max_dataset_covered / np.prod(patch_size, dtype=float))
        arch_kwargs = self.architecture_kwargs(patch_size, spacing_mm)
        resampling_data, data_kwargs, resampling_seg, seg_kwargs = self.determine_resampling()
        resampling_probabilities, probabilities_kwargs = self.determine_segmentation_softmax_export_fn()
        normalization, masks = self.determine_normalization_scheme_and_whether_mask_is_used_for_norm()
        return {
            "data_identifier": data_identifier,
            "preprocessor_name": self.preprocessor_name,
            "batch_size": max(min(fitting, covering), self.UNet_min_batch_size),
            "patch_size": patch_size,
            "median_image_size_in_voxels": median_shape,
            "spacing": spacing,
            "normalization_schemes": normalization,
            "use_mask_for_norm": masks,
            "resampling_fn_data": resampling_data.__name__,
            "resampling_fn_seg": resampling_seg.__name__,
            "resampling_fn_data_kwargs": data_kwargs,
            "resampling_fn_seg_kwargs": seg_kwargs,
            "resampling_fn_probabilities": resampling_probabilities.__name__,
            "resampling_fn_probabilities_kwargs": probabilities_kwargs,
            "architecture": {
                "network_class_name": find("architecture", self.architecture).path,
                "arch_kwargs": arch_kwargs,
                "_kw_requires_import": [],
            },
            **self.further_entries(arch_kwargs),
        }

    def _search_patch(self, spacing: np.ndarray, median_shape: np.ndarray, sizes: tuple[int, int]) -> list[int]:
        """The largest patch (voxels) that fits the memory target at the smallest batch.

        It starts, as nnU-Net's, from a cube in millimetres of 256^3 voxels clipped to the median shape, and loses
        slices or in-plane voxels wherever it is largest relative to the median shape.

        Raises:
            InputError: not even the smallest patch fits.
        """
        cube = np.round(256 / spacing * np.prod(spacing) ** (1 / 3))
        patches = [self.fitted_patch(np.minimum(cube, median_shape), spacing)]
        while (smaller := self._shrunk(patches[-1], spacing, median_shape)) is not None:
            patches.append(smaller)
        largest = patches[0].tolist()
        patches = [patch for patch in patches if self.suits(patch, spacing)]
        if not patches:
            raise InputError(
                f"no patch up to {largest} voxels that {type(self).__name__} can use",
                f"images of more than {median_shape.astype(int).tolist()} voxels, the median",
                "choose a --patch_size",
            )

        def needed(patch: np.ndarray) -> float:
            elements = self.feature_map_size(patch.tolist(), spacing, *sizes)
            weights = self.weights_gb(patch.tolist(), spacing, *sizes)
            return memory_gb(elements, self.UNet_min_batch_size) + weights

        # the patches only shrink, so a few of them tell where they begin to fit
        first = bisect_left(patches, True, key=lambda patch: needed(patch) <= self.UNet_vram_target_GB)
        if first == len(patches):
            smallest = patches[-1].tolist()
            weights = self.weights_gb(smallest, spacing, *sizes)
            raise InputError(
                f"a GPU memory target of {self.UNet_vram_target_GB} GB",
                f"at least {np.ceil(1000 * needed(patches[-1])) / 1000:g} GB for the smallest patch {smallest}"
                + (f", of which weights and optimizer take {weights:.3g} GB" if weights else ""),
                "raise -gpu_memory_target",
            )
        return [int(size) for size in patches[first]]

    def _shrunk(self, patch: np.ndarray, spacing: np.ndarray, median_shape: np.ndarray) -> np.ndarray | None:
        """The next smaller patch that the network takes, or None below the smallest."""
        for axis in np.argsort(-patch / median_shape, kind="stable"):
            for size in range(patch[axis] - 1, self.min_patch[axis] - 1, -1):
                smaller = self.fitted_patch(np.array([*patch[:axis], size, *patch[axis + 1 :]]), spacing)
                if smaller[axis] < patch[axis] and (smaller <= patch).all():
                    return smaller
        return None

    def _warn_of_padding(self, name: str, configuration: dict[str, Any]) -> None:
        """Say where rounding adds more than half to what the data fill."""
        patch_size = configuration["patch_size"]
        median_shape = np.array(configuration["median_image_size_in_voxels"])
        filled = np.minimum(patch_size, np.maximum(np.ceil(median_shape), self.min_patch))
        added = np.prod(patch_size) / np.prod(filled) - 1
        if added > 0.5:
            warnings.warn(
                f"the patch {patch_size} of {name} is rounded up from at most "
                f"{[int(size) for size in filled]} of the data, which adds {added:.0%}; a network of finer size rules "
                "or a smaller --patch_size would compute less",
                stacklevel=2,
            )

    def _checked_patch(self, patch_size: list[int], spacing: np.ndarray) -> list[int]:
        """The user's patch.

        Raises:
            InputError: a patch that the network cannot take.
        """
        given = np.array(patch_size)
        if given.min() < 1:
            raise InputError(f"a patch of {patch_size}", "three positive numbers (z, y, x)", "correct --patch_size")
        fitted = self.fitted_patch(given, spacing)
        if (fitted != given).any():
            below = self._fitted_below(given, spacing)
            raise InputError(
                f"a patch of {patch_size}",
                "a size that the network takes, "
                + ("" if below is None else f"{below.tolist()} or ")
                + f"{fitted.tolist()} for instance",
                "correct --patch_size, or leave it out",
            )
        return [int(size) for size in given]

    def _fitted_below(self, patch_size: np.ndarray, spacing: np.ndarray) -> np.ndarray | None:
        """The nearest patch that the network takes, smaller along each axis that does not fit, or None."""
        below = patch_size
        while (larger := self.fitted_patch(below, spacing) > below).any():
            below = below - larger
            if below.min() < 1:
                return None
        return below

    def generate_data_identifier(self, configuration_name: str) -> str:
        """nnU-Net's own identifier, so that its preprocessed data are shared; `save_plans` takes it back if need be."""
        return f"{STOCK_PLANS}_{configuration_name}"

    def save_plans(self, plans: dict[str, Any]) -> None:
        configurations = plans["configurations"]
        del configurations["2d"]
        stock = self._configurations_on_disk(STOCK_PLANS)
        self._configurations_on_disk(self.plans_identifier)  # nnU-Net keeps the user's own configurations in them
        resolved = resolve_schedule(self.schedule, self.published_schedule())
        for name, configuration in configurations.items():
            if "inherits_from" in configuration:
                continue
            configuration["training"] = self.training_block(resolved, configuration)
            if configuration["patch_size"] != self.patch_size:
                self._warn_of_padding(name, configuration)
            if not self._shares_data(name, configuration, stock.get(name)):
                configuration["data_identifier"] = f"{self.plans_identifier}_{name}"
        super().save_plans(plans)

    def _configurations_on_disk(self, identifier: str) -> dict[str, Any]:
        path = nnunet_folder("nnUNet_preprocessed") / self.dataset_name / f"{identifier}.json"
        return read_json(path, "remove it and plan again")["configurations"] if path.is_file() else {}

    def _shares_data(self, name: str, configuration: dict[str, Any], stock: dict[str, Any] | None) -> bool:
        """Whether nnU-Net's own plans, those on disk or those it would make, ask for the same preprocessed data."""
        if stock is None:
            # the spacing of 3d_lowres follows from the patch, which differs from nnU-Net's
            as_stock = self.overwrite_target_spacing is None and self.preprocessor_name == "DefaultPreprocessor"
            return as_stock and name == "3d_fullres"
        return all(
            np.allclose(configuration[key], stock[key]) if key == "spacing" else configuration[key] == stock[key]
            for key in _PREPROCESSING_KEYS
        )


def preprocessed_cases(plans_file: Path, configuration: str, *, newer_than: Iterable[Path] = ()) -> set[str]:
    """The cases that lie whole (data, segmentation, properties) in a configuration's preprocessed folder.

    Args:
        newer_than: files that the data were made from; cases written before one of them changed do not count.
    """
    changed = max((path.stat().st_mtime_ns for path in newer_than if path.is_file()), default=0)
    planned = read_json(plans_file, "plan again")["configurations"][configuration]
    folder = plans_file.parent / planned.get("data_identifier", "")
    properties = {path.stem for path in folder.glob("*.pkl") if path.stat().st_mtime_ns >= changed}
    blosc = {path.stem for path in folder.glob("*.b2nd")}
    packed = {path.stem for path in folder.glob("*.npz")}
    return {case for case in properties if case in packed or {case, f"{case}_seg"} <= blosc}


def with_options(
    planner: type[ExperimentPlanner], schedule: Mapping[str, Any], options: Mapping[str, Any]
) -> type[ExperimentPlanner]:
    """The planner with the user's schedule and options laid over its own; nnU-Net's own planners take none.

    Args:
        schedule: keys of the `training` block.
        options: attributes among `ExtPlanner.options` of the planner.

    Raises:
        InputError: a planner of nnU-Net, a wrong key or value of the schedule, an option that the planner has not.
    """
    if not schedule and not options:
        return planner
    if not issubclass(planner, ExtPlanner):
        raise InputError(
            f"{'a schedule' if schedule else ', '.join(options)} for nnU-Net's {planner.__name__}",
            "one of our planners",
            "plan first, then run nnunetv2_ext schedule on the plans" if schedule else "drop it",
        )
    unknown = sorted(set(options) - set(planner.options))
    if unknown:
        raise InputError(
            f"the option {', '.join(unknown)} for {planner.__name__}",
            f"some of {', '.join(planner.options)}",
            "drop it, or choose another planner",
        )
    check_schedule(schedule)
    attributes = {**options, "schedule": merge_schedule(planner.schedule, schedule)}
    return type(planner.__name__, (planner,), attributes)
