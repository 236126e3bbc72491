"""Every kind of finding: planted in phantoms, which without it have none; and what is no finding."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunetv2_ext.audit.findings import KINDS, find_all
from nnunetv2_ext.audit.look import air_around
from nnunetv2_ext.audit.places import is_rare, pairs
from nnunetv2_ext.audit.result import Finding
from nnunetv2_ext.data.phantom import write_phantoms
from nnunetv2_ext.data.raw import examine
from nnunetv2_ext.data.volumes import Grid, read_grid, read_volume, write_volume
from nnunetv2_ext.evaluation.segmentations import labels_of

CASES = 8
LABELS = {"background": 0, "liver": 1, "kidney_left": 2, "lesion": 3, "kidney_right": 4}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight of them, the kidneys told apart: the patient's left one has the larger x."""
    folder = tmp_path_factory.mktemp("raw") / "Dataset001_Phantoms"
    write_phantoms(folder, training=CASES, test=0, processes=1)
    description = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(description | {"labels": LABELS}))
    for path in (folder / "labelsTr").iterdir():
        labels = read_volume(path)
        right = labels == 2
        right[:, :, labels.shape[2] // 2 :] = False
        labels[right] = 4
        write_volume(labels, read_grid(path), path)
    return folder


@pytest.fixture
def dataset(phantoms: Path, tmp_path: Path) -> "Dataset":
    return Dataset(Path(shutil.copytree(phantoms, tmp_path / phantoms.name)))


class Dataset:
    """A copy that a test may change."""

    def __init__(self, folder: Path):
        self.folder = folder

    def label(self, number: int) -> Path:
        return self.folder / "labelsTr" / f"phantom_{number:03d}.nii.gz"

    def image(self, number: int) -> Path:
        return self.folder / "imagesTr" / f"phantom_{number:03d}_0000.nii.gz"

    def change(self, number: int, change: Callable[[np.ndarray], Any]) -> None:
        """Change the labels (Z, Y, X) of a case in place."""
        labels = read_volume(self.label(number))
        change(labels)
        write_volume(labels, read_grid(self.label(number)), self.label(number))

    def move(self, number: int, change: Callable[[np.ndarray, Grid], tuple[np.ndarray, Grid]]) -> None:
        """Write image and labels of a case on another grid."""
        for path in (self.label(number), self.image(number)):
            write_volume(*change(read_volume(path), read_grid(path)), path)

    def findings(self, **inputs: Any) -> list[Finding]:
        raw = examine(self.folder, processes=1)
        labels = labels_of(raw.description, self.folder / "dataset.json")
        given: dict[str, Any] = {"references": {}, "preprocessed": None, **inputs}
        return find_all(raw, labels, processes=1, progress=False, **given)


def test_phantoms_have_none(dataset: Dataset) -> None:
    assert dataset.findings() == []


def copy_case(dataset: Dataset) -> None:
    shutil.copyfile(dataset.image(2), dataset.image(5))
    shutil.copyfile(dataset.label(2), dataset.label(5))


def swap(labels: np.ndarray) -> None:
    left, right = labels == 2, labels == 4
    labels[left], labels[right] = 4, 2


def swap_most(dataset: Dataset) -> None:
    for number in range(CASES - 1):
        dataset.change(number, swap)


def into_air(labels: np.ndarray) -> None:
    labels[labels == 3] = 1
    labels[:, :4, :20] = 3


def every_second(labels: np.ndarray) -> None:
    labels[1::2] = 0


def far_away(labels: np.ndarray) -> None:
    labels[5:7, 26:28, 50:52] = 1


def mirrored(voxels: np.ndarray, grid: Grid) -> tuple[np.ndarray, Grid]:
    direction = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    origin = (grid.origin[0] + (grid.size[0] - 1) * grid.spacing[0], *grid.origin[1:])
    return voxels[:, :, ::-1].copy(), Grid(grid.size, grid.spacing, origin, direction)


def smaller(voxels: np.ndarray, grid: Grid) -> tuple[np.ndarray, Grid]:
    return voxels, Grid(grid.size, (0.5, 0.5, 5.0), grid.origin, grid.direction)


def unnamed(labels: np.ndarray) -> None:
    labels[0, 0, 0] = 9


@pytest.mark.parametrize(
    ("plant", "cases", "kind", "words"),
    [
        pytest.param(copy_case, (2, 5), "same image", ["hold the same image and the same label"], id="a case twice"),
        pytest.param(
            lambda data: shutil.copyfile(data.image(2), data.image(5)),
            (2, 5),
            "same image",
            ["with different labels"],
            id="an image twice",
        ),
        pytest.param(
            lambda data: shutil.copyfile(data.label(2), data.label(5)),
            (2, 5),
            "same label",
            ["the same label map, and different images"],
            id="a label twice",
        ),
        pytest.param(
            lambda data: data.change(3, into_air),
            (3,),
            "outside the body",
            ["% of lesion lies in the air outside of the body"],
            id="in air",
        ),
        pytest.param(
            lambda data: data.change(3, every_second),
            (3,),
            "empty slices",
            ["slices of liver from head to feet are empty"],
            id="every second slice",
        ),
        pytest.param(
            lambda data: data.change(3, swap),
            (3,),
            "left and right",
            ["kidney_left lies", "mm to the patient's right of kidney_right, unlike in 7 others"],
            id="left and right in one",
        ),
        pytest.param(
            swap_most,
            tuple(range(CASES - 1)),
            "left and right",
            ["to the patient's right of kidney_right in 7 of 8 cases", "names"],
            id="left and right in most",
        ),
        pytest.param(
            lambda data: data.move(3, mirrored),
            (3,),
            "orientation",
            ["run towards RPS, those of 7 other cases towards LPS"],
            id="orientation",
        ),
        pytest.param(
            lambda data: data.move(3, smaller),
            (3,),
            "spacing",
            ["0.5 x 0.5 x 5 mm", "median is 1 x 1 x 5 mm"],
            id="spacing",
        ),
        pytest.param(
            lambda data: data.change(3, far_away),
            (3,),
            "far away",
            ["a part of liver (8 voxels) lies", "towards the patient's left from its largest part"],
            id="far away",
        ),
        pytest.param(
            lambda data: data.change(3, unnamed),
            (),
            "raw data",
            ["the label value 9 in 1 label file (labelsTr/phantom_003.nii.gz)"],
            id="a value without a name",
        ),
        pytest.param(
            lambda data: data.label(3).write_bytes(data.label(3).read_bytes()[:200]),
            (),
            "raw data",
            ["phantom_003"],
            id="cut off",
        ),
    ],
)
def test_what_is_planted_is_found(
    plant: Callable[[Dataset], object], cases: tuple[int, ...], kind: str, words: list[str], dataset: Dataset
) -> None:
    plant(dataset)
    findings = dataset.findings()
    found = [one for one in findings if one.kind == kind]
    names = tuple(f"phantom_{case:03d}" for case in cases)
    assert any(one.cases == names and all(word in one.sentence for word in words) for one in found), found
    assert all(one.kind in KINDS for one in findings)


def test_empty_labels_are_no_twins(dataset: Dataset) -> None:
    for number in (2, 5):
        dataset.change(number, lambda labels: labels.fill(0))
    assert dataset.findings() == []


def test_label_maps_that_are_ignored_throughout_are_no_twins(dataset: Dataset) -> None:
    description = json.loads((dataset.folder / "dataset.json").read_text())
    (dataset.folder / "dataset.json").write_text(json.dumps(description | {"labels": LABELS | {"ignore": 5}}))
    for number in (2, 5):
        dataset.change(number, lambda labels: labels.fill(5))
    assert dataset.findings() == []


def test_what_most_cases_do_is_no_finding(dataset: Dataset) -> None:
    """Half of the cases annotated on every second slice: a habit."""
    for number in range(CASES // 2 + 1):
        dataset.change(number, every_second)
    assert not [one for one in dataset.findings() if one.kind == "empty slices"]


def test_slices_that_are_ignored_are_not_empty(dataset: Dataset) -> None:
    """Annotated on every second slice by intent: the others are to be ignored."""
    description = json.loads((dataset.folder / "dataset.json").read_text())
    (dataset.folder / "dataset.json").write_text(json.dumps(description | {"labels": LABELS | {"ignore": 5}}))
    dataset.change(3, lambda labels: labels[1::2].fill(5))
    assert dataset.findings() == []


def test_regions_are_looked_at_as_a_whole(dataset: Dataset) -> None:
    """The kidneys as a region are on every slice, one of them on every second."""
    description = json.loads((dataset.folder / "dataset.json").read_text())
    regions = {"background": 0, "kidneys": [2, 4], "kidney": 4, "rest": [1, 3]}
    changed = description | {"labels": regions, "regions_class_order": [2, 4, 1]}
    (dataset.folder / "dataset.json").write_text(json.dumps(changed))
    dataset.change(3, lambda labels: np.putmask(labels[1::2], labels[1::2] == 4, 2))
    (found,) = dataset.findings()
    assert "slices of kidney from head to feet are empty" in found.sentence


def test_without_raw_data_labels_alone_are_looked_at(dataset: Dataset) -> None:
    dataset.change(3, every_second)
    raw = examine(dataset.folder, processes=1)
    labels = labels_of(raw.description, dataset.folder / "dataset.json")
    references = {case: of_it.label for case, of_it in raw.cases.items()}
    references["phantom_004"].write_bytes(b"")
    found = find_all(None, labels, references, None, processes=1, progress=False)
    assert {(one.cases, one.kind) for one in found} == {
        (("phantom_004",), "raw data"),
        (("phantom_003",), "empty slices"),
    }


@pytest.fixture
def stored(dataset: Dataset) -> Iterator[tuple[Dataset, dict[str, Path], Path]]:
    """The labels as they are preprocessed: axes turned, two slices cropped, twice as many voxels along one axis."""
    preprocessed = dataset.folder.parent / "preprocessed"
    data, copies = preprocessed / "Plans_3d_fullres", preprocessed / "gt_segmentations"
    data.mkdir(parents=True)
    shutil.copytree(dataset.folder / "labelsTr", copies)
    plans = {"configurations": {"3d_fullres": {"data_identifier": data.name}}, "transpose_forward": [1, 0, 2]}
    (preprocessed / "Plans.json").write_text(json.dumps(plans))
    (preprocessed / "dataset.json").write_text("{}")
    references = {}
    for path in copies.iterdir():
        labels = read_volume(path).transpose(1, 0, 2)
        turned = np.repeat(labels[2:].astype(np.int8), 2, axis=1)[None]
        properties = {
            "shape_before_cropping": labels.shape,
            "bbox_used_for_cropping": [[2, labels.shape[0]], [0, labels.shape[1]], [0, labels.shape[2]]],
        }
        case = path.name.removesuffix(".nii.gz")
        places = {
            "chunks": turned.shape,
            "blocks": turned.shape,
            "chunks_seg": turned.shape,
            "blocks_seg": turned.shape,
        }
        nnUNetDatasetBlosc2.save_case(turned.astype(np.float32), turned, properties, str(data / case), **places)
        references[case] = path
    yield dataset, references, data


def test_preprocessed_labels_agree(stored: tuple[Dataset, dict[str, Path], Path]) -> None:
    dataset, references, data = stored
    assert dataset.findings(references=references, preprocessed=data) == []


def test_a_preprocessed_case_that_is_cut_off(stored: tuple[Dataset, dict[str, Path], Path]) -> None:
    dataset, references, data = stored
    (data / "phantom_002_seg.b2nd").write_bytes(b"")
    (found,) = dataset.findings(references=references, preprocessed=data)
    assert found.cases == ("phantom_002",) and "cannot be read" in found.sentence


def test_a_label_changed_after_preprocessing(stored: tuple[Dataset, dict[str, Path], Path]) -> None:
    dataset, references, data = stored
    dataset.change(3, lambda labels: labels.put(np.flatnonzero(labels == 1)[:3], 0))
    (found,) = dataset.findings(references=references, preprocessed=data)
    assert (found.cases, found.kind) == (("phantom_003",), "preprocessed unlike raw")
    assert "3 voxels of the raw label map have changed" in found.sentence


def test_preprocessed_cases_of_other_labels(stored: tuple[Dataset, dict[str, Path], Path]) -> None:
    """The copy of the label is new, the preprocessed case is not."""
    dataset, references, data = stored
    dataset.change(3, lambda labels: np.putmask(labels, labels == 1, 0))
    shutil.copyfile(dataset.label(3), references["phantom_003"])
    (found,) = dataset.findings(references=references, preprocessed=data)
    assert found.cases == ("phantom_003",) and "voxels of liver that its label map has not" in found.sentence


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["kidney_left", "kidney_right"], [("kidney_left", "kidney_right")]),
        (["Right Kidney", "Left Kidney"], [("Left Kidney", "Right Kidney")]),
        (["KidneyLeft", "KidneyRight"], [("KidneyLeft", "KidneyRight")]),
        (["L-lung", "R-lung", "l_femur"], [("L-lung", "R-lung")]),
        (["left", "right"], [("left", "right")]),
        (["left_atrium", "right_ventricle", "leftover", "rightover"], []),
    ],
)
def test_pairs(names: list[str], expected: list[tuple[str, str]]) -> None:
    assert pairs(names) == expected


