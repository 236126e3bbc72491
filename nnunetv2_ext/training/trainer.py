"""The base of our trainers: nnU-Net's trainer with the plans' training block, safe checkpoints and any network."""

import errno
import os
from pathlib import Path
from pydoc import locate
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunetv2_ext.architectures.contract import Freezable, Network
from nnunetv2_ext.architectures.measure import without_values
from nnunetv2_ext.block import named_defaults, resolve_block
from nnunetv2_ext.data.splits import NNUNET_FOLDS, SPLITS, check_number, check_split, read_splits
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import dataset_number, nnunet_folder
from nnunetv2_ext.memory import memory_gb, weights_gb
from nnunetv2_ext.processes import LEAST, check_processes
from nnunetv2_ext.schema import NNUNET_CLIP
from nnunetv2_ext.text import duration, one_line
from nnunetv2_ext.training.augmentation import for_few_slices
from nnunetv2_ext.training.checkpoints import CheckpointTrainer
from nnunetv2_ext.training.checks import (
    check_cases,
    check_configuration,
    check_device,
    check_network_exists,
    check_shared_memory,
    told_of_batch,
)
from nnunetv2_ext.training.scheduler import EpochScheduler, WarmupPolyScheduler, build_optimizer, build_scheduler
from nnunetv2_ext.training.seeds import EPOCHS, TRAINING, VALIDATION, WEIGHTS, seed_all, with_seed
from nnunetv2_ext.training.workers import EndWithTraining

RESTORE_SPLITS = f"restore {SPLITS}, or remove it to split anew"
NO_FOLDER = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "the read-only folder"),
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR), "a file in the place of the folder"),
}
"""What an error of the system says about a folder that is to be made."""


class CheckedPlans(NamedTuple):
    """What the check of the plans finds out."""

    block: dict[str, Any]
    """The configuration's resolved training block."""
    outputs: int
    """Outputs of the network with deep supervision."""
    network: Any
    """Built on the meta device, of one channel and two classes."""


