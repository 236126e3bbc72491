"""What trainers share that train a network around whatever backbone the plans hold."""

from typing import Any

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

    @staticmethod
    def _backbone_of(configuration_manager: ConfigurationManager) -> dict[str, Any]:
        """The backbone that plans of another network hold, as arguments of `BackboneNetwork`."""
        name = configuration_manager.network_arch_class_name
        kwargs = configuration_manager.network_arch_init_kwargs
        if name in [find("architecture", wrapper).path for wrapper in ("BackboneNetwork", "PaRNetwork")]:
            return {key: kwargs[key] for key in ("backbone", "spatial_shape", "backbone_kwargs")}
        return {
            "backbone": name,
            "spatial_shape": list(configuration_manager.patch_size),
            "backbone_kwargs": kwargs,
        }
