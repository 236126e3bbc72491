"""Training of thin slices on thick annotations, with any network: one pass of the thin image and one of the thick one.

The loss is `nnunetv2_ext.losses.ThinThickLoss`. nnU-Net's steps stay as they are: what they call as the loss makes the
second pass.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pydoc import locate
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from einops import rearrange
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

from nnunetv2_ext.architectures.backbones import BackboneNetwork
from nnunetv2_ext.data.patches import (
    Patch,
    PreprocessedSlabs,
    padding_slabs,
    preprocessed_slabs,
    refuse_other_axis,
    refuse_thin_annotations,
    slabs_per_patch,
)
from nnunetv2_ext.data.sidecar import SIDECAR, Sidecar, read_sidecar
from nnunetv2_ext.data.slabs import slab_matrix, slice_edges
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation.slabs import THIN_TRUTH, summarize_slabs, summarize_thin
from nnunetv2_ext.evaluation.terms import save_terms
from nnunetv2_ext.losses.thin_thick import TERMS, ThinThickLoss, mark_ignored, slab_features, slab_logits, take
from nnunetv2_ext.registry import ARCHITECTURES
from nnunetv2_ext.training.backbones import TrainerOfBackbones
from nnunetv2_ext.training.schedule import THICK_GRID, THIN_GRID, passes
from nnunetv2_ext.training.slices import NUMBERED, HandOutSliceNumbers, TakeSliceNumbers
from nnunetv2_ext.training.trainer import ExtTrainer

IGNORED = -1
"""Marks what does not count in targets of data sets without an ignore label."""
PICTURE = "progress_thin_thick.png"


def thick_slices(network: Any, patch_size: Sequence[int], slabs: int) -> int | None:
    """The smallest number of slices, from `slabs` on and below the patch's, of a thick image that the network takes.

    Returns:
        None where the thick image has to be shown on the thin grid: the network is built for one patch, or its tokens,
        whose size is chosen in mm, would be of another one.
    """
    if hasattr(network, "token_size"):
        return None
    for slices in range(slabs, patch_size[0]):
        try:
            network.deep_supervision_shapes([slices, *patch_size[1:]])
        except InputError:
            continue
        return slices
    return None


def read_slabs(manager: PlansManager, data: Path) -> dict[str, PreprocessedSlabs]:
    """The slabs of every preprocessed case, by name.

    Args:
        data: folder of a configuration's data, in that of the preprocessed data set.

    Raises:
        InputError: no side-car, an edited one, one of another data set or of other images; annotations as thin as the
            images; a slice axis that is not the first one of the plans.
    """
    sidecar = find_sidecar(data.parent, manager.dataset_name)
    refuse_thin_annotations(sidecar)
    refuse_other_axis(sidecar.axis, manager.transpose_forward)
    dataset_class = infer_dataset_class(str(data))
    dataset = dataset_class(str(data))
    cases = {}
    for name in dataset.identifiers:
        image, _, _, properties = dataset.load_case(name)
        cases[name] = preprocessed_slabs(name, sidecar.case(name), sidecar.axis, properties, image.shape[1])
    return cases


def find_sidecar(preprocessed: Path, dataset: str) -> Sidecar:
    """The side-car of a preprocessed data set, or that of its raw data where nnU-Net's own command preprocessed it.

    Raises:
        InputError: as `read_sidecar`, or the raw data have another one.
    """
    raw = _raw_folder(dataset)
    if raw is None or not (raw / SIDECAR).is_file():
        return read_sidecar(preprocessed, dataset)
    sidecar = read_sidecar(raw, dataset)
    held = preprocessed / SIDECAR
    if held.is_file() and held.read_bytes() != (raw / SIDECAR).read_bytes():
        read_sidecar(preprocessed, dataset)  # an edited one is told as such
        raise InputError(
            f"another {SIDECAR} in {preprocessed} than in {raw}",
            "that of the data set as it was converted last",
            "plan and preprocess it again with ThinThickPlanner",
        )
    return sidecar


def _raw_folder(dataset: str) -> Path | None:
    """Where the raw data set lies; None on a machine that has none, which can train all the same."""
    raw = os.environ.get("nnUNet_raw")
    return Path(raw) / dataset if raw else None


class _FeatureTap:
    """Keeps the last feature map of a pass: the input of the network's head."""

    def __init__(self, network: Any):
        self.token_size: Sequence[int] | None = getattr(network, "token_size", None)
        self.features: Tensor | None = None
        self.on = False
        network.head.register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self.on:  # MNet's head is applied to two maps, whose sum it stands for
            self.features = inputs[0] if self.features is None else self.features + inputs[0]

    def take(self, patch_size: Sequence[int]) -> Tensor:
        """The map (B, D, Z, Y, X) of the pass since it was turned on or last taken, over a patch of that size."""
        features, self.features = self.features, None
        assert features is not None
        if self.token_size is None:
            return features
        z, y, _ = (size // token for size, token in zip(patch_size, self.token_size, strict=True))
        return rearrange(features, "b (z y x) d -> b d z y x", z=z, y=y)


@dataclass
class _Step:
    """What one step needs beside the thin image."""

    slabs: Tensor
    """P, (B, T, S), on the CPU: annotated slabs and slabs of padding; rows of zeros fill up."""
    annotated: Tensor
    """(B, T) bool"""
    target: Tensor
    """y, (B, 1 or regions + 1, T, Y, X): background in padding, marked as ignored where rows fill up."""
    thick_image: Tensor
    """(B, C, T or S, Y, X)"""
    thin_logits: list[Tensor] = field(default_factory=list)
    terms: dict[str, Tensor] = field(default_factory=dict)

    @property
    def valid(self) -> Tensor:
        """(B, T) bool, rows that are no zeros."""
        return self.slabs.any(-1)

    def only_annotated(self, volume: Tensor) -> Tensor:
        """Annotated slabs of all samples as slices of one: (B, C, T, Y, X) -> (1, C, slabs, Y, X)."""
        slabs = rearrange(volume, "b c t y x -> (b t) c y x")[self.annotated.flatten().to(volume.device)]
        return rearrange(slabs, "t c y x -> 1 c t y x")


class TrainerOfSlabs(TrainerOfBackbones):
    """Trains the network of any 3D plans whose first axis is the slice axis on a thin-thick data set."""

    network_class = BackboneNetwork
    network: Any

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        settings = self.schedule["thin_thick"]
        self.term_weights = {term: settings[f"{term}_weight"] for term in TERMS}
        for key in self._logged():
            self.logger.local_logger.my_fantastic_logging[key] = []

    def _logged(self) -> dict[str, str]:
        """The logger's key of each term that is computed."""
        return {f"{term}_losses": term for term in TERMS if self.term_weights[term]}

    @classmethod
    def _is_planned(cls, configuration_manager: ConfigurationManager) -> bool:
        network_class = locate(configuration_manager.network_arch_class_name)
        return any(network_class is entry.load() for entry in ARCHITECTURES)

    @classmethod
    def _checked(cls, plans: dict[str, Any], configuration: str) -> tuple[dict[str, Any], int]:
        checked = super()._checked(plans, configuration)
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

    @staticmethod
    def checked_slabs(
        manager: PlansManager, configuration: ConfigurationManager, data: Path
    ) -> tuple[dict[str, PreprocessedSlabs], int]:
        """The slabs of every case, and the most that a patch covers, after all that can be wrong with them.

        Args:
            data: folder of the configuration's preprocessed data.

        Raises:
            InputError: as `read_slabs` and `slabs_per_patch`.
        """
        cases = read_slabs(manager, data)
        return cases, slabs_per_patch(cases, configuration.patch_size[0])

    def _read_slabs(self) -> None:
        """Read the slabs of all cases, and decide on their number in a patch and on what the thick image looks like.

        Raises:
            InputError: as `checked_slabs`, or plans that hold another number or presentation than data and network
                allow.
        """
        settings, patch_size = self.schedule["thin_thick"], self.configuration_manager.patch_size
        folder = Path(str(self.preprocessed_dataset_folder))
        cases, needed = self.checked_slabs(self.plans_manager, self.configuration_manager, folder)
        # a method, not the dictionary: nnU-Net writes all attributes that are no methods into debug.json
        self.slabs_of = cases.__getitem__
        without = [name for name, case in cases.items() if case.most_covered(patch_size[0]) == 0]
        if without:
            self.print_to_log_file(f"WARNING: no whole slab in the cropped images of {', '.join(without)}")
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

    def _feature_map_size(self) -> float:
        shown = THIN_GRID if self.thick_on_thin_grid else THICK_GRID
        group = self.schedule["thin_thick"] | {"thick_image": shown, "slabs": self.number_of_slabs}
        return super()._feature_map_size() * passes({"thin_thick": group}, self.configuration_manager.patch_size[0])

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
        self.joint = ThinThickLoss(
            segmentation,
            weights=tuple(self.term_weights.values()),
            beta=self.schedule["thin_thick"]["beta"],
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
        return self._joint_loss

    def _tapped(self) -> _FeatureTap:
        try:
            return _FeatureTap(self.bare_network)
        except AttributeError as error:
            raise InputError(
                f"a network without a head ({error}) and training.thin_thick.features_weight above 0",
                "the attribute `head` of our contract",
                "see docs/how-to-add-an-architecture.md, or set features_weight to 0",
            ) from error

    def _prepared(self, batch: Mapping[str, Any]) -> tuple[_Step, Tensor]:
        """The step's slabs and targets, and the thin image (B, C, S, Y, X), from what the loader hands out."""
        data = batch["data"].to(self.device, non_blocking=True)
        labels, numbers = batch["target"]
        labels = labels.to(self.device, non_blocking=True)
        patches, of_samples = [], []
        for name, of_sample in zip(batch["keys"], numbers.numpy().astype(np.int64), strict=True):
            patches.append(self.slabs_of(name).patch(of_sample))
            of_samples.append(_filled_up(patches[-1], of_sample, self.number_of_slabs))
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
        if self.tap is not None:
            self.tap.features, self.tap.on = None, True
        return _Step(slabs, annotated, target, slab_features(data, matrices)), data

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        self.step, data = self._prepared(batch)
        result: dict[str, Any] = super().train_step({**batch, "data": data, "target": self.step.target})
        terms = torch.stack(list(self.step.terms.values())).cpu().numpy()
        result.update(zip(self.step.terms, terms, strict=True))
        del self.step
        return result

    def _joint_loss(self, output: Any, target: Any) -> Tensor:
        """What nnU-Net's steps call as the loss, with the logits of the thin image: the second pass, and all terms."""
        step = self.step
        thin = step.thin_logits or _listed(output)
        shape = self.configuration_manager.patch_size
        given: dict[str, Any] = {
            "thin_logits": thin,
            "slabs": [_regrouped(step.slabs, logits.shape[2]) for logits in thin],
            "target": [_resized(step.target, (step.target.shape[2], *logits.shape[3:])) for logits in thin],
        }
        features = None if self.tap is None else self.tap.take(shape)
        if self.term_weights["thick"] or features is not None:
            given["thick_logits"] = thick = _listed(self.network(step.thick_image))
            if not self.thick_on_thin_grid:
                # what fills the thick image up is padding, which nnU-Net counts as background
                filled = step.target.masked_fill(~step.valid[:, None, :, None, None].to(step.target.device), 0)
                given["thick_target"] = [_resized(filled, logits.shape[2:]) for logits in thick]
        if self.tap is not None and features is not None:
            given["thin_features"] = features
            given["thick_features"] = thick_features = self.tap.take(step.thick_image.shape[2:])
            slabs, valid = _regrouped(step.slabs, features.shape[2]), step.annotated
            if not self.thick_on_thin_grid and thick_features.shape[2] != slabs.shape[1]:
                slabs, valid = _merged(slabs, valid, thick_features.shape[2])
            given["feature_slabs"], given["feature_valid"] = slabs, valid
            self.tap.on = False
        total, step.terms = self.joint(**given)
        return total

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        ramp = self.schedule["thin_thick"]["ramp_up_epochs"]
        ramp = self.num_epochs if ramp is None else ramp
        share = min(1.0, (self.current_epoch + 1) / ramp) if ramp else 1.0
        weights = {**self.term_weights, "features": share * self.term_weights["features"]}
        self.joint.weights = tuple(weights.values())
        self.joint.beta = 1 + share * (self.schedule["thin_thick"]["beta"] - 1)

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        super().on_train_epoch_end(train_outputs)
        for key, term in self._logged().items():
            value = float(np.mean([output[term] for output in train_outputs]))
            if self.is_ddp:
                values: list[Any] = [None] * torch.distributed.get_world_size()
                torch.distributed.all_gather_object(values, value)
                value = float(np.mean(values))
            self.logger.log(key, value, self.current_epoch)
            self.print_to_log_file(f"{key[:-2]} {value:.4f}")

    def on_epoch_end(self) -> None:
        super().on_epoch_end()
        if self.local_rank == 0:
            losses = {term: self.logger.get_value(key, step=None) for key, term in self._logged().items()}
            try:
                save_terms(losses, self.term_weights, Path(self.output_folder) / PICTURE)
            except OSError as error:  # a full disk
                self.print_to_log_file(f"WARNING: {error}; training goes on")

    # --- validation ---

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """nnU-Net's, of the thin predictions' averages over the slabs against their annotation."""
        self.step, data = self._prepared(batch)
        target = self.step.only_annotated(self.step.target)
        if self.label_manager.has_regions and not self.label_manager.has_ignore_label:
            target = target[:, :-1]
        network = self.network
        self.network = lambda image: self._averaged(network, image)
        try:
            result: dict[str, Any] = super().validation_step(
                {**batch, "data": data, "target": [target] if self.enable_deep_supervision else target}
            )
        finally:
            self.network = network
            del self.step
        return result

    def _averaged(self, network: Any, image: Tensor) -> Any:
        """What nnU-Net's validation step takes for the network's output; the second pass gets the network itself."""
        self.network = network
        self.step.thin_logits = _listed(network(image))
        logits = slab_logits(self.step.thin_logits[0], self.step.slabs, regions=self.label_manager.has_regions)
        averaged = self.step.only_annotated(logits)
        return [averaged] if self.enable_deep_supervision else averaged

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
        slabs = summarize_slabs(preprocessed / "gt_segmentations", folder, sidecar, **common)
        self.print_to_log_file(f"Mean validation Dice of slabs: {slabs}", also_print_to_console=True)
        raw = _raw_folder(self.plans_manager.dataset_name)
        if raw is None or not (truth := raw / THIN_TRUTH).is_dir():
            return
        try:
            thin = summarize_thin(truth, folder, **common)
        except (ValueError, RuntimeError) as error:  # the user's files; the training is done
            self.print_to_log_file(f"WARNING: no summary of thin slices, since {truth} does not fit: {error}")
            return
        told = "no case of this fold" if thin is None else f"{thin[0]}, of {thin[1]} cases"
        self.print_to_log_file(f"Mean validation Dice of thin slices: {told}", also_print_to_console=True)


def _filled_up(patch: Patch, slices: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """P (T, S), the slice (T,) where each slab's annotation is read, and which slabs are annotated (T,).

    Padding takes the room that annotated slabs leave, in the order of the patch; rows of zeros come last.
    """
    padding, of_padding = padding_slabs(slices, number - len(patch.matrix))
    rows, centres = np.concatenate([patch.matrix, padding]), np.concatenate([patch.centres, of_padding])
    order = np.argsort(rows @ np.arange(len(slices)), kind="stable")
    empty = number - len(rows)
    return (
        np.pad(rows[order], ((0, empty), (0, 0))),
        np.pad(centres[order], (0, empty)),
        np.pad(order < len(patch.matrix), (0, empty)),
    )


def _listed(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _regrouped(matrix: Tensor, slices: int) -> Tensor:
    """P (B, T, S) of an output that has so many slices for the patch's S: (B, T, slices)."""
    fine = matrix.shape[2]
    if slices == fine:
        return matrix
    shares = slab_matrix(slice_edges(fine, 1.0), slice_edges(slices, fine / slices))  # (S, slices)
    return matrix @ torch.from_numpy(shares).to(matrix)


def _merged(matrix: Tensor, valid: Tensor, slices: int) -> tuple[Tensor, Tensor]:
    """P (B, T, S) and valid (B, T) for a thick feature map of fewer slices than slabs: it averages valid ones."""
    shares = torch.from_numpy(
        slab_matrix(slice_edges(slices, matrix.shape[1] / slices), slice_edges(matrix.shape[1], 1.0))
    )
    weights = shares.to(matrix) * valid[:, None].to(matrix)  # (B, slices, T)
    total = weights.sum(-1, keepdim=True)
    return weights @ matrix / total.clamp_min(1e-6), total[..., 0] > 0


def _resized(target: Tensor, shape: Sequence[int]) -> Tensor:
    """Nearest neighbours, as nnU-Net makes the targets of deep supervision: (B, C, T, Y, X) -> (B, C, *shape)."""
    if tuple(target.shape[2:]) == tuple(shape):
        return target
    return F.interpolate(target.float(), tuple(shape), mode="nearest-exact").to(target.dtype)
