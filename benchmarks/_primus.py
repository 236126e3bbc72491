"""PrimusTrainer: Primus S on plans of ConvFreeTransformer, for benchmarks.accuracy only.

Patch, tokens, `training` block (optimizer, scheduler, clipping, loss) and augmentation are those that ConvFreeTrainer
gets on the same plans; network and initialisation are those of nnU-Net's nnUNet_Primus_S_Trainer. Its optimisation is
not: AdamW with 3e-4, weight decay 0.05, betas 0.9 and 0.98, 50 epochs of warm-up. Those numbers can be set in the
`training` block of plans of its own.
"""

from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from benchmarks._primus_network import PrimusNetwork
from nnunetv2_ext.trainers.convfree import ConvFreeTrainer


class PrimusTrainer(ConvFreeTrainer):
    """Trains Primus S with the tokens of the plans; on plans without tokens, those that ConvFreeTrainer chooses."""

    network_class = PrimusNetwork

    @classmethod
    def network_kwargs(cls, configuration: ConfigurationManager) -> dict[str, Any]:
        token_size = configuration.network_arch_init_kwargs.get("token_size")
        own = super().network_kwargs(configuration) if token_size is None else {"token_size": token_size}
        return {"spatial_shape": configuration.patch_size, **own}
