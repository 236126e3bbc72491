"""The base of our planners: nnU-Net's rules for spacing, our network, our search for patch and batch."""

import json
import warnings
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, ClassVar

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunetv2_ext import __version__
from nnunetv2_ext.architectures.contract import Freezable
from nnunetv2_ext.architectures.measure import without_values
from nnunetv2_ext.block import check_block, merge_blocks, resolve_block
from nnunetv2_ext.data.description import channel_names
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import nnunet_folder, read_plans
from nnunetv2_ext.memory import memory_gb
from nnunetv2_ext.planning.options import Option, flag_of, options_of
from nnunetv2_ext.planning.search import PatchSearch
from nnunetv2_ext.planning.sharing import STOCK_PLANS, agree, differing, settings
from nnunetv2_ext.registry import PLANNERS, find
from nnunetv2_ext.text import listed
from nnunetv2_ext.training.checks import told_of_batch


class ExtPlanner(PatchSearch):
    """nnU-Net's planner for a network with our contract; 3D configurations only.

    Spacing, transposition, normalisation, resampling and the low-resolution stage follow nnU-Net. A method subclasses
    it with its network, its trainer and its memory estimate; the public methods are for it to override.
    """

    architecture: ClassVar[str] = ""
    """The network's name in the registry."""
    trainer: ClassVar[str]
    """The trainer whose published training block goes into the plans."""
    plans_name: ClassVar[str]
    """The plans identifier, see `default_plans_name`."""
    min_patch: ClassVar[tuple[int, int, int]] = (1, 32, 32)
    """Below this the search does not shrink a patch (voxels)."""
    configurations: ClassVar[tuple[str, ...]] = ("3d_fullres", "3d_lowres", "3d_cascade_fullres")
    """What its plans may hold, see `kept`."""
    patch_divisor: ClassVar[tuple[int, int, int]] = (1, 1, 1)
    """Patches are rounded up to multiples of this."""

    patch_size = Option[list[int] | None](
        None,
        "voxels along z, y, x, of all configurations; refused where the network cannot take it",
        int,
        numbers=3,
        metavar="VOXELS",
        shown="planned",
    )
    activation_checkpointing = Option(
        False, "compute stages again in the backward pass, a third more time for larger patches", bool, shown="off"
    )
    # What the user sets; on a subclass (`with_options`), since nnU-Net builds the planner.
    training: ClassVar[dict[str, Any]] = {}
    """The user's part of the `training` block."""
    given: ClassVar[dict[str, Any]] = {}
    """The options that the user has set."""

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
        asked = {
            "gpu_memory_target": gpu_memory_target_in_gb,
            "preprocessor_name": None if preprocessor_name == "DefaultPreprocessor" else preprocessor_name,
            "overwrite_target_spacing": None if overwrite_target_spacing is None else list(overwrite_target_spacing),
            "overwrite_plans_name": plans_name,
        }
        self._asked = {name: value for name, value in asked.items() if value is not None}
        if self.training.get("freeze_backbone"):
            network = find("architecture", self.architecture).load()
            if not issubclass(network, Freezable):
                raise InputError(
                    f"freeze_backbone for {type(self).__name__}",
                    "a planner of a refined network, PaRPlanner",
                    "drop it",
                )

    @classmethod
    def options(cls) -> dict[str, Option[Any]]:
        """What the user may set beside the training block."""
        return options_of(cls)

    @classmethod
    def trained_by(cls, options: Mapping[str, Any]) -> str:
        """The trainer of plans that are made with these options."""
        return cls.trainer

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

    def checkpointing(self) -> dict[str, bool]:
        """The keyword argument of `activation_checkpointing`, where the user asks for it: older plans have none."""
        return {"activation_checkpointing": True} if self.activation_checkpointing else {}

    def feature_map_size(
        self, patch_size: list[int], spacing: np.ndarray, input_channels: int, output_channels: int
    ) -> float:
        """Elements of feature maps per sample, in the measure of `nnunetv2_ext.memory`.

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
            network = self._built(input_channels, output_channels, kwargs)
            parameters = sum(parameter.numel() for parameter in network.parameters())
            self._counts[key] = (self.elements(network, patch_size), parameters)
        return self._counts[key]

    def elements(self, network: Any, patch_size: list[int]) -> float:
        """Elements of feature maps per sample that a training step of the network keeps: of one pass of the patch."""
        return float(network.compute_conv_feature_map_size(patch_size))

    def _built(self, input_channels: int, output_channels: int, kwargs: Mapping[str, Any]) -> Any:
        """The network, without values."""
        with without_values(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # initialising what has no values
            return find("architecture", self.architecture).load()(input_channels, output_channels, **kwargs)

    def fitted_patch(self, patch_size: np.ndarray, spacing: np.ndarray) -> np.ndarray:
        """The patch rounded up to a size that the network takes."""
        divisor = np.array(self.patch_divisor)
        return np.maximum(np.ceil(patch_size / divisor) * divisor, self.min_patch).astype(int)

    def suits(self, patch_size: np.ndarray, spacing: np.ndarray) -> bool:
        """Whether the search may end with this patch; one that the network takes, but badly, may be passed over."""
        return True

    def published_block(self) -> Mapping[str, Any]:
        """What the method does otherwise than nnU-Net."""
        return find("trainer", self.trainer).load().published_block

    def training_block(self, block: Mapping[str, Any], configuration: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration's `training` block, from the resolved block that all configurations share."""
        return deepcopy(dict(block))

    def kept(self, configurations: dict[str, Any]) -> dict[str, Any]:
        """What of nnU-Net's 3D configurations goes into the plans, and under which names."""
        return configurations

    def further_entries(self, arch_kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """What a method adds to a configuration, from the network's keyword arguments."""
        return {}

    def plan_experiment(self) -> dict[str, Any]:
        shapes = np.array(self.dataset_fingerprint["shapes_after_crop"])
        spacings = np.array(self.dataset_fingerprint["spacings"])
        target = np.asarray(self.determine_fullres_target_spacing())
        resampled = np.round(shapes * spacings / target)
        empty = np.flatnonzero((resampled < 1).any(axis=1))
        if len(empty):
            first, finer = empty[0], np.minimum(target, (shapes * spacings).min(axis=0))
            raise InputError(
                f"{len(empty)} of {len(shapes)} images of which nothing is left at the target spacing of "
                f"{listed(map(float, target))} mm, the first of {listed(shapes[first])} voxels of "
                f"{listed(map(float, spacings[first]))} mm",
                "at least one voxel along each axis",
                f"plan with -overwrite_target_spacing {listed(map(float, finer), separator=' ')}, or leave them out",
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
            self._in_plane = (list(median_shape), approximate_n_voxels_dataset)
            return {}
        channels = channel_names(self.dataset_json)
        sizes = (len(channels), len(self.dataset_json["labels"]))
        spacing_mm, median = np.asarray(spacing, float), np.asarray(median_shape, float)
        if self.patch_size is None:
            patch_size = self.search_patch(spacing_mm, median, sizes)
        elif data_identifier == self.generate_data_identifier("3d_lowres"):  # of any spacing that nnU-Net tries
            patch_size = self.fitted_patch(np.array(self.patch_size), spacing_mm).tolist()
        else:
            patch_size = self.checked_patch(self.patch_size, spacing_mm)
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

    def generate_data_identifier(self, configuration_name: str) -> str:
        """nnU-Net's own identifier, so that its preprocessed data are shared; `save_plans` takes it back if need be."""
        return f"{STOCK_PLANS}_{configuration_name}"

    def save_plans(self, plans: dict[str, Any]) -> None:
        configurations = plans["configurations"]
        del configurations["2d"]
        if "3d_fullres" not in configurations:  # where the median image has one slice, nnU-Net plans in 2D alone
            spacing = np.asarray(self.determine_fullres_target_spacing())[plans["transpose_forward"]]
            median_shape, voxels = self._in_plane
            planned = self.get_plans_for_configuration(
                spacing, [1, *median_shape], self.generate_data_identifier("3d_fullres"), voxels, {}
            )
            configurations["3d_fullres"] = {**planned, "batch_dice": False}
        configurations = plans["configurations"] = self.kept(configurations)
        stock = self._plans_on_disk(STOCK_PLANS)
        self._plans_on_disk(self.plans_identifier)  # nnU-Net keeps the user's own configurations in them
        resolved = resolve_block(self.training, self.published_block())
        for name, configuration in configurations.items():
            if "inherits_from" in configuration:
                continue
            configuration["training"] = self.training_block(resolved, configuration)
            if configuration["patch_size"] != self.patch_size:
                self.warn_of_padding(name, configuration)
            self._warn_of_batch(name, configuration)
            shares = self.shares_data(name, configuration, stock["configurations"].get(name))
            if not shares or differing(settings(plans, configuration), settings(stock, configuration)):
                configuration["data_identifier"] = f"{self.plans_identifier}_{name}"
        made_by = type(self)  # a subclass with the user's options has the planner's own name
        registered = made_by.__name__ in {entry.name for entry in PLANNERS}
        plans["made_by"] = {
            "planner": made_by.__name__ if registered else f"{made_by.__module__}.{made_by.__qualname__}",
            "options": {**self.given, **self._asked},
            "training": dict(self.training),
            "version": __version__,
        }
        super().save_plans(plans)

    def _warn_of_batch(self, name: str, configuration: Mapping[str, Any]) -> None:
        batch = configuration["training"].get("batch_size") or configuration["batch_size"]
        if batch == 1:
            network = self._built(1, 2, configuration["architecture"]["arch_kwargs"])
            if told := told_of_batch(network, batch):
                warnings.warn(f"{name}: {told}", stacklevel=2)

    def _plans_on_disk(self, identifier: str) -> dict[str, Any]:
        path = nnunet_folder("nnUNet_preprocessed") / self.dataset_name / f"{identifier}.json"
        return read_plans(path, "remove it and plan again") if path.is_file() else {"configurations": {}}

    def shares_data(self, name: str, configuration: dict[str, Any], stock: dict[str, Any] | None) -> bool:
        """Whether nnU-Net's own plans, those on disk or those it would make, ask for the same preprocessed data."""
        if stock is None:
            # the spacing of 3d_lowres follows from the patch, which differs from nnU-Net's
            as_stock = self.overwrite_target_spacing is None and self.preprocessor_name == "DefaultPreprocessor"
            return as_stock and name == "3d_fullres"
        return agree(configuration, stock)


def with_options(
    planner: type[ExperimentPlanner], training: Mapping[str, Any], options: Mapping[str, Any]
) -> type[ExperimentPlanner]:
    """The planner with the user's training block and options laid over its own; nnU-Net's own planners take none.

    Args:
        training: keys of the `training` block.
        options: values of the planner's options, by name.

    Raises:
        InputError: a planner of nnU-Net, a wrong key or value of the block, an option that the planner has not.
    """
    if not training and not options:
        return planner
    if not issubclass(planner, ExtPlanner):
        raise InputError(
            f"{'a training block' if training else ', '.join(map(flag_of, options))} for nnU-Net's {planner.__name__}",
            "one of our planners",
            "plan first, then run nnunetv2_ext schedule on the plans" if training else "drop it",
        )
    known = planner.options()
    unknown = sorted(options.keys() - known.keys())
    if unknown:
        raise InputError(
            f"the option {', '.join(map(flag_of, unknown))} for {planner.__name__}",
            f"some of {', '.join(map(flag_of, known))}",
            "drop it, or choose another planner",
        )
    check_block(training)
    attributes = {
        **options,
        "given": {**planner.given, **options},
        "training": merge_blocks(planner.training, training),
        "__module__": planner.__module__,
        "__qualname__": planner.__qualname__,
    }
    return type(planner.__name__, (planner,), attributes)
