"""What trainers share that train a network around whatever backbone the plans hold."""

from pydoc import locate
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunetv2_ext.architectures import BackboneNetwork, PaRNetwork
from nnunetv2_ext.training.trainer import ExtTrainer


class TrainerOfBackbones(ExtTrainer):
    """Trains its network on its own plans, and around the network of any other 3D plans."""

    def configure_optimizers(self) -> Any:
        configured = super().configure_optimizers()
        if self.block["freeze_backbone"]:
            self.untrained = next(self.bare_network.backbone.parameters()).detach().clone()
        return configured

    def on_train_start(self) -> None:
        super().on_train_start()
        if not self.block["freeze_backbone"] or self.resuming:
            return
        if torch.equal(self.untrained, next(self.bare_network.backbone.parameters())):
            self.print_to_log_file(
                "WARNING: the backbone is frozen with random weights; start with -pretrained_weights FILE, made by "
                "nnunetv2_ext import_weights par"
            )

    @classmethod
    def network_kwargs(cls, configuration: ConfigurationManager) -> dict[str, Any]:
        """The backbone that plans of another network hold, as arguments of `BackboneNetwork`."""
        kwargs = configuration.network_arch_init_kwargs
        if locate(configuration.network_arch_class_name) in (BackboneNetwork, PaRNetwork):
            return {key: kwargs[key] for key in ("backbone", "spatial_shape", "backbone_kwargs") if key in kwargs}
        classes = configuration.network_arch_init_kwargs_req_import
        return {
            "backbone": configuration.network_arch_class_name,
            "spatial_shape": list(configuration.patch_size),
            "backbone_kwargs": {
                key: locate(value) if key in classes and isinstance(value, str) else value
                for key, value in kwargs.items()
            },
        }
