"""Members of an ensemble: what nnU-Net's ensemble averages without a word is refused, and nothing else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.inference.members import Member, check_geometry, check_members

LABELS: dict[str, Any] = {"background": 0, "liver": 1, "tumour": 2}
REGIONS: dict[str, Any] = {"background": 0, "whole": [1, 2], "core": [2]}
DESCRIPTION: dict[str, Any] = {
    "channel_names": {"0": "CT", "1": "PET"},
    "labels": LABELS,
    "file_ending": ".nii.gz",
    "numTraining": 3,
}
PLANS = {"image_reader_writer": "SimpleITKIO"}


def member(name: str, changes: Mapping[str, Any]) -> Member:
    plans = {**PLANS, **{key: value for key, value in changes.items() if key in PLANS}}
    content = {**DESCRIPTION, **{key: value for key, value in changes.items() if key not in PLANS}}
    return Member(name, {key: value for key, value in content.items() if value is not None}, plans)


def of_regions(labels: Mapping[str, Any], order: list[int]) -> dict[str, Any]:
    return {"labels": labels, "regions_class_order": order}


SAME: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({}, {"labels": {"background": 0, "tumour": 2, "liver": 1}}),
    ({}, {"labels": {"background": 0, "liver": [1], "tumour": 2}}),
    ({}, {"labels": {"liver": 1, "tumour": 2, "background": 0}, "regions_class_order": [2, 1]}),
    ({}, {"channel_names": {"0": "ct", "1": "pet"}, "numTraining": 8}),
    ({}, {"channel_names": None, "modality": {"0": "CT", "1": "PET"}}),
    (of_regions(REGIONS, [1, 2]), of_regions({"whole": [2, 1], "core": 2, "background": 0}, [1, 2])),
    ({"labels": {**LABELS, "ignore": 3}}, {"labels": {"ignore": 3, **LABELS}}),
]


@pytest.mark.parametrize(("first", "second"), SAME)
def test_members_that_agree(first: dict[str, Any], second: dict[str, Any]) -> None:
    check_members([member("A", first), member("B", second), member("C", first)])
    # nnU-Net makes the same labels of the same outputs for both
    probabilities = np.random.default_rng(0).random((3, 4, 5, 6), np.float32)
    made = []
    for changes in (first, second):
        manager = LabelManager(changes.get("labels", LABELS), changes.get("regions_class_order"))
        made.append(manager.convert_probabilities_to_segmentation(probabilities[: manager.num_segmentation_heads]))
    assert np.array_equal(*made)


DIFFERENT: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    (
        "label_orders",
        {},
        {"labels": {"background": 0, "tumour": 1, "liver": 2}},
        "got the label 'liver' = 1 in A, but 2 in B; expected members of an ensemble that agree in it; leave one of "
        "them out, or, if only the names differ, write the same into the dataset.json of both.",
    ),
    ("label_names", {}, {"labels": {"background": 0, "liver": 1, "cyst": 2}}, "'tumour' = 2 in A, but none in B"),
    ("more_labels", {}, {"labels": {**LABELS, "cyst": 3}}, "the label 'cyst' = none in A, but 3 in B"),
    ("regions", {}, of_regions({**LABELS, "liver": [1, 2]}, [1, 2]), "the label 'liver' = 1 in A, but 1 and 2 in B"),
    (
        "one_value_twice",
        {},
        of_regions({**LABELS, "liver": [1, 1]}, [1, 2]),
        "the order of regions = none in A, but liver, tumour in B",
    ),
    (
        "order_of_regions",
        of_regions(REGIONS, [1, 2]),
        of_regions({"background": 0, "core": [2], "whole": [1, 2]}, [1, 2]),
        "the order of regions = whole, core in A, but core, whole in B",
    ),
    (
        "regions_class_order",
        of_regions(REGIONS, [1, 2]),
        of_regions(REGIONS, [2, 1]),
        "regions_class_order = [1, 2] in A, but [2, 1] in B",
    ),
    ("ignore", {}, {"labels": {**LABELS, "ignore": 3}}, "the label 'ignore' = none in A, but 3 in B"),
    ("channel_number", {}, {"channel_names": {"0": "CT"}}, "the number of channels = 2 in A, but 1 in B"),
    ("channel_order", {}, {"channel_names": {"0": "PET", "1": "CT"}}, "the channel 0 = ct in A, but pet in B"),
    ("file_ending", {}, {"file_ending": ".nrrd"}, "file_ending = .nii.gz in A, but .nrrd in B"),
    ("reader", {}, {"image_reader_writer": "NibabelIO"}, "image_reader_writer = SimpleITKIO in A, but NibabelIO in B"),
]


@pytest.mark.parametrize(("first", "second", "told"), [case[1:] for case in DIFFERENT], ids=[c[0] for c in DIFFERENT])
def test_members_that_differ(first: dict[str, Any], second: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as error:
        check_members([member("A", first), member("B", second)])
    assert told in str(error.value)
    with pytest.raises(InputError) as error:  # any two of three
        check_members([member("A", first), member("B", first), member("C", second)])
    assert "A" in str(error.value) and "C" in str(error.value)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"labels": None}, "no labels in the dataset.json of B"),
    ({"labels": [1]}, "labels = [1] in the dataset.json of B"),
    ({"labels": {"background": 0, "liver": None}}, 'the label "liver": null in the dataset.json of B'),
    ({"labels": REGIONS}, "no regions_class_order in the dataset.json of B"),
    ({"channel_names": None}, "no channel_names in the dataset.json of B"),
    ({"channel_names": ["CT", "PET"]}, "no channel_names in the dataset.json of B"),
    ({"file_ending": None}, "no file_ending in the dataset.json of B"),
    ({"file_ending": 5}, "file_ending = 5 in the dataset.json of B"),
]


@pytest.mark.parametrize(("changes", "told"), WRONG)
def test_a_description_that_tells_nothing(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=r"^got .*; expected .*; .*\.$") as error:
        check_members([member("A", {}), member("B", changes)])
    assert told in str(error.value)


def image(path: Path, *, size: tuple[int, int, int] = (4, 5, 6), flipped: bool = False, **geometry: Any) -> Path:
    """A volume with a grid of SimpleITK's words, in NIfTI."""
    made = sitk.Image(size, sitk.sitkFloat32)
    made.SetSpacing(geometry.get("spacing", (1.0, 1.0, 3.0)))
    made.SetOrigin(geometry.get("origin", (-10.0, 5.0, 7.0)))
    made.SetDirection(np.diag([1.0, -1.0 if flipped else 1.0, 1.0]).ravel().tolist())
    sitk.WriteImage(made, str(path))
    return path


