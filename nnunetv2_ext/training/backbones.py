"""What trainers share that train a network around whatever backbone the plans hold."""

from pydoc import locate
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunetv2_ext.registry import find
from nnunetv2_ext.training.trainer import ExtTrainer


class TrainerOfBackbones(ExtTrainer):
    """Trains its network on its own plans, and around the network of any other 3D plans."""

    @classmethod
    def _network(cls, configuration_manager: ConfigurationManager, inputs: int, outputs: int, supervised: bool) -> Any:
        if cls._is_planned(configuration_manager):
            return super()._network(configuration_manager, inputs, outputs, supervised)
        return cls.network_class(
            inputs, outputs, deep_supervision=supervised, **cls._backbone_of(configuration_manager)
        )

    def configure_optimizers(self) -> Any:
        configured = super().configure_optimizers()
        if self.schedule["freeze_backbone"]:
            self.untrained = next(self.bare_network.backbone.parameters()).detach().clone()
        return configured

    def on_train_start(self) -> None:
        super().on_train_start()
        if not self.schedule["freeze_backbone"] or self.resuming:
            return
        if torch.equal(self.untrained, next(self.bare_network.backbone.parameters())):
            self.print_to_log_file(
                "WARNING: the backbone is frozen with random weights; start with -pretrained_weights FILE, made by "
                "nnunetv2_ext import_weights par"
            )

    @staticmethod
    def _backbone_of(configuration_manager: ConfigurationManager) -> dict[str, Any]:
        """The backbone that plans of another network hold, as arguments of `BackboneNetwork`."""
        name = configuration_manager.network_arch_class_name
        kwargs = configuration_manager.network_arch_init_kwargs
        if name in [find("architecture", wrapper).path for wrapper in ("BackboneNetwork", "PaRNetwork")]:
            return {key: kwargs[key] for key in ("backbone", "spatial_shape", "backbone_kwargs") if key in kwargs}
        classes = configuration_manager.network_arch_init_kwargs_req_import
        return {
            "backbone": name,
            "spatial_shape": list(configuration_manager.patch_size),
            "backbone_kwargs": {
                key: locate(value) if key in classes and isinstance(value, str) else value
                for key, value in kwargs.items()
            },
        }
