"""How a training learns which slices a patch holds, through nnU-Net's own data loader.

The data sets hand out the number of each slice in the place of the previous stage's segmentation, which the loader
crops and pads with the patch and lays behind the segmentation as a channel. The transforms here take it from there.
"""

from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset, nnUNetDatasetBlosc2, nnUNetDatasetNumpy

SLICES = "slices"


class _WithSliceNumbers(nnUNetBaseDataset):
    """Numbers the slices of a case from 1, in an array that takes no memory."""

    def load_case(self, identifier: str) -> tuple[Any, Any, np.ndarray, dict[str, Any]]:
        data, segmentation, _, properties = super().load_case(identifier)  # type: ignore[safe-super]
        # not int16, to which the loader casts: a cast copies, and PyTorch warns of views of read-only arrays
        numbers = np.arange(1, data.shape[1] + 1, dtype=np.int32)[:, None, None]
        return data, segmentation, np.broadcast_to(numbers, data.shape[1:]), properties


class NumberedDatasetBlosc2(_WithSliceNumbers, nnUNetDatasetBlosc2):
    """nnU-Net's data set of that name, with slice numbers."""


class NumberedDatasetNumpy(_WithSliceNumbers, nnUNetDatasetNumpy):
    """nnU-Net's data set of that name, with slice numbers."""


NUMBERED: dict[type[nnUNetBaseDataset], type[nnUNetBaseDataset]] = {
    nnUNetDatasetBlosc2: NumberedDatasetBlosc2,
    nnUNetDatasetNumpy: NumberedDatasetNumpy,
}


class TakeSliceNumbers(BasicTransform):
    """Takes the slice numbers, channel 1 of the segmentation (2, S, Y, X), out of the way of what works within slices.

    Interpolating them would cost a pass for each slice. From here on nothing may move along the first axis.
    """

    def apply(self, data_dict: dict[str, Any], **_: Any) -> dict[str, Any]:
        segmentation = data_dict["segmentation"]
        # -1 where the loader padded: around the image, and in whole slices
        data_dict[SLICES] = segmentation[1].amax(dim=(1, 2)).clamp_min(0)
        data_dict["segmentation"] = segmentation[:1]
        return data_dict


class HandOutSliceNumbers(BasicTransform):
    """Puts the slice numbers, (S,), behind the segmentation in a list, in which the loader hands both out."""

    def apply(self, data_dict: dict[str, Any], **_: Any) -> dict[str, Any]:
        data_dict["segmentation"] = [data_dict["segmentation"], data_dict.pop(SLICES).to(torch.int16)]
        return data_dict