class ExtTrainer(CheckpointTrainer):
    """nnU-Net's trainer for a network with our contract (docs/how-to-add-an-architecture.md).

    A method subclasses it with its network and the published training block; the public methods are for it to override.
    """

    network_class: ClassVar[type[Any]]
    """The network, built with default arguments where the plans hold another one."""

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ):
        check_device(device)
        for variable in LEAST:
            check_processes(variable)
        self.resuming = bool(plans.get("continue_training", False))
        self.block, outputs, _ = self.check_plans(plans, configuration)
        if fold != "all":
            file = nnunet_folder("nnUNet_preprocessed") / plans["dataset_name"] / SPLITS
            check_number(int(fold), len(read_splits(file, RESTORE_SPLITS)) if file.is_file() else NNUNET_FOLDS)
        try:
            super().__init__(plans, configuration, fold, dataset_json, device)
        except OSError as error:
            if error.errno not in NO_FOLDER:
                raise
            raise InputError(
                f"{NO_FOLDER[error.errno]} {error.filename}", "a results folder to write to", "correct nnUNet_results"
            ) from error
        optimizer = self.block["optimizer"]
        self.initial_lr, self.weight_decay = optimizer["lr"], optimizer["weight_decay"]
        self.num_epochs = self.block["epochs"]
        self.num_iterations_per_epoch = self.block["iterations_per_epoch"]
        self.num_val_iterations_per_epoch = self.block["val_iterations_per_epoch"]
        self.oversample_foreground_percent = self.block["oversample_foreground"]
        if self.block["batch_size"] is not None:
            self.configuration_manager.configuration["batch_size"] = self.block["batch_size"]
        # nnU-Net's deep supervision gives the last output no weight, even if it is the only one
        self.enable_deep_supervision = outputs > 1
        self.save_every = 1
        self.epochs_run = 0
        if not os.access(self.output_folder, os.W_OK):
            raise InputError(f"the read-only folder {self.output_folder}", "one to write to", "change its permissions")

    @classmethod
    def check_plans(cls, plans: dict[str, Any], configuration: str) -> CheckedPlans:
        """Refuse everything that the user can have got wrong in the plans; a method adds what it asks of them.

        Raises:
            InputError: unknown or 2D configuration, a patch the network cannot take, a bad `training` block, a
                backbone to freeze where there is none, no results folder.
        """
        known = plans.get("configurations")
        if not isinstance(known, dict):
            raise InputError("plans without configurations", "whole plans", "plan again")
        if configuration not in known:
            raise InputError(f"the configuration '{configuration}'", f"one of {', '.join(known)}", "correct it or plan")
        try:
            manager = PlansManager(plans).get_configuration(configuration)
        except Exception as error:  # nnU-Net fails in many ways at damaged plans
            raise InputError(
                f"an incomplete or damaged configuration '{configuration}' ({one_line(error)})",
                "one that nnU-Net reads",
                "plan again",
            ) from error
        check_configuration(configuration, manager.configuration)
        if len(manager.patch_size) != 3:
            raise InputError(
                f"the 2D configuration '{configuration}'",
                f"a 3D one for {cls.__name__}",
                "train 3d_fullres, for instance",
            )
        if not os.environ.get("nnUNet_results"):
            raise InputError("no value of nnUNet_results", "a folder for the models", "run export nnUNet_results=...")
        block = resolve_block(manager.configuration.get("training"), cls.published_block)
        try:
            with without_values():
                network = cls.build_network(manager, 1, 2, True)
        except TypeError as error:  # a key or a type that the constructor does not know
            planned = manager.network_arch_class_name if cls.is_planned(manager) else cls.network_class.__name__
            raise InputError(
                f"architecture.arch_kwargs that {planned.rpartition('.')[2]} cannot take ({error})",
                "its keyword arguments",
                "correct the plans, or plan again",
            ) from error
        name = type(network).__name__
        if block["freeze_backbone"] and not isinstance(network, Freezable):
            raise InputError(
                f"training.freeze_backbone = true with {name}, which has no backbone to freeze",
                "a network that refines a backbone's output",
                "choose a trainer of one, or correct the plans",
            )
        outputs = len(network.deep_supervision_shapes(manager.patch_size))
        weights = block["deep_supervision_weights"]
        if weights is not None and len(weights) != outputs:
            raise InputError(
                f"{len(weights)} numbers in training.deep_supervision_weights",
                f"{outputs}, one per output of {name}",
                "correct the plans",
            )
        return CheckedPlans(block, outputs, network)

    @classmethod
    def check_data(cls, plans_manager: PlansManager, configuration: ConfigurationManager, data: Path) -> str:
        """Refuse preprocessed data that the method cannot learn from; by default it takes any.

        Args:
            data: folder of the configuration's preprocessed data.

        Returns:
            What was looked at, for the doctor's report.

        Raises:
            InputError: what the method lacks.
        """
        return f"{cls.__name__} needs none"

    @classmethod
    def is_planned(cls, configuration: ConfigurationManager) -> bool:
        """Whether plans hold a network that this trainer trains as it stands there: by default its own."""
        return locate(configuration.network_arch_class_name) is cls.network_class

    @classmethod
    def network_kwargs(cls, configuration: ConfigurationManager) -> dict[str, Any]:
        """The arguments of `network_class` where the plans hold another network: by default its own defaults."""
        return {}

    @classmethod
    def build_network(
        cls, configuration: ConfigurationManager, input_channels: int, num_classes: int, deep_supervision: bool
    ) -> Network:
        """The network of the plans, or `network_class` in its place."""
        if not cls.is_planned(configuration):
            check_network_exists(configuration.network_arch_class_name)
            return cls.network_class(
                input_channels, num_classes, deep_supervision=deep_supervision, **cls.network_kwargs(configuration)
            )
        return get_network_from_plans(
            configuration.network_arch_class_name,
            configuration.network_arch_init_kwargs,
            configuration.network_arch_init_kwargs_req_import,
            input_channels,
            num_classes,
            allow_init=True,
            deep_supervision=deep_supervision,
        )

    @classmethod
    def build_network_architecture(  # nnU-Net's is static; called on a class or a trainer, both are the same
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        network: Any = cls.build_network(
            configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        return network  # type: ignore[no-any-return]

    def initialize(self) -> None:
        if self.preprocessed_dataset_folder is None or not Path(self.preprocessed_dataset_folder).is_dir():
            raise InputError(
                f"no preprocessed data at {self.preprocessed_dataset_folder}",
                f"the folder of configuration {self.configuration_name}",
                "run nnunetv2_ext plan_and_preprocess or nnUNetv2_preprocess",
            )
        seed = self.block["seed"]
        if seed is not None:
            self.print_to_log_file(f"All random numbers follow from training.seed = {seed}")
            seed_all(seed, WEIGHTS)
        super().initialize()
        self._log_memory()
        if told := told_of_batch(self.bare_network, self.configuration_manager.batch_size):
            self.print_to_log_file(f"WARNING: {told}")

    def _log_memory(self) -> None:
        manager = self.configuration_manager
        ours = memory_gb(self.feature_map_size(), self.batch_size)
        line = (
            f"Estimated GPU memory of {type(self.bare_network).__name__}: {ours:.1f} GB at patch {manager.patch_size}"
        )
        line += f" and batch {self.batch_size}"
        if not self.is_planned(manager):
            line += self._planned_memory()
        self.print_to_log_file(line)
        optimizer = self.block["optimizer"]["name"]
        trained = sum(parameter.numel() for parameter in self.network.parameters() if parameter.requires_grad)
        self.print_to_log_file(
            f"{trained / 1e6:.1f} million trained parameters, their gradients and {optimizer} take "
            f"{weights_gb(trained, optimizer):.2f} GB; the estimate contains those of a U-Net of 30 million"
        )

    def feature_map_size(self) -> float:
        """Elements of feature maps per sample in one training step, in the measure of nnU-Net's planner."""
        return float(self.bare_network.compute_conv_feature_map_size(self.configuration_manager.patch_size))

    def _planned_memory(self) -> str:
        """What the network of the plans would take in the place of ours, for the log."""
        manager = self.configuration_manager
        try:
            with without_values():
                planned = nnUNetTrainer.build_network_architecture(
                    self.plans_manager, manager, self.num_input_channels, self.label_manager.num_segmentation_heads
                )
            theirs = memory_gb(planned.compute_conv_feature_map_size(manager.patch_size), self.batch_size)
        except Exception as error:  # a network that is not trained may not take the patch, or not be installed
            return f"; the network of the plans was not looked at ({error})"
        return f"; the plans were made for {type(planned).__name__} with {theirs:.1f} GB"

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, EpochScheduler]:
        if self.block["freeze_backbone"]:
            self.bare_network.freeze_backbone()
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        optimizer = build_optimizer(trained, self.block)
        clip = self.block["grad_clip"]
        if clip < NNUNET_CLIP:  # the training step has clipped at that by then

            def clip_gradients(*_: Any) -> None:
                torch.nn.utils.clip_grad_norm_(trained, clip)

            optimizer.register_step_pre_hook(clip_gradients)
        scheduler = build_scheduler(
            optimizer,
            self.block,
            epochs=self.num_epochs,
            iterations=self.num_iterations_per_epoch,
            losses=lambda: self.logger.get_value("val_losses", step=None),
        )
        iterations = self.num_epochs * self.num_iterations_per_epoch
        if isinstance(scheduler, WarmupPolyScheduler) and scheduler.warmup >= iterations:
            self.print_to_log_file(
                f"WARNING: the warm-up of {scheduler.warmup} iterations is as long as the training of {iterations}, so "
                "that its learning rate is never reached; set training.scheduler.warmup_iterations in the plans"
            )
        return optimizer, scheduler

    def _build_loss(self) -> nn.Module:
        wrapper = super()._build_loss()
        loss = wrapper.loss if self.enable_deep_supervision else wrapper
        loss.weight_dice, loss.weight_ce = self.block["loss"]["dice"], self.block["loss"]["ce"]
        weights = self.block["deep_supervision_weights"]
        if self.enable_deep_supervision and weights is not None:
            if self.is_ddp:  # an output without weight would leave its head without a gradient, which DDP refuses
                weights = [max(weight, 1e-6) for weight in weights]
            wrapper.weight_factors = tuple(weight / sum(weights) for weight in weights)
        return wrapper

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        if not self.enable_deep_supervision:
            return None
        patch_size = np.array(self.configuration_manager.patch_size)
        return [list(shape / patch_size) for shape in self.bare_network.deep_supervision_shapes(patch_size)]

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        # nnU-Net's validation ends with True, whatever there was before
        self.bare_network.deep_supervision = enabled and self.enable_deep_supervision

    @staticmethod
    def get_training_transforms(*args: Any, **kwargs: Any) -> BasicTransform:
        stock = for_few_slices(nnUNetTrainer.get_training_transforms(*args, **kwargs))
        return ComposeTransforms([EndWithTraining(), stock])

    @staticmethod
    def get_validation_transforms(*args: Any, **kwargs: Any) -> BasicTransform:
        return ComposeTransforms([EndWithTraining(), nnUNetTrainer.get_validation_transforms(*args, **kwargs)])

    def do_split(self) -> tuple[list[str], list[str]]:
        if self.fold != "all":
            cases = self.dataset_class.get_identifiers(self.preprocessed_dataset_folder)
            file = Path(self.preprocessed_dataset_folder_base) / SPLITS
            if file.is_file():
                splits = read_splits(file, RESTORE_SPLITS)
                check_split(
                    splits,
                    self.fold,
                    cases,
                    unknown=f"{self._preprocess()}, or {RESTORE_SPLITS}",
                    restore=RESTORE_SPLITS,
                )
            elif len(cases) < NNUNET_FOLDS:
                raise InputError(
                    f"{len(cases)} cases",
                    f"{NNUNET_FOLDS} or more for nnU-Net's folds",
                    f"train fold all or write {file}",
                )
        return super().do_split()

    def _preprocess(self) -> str:
        plans = self.plans_manager
        number = dataset_number(plans.dataset_name)
        return f"run nnUNetv2_preprocess -d {number} -plans_name {plans.plans_name} -c {self.configuration_name}"

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        training, validation = super().get_tr_and_val_datasets()
        for dataset in (training, validation):
            check_cases(dataset, self._preprocess())
        return training, validation

    def get_dataloaders(self) -> tuple[Any, Any]:
        voxels = np.prod(self.configuration_manager.patch_size, dtype=float)
        # targets of all outputs have less than twice the voxels of the largest, of two bytes each
        ranks = torch.distributed.get_world_size() if self.is_ddp else 1
        check_shared_memory(ranks * self.batch_size * voxels * 4 * (self.num_input_channels + 1))
        training, validation = super().get_dataloaders()
        seed = self.block["seed"]
        if seed is not None:
            epoch, rank = self.current_epoch, self.local_rank
            training = with_seed(training, (seed, TRAINING, rank), epoch * self.num_iterations_per_epoch)
            validation = with_seed(validation, (seed, VALIDATION, rank), epoch * self.num_val_iterations_per_epoch)
        return training, validation

    def lower_rate(self) -> float:
        return min(super().lower_rate(), named_defaults("optimizer", self.block["optimizer"]["name"])["lr"])

    def on_epoch_start(self) -> None:
        if self.block["seed"] is not None:
            seed_all(self.block["seed"], EPOCHS, self.local_rank, self.current_epoch)
        super().on_epoch_start()

    def on_epoch_end(self) -> None:
        epoch = self.current_epoch
        try:
            super().on_epoch_end()
        except OSError as error:  # the progress picture, on a full disk
            self.print_to_log_file(f"WARNING: {error}; training goes on")
            self.current_epoch = epoch + 1
        self.epochs_run += 1
        left = self.num_epochs - self.current_epoch
        if self.epochs_run == 2 and left > 0:  # the first one warms up
            ended, started = (
                self.logger.get_value(f"epoch_{moment}_timestamps", step=-1) for moment in ("end", "start")
            )
            seconds = ended - started
            self.print_to_log_file(f"about {duration(left * seconds)} left ({left} epochs of {duration(seconds)})")
