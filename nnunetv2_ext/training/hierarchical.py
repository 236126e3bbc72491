"""Training of a network with entries: one pass of the patch, and one of a crop of it for each further entry."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor

from nnunetv2_ext.architectures.contract import check_planned, fixed
from nnunetv2_ext.architectures.hierarchical import HierarchicalSegmentor, are_triples
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.training.entries import ENTRIES, elements_of_entries, halving
from nnunetv2_ext.training.step import Objective
from nnunetv2_ext.training.topology import topology_of_patch
from nnunetv2_ext.training.trainer import CheckedPlans, ExtTrainer


def crops(tensors: Sequence[Tensor], shape: Sequence[int], centres: Sequence[Tensor | None]) -> list[Tensor]:
    """The same crop of each tensor, at a place of its own for each sample, from torch's generator.

    Args:
        tensors: (B, channels, *spatial) of one size.
        shape: of the crop.
        centres: for each sample, voxels (N, axes) of which one is to be inside, or None for any place.
    """
    sizes, places = tensors[0].shape[2:], []
    for voxels in centres:
        shares = torch.rand(len(shape)).tolist()
        if voxels is None:
            lows, highs = [0] * len(shape), [size - length for size, length in zip(sizes, shape, strict=True)]
        else:
            voxel = voxels[int(torch.randint(len(voxels), ()))].tolist()
            lows = [max(0, at - length + 1) for at, length in zip(voxel, shape, strict=True)]
            highs = [min(at, size - length) for at, size, length in zip(voxel, sizes, shape, strict=True)]
        starts = [low + int(share * (high - low + 1)) for low, high, share in zip(lows, highs, shares, strict=True)]
        cut = (slice(start, start + length) for start, length in zip(starts, shape, strict=True))
        places.append((slice(None), *cut))
    return [torch.stack([sample[place] for sample, place in zip(tensor, places, strict=True)]) for tensor in tensors]


class TrainerOfEntries(ExtTrainer):
    """Trains a network on the patch, and on random crops of the size of its further entries."""

    network_class = HierarchicalSegmentor
    network: Any

    @property
    def entry_weights(self) -> list[float]:
        """The weight of the loss of each entry."""
        return self.block["hierarchical"]["entry_weights"] or halving(len(self.bare_network.entry_shapes))

    @classmethod
    def network_kwargs(cls, configuration: ConfigurationManager) -> dict[str, Any]:
        """Strides and kernels of the plans' U-Net, or those of nnU-Net's rule as far as they divide the patch."""
        patch = list(configuration.patch_size)
        planned = configuration.network_arch_init_kwargs
        planned = planned.get("backbone_kwargs", planned)
        if all(are_triples(planned.get(key)) for key in ("strides", "kernel_sizes")):
            strides, kernels = planned["strides"], planned["kernel_sizes"]
        else:
            strides, kernels = topology_of_patch(configuration.spacing, patch)
        entries = min(ENTRIES, len(strides))
        return {"spatial_shape": patch, "strides": strides, "kernel_sizes": kernels, "entries": entries}

    @classmethod
    def check_plans(cls, plans: dict[str, Any], configuration: str) -> CheckedPlans:
        checked = super().check_plans(plans, configuration)
        network, patch_size = checked.network, PlansManager(plans).get_configuration(configuration).patch_size
        # crops of further entries are to fit into the patch
        check_planned(type(network).__name__, patch_size, network.entry_shapes[0])
        weights = checked.block["hierarchical"]["entry_weights"]
        if weights is not None and len(weights) != (entries := len(network.entry_shapes)):
            raise InputError(
                f"{len(weights)} numbers in training.hierarchical.entry_weights",
                f"{entries}, one per entry of {type(network).__name__}",
                "correct the plans, or set it to null",
            )
        return checked

    def initialize(self) -> None:
        super().initialize()
        shapes, weights = self.bare_network.entry_shapes, self.entry_weights
        told = ", ".join(f"{list(shape)} with weight {weight:g}" for shape, weight in zip(shapes, weights, strict=True))
        self.print_to_log_file(f"Entries: {told}")

    def feature_map_size(self) -> float:
        return elements_of_entries(self.bare_network, self.entry_weights)

    def objective(self, batch: Mapping[str, Any]) -> Objective:
        """The patch at the first entry, and for each further one a crop of each sample; validation has the patch alone.

        Crops hold foreground, where there is some, with the share at which the loader's patches must.
        """
        data, target = self.on_device(batch["data"]), self.on_device(batch["target"])
        output = self.network(fixed(data))
        loss = self.loss(output, target)
        logits, finest = (output[0], target[0]) if self.enable_deep_supervision else (output, target)
        if not self.network.training:
            return Objective(loss, logits, finest)
        weights, terms = self.entry_weights, {"entry_1": loss.detach()}
        of_crop = self.loss.loss if self.enable_deep_supervision else self.loss
        total = weights[0] * loss
        for number, (shape, weight) in enumerate(zip(self.bare_network.entry_shapes, weights, strict=True), 1):
            if number == 1 or not weight:
                continue
            image, labels = crops([data, finest], shape, self._centres(finest))
            output = self.network(fixed(image))
            loss = of_crop(output[0] if self.enable_deep_supervision else output, labels)
            total = total + weight * loss
            terms[f"entry_{number}"] = loss.detach()
        return Objective(total, terms=terms)

    def _centres(self, target: Tensor) -> list[Tensor | None]:
        """For some samples, as many as `oversample_foreground` says, the voxels of their foreground (N, axes)."""
        manager = self.label_manager
        chosen = torch.rand(len(target)) < self.oversample_foreground_percent
        centres: list[Tensor | None] = []
        for sample, is_chosen in zip(target, chosen.tolist(), strict=True):
            voxels = None
            if is_chosen:
                if manager.has_regions and manager.has_ignore_label:
                    sample = sample[:-1]
                foreground = sample > 0
                if not manager.has_regions and manager.has_ignore_label:
                    foreground &= sample != manager.ignore_label
                voxels = foreground.any(0).nonzero()
            centres.append(voxels if voxels is not None and len(voxels) else None)
        return centres
