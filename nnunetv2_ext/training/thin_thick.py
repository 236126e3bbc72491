"""Training of thin slices on thick annotations, with any network: one pass of the thin image and one of the thick one.

The loss is `nnunetv2_ext.losses.ThinThickLoss`; `objective` makes both passes and hands their outputs to it.
"""

from collections.abc import Mapping
from pathlib import Path
from pydoc import locate
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor

from nnunetv2_ext.architectures import BackboneNetwork
from nnunetv2_ext.architectures.measure import thick_slices
from nnunetv2_ext.data.preprocessed import find_sidecar, read_slabs
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation.slabs import THIN_TRUTH, summarize_slabs, summarize_thin
from nnunetv2_ext.evaluation.terms import save_terms
from nnunetv2_ext.files import REFERENCES, raw_folder
from nnunetv2_ext.geometry.patches import slabs_per_patch
from nnunetv2_ext.losses.thin_thick import TERMS, ThinThickLoss, mark_ignored, slab_features, slab_logits, take
from nnunetv2_ext.memory import passes
from nnunetv2_ext.registry import ARCHITECTURES
from nnunetv2_ext.schema import THICK_GRID, THIN_GRID
from nnunetv2_ext.text import counted
from nnunetv2_ext.training.backbones import TrainerOfBackbones
from nnunetv2_ext.training.slab_batch import FeatureTap, SlabBatch, as_list, filled_up, merged, regrouped, resized
from nnunetv2_ext.training.slices import NUMBERED, HandOutSliceNumbers, TakeSliceNumbers
from nnunetv2_ext.training.step import Objective, term_key
from nnunetv2_ext.training.trainer import CheckedPlans, ExtTrainer

IGNORED = -1
"""Marks what does not count in targets of data sets without an ignore label."""
PICTURE = "progress_thin_thick.png"


