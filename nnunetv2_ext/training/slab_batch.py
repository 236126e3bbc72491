"""A training batch of slabs: the thick image, the targets and P of every output, and the features of a pass."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from nnunetv2_ext.architectures.contract import Network, Tokenized
from nnunetv2_ext.geometry.patches import Patch, padding_slabs
from nnunetv2_ext.geometry.slabs import slab_matrix, slice_edges


class FeatureTap:
    """Keeps the last feature map of a pass: the input of the network's head."""

    def __init__(self, network: Network):
        self.token_size = network.token_size if isinstance(network, Tokenized) else None
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
class SlabBatch:
    """What one step needs of a batch."""

    slabs: Tensor
    """P, (B, T, S), on the CPU: annotated slabs and slabs of padding; rows of zeros fill up."""
    annotated: Tensor
    """(B, T) bool"""
    target: Tensor
    """y, (B, 1 or regions + 1, T, Y, X): background in padding, marked as ignored where rows fill up."""
    thin_image: Tensor
    """x, (B, C, S, Y, X)"""
    thick_image: Tensor
    """P x, (B, C, T or S, Y, X)"""

    @property
    def valid(self) -> Tensor:
        """(B, T) bool, rows that are no zeros."""
        return self.slabs.any(-1)

    def only_annotated(self, volume: Tensor) -> Tensor:
        """Annotated slabs of all samples as slices of one: (B, C, T, Y, X) -> (1, C, slabs, Y, X)."""
        slabs = rearrange(volume, "b c t y x -> (b t) c y x")[self.annotated.flatten().to(volume.device)]
        return rearrange(slabs, "t c y x -> 1 c t y x")


def filled_up(patch: Patch, slices: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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


def as_list(outputs: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def regrouped(matrix: Tensor, slices: int) -> Tensor:
    """P (B, T, S) of an output that has so many slices for the patch's S: (B, T, slices)."""
    fine = matrix.shape[2]
    if slices == fine:
        return matrix
    shares = slab_matrix(slice_edges(fine, 1.0), slice_edges(slices, fine / slices))  # (S, slices)
    return matrix @ torch.from_numpy(shares).to(matrix)


def merged(matrix: Tensor, valid: Tensor, slices: int) -> tuple[Tensor, Tensor]:
    """P (B, T, S) and valid (B, T) for a thick feature map of fewer slices than slabs: it averages valid ones."""
    shares = torch.from_numpy(
        slab_matrix(slice_edges(slices, matrix.shape[1] / slices), slice_edges(matrix.shape[1], 1.0))
    )
    weights = shares.to(matrix) * valid[:, None].to(matrix)  # (B, slices, T)
    total = weights.sum(-1, keepdim=True)
    return weights @ matrix / total.clamp_min(1e-6), total[..., 0] > 0


def resized(target: Tensor, shape: Sequence[int]) -> Tensor:
    """Nearest neighbours, as nnU-Net makes the targets of deep supervision: (B, C, T, Y, X) -> (B, C, *shape)."""
    if tuple(target.shape[2:]) == tuple(shape):
        return target
    return F.interpolate(target.float(), tuple(shape), mode="nearest-exact").to(target.dtype)
