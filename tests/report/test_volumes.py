"""Volumes of the interactive view: where they lie, what they hold, how large they are."""

import base64
import gzip

import nibabel as nib
import numpy as np
import pytest

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.report import volumes
from nnunetv2_ext.report.pictures import MARGIN
from nnunetv2_ext.report.volumes import numbered, pack

SPACING = (5.0, 0.8, 0.8)
LABELS = {"liver": (1,), "lesion": (2,)}


def read(packed: str) -> tuple[np.ndarray, nib.Nifti1Image]:
    """Values as (Z, Y, X), and the file."""
    file = nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(packed)))
    return np.asarray(file.dataobj).transpose(2, 1, 0), file


def one_voxel(shape: tuple[int, ...], *where: int) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[where] = 1
    return mask


def test_cropped_to_labels_and_margin_spacing_kept() -> None:
    shape = (30, 100, 90)
    reference, prediction = one_voxel(shape, 10, 40, 45), one_voxel(shape, 12, 44, 45)
    image = np.arange(np.prod(shape)).reshape(shape) % 251.0
    packed = pack(image, reference, prediction, SPACING, LABELS, window=(0, 255))
    slices, pixels = round(MARGIN / 5), round(MARGIN / 0.8)
    box = (slice(10 - slices, 13 + slices), slice(40 - pixels, 45 + pixels), slice(45 - pixels, 46 + pixels))
    for name, values in (("image", image), ("reference", reference), ("prediction", prediction)):
        shown, file = read(getattr(packed, name))
        np.testing.assert_array_equal(shown, values[box])
        np.testing.assert_allclose(file.header.get_zooms(), (0.8, 0.8, 5))
        assert nib.aff2axcodes(file.affine) == ("L", "P", "S")
        assert file.get_data_dtype() == np.uint8
    assert packed.spacing == pytest.approx(SPACING)
    voxel = np.linalg.inv(file.affine) @ (*packed.place, 1)  # the reference's, in the order of the file
    np.testing.assert_allclose(voxel[:3], (45 - box[2].start, 40 - box[1].start, 10 - box[0].start), atol=1e-4)


def test_everything_is_shown_where_there_is_no_label_and_no_reference() -> None:
    packed = pack(np.zeros((3, 8, 8)), None, np.zeros((3, 8, 8), np.uint8), SPACING, LABELS)
    assert packed.reference is None
    assert read(packed.image)[0].shape == read(packed.prediction)[0].shape == (3, 8, 8)


def test_wide_planes_are_shrunk_and_thick_slices_are_not() -> None:
    """512 columns become 256 of twice the width: means of the image, voxels of the labels."""
    image = np.random.default_rng(0).integers(0, 256, (2, 300, 512)).astype(float)
    labels = np.ones(image.shape, np.uint8)
    packed = pack(image, None, labels, SPACING, LABELS, window=(0, 255))
    shown, file = read(packed.image)
    assert shown.shape == (2, 150, 256)
    np.testing.assert_allclose(file.header.get_zooms(), (1.6, 1.6, 5))
    assert packed.spacing == pytest.approx((5, 1.6, 1.6))
    expected = image.reshape(2, 150, 2, 256, 2).mean(axis=(2, 4))
    assert np.abs(shown - expected).max() <= 0.51
    assert (read(packed.prediction)[0] == 1).all()


@pytest.mark.parametrize("spacing", [(5.0, 0.8, 0.8), (1.0, 1.0, 1.0), (1.0, 3.0, 0.5)])
def test_a_case_takes_no_more_than_its_share(monkeypatch: pytest.MonkeyPatch, spacing: volumes.Spacing) -> None:
    """Noise cannot be compressed, so that voxels grow, the finest first; the extent in mm stays."""
    monkeypatch.setattr(volumes, "BYTES", 20_000)
    noise = np.random.default_rng(0).normal(size=(12, 70, 61))
    labels = np.random.default_rng(1).integers(0, 3, noise.shape)
    packed = pack(noise, labels, labels, spacing, LABELS)
    assert 10_000 < packed.size() <= 20_000
    shown = [read(part)[0].shape for part in (packed.image, packed.reference or "", packed.prediction)]
    assert shown[0] == shown[1] == shown[2]
    np.testing.assert_allclose(np.multiply(shown[0], packed.spacing), np.multiply(noise.shape, spacing))
    unchanged = [new == pytest.approx(old) for new, old in zip(packed.spacing, spacing, strict=True)]
    finest = max(step for step, kept in zip(packed.spacing, unchanged, strict=True) if not kept)
    assert all(step > 0.7 * finest for step in packed.spacing)
    if spacing[0] == 5:
        assert unchanged == [True, False, False]


def test_means_count_voxels_by_their_share() -> None:
    """Five voxels in three: each new one holds 5/3 of them."""
    means = volumes._means(np.array([[3.0], [6.0], [9.0], [12.0], [30.0]], np.float32), 0, 3)
    expected = [(3 + 6 * 2 / 3), (6 / 3 + 9 + 12 / 3), (12 * 2 / 3 + 30)]
    np.testing.assert_allclose(means[:, 0], np.array(expected) * 3 / 5)


def test_what_is_no_number_is_black_and_a_constant_is_no_matter() -> None:
    image = np.full((2, 4, 4), 7.0)
    labels = np.ones(image.shape, np.uint8)
    assert (read(pack(image, None, labels, SPACING, LABELS).image)[0] == 0).all()
    image[0, 0, :3] = np.nan, np.inf, -np.inf
    image[1] = 10
    shown, _ = read(pack(image, None, labels, SPACING, LABELS, window=(7, 10)).image)
    assert shown[0, 0].tolist() == [0, 255, 0, 0]
    assert (shown[1] == 255).all()
    assert (read(pack(np.full((2, 4, 4), np.nan), None, labels, SPACING, LABELS).image)[0] == 0).all()


def test_labels_are_numbered_in_order_and_smaller_regions_lie_on_top() -> None:
    values = np.arange(5)
    np.testing.assert_array_equal(numbered(values, {"a": (3,), "b": (1,)}), [0, 2, 0, 1, 0])
    regions = {"core": (2, 3), "whole": (1, 2, 3), "active": (3,)}
    np.testing.assert_array_equal(numbered(values, regions), [0, 2, 1, 3, 0])


def test_more_labels_than_bytes_hold_are_refused() -> None:
    labels = {str(value): (value,) for value in range(1, 257)}
    with pytest.raises(InputError, match=r"got 256 labels; expected at most 255 .*; leave .* out with --viewer 0\."):
        numbered(np.zeros(3, int), labels)