READERS = [SimpleITKIO, NibabelIO, NibabelIOWithReorient]
APART: list[tuple[dict[str, Any], str]] = [
    ({}, ""),
    ({"spacing": (1.0, 1.0, 3.0005)}, ""),
    ({"spacing": (1.0, 1.0, 3.1)}, "spacing (1, 1, 3.1) instead of (1, 1, 3)"),
    ({"origin": (-10.0, 5.0, 10.0)}, "origin (-10, 5, 10) instead of (-10, 5, 7)"),
    ({"size": (4, 5, 1)}, "size (4, 5, 1) instead of (4, 5, 6)"),
    ({"size": (4, 6, 5)}, "size (4, 6, 5) instead of (4, 5, 6)"),
    ({"flipped": True}, "direction (1, 0, 0, 0, -1, 0, 0, 0, 1) instead of"),
]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("change", "told"), APART)
def test_where_the_voxels_lie(change: dict[str, Any], told: str, reader: Any, tmp_path: Path) -> None:
    read = [reader().read_images([str(image(tmp_path / "0.nii.gz", **which))]) for which in ({}, {}, change)]
    properties, shapes = [entry[1] for entry in read], [entry[0].shape[1:] for entry in read]

    def check() -> None:
        check_geometry("case_7", ["A", "B", "C"], properties, shapes)

    if not told:
        check()
        return
    with pytest.raises(InputError) as error:
        check()
    words = str(error.value)
    assert words.startswith("got the case case_7 of C with ")
    assert words.endswith("; expected the grid of A; predict it with both from the same image.")
    if reader is not NibabelIOWithReorient:  # which turns the axes
        assert told in words


def test_a_picture_and_a_slice(tmp_path: Path) -> None:
    flat = sitk.Image((4, 5), sitk.sitkFloat32)
    flat.SetSpacing((0.5, 0.7))
    sitk.WriteImage(flat, str(tmp_path / "flat.nrrd"))
    voxels, properties = SimpleITKIO().read_images([str(tmp_path / "flat.nrrd")])
    assert voxels.shape == (1, 1, 5, 4)
    picture = {"spacing": (999, 1, 1)}
    for same in (properties, picture):
        check_geometry("a", ["A", "B"], [same, same], [(1, 5, 4)] * 2)
    moved = {**properties, "sitk_stuff": {**properties["sitk_stuff"], "origin": (3.0, 0.0)}}
    with pytest.raises(InputError, match=r"origin \(3, 0, 0\) instead of \(0, 0, 0\)"):
        check_geometry("a", ["A", "B"], [properties, moved], [(1, 5, 4)] * 2)
    with pytest.raises(InputError, match=r"spacing \(1, 2, 999\) instead of \(1, 1, 999\)"):
        check_geometry("a", ["A", "B"], [picture, {"spacing": [999, 2, 1]}], [(1, 5, 4)] * 2)


@pytest.mark.parametrize(
    "properties",
    [
        {},
        {"spacing": [1, 1]},
        {"spacing": None},
        {"sitk_stuff": None},
        {"sitk_stuff": {"spacing": (1.0, 1.0, 1.0), "origin": (0.0, 0.0, 0.0)}},
        {"sitk_stuff": {"spacing": (1.0, 1.0, 1.0), "origin": (0.0, 0.0, np.nan), "direction": np.eye(3).ravel()}},
        {"nibabel_stuff": {"original_affine": np.full((4, 4), np.nan)}},
        {"nibabel_stuff": {}},
        {"nibabel_stuff": {"original_affine": "x"}},
    ],
)
def test_properties_that_tell_nothing(properties: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"the case a of B that do not tell where its voxels lie"):
        check_geometry("a", ["A", "B"], [{"spacing": [1, 1, 1]}, properties], [(4, 5, 6)] * 2)


def test_an_affine_of_nibabel(tmp_path: Path) -> None:
    """The words are those of SimpleITK for the same file, whichever reader nnU-Net took."""
    affine = np.array([[-2.0, 0, 0, 9], [0, 0, 3, -4], [0, 1.5, 0, 2], [0, 0, 0, 1]])
    moved = affine + np.array([[0, 0, 0, 5.0], *np.zeros((3, 4))])
    told = []
    for reader in (SimpleITKIO, NibabelIO):
        read = []
        for name, place in {"a.nii": affine, "b.nii": moved}.items():
            nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.float32), place), tmp_path / name)
            read.append(reader().read_images([str(tmp_path / name)]))
        with pytest.raises(InputError) as error:
            check_geometry("a", ["A", "B"], [entry[1] for entry in read], [entry[0].shape[1:] for entry in read])
        told.append(str(error.value))
    assert told[0] == told[1]
    assert "origin (-14, 4, 2) instead of (-9, 4, 2)" in told[0]
