import hashlib
import json

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from nnunetv2_ext.data.phantom import LABELS, SPACING, Phantom, make_phantom, write_phantoms
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation.threshold import threshold_dice


@pytest.fixture(scope="module")
def phantoms() -> list[Phantom]:
    return [make_phantom(seed) for seed in range(4)]


def test_the_seed_decides(phantoms):
    again = make_phantom(1)
    np.testing.assert_array_equal(again.image, phantoms[1].image)
    np.testing.assert_array_equal(again.labels, phantoms[1].labels)
    assert (phantoms[0].labels != phantoms[1].labels).any()


@pytest.mark.parametrize(
    ("seed", "options", "digest", "column"),
    [
        (0, {}, "1b7aa0e436ecd473", [-100.7718, -87.4776, -79.0225]),
        (7, {}, "1a5057e2b0a667f9", [-105.8005, -106.5643, -100.1373]),
        (3, {"slices": 16, "size": 48}, "18d2f51fbda742e2", [-98.3585, -87.1135, -77.9667]),
    ],
)
def test_cases_stay_what_they_were(seed, options, digest, column):
    """What was measured on phantoms holds for those of every version."""
    phantom = make_phantom(seed, **options)
    assert hashlib.sha256(phantom.labels.tobytes()).hexdigest()[:16] == digest
    np.testing.assert_allclose(phantom.image[5, 20:23, 30], column, atol=1e-2)


def test_a_larger_field_holds_the_same_abdomen_somewhere(phantoms):
    large = [make_phantom(seed, field=(2, 2, 2)) for seed in (0, 1)]
    places = []
    for phantom, small in zip(large, phantoms, strict=False):
        assert phantom.image.shape == phantom.labels.shape == (24, 112, 112)
        assert phantom.image.dtype == np.float32 and np.isfinite(phantom.image).all()
        assert set(np.unique(phantom.labels)) == set(LABELS.values())
        # the place along the body is none of whole slabs, so slices are averaged otherwise
        volumes = [(one.labels > 0).sum() for one in (phantom, small)]
        assert volumes[0] == pytest.approx(volumes[1], rel=0.1)
        found = np.argwhere(phantom.labels)
        assert (np.ptp(found, axis=0) < (12, 56, 56)).all()
        places.append(found.mean(axis=0))
        # look-alikes of the kidneys elsewhere in the body, lungs
        around = np.ones_like(phantom.labels, bool)
        around[tuple(slice(low, high + 1) for low, high in zip(found.min(axis=0), found.max(axis=0), strict=True))] = 0
        low, high = np.quantile(phantom.image[phantom.labels == LABELS["kidney"]], (0.25, 0.75))
        alike = around & (phantom.image > low) & (phantom.image < high)
        assert alike.sum() > 0.5 * (phantom.labels == LABELS["kidney"]).sum()
        assert (np.abs(phantom.image[around] + 800) < 80).mean() > 0.01
    assert np.abs(places[0] - places[1]).max() > 1


@pytest.mark.parametrize("field", [(1, 1, 1), (0, 2, 2)])
def test_no_larger_field(field):
    with pytest.raises(InputError, match="a field of"):
        make_phantom(0, field=field)


@pytest.mark.parametrize(("slices", "size"), [(12, 56), (16, 48)])
def test_shape_and_type(slices, size):
    phantom = make_phantom(5, slices=slices, size=size)
    assert phantom.image.shape == phantom.labels.shape == (slices, size, size)
    assert phantom.image.dtype == np.float32
    assert phantom.labels.dtype == np.uint8
    assert np.isfinite(phantom.image).all()
    assert set(np.unique(phantom.labels)) == set(LABELS.values())


@pytest.mark.parametrize(("slices", "size"), [(11, 64), (16, 47)])
def test_too_small(slices, size):
    with pytest.raises(InputError, match=f"{slices} slices of {size} x {size}"):
        make_phantom(0, slices=slices, size=size)


