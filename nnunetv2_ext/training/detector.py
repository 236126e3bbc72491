"""Training of a detector: boxes, presence and masks of three planes against what the augmented patch holds.

The loss is `nnunetv2_ext.losses.BoxLoss`. What the network returns are logits made of its boxes, so nnU-Net's own
validation and prediction score and write boxes as labels.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nnunetv2_ext.architectures import ROIDetector
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.losses import BoxLoss
from nnunetv2_ext.training.step import Objective
from nnunetv2_ext.training.trainer import ExtTrainer


class TrainerOfBoxes(ExtTrainer):
    """Trains a network with the attribute `detected`, see `ROIDetector`."""

    network_class = ROIDetector

    def _build_loss(self) -> Any:
        regions = self.label_manager.has_regions
        if self.bare_network.regions != regions:
            raise InputError(
                f"a detector of {'regions' if self.bare_network.regions else 'labels'} for a data set of "
                f"{'regions' if regions else 'labels'}",
                "one of the same",
                f"run nnunetv2_ext plan_and_preprocess -d {self.plans_manager.dataset_name} -pl ROIPlanner "
                "--network detector",
            )
        weights = self.block["loss"]
        return BoxLoss(**self.block["detector"], view=self.bare_network.view, dice=weights["dice"], bce=weights["ce"])

    def organs(self, target: Tensor) -> tuple[Tensor, Tensor | None]:
        """The voxels known to be of each foreground label or region, and those of which nothing is known.

        Args:
            target: as nnU-Net lays it out, (B, 1, Z, Y, X) labels, or (B, regions, Z, Y, X) with a further channel
                that marks ignored voxels where the data set has an ignore label.

        Returns:
            (B, organs, Z, Y, X) bool, and (B, 1, Z, Y, X) bool or None.
        """
        manager = self.label_manager
        if manager.has_regions:
            target = target.bool()
            return (target[:, :-1], target[:, -1:]) if manager.has_ignore_label else (target, None)
        labels = torch.as_tensor(manager.foreground_labels, device=target.device).view(1, -1, 1, 1, 1)
        return target == labels, target == manager.ignore_label if manager.has_ignore_label else None

    def objective(self, batch: Mapping[str, Any]) -> Objective:
        """The loss of what the network found on its planes; validation scores its boxes as labels."""
        data, target = self.on_device(batch["data"]), self.on_device(batch["target"])
        logits = self.network(data)
        loss, terms = self.loss(self.bare_network.detected, *self.organs(target))
        if self.network.training:
            return Objective(loss, terms=terms)
        return Objective(loss, logits, target, terms)
