"""ThinThickPlanner: plans for thin images with thick annotations.

Paper: Gang, "A Novel Convolutional-Free Method for 3D Medical Imaging Segmentation", 2025, section 3.6.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunetv2_ext.data.patches import PreprocessedSlabs, expected_slabs, refuse_thin_annotations, slabs_per_patch
from nnunetv2_ext.data.sidecar import read_sidecar, write_sidecar
from nnunetv2_ext.data.slabs import covered
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.paths import nnunet_folder
from nnunetv2_ext.planning.backbones import DEFAULT_BACKBONE
from nnunetv2_ext.planning.planner import ExtPlanner, with_options
from nnunetv2_ext.plans.backbone import BackbonePlanner
from nnunetv2_ext.plans.convfree import ConvFreePlanner
from nnunetv2_ext.plans.par import PaRPlanner
from nnunetv2_ext.registry import find
from nnunetv2_ext.training.schedule import THICK_GRID, THIN_GRID, method_defaults, passes
from nnunetv2_ext.training.thin_thick import thick_slices

REFINED = "PaR"
CONVFREE = "ConvFreeTransformer"


def planner_of(backbone: str) -> tuple[type[ExtPlanner], str | None]:
    """The planner of a network, and the backbone to tell it.

    Args:
        backbone: of the list, `ConvFreeTransformer`, `PaR` or `PaR:BACKBONE`.
    """
    refined, _, inner = backbone.partition(":")
    if refined == REFINED:
        return PaRPlanner, inner or DEFAULT_BACKBONE
    return (ConvFreePlanner, None) if backbone == CONVFREE else (BackbonePlanner, backbone)


class ThinThickPlanner(ExtPlanner):
    """Plans any network for a data set of `convert_thin_thick`: slice axis first, a patch that covers whole slabs.

    Sizes, arguments and schedule are those of the network's own planner. The memory is that of both passes.
    """

    trainer = "ThinThickTrainer"
    plans_name = "ThinThickPlans"
    options = tuple(dict.fromkeys((*PaRPlanner.options, *ConvFreePlanner.options)))
    backbone: ClassVar[str] = DEFAULT_BACKBONE
    """A backbone of the list, `ConvFreeTransformer`, `PaR` or `PaR:BACKBONE`."""

    def __init__(self, dataset_name_or_id: str | int, *args: Any, **kwargs: Any):
        chosen, backbone = planner_of(self.backbone)
        options = {name: getattr(self, name) for name in self.options if name != "backbone" and hasattr(self, name)}
        if backbone is not None:
            options["backbone"] = backbone
        planner = with_options(chosen, {}, options)
        self.network_planner: ExtPlanner = planner(dataset_name_or_id)
        self.architecture = self.network_planner.architecture  # type: ignore[misc]
        super().__init__(dataset_name_or_id, *args, **kwargs)
        self.sidecar = read_sidecar(Path(self.raw_dataset_folder), self.dataset_name)
        refuse_thin_annotations(self.sidecar)
        for name, case in self.sidecar.cases.items():
            if not covered(expected_slabs(case, case.thin_spacing).matrix).any():
                raise InputError(f"no slab that lies wholly in the image of case {name}", "one or more", "leave it out")
        self._slabs: dict[str, tuple[int, str]] = {}
        self._needed: dict[float, int] = {}

    def default_memory_target(self) -> float:
        return self.network_planner.default_memory_target()

    def default_plans_name(self) -> str:
        return "ThinThick" + self.network_planner.default_plans_name().removeprefix("Backbone")

    def published_schedule(self) -> Mapping[str, Any]:
        return {**self.network_planner.published_schedule(), **super().published_schedule()}

    def determine_transpose(self) -> tuple[list[int], list[int]]:
        forward = [self.sidecar.axis, *(axis for axis in range(3) if axis != self.sidecar.axis)]
        return forward, [forward.index(axis) for axis in range(3)]

    def fitted_patch(self, patch_size: np.ndarray, spacing: np.ndarray) -> np.ndarray:
        larger = np.maximum(patch_size, [self._needed_slices(float(spacing[0])), 1, 1])
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
        asked = method_defaults("thin_thick") | self.schedule.get("thin_thick", {})
        return thin * passes({"thin_thick": asked | {"thick_image": shown, "slabs": slices}}, patch_size[0])

    def weights_gb(
        self, patch_size: list[int], spacing: np.ndarray, input_channels: int, output_channels: int
    ) -> float:
        return self.network_planner.weights_gb(patch_size, spacing, input_channels, output_channels)

    def further_entries(self, arch_kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return self.network_planner.further_entries(arch_kwargs)

    def training_block(self, schedule: Mapping[str, Any], configuration: Mapping[str, Any]) -> dict[str, Any]:
        block = super().training_block(schedule, configuration)
        slices, shown = self._thick_image(configuration["patch_size"], np.array(configuration["spacing"]))
        block["thin_thick"] |= {"thick_image": shown, "slabs": slices}
        return block

    def save_plans(self, plans: dict[str, Any]) -> None:
        configurations = plans["configurations"]
        configurations.pop("3d_cascade_fullres", None)  # the loader has one place, for slabs or for the previous stage
        for configuration in configurations.values():
            configuration.pop("next_stage", None)
        super().save_plans(plans)
        write_sidecar(nnunet_folder("nnUNet_preprocessed") / self.dataset_name, self.sidecar)

    def _shares_data(self, name: str, configuration: dict[str, Any], stock: dict[str, Any] | None) -> bool:
        """Whether nnU-Net's own plans would put the slice axis first, too."""
        if self.determine_transpose() != tuple(map(list, super().determine_transpose())):
            return False
        return super()._shares_data(name, configuration, stock)

    def _checked_patch(self, patch_size: list[int], spacing: np.ndarray) -> list[int]:
        slabs_per_patch(self._expected(float(spacing[0])), patch_size[0])  # refuses a patch without a whole slab
        return super()._checked_patch(patch_size, spacing)

    def _expected(self, spacing: float) -> dict[str, PreprocessedSlabs]:
        return {name: expected_slabs(case, spacing) for name, case in self.sidecar.cases.items()}

    def _needed_slices(self, spacing: float) -> int:
        """So many slices (mm apart) hold a whole slab of every case, wherever its edges lie."""
        if spacing not in self._needed:
            cases = self._expected(spacing).values()
            self._needed[spacing] = max(case.fewest_slices() for case in cases)
        return self._needed[spacing]

    def _thick_image(self, patch_size: list[int], spacing: np.ndarray) -> tuple[int, str]:
        """Slices of the thick image, and how it is shown.

        Raises:
            InputError: the user asks for the thick grid, which the network does not take.
        """
        asked = self.schedule.get("thin_thick", {}).get("thick_image")
        key = f"{patch_size} {spacing.tolist()}"
        if key not in self._slabs:
            # the slices of a cropped case are up to half a slice longer over a whole patch
            slabs = slabs_per_patch(self._expected(float(spacing[0])), patch_size[0] + 1)
            path, kwargs = find("architecture", self.architecture).path, self.architecture_kwargs(patch_size, spacing)
            with torch.device("meta"):
                network = get_network_from_plans(path, kwargs, [], 1, 2, allow_init=False, deep_supervision=True)
            slices = None if asked == THIN_GRID else thick_slices(network, patch_size, slabs)
            if slices is None and asked == THICK_GRID:
                raise InputError(
                    f"--thick_image {THICK_GRID} for {self.backbone}",
                    f"{THIN_GRID}, since it takes no patch of {slabs} slices",
                    "leave out --thick_image",
                )
            self._slabs[key] = (slabs, THIN_GRID) if slices is None else (slices, THICK_GRID)
        return self._slabs[key]