def test_rare() -> None:
    assert [is_rare(number, cases) for number, cases in ((1, 5), (1, 6), (2, 20), (5, 100), (6, 100), (0, 100))] == [
        False, True, False, True, False, False
    ]  # fmt: skip


def disc(body: float, air: float, inside: float) -> np.ndarray:
    """(1, Z, Y, X): a body with a hollow in it."""
    x, y = np.mgrid[-1:1:32j, -1:1:32j]
    image = np.where(np.hypot(x, y) < 0.8, body, air)
    return np.repeat(np.where(np.hypot(x, y) < 0.3, inside, image)[None, None], 3, axis=1)


@pytest.mark.parametrize(
    ("image", "channels", "corner"),
    [
        pytest.param(disc(40, -1000, -800), ["CT"], True, id="CT with a lung"),
        pytest.param(disc(300, 0, 0), ["T1"], True, id="MR"),
        pytest.param(disc(300, 290, 0), ["T1"], False, id="MR cut to the inside"),
        pytest.param(np.concatenate([disc(40, -1000, 0), disc(5, 5, 5)]), ["CT", "PET"], True, id="CT and PET"),
        pytest.param(disc(40, 20, -800), ["ct"], False, id="CT cut to the inside"),
    ],
)
def test_air_is_around_the_body_alone(image: np.ndarray, channels: list[str], corner: bool) -> None:
    for axis in range(3):
        turned = np.moveaxis(image, 1, 1 + axis)
        air = air_around(turned, channels, np.ones(turned.shape[1:], bool), axis=axis)
        slices = np.moveaxis(air, axis, 0)
        assert slices[:, 0, 0].tolist() == [corner] * 3
        assert not slices[:, 16, 16].any()
