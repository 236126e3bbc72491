"""The best that intensity alone can do: one interval per label, chosen on the very cases it is judged on.

A baseline without training. Where it does well, a data set asks for no segmentation network.
"""

from collections.abc import Sequence

import numpy as np

from nnunetv2_ext.errors import InputError


def threshold_dice(images: Sequence[np.ndarray], labels: Sequence[np.ndarray], *, steps: int = 128) -> dict[int, float]:
    """For each foreground label the Dice, averaged over cases, of the best interval `low <= intensity <= high`.

    The interval is one for all cases. Both ends are searched exhaustively over `steps` + 1 quantiles of the label's
    own intensities. Each label stands for itself: intervals may overlap, which no real segmentation could do.

    Args:
        images: arrays of intensity, of any shape.
        labels: arrays of whole numbers of the same shapes, 0 being background.
        steps: quantiles tried for each end, less one.

    Returns:
        Dice of 0 to 1 by label, averaged over the cases that hold the label

    Raises:
        InputError: images and labels do not pair up.
    """
    shapes, label_shapes = [image.shape for image in images], [label.shape for label in labels]
    if shapes != label_shapes:
        raise InputError(
            f"images of shapes {shapes} and labels of shapes {label_shapes}",
            "one array of labels for each image, of the same shape",
            "pass them in the same order",
        )
    present = sorted({int(value) for label in labels for value in np.unique(label)} - {0})
    return {value: _best_dice(images, [label == value for label in labels], steps) for value in present}


def _best_dice(images: Sequence[np.ndarray], masks: Sequence[np.ndarray], steps: int) -> float:
    """Mean Dice of the best interval for one label, given its masks."""
    own = np.concatenate([image[mask] for image, mask in zip(images, masks, strict=True)])
    ends = np.unique(np.quantile(own, np.linspace(0, 1, steps + 1)))
    scores = []
    for image, mask in zip(images, masks, strict=True):
        if not mask.any():
            continue
        # (ends,): voxels below each end, and up to and including it, in the label and in the whole image
        voxels, hits = np.sort(image, axis=None), np.sort(image[mask])
        taken = np.searchsorted(voxels, ends, "right")[None, :] - np.searchsorted(voxels, ends, "left")[:, None]
        right = np.searchsorted(hits, ends, "right")[None, :] - np.searchsorted(hits, ends, "left")[:, None]
        # (low end, high end); where high < low the counts are negative or zero, and so is the Dice
        scores.append(2 * right / np.maximum(taken + len(hits), 1))
    return float(np.mean(scores, axis=0).max())
