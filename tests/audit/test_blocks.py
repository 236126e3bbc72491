"""Blocks: which part of a case they hold, how large they are, and what becomes of image and label."""

from collections.abc import Sequence
from pathlib import Path

import blosc2
import numpy as np
import pytest

from nnunetv2_ext.audit.blocks import Frame, by_majority, choose_frame, read_blocks
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.geometry.boxes import Box
from tests.audit.preprocessed import write_preprocessed

SPACING = (3.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("boxes", "spacing", "voxels", "largest", "frame"),
    [
        # 1.3 times the box, in multiples of what can be halved
        ([(25, 37, 19)], (1, 1, 1), 64**3, (99, 99, 99), Frame((32, 48, 24), (32, 48, 24), 2)),
        # no larger than the images
        ([(25, 37, 19)], (1, 1, 1), 64**3, (28, 40, 20), Frame((28, 40, 20), (28, 40, 20), 2)),
        # a stray among many is not to shrink all
        ([(20, 20, 20)] * 30 + [(90, 90, 90)], (1, 1, 1), 64**3, (99, 99, 99), Frame((24, 24, 24), (24, 24, 24), 2)),
        # too large: one zoom
        ([(100, 100, 100)], (1, 1, 1), 32**3, (999, 999, 999), Frame((117, 117, 117), (32, 32, 32), 3)),
        # the coarser axis stays as it is
        ([(12, 100, 100)], (4, 1, 1), 16 * 64 * 64, (999, 999, 999), Frame((16, 132, 132), (16, 64, 64), 2)),
        # thin: no map of less than 4 voxels
        ([(3, 40, 40)], (5, 1, 1), 64**3, (4, 99, 99), Frame((8, 52, 52), (8, 52, 52), 1)),
        ([], (1, 1, 1), 64**3, (20, 24, 20), Frame((20, 24, 20), (20, 24, 20), 2)),
    ],
    ids=["room", "small images", "a stray", "zoom", "anisotropic", "thin", "no labels"],
)
def test_frame(
    boxes: Sequence[Sequence[int]],
    spacing: Sequence[float],
    voxels: int,
    largest: Sequence[int],
    frame: Frame,
) -> None:
    found = choose_frame(boxes, spacing, voxels=voxels, largest=largest)
    assert found.shape == frame.shape and found.levels == frame.levels
    np.testing.assert_allclose(found.crop, frame.crop, atol=5)
    assert np.prod(found.shape) <= voxels


@pytest.mark.parametrize(
    ("centre", "image", "low"),
    [
        ((20, 20, 20), (40, 40, 40), (16, 16, 16)),
        ((1, 20, 39), (40, 40, 40), (0, 16, 32)),
        ((3, 3, 3), (6, 7, 8), (-1, -1, 0)),
    ],
    ids=["about the label", "moved into the image", "a small image"],
)
def test_place(centre: tuple[float, ...], image: tuple[int, ...], low: tuple[int, ...]) -> None:
    assert Frame((8, 8, 8), (8, 8, 8), 1).place(centre, image) == Box(low, tuple(place + 8 for place in low))


def test_labels_by_majority() -> None:
    label = np.zeros((4, 4, 4), np.int16)
    label[:2, :2, :2] = [[[1, 1], [1, 1]], [[1, 2], [2, 2]]]
    label[2:, :2, :2] = [[[1, 1], [0, 0]], [[1, 1], [0, 0]]]
    label[2:, 2:, 2:] = 300
    found = by_majority(label, (2, 2, 2))
    assert found[0, 0, 0] == 1 and found[1, 0, 0] == 0 and found[1, 1, 1] == 300
    assert (by_majority(label, (4, 4, 4)).numpy() == label).all()


def test_blocks_hold_images_and_labels(tmp_path: Path) -> None:
    def stray(number: int, image: np.ndarray, label: np.ndarray) -> None:
        if number == 3:
            label[0, 0, 0] = 2

    made = write_preprocessed(tmp_path, 12, change=stray)
    blocks = read_blocks(made.data, SPACING, voxels=64**3)
    assert blocks.cases == tuple(f"case_{number:02d}" for number in range(12))
    assert blocks.frame.levels == 1 and blocks.frame.crop == blocks.frame.shape
    for block in blocks.of:
        assert block.image.shape == (1, *blocks.frame.shape)
        inside = block.image[0][block.label > 0].float().mean() - block.image[0][block.label == 0].float().mean()
        assert inside > 1  # the image belongs to the label
        assert set(block.label.unique().tolist()) == {0, 1, 2}
    beyond = {block.case: dict(block.outside) for block in blocks.of if block.outside}
    assert beyond.keys() == {"case_03"} and beyond["case_03"].keys() == {2}
    assert len({block.digest for block in blocks.of}) == 12
    small = read_blocks(made.data, SPACING, voxels=8**3 * 2)
    assert np.prod(small.frame.shape) <= 8**3 * 2
    scale = np.prod(small.frame.shape) / np.prod(small.frame.crop)
    for one, other in zip(blocks.of, small.of, strict=True):
        assert (other.label > 0).sum() == pytest.approx(float((one.label > 0).sum() * scale), rel=0.25)


def test_nan_is_refused(tmp_path: Path) -> None:
    made = write_preprocessed(tmp_path)
    blosc2.open(str(made.data / "case_01.b2nd"), mode="a")[0, 5, 15, 15] = np.nan
    with pytest.raises(InputError, match=r"case_01 .* with NaN or infinity.*preprocess the data set again"):
        read_blocks(made.data, SPACING, voxels=64**3)
