"""Swin UNETR with the order in which its patch merging joins the octants as an argument.

Paper: Hatamizadeh et al., "Swin UNETR: Swin Transformers for Semantic Segmentation of Brain Tumors in MRI Images",
BrainLes 2021.
Original code: MONAI (https://github.com/Project-MONAI/MONAI, Apache-2.0), whose network this is.

Departure: MONAI 1.5 changed the order of the octants, and with it the outputs of all weights trained before, which load
without a word since names and shapes are the same. `merging="published"` is the order up to MONAI 1.4.
"""

import inspect
from typing import Any

import torch
from monai.networks.nets import swin_unetr
from torch import Tensor

from nnunetv2_ext.errors import InputError

# (z, y, x) of each octant's first voxel; up to MONAI 1.4 two came twice and two not at all
OCTANTS_PUBLISHED = (
    (0, 0, 0),
    (1, 0, 0),
    (0, 1, 0),
    (0, 0, 1),
    (1, 0, 1),
    (0, 1, 0),
    (0, 0, 1),
    (1, 1, 1),
)


class PublishedMerging(swin_unetr.PatchMerging):  # type: ignore[misc]
    """The patch merging of MONAI up to 1.4: (B, z, y, x, C) of even sizes -> (B, z/2, y/2, x/2, 2 C)."""

    def forward(self, x: Tensor) -> Tensor:
        octants = [x[:, z::2, y::2, x_::2] for z, y, x_ in OCTANTS_PUBLISHED]
        merged: Tensor = self.reduction(self.norm(torch.cat(octants, -1)))
        return merged


MERGINGS = {"published": PublishedMerging, "current": swin_unetr.PatchMerging}


def merging_class(merging: str) -> type[swin_unetr.PatchMerging]:
    """The patch merging of that name.

    Raises:
        InputError: unknown name.
    """
    if merging not in MERGINGS:
        raise InputError(f"merging={merging!r}", f"one of {', '.join(MERGINGS)}", "correct it")
    return MERGINGS[merging]


class SwinUNETR(swin_unetr.SwinUNETR):  # type: ignore[misc]
    """MONAI's network with all its arguments, and one more.

    Args:
        merging: "current", the order of MONAI from 1.5 on, or "published", which weights trained with MONAI 1.4 or
            before need. Goes with the `downsample` that MONAI takes without being told.

    Raises:
        InputError: an unknown merging, or "published" with another `downsample`.
    """

    def __init__(self, *args: Any, merging: str = "current", **kwargs: Any):
        chosen = merging_class(merging)
        if merging == "published":
            downsample = kwargs.get("downsample", "merging")
            if downsample != "merging":
                raise InputError(
                    f"merging={merging!r} with downsample={downsample!r}", "one of the two", "leave one of them out"
                )
            kwargs["downsample"] = chosen
        super().__init__(*args, **kwargs)


def _with_merging() -> inspect.Signature:
    """MONAI's signature, whichever its version, with the argument of ours."""
    monai = inspect.signature(swin_unetr.SwinUNETR)
    own = inspect.Parameter("merging", inspect.Parameter.KEYWORD_ONLY, default="current")
    return monai.replace(parameters=[*monai.parameters.values(), own])


SwinUNETR.__signature__ = _with_merging()  # type: ignore[attr-defined]