def test_thresholds_do_badly_even_when_chosen_on_one_case(phantoms):
    for phantom in phantoms:
        by_label = threshold_dice([phantom.image], [phantom.labels])
        assert set(by_label) == {1, 2, 3}
        assert np.mean(list(by_label.values())) <= 0.6
        assert by_label[LABELS["lesion"]] < 0.5


def test_lesion_lies_in_the_liver_and_spans_slices(phantoms):
    shares = []
    for phantom in phantoms:
        lesion = phantom.labels == LABELS["lesion"]
        assert lesion.any(axis=(1, 2)).sum() >= 2
        assert lesion.sum() >= 100
        around = ndimage.binary_dilation(lesion) & ~lesion
        shares.append((phantom.labels[around] == LABELS["liver"]).mean())
    # The rest is where a lesion reaches the liver's edge.
    assert min(shares) > 0.4
    assert np.mean(shares) > 0.75


def test_organs_change_between_slices(phantoms):
    for phantom in phantoms:
        liver = np.isin(phantom.labels, (LABELS["liver"], LABELS["lesion"]))
        held = np.flatnonzero(liver.any(axis=(1, 2)))
        assert len(held) >= 6
        both = [(liver[z] & liver[z + 1]).sum() / (liver[z] | liver[z + 1]).sum() for z in held[:-1]]
        assert np.mean(both) < 0.9


def test_look_alikes_share_the_intensity(phantoms):
    """Half the kidneys' voxels lie in this interval of intensity, and nearly as many or more that are no kidney."""
    for phantom in phantoms:
        kidney = phantom.image[phantom.labels == LABELS["kidney"]]
        low, high = np.quantile(kidney, (0.25, 0.75))
        alike = (phantom.image > low) & (phantom.image < high) & (phantom.labels != LABELS["kidney"])
        assert alike.sum() > 0.8 * 0.5 * len(kidney)


@pytest.mark.parametrize(("options", "across"), [({}, 56), ({"size": 48}, 48)])
def test_data_set_in_nnunets_format(tmp_path, options, across):
    folder = tmp_path / "raw" / "Dataset999_Phantom"
    calls = []
    write_phantoms(
        folder, training=2, test=1, seed=3, **options, progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(1, 3), (2, 3), (3, 3)]
    description = json.loads((folder / "dataset.json").read_text())
    assert description == {
        "channel_names": {"0": "CT"},
        "labels": LABELS,
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.nii.gz"))
    assert files == [
        "imagesTr/phantom_000_0000.nii.gz",
        "imagesTr/phantom_001_0000.nii.gz",
        "imagesTs/unseen_000_0000.nii.gz",
        "labelsTr/phantom_000.nii.gz",
        "labelsTr/phantom_001.nii.gz",
        "labelsTs/unseen_000.nii.gz",
    ]
    for name in files:
        volume = sitk.ReadImage(str(folder / name))
        assert volume.GetSize() == (across, across, 12)
        assert volume.GetSpacing() == pytest.approx(SPACING[::-1])
        # The first thick slice stands for thin slices at 0 to 4 mm.
        assert volume.GetOrigin() == pytest.approx((0, 0, 2))
    images = [sitk.GetArrayFromImage(sitk.ReadImage(str(folder / files[index]))) for index in (0, 1, 2)]
    assert all((one != other).any() for one, other in ((images[0], images[1]), (images[1], images[2])))


def test_a_refused_size_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match="12 slices of 40 x 40"):
        write_phantoms(tmp_path / "raw", training=2, test=0, size=40)
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize(
    ("training", "test", "occupied", "message"),
    [(0, 1, False, "0 training"), (1, -1, False, "-1 test"), (1, 0, True, "not empty")],
)
def test_data_set_refused(tmp_path, training, test, occupied, message):
    if occupied:
        (tmp_path / "something").touch()
    with pytest.raises(InputError, match=message):
        write_phantoms(tmp_path, training=training, test=test)
