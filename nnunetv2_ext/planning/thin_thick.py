"""What a planner of thin-thick data does around the planner of any network: whole slabs, both passes, the side-car."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunetv2_ext.architectures.measure import thick_slices, without_values
from nnunetv2_ext.block import method_defaults
from nnunetv2_ext.data.sidecar import read_sidecar, refuse_thin_annotations, write_sidecar
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import nnunet_folder
from nnunetv2_ext.geometry.patches import (
    longest_reach,
    most_within,
    no_slabs,
    refused_patch,
    slices_for_a_slab,
    whole_slabs,
)
from nnunetv2_ext.memory import passes
from nnunetv2_ext.planning.options import Option, options_of
from nnunetv2_ext.planning.planner import ExtPlanner, with_options
from nnunetv2_ext.registry import PLANNERS, find, find_network
from nnunetv2_ext.schema import METHODS, THICK_GRID, THIN_GRID
from nnunetv2_ext.text import listed


def planner_for(network: str) -> tuple[type[ExtPlanner], dict[str, Any]]:
    """The planner of a network, and the options that the network's name settles.

    Args:
        network: a name of the grammar, see `nnunetv2_ext.registry.find_network`.

    Raises:
        InputError: unknown name, or a network that no planner plans.
    """
    named = find_network(network, as_backbone=True)
    for entry in PLANNERS:
        planner = entry.load()
        if planner.architecture == named.architecture:
            return planner, named.kwargs
    raise InputError(f"the network '{network}'", "one that a planner plans", "see `nnunetv2_ext list`")


class PlannerOfSlabs(ExtPlanner):
    """Plans any network for a data set of `convert_thin_thick`: slice axis first, a patch that covers whole slabs.

    Sizes, arguments and training block are those of the network's own planner. The memory is that of both passes.
    """

    backbone: str

    @classmethod
    def options(cls) -> dict[str, Option[Any]]:
        """Its own, and those of every other planner: the network's own planner refuses what it has not."""
        planners = [entry.load() for entry in PLANNERS]
        others = [options_of(planner) for planner in planners if not issubclass(planner, PlannerOfSlabs)]
        return {name: option for options in (*others, options_of(cls)) for name, option in options.items()}

    def __init__(self, dataset_name_or_id: str | int, *args: Any, **kwargs: Any):
        planner, settled = planner_for(self.backbone)
        options = {name: value for name, value in self.given.items() if name != "backbone"}
        self.network_planner: ExtPlanner = with_options(planner, {}, {**options, **settled})(dataset_name_or_id)
        self.architecture = self.network_planner.architecture  # type: ignore[misc]
        super().__init__(dataset_name_or_id, *args, **kwargs)
        self.sidecar = read_sidecar(Path(self.raw_dataset_folder), self.dataset_name)
        refuse_thin_annotations(self.sidecar)
        self.max_dataset_covered = self.network_planner.max_dataset_covered
        slabs = {name: whole_slabs(case) for name, case in self.sidecar.cases.items()}
        self._whole = {name: of_case for name, of_case in slabs.items() if len(of_case)}
        if not self._whole:
            raise no_slabs(len(slabs))
        if len(self._whole) < len(slabs):
            without = sorted(slabs.keys() - self._whole.keys())
            warnings.warn(f"no slab lies wholly in the images of {listed(without)}: they teach nothing", stacklevel=2)
        self._needed: dict[float, tuple[str, int]] = {}
        self._thick_slices: dict[str, int | None] = {}

    def default_memory_target(self) -> float:
        return self.network_planner.default_memory_target()

    def default_plans_name(self) -> str:
        return "ThinThick" + self.network_planner.default_plans_name().removeprefix("Backbone")

    def published_block(self) -> Mapping[str, Any]:
        of_network = self.network_planner.published_block()
        # groups of another method are its trainer's
        return {**{key: of_network[key] for key in of_network if key not in METHODS}, **super().published_block()}

    def determine_transpose(self) -> tuple[list[int], list[int]]:
        forward = [self.sidecar.axis, *(axis for axis in range(3) if axis != self.sidecar.axis)]
        return forward, [forward.index(axis) for axis in range(3)]

    def fitted_patch(self, patch_size: np.ndarray, spacing: np.ndarray) -> np.ndarray:
        _, needed = self._slices_for_a_slab(float(spacing[0]))
        # one slice more than a slab is thick, since its edges lie anywhere; the user's patch may match them
        larger = np.maximum(patch_size, [needed - (self.patch_size is not None), 1, 1])
        return self.network_planner.fitted_patch(larger, spacing)

    def suits(self, patch_size: np.ndarray, spacing: np.ndarray) -> bool:
        return self.network_planner.suits(patch_size, spacing)

    def architecture_kwargs(self, patch_size: list[int], spacing: np.ndarray) -> dict[str, Any]:
        return self.network_planner.architecture_kwargs(patch_size, spacing)

    def feature_map_size(
        self, patch_size: list[int], spacing: np.ndarray, input_channels: int, output_channels: int
    ) -> float:
        thin = self.network_planner.feature_map_size(patch_size, spacing, input_channels, output_channels)
        slices, shown = self._thick_image(patch_size, spacing)
        asked = method_defaults("thin_thick") | self.training.get("thin_thick", {})
        return thin * passes({"thin_thick": asked | {"thick_image": shown, "slabs": slices}}, patch_size[0])

    def weights_gb(
        self, patch_size: list[int], spacing: np.ndarray, input_channels: int, output_channels: int
    ) -> float:
        return self.network_planner.weights_gb(patch_size, spacing, input_channels, output_channels)

    def further_entries(self, arch_kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return self.network_planner.further_entries(arch_kwargs)

    def training_block(self, block: Mapping[str, Any], configuration: Mapping[str, Any]) -> dict[str, Any]:
        resolved = super().training_block(block, configuration)
        slices, shown = self._thick_image(configuration["patch_size"], np.array(configuration["spacing"]))
        if shown == THIN_GRID and resolved["thin_thick"]["thick_image"] == THICK_GRID:
            raise InputError(
                f"--thick-image {THICK_GRID} for {self.backbone}",
                f"{THIN_GRID}, since it takes no patch of {slices} slices",
                "leave out --thick-image",
            )
        resolved["thin_thick"] |= {"thick_image": shown, "slabs": slices}
        return resolved

    def kept(self, configurations: dict[str, Any]) -> dict[str, Any]:
        configurations.pop("3d_cascade_fullres", None)  # the loader has one place, for slabs or for the previous stage
        for configuration in configurations.values():
            configuration.pop("next_stage", None)
        return configurations

    def save_plans(self, plans: dict[str, Any]) -> None:
        super().save_plans(plans)
        write_sidecar(nnunet_folder("nnUNet_preprocessed") / self.dataset_name, self.sidecar)

    def shares_data(self, name: str, configuration: dict[str, Any], stock: dict[str, Any] | None) -> bool:
        """Whether nnU-Net's own plans would put the slice axis first, too."""
        if self.determine_transpose() != tuple(map(list, super().determine_transpose())):
            return False
        return super().shares_data(name, configuration, stock)

    def checked_patch(self, patch_size: list[int], spacing: np.ndarray) -> list[int]:
        name, needed = self._slices_for_a_slab(float(spacing[0]))
        if 0 < patch_size[0] < needed - 1:
            raise refused_patch(name, self._whole[name], patch_size[0], float(spacing[0]), needed - 1)
        checked = super().checked_patch(patch_size, spacing)
        self.network_planner.UNet_vram_target_GB = self.UNet_vram_target_GB
        return self.network_planner.checked_patch(checked, spacing)

    def _slices_for_a_slab(self, spacing: float) -> tuple[str, int]:
        """The case that asks for the longest patch, and how many slices that is."""
        if spacing not in self._needed:  # nnU-Net asks again for every patch that it tries
            needed = {name: slices_for_a_slab(self.sidecar.case(name), spacing) for name in self._whole}
            name = max(needed, key=needed.__getitem__)
            self._needed[spacing] = (name, needed[name])
        return self._needed[spacing]

    def _thick_image(self, patch_size: list[int], spacing: np.ndarray) -> tuple[int, str]:
        """Slices of the thick image, and how it is shown."""
        asked = self.training.get("thin_thick", {})
        most = (
            most_within(slabs, longest_reach(self.sidecar.case(name), patch_size[0], float(spacing[0])))
            for name, slabs in self._whole.items()
        )
        slabs = max(asked.get("slabs") or 1, *most)
        if asked.get("thick_image") == THIN_GRID:
            return slabs, THIN_GRID
        path, kwargs = find("architecture", self.architecture).path, self.architecture_kwargs(patch_size, spacing)
        key = json.dumps([[int(size) for size in patch_size], slabs, kwargs])
        if key not in self._thick_slices:  # nnU-Net asks again for every spacing of 3d_lowres that it tries
            with without_values():
                network = get_network_from_plans(path, kwargs, [], 1, 2, allow_init=False, deep_supervision=True)
            self._thick_slices[key] = thick_slices(network, patch_size, slabs)
        slices = self._thick_slices[key]
        return (slabs, THIN_GRID) if slices is None else (slices, THICK_GRID)
