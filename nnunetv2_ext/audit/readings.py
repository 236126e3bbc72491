"""What a map says at one moment of its training: the cases' latents, and predictions that leave a case's own out."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nnunetv2_ext.architectures.hypersort import HyperSORT
from nnunetv2_ext.audit.blocks import Block, Blocks
from nnunetv2_ext.audit.clusters import Clusters, find_clusters, rarity_of


class Task(NamedTuple):
    """What the values of labels mean, and what a network gives."""

    labels: Mapping[str, tuple[int, ...]]
    """The values of each label or region by its name."""
    heads: Sequence[tuple[int, ...]]
    """Of every output of the network; of labels their values, in ascending order from 0."""
    regions: bool
    order: Sequence[int]
    """Of regions: the value that each is written as, later ones over earlier ones."""
    ignore: int | None

    def target(self, label: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the network is to give for a label map, and where that counts (all of it: None)."""
        valid = None if self.ignore is None else label != self.ignore
        if self.regions:
            return torch.stack([torch.isin(label, torch.tensor(values).to(label)) for values in self.heads]), valid
        return (label if valid is None else label * valid).long(), valid

    def decided(self, logits: Tensor) -> Tensor:
        """The label map of logits: (heads, Z, Y, X) -> (Z, Y, X)."""
        if not self.regions:
            return logits.argmax(0)
        values = torch.zeros_like(logits[0], dtype=torch.long)
        for logit, value in zip(logits, self.order, strict=True):
            values[logit > 0] = value
        return values

    def overlaps(self, block: Block, decided: Tensor) -> np.ndarray:
        """1 - Dice of every label of a case and a label map on its block; NaN where both are empty: (labels,).

        What lies beyond the block counts as not predicted.
        """
        label, predicted = block.label.long(), decided.cpu()
        if self.ignore is not None:
            label, predicted = label[counted := label != self.ignore], predicted[counted]
        size = 1 + max(max(values) for values in [*self.labels.values(), (0,)])
        pairs = torch.bincount((label * size + predicted).flatten(), minlength=size * size).view(size, size).numpy()
        result = []
        for values in self.labels.values():
            of = list(values)
            either = pairs[of].sum() + pairs[:, of].sum() + sum(block.outside.get(value, 0) for value in of)
            result.append(1 - 2 * pairs[np.ix_(of, of)].sum() / either if either else np.nan)
        return np.array(result)


class Reading(NamedTuple):
    """Of all cases, after one epoch."""

    epoch: int
    """From 1."""
    dice: float
    """Mean of the epoch, with the cases' own latents."""
    latents: np.ndarray
    """(cases, 2)."""
    clusters: Clusters
    rarity: np.ndarray
    """(cases,): mean distance to the five nearest latents."""
    disagreement: np.ndarray
    """(cases, labels): 1 - Dice of the label and the prediction with the centre of its cluster, see `OWN_CENTRE`."""

    def to_tensors(self) -> dict[str, Any]:
        """For a checkpoint; the rest follows from the latents."""
        return {
            "epoch": self.epoch,
            "dice": self.dice,
            "latents": torch.from_numpy(self.latents),
            "disagreement": torch.from_numpy(self.disagreement),
        }

    @classmethod
    def from_tensors(cls, content: Mapping[str, Any]) -> "Reading":
        latents = content["latents"].numpy()
        clusters, disagreement = find_clusters(latents), content["disagreement"].numpy()
        return cls(content["epoch"], content["dice"], latents, clusters, rarity_of(latents), disagreement)


@torch.inference_mode()
def predictions(
    network: HyperSORT, blocks: Blocks, clusters: Clusters, device: torch.device
) -> Iterator[tuple[Block, Tensor]]:
    """The logits (heads, *block) of each case with the centre of its cluster, on the device."""
    made = [network.hypernetwork(torch.from_numpy(centre).to(device, torch.float32)) for centre in clusters.centres]
    for block, cluster in zip(blocks.of, clusters.of, strict=True):
        yield block, network.segment(block.image[None].to(device, torch.float32), made[cluster])[0]


def read(
    network: HyperSORT,
    blocks: Blocks,
    task: Task,
    latents: np.ndarray,
    device: torch.device,
    *,
    epoch: int,
    dice: float,
) -> Reading:
    """What the map says now.

    Args:
        latents: (cases, 2).
        dice: of the epoch, with the cases' own latents.
    """
    clusters = find_clusters(latents)
    disagreement = [
        task.overlaps(block, task.decided(logits)) for block, logits in predictions(network, blocks, clusters, device)
    ]
    return Reading(epoch, dice, latents, clusters, rarity_of(latents), np.stack(disagreement))