class TrainerOfSlabs(TrainerOfBackbones):
    """Trains the network of any 3D plans whose first axis is the slice axis on a thin-thick data set."""

    network_class = BackboneNetwork
    network: Any

    @property
    def term_weights(self) -> dict[str, float]:
        """The weight of each term of the loss, at the end of its ramp-up."""
        return {term: self.block["thin_thick"][f"{term}_weight"] for term in TERMS}

    @classmethod
    def is_planned(cls, configuration: ConfigurationManager) -> bool:
        network_class = locate(configuration.network_arch_class_name)
        return any(network_class is entry.load() for entry in ARCHITECTURES)

    @classmethod
    def check_plans(cls, plans: dict[str, Any], configuration: str) -> CheckedPlans:
        checked = super().check_plans(plans, configuration)
        previous = PlansManager(plans).get_configuration(configuration).previous_stage_name
        if previous is not None:
            raise InputError(
                f"the cascade configuration '{configuration}' for {cls.__name__}",
                "one without a previous stage",
                f"train 3d_fullres or {previous}",
            )
        return checked

    # --- data ---

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, bool, Any, tuple[int, ...]]:
        # rotation and scaling stay within the slices, so that they commute with averaging over slabs
        rotation, _, initial_patch, mirror_axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        initial_patch[0] = self.configuration_manager.patch_size[0]
        self.print_to_log_file("rotation and scaling stay within the slices")
        return rotation, True, initial_patch, mirror_axes

    @staticmethod
    def get_training_transforms(
        patch_size: Any,
        rotation_for_DA: Any,
        deep_supervision_scales: Any,
        mirror_axes: tuple[int, ...] | None,
        do_dummy_2d_data_aug: bool,
        **kwargs: Any,
    ) -> BasicTransform:
        # targets of the outputs are made of the slabs, in the step; mirrored first, the slices keep their order
        stock = ExtTrainer.get_training_transforms(
            patch_size, rotation_for_DA, None, None, do_dummy_2d_data_aug, **kwargs
        )
        mirror = [MirrorTransform(mirror_axes)] if mirror_axes else []
        return ComposeTransforms([*mirror, TakeSliceNumbers(), stock, HandOutSliceNumbers()])

    @staticmethod
    def get_validation_transforms(deep_supervision_scales: Any, **kwargs: Any) -> BasicTransform:
        stock = ExtTrainer.get_validation_transforms(None, **kwargs)
        return ComposeTransforms([TakeSliceNumbers(), stock, HandOutSliceNumbers()])

    def initialize(self) -> None:
        super().initialize()
        self.dataset_class: Any = NUMBERED[self.dataset_class]

    @classmethod
    def check_data(cls, plans_manager: PlansManager, configuration: ConfigurationManager, data: Path) -> str:
        cases = read_slabs(plans_manager, configuration, data)
        slabs = slabs_per_patch(cases, configuration.patch_size[0])
        return f"of {len(cases)} cases, at most {slabs} in a patch"

    def _read_slabs(self) -> None:
        """Read the slabs of all cases, and decide on their number in a patch and on what the thick image looks like.

        Raises:
            InputError: as `read_slabs` and `slabs_per_patch`, or plans that hold another number or presentation than
                data and network allow.
        """
        settings, patch_size = self.block["thin_thick"], self.configuration_manager.patch_size
        folder = Path(str(self.preprocessed_dataset_folder))
        cases = read_slabs(self.plans_manager, self.configuration_manager, folder)
        needed = slabs_per_patch(cases, patch_size[0])
        # a method, not the dictionary: nnU-Net writes all attributes that are no methods into debug.json
        self.slabs_of = cases.__getitem__
        without = [name for name, case in cases.items() if case.most_covered(patch_size[0]) == 0]
        if without:
            self.print_to_log_file(f"WARNING: no whole slab in the cropped images of {', '.join(without)}")
        if dropped := {name: case.dropped for name, case in cases.items() if case.dropped}:
            told = f"no slice of {sum(dropped.values())} slabs in {counted(dropped, 'case')}"
            self.print_to_log_file(f"WARNING: nnU-Net's resampling left {told}: these slabs teach nothing")
        slabs = settings["slabs"] or needed
        if slabs < needed:
            raise InputError(
                f"training.thin_thick.slabs = {slabs}",
                f"{needed} or more, which a patch can cover",
                f"set it to {needed} in the plans, or to null",
            )
        slices = None if settings["thick_image"] == THIN_GRID else thick_slices(self.bare_network, patch_size, slabs)
        if slices is None and settings["thick_image"] == THICK_GRID:
            raise InputError(
                f"thin_thick.thick_image = '{THICK_GRID}' with a network that takes no patch of {slabs} slices",
                f"'{THIN_GRID}' or null",
                "correct the plans",
            )
        self.thick_on_thin_grid = slices is None
        self.number_of_slabs = slabs if slices is None else slices

    def feature_map_size(self) -> float:
        shown = THIN_GRID if self.thick_on_thin_grid else THICK_GRID
        group = self.block["thin_thick"] | {"thick_image": shown, "slabs": self.number_of_slabs}
        return super().feature_map_size() * passes({"thin_thick": group}, self.configuration_manager.patch_size[0])

    # --- the joint loss ---

    def _build_loss(self) -> Any:
        self._read_slabs()
        wrapper: Any = super()._build_loss()
        segmentation = wrapper.loss if self.enable_deep_supervision else wrapper
        regions = len(self.label_manager.foreground_regions) if self.label_manager.has_regions else None
        ignore_label = self.label_manager.ignore_label
        self.ignored = IGNORED if ignore_label is None else ignore_label
        if regions is not None:
            if ignore_label is None:  # with the ignore channel nnU-Net adds the regions' cross-entropies up
                segmentation.weight_ce /= regions
            segmentation.use_ignore_label, segmentation.ce.reduction = True, "none"
        else:
            segmentation.ignore_label = segmentation.ce.ignore_index = self.ignored
        loss = ThinThickLoss(
            segmentation,
            weights=tuple(self.term_weights.values()),
            beta=self.block["thin_thick"]["beta"],
            regions=regions is not None,
            ignore_label=self.ignored,
            output_weights=wrapper.weight_factors if self.enable_deep_supervision else None,
            thick_on_thin_grid=self.thick_on_thin_grid,
        )
        self.tap = self._tapped() if self.term_weights["features"] else None
        self.print_to_log_file(
            f"Thin-thick: at most {self.number_of_slabs} slices of the thick image, shown on the "
            f"{'thin grid' if self.thick_on_thin_grid else 'thick grid'}"
        )
        return loss

    def _tapped(self) -> FeatureTap:
        try:
            return FeatureTap(self.bare_network)
        except AttributeError as error:
            raise InputError(
                f"a network without a head ({error}) and training.thin_thick.features_weight above 0",
                "the attribute `head` of our contract",
                "see docs/how-to-add-an-architecture.md, or set features_weight to 0",
            ) from error

    def slab_batch(self, batch: Mapping[str, Any]) -> SlabBatch:
        """The slabs, the targets and the thick image of what the loader hands out."""
        data = self.on_device(batch["data"])
        labels, numbers = batch["target"]
        labels = self.on_device(labels)
        patches, of_samples = [], []
        for name, of_sample in zip(batch["keys"], numbers.numpy().astype(np.int64), strict=True):
            patches.append(self.slabs_of(name).patch(of_sample))
            of_samples.append(filled_up(patches[-1], of_sample, self.number_of_slabs))
        slabs, centres, annotated = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*of_samples, strict=True))
        target = take(labels, centres.to(self.device))
        regions = self.label_manager.foreground_regions if self.label_manager.has_regions else None
        target = mark_ignored(
            target, slabs.any(-1), ignore_label=self.ignored, regions=None if regions is None else len(regions)
        )
        if self.thick_on_thin_grid:
            matrices = torch.from_numpy(np.stack([patch.blurred for patch in patches]))
        else:
            matrices = slabs
        return SlabBatch(slabs, annotated, target, data, slab_features(data, matrices))

    def objective(self, batch: Mapping[str, Any]) -> Objective:
        """One pass of the thin image, one of the thick one where a term needs it; validation scores annotated slabs."""
        slabs = self.slab_batch(batch)
        if self.tap is not None:
            self.tap.features, self.tap.on = None, True
        thin = as_list(self.network(slabs.thin_image))
        total, terms = self.loss(**self._given(slabs, thin))
        if self.network.training:
            return Objective(total, terms=terms)
        logits = slab_logits(thin[0], slabs.slabs, regions=self.label_manager.has_regions)
        target = slabs.only_annotated(slabs.target)
        if self.label_manager.has_regions and not self.label_manager.has_ignore_label:
            target = target[:, :-1]
        return Objective(total, slabs.only_annotated(logits), target, terms)

    def _given(self, step: SlabBatch, thin: list[Tensor]) -> dict[str, Any]:
        """The arguments of the joint loss, after the pass of the thin image."""
        given: dict[str, Any] = {
            "thin_logits": thin,
            "slabs": [regrouped(step.slabs, logits.shape[2]) for logits in thin],
            "target": [resized(step.target, (step.target.shape[2], *logits.shape[3:])) for logits in thin],
        }
        features = None if self.tap is None else self.tap.take(self.configuration_manager.patch_size)
        if self.term_weights["thick"] or features is not None:
            given["thick_logits"] = thick = as_list(self.network(step.thick_image))
            if not self.thick_on_thin_grid:
                # what fills the thick image up is padding, which nnU-Net counts as background
                filled = step.target.masked_fill(~step.valid[:, None, :, None, None].to(step.target.device), 0)
                given["thick_target"] = [resized(filled, logits.shape[2:]) for logits in thick]
        if self.tap is not None and features is not None:
            given["thin_features"] = features
            given["thick_features"] = thick_features = self.tap.take(step.thick_image.shape[2:])
            slabs, valid = regrouped(step.slabs, features.shape[2]), step.annotated
            if not self.thick_on_thin_grid and thick_features.shape[2] != slabs.shape[1]:
                slabs, valid = merged(slabs, valid, thick_features.shape[2])
            given["feature_slabs"], given["feature_valid"] = slabs, valid
            self.tap.on = False
        return given

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        ramp = self.block["thin_thick"]["ramp_up_epochs"]
        ramp = self.num_epochs if ramp is None else ramp
        share = min(1.0, (self.current_epoch + 1) / ramp) if ramp else 1.0
        weights = {**self.term_weights, "features": share * self.term_weights["features"]}
        self.loss.weights = tuple(weights.values())
        self.loss.beta = 1 + share * (self.block["thin_thick"]["beta"] - 1)

    def on_epoch_end(self) -> None:
        super().on_epoch_end()
        if self.local_rank == 0:
            computed = [term for term, weight in self.term_weights.items() if weight]
            losses = {term: self.logger.get_value(term_key(term), step=None) for term in computed}
            try:
                save_terms(losses, self.term_weights, Path(self.output_folder) / PICTURE)
            except OSError as error:  # a full disk
                self.print_to_log_file(f"WARNING: {error}; training goes on")

    # --- validation ---

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        super().perform_actual_validation(save_probabilities)
        if self.local_rank != 0:
            return
        preprocessed = Path(str(self.preprocessed_dataset_folder_base))
        folder, manager = Path(self.output_folder) / "validation", self.label_manager
        common = {
            "reader": self.plans_manager.image_reader_writer_class(),
            "file_ending": self.dataset_json["file_ending"],
            "labels": manager.foreground_regions if manager.has_regions else manager.foreground_labels,
            "ignore_label": manager.ignore_label,
        }
        sidecar = find_sidecar(preprocessed, self.plans_manager.dataset_name)
        slabs = summarize_slabs(preprocessed / REFERENCES, folder, sidecar, **common)
        self.print_to_log_file(f"Mean validation Dice of slabs: {slabs}", also_print_to_console=True)
        raw = raw_folder(self.plans_manager.dataset_name)
        if raw is None or not (truth := raw / THIN_TRUTH).is_dir():
            return
        try:
            thin = summarize_thin(truth, folder, **common)
        except (ValueError, RuntimeError) as error:  # the user's files; the training is done
            self.print_to_log_file(f"WARNING: no summary of thin slices, since {truth} does not fit: {error}")
            return
        told = "no case of this fold" if thin is None else f"{thin[0]}, of {thin[1]} cases"
        self.print_to_log_file(f"Mean validation Dice of thin slices: {told}", also_print_to_console=True)
