"""Each fault of a raw data set is told by itself, and its remedy mends it; what nnU-Net takes is no fault."""

import json
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from nnunetv2_ext.data.description import Fault
from nnunetv2_ext.data.raw import examine, extents
from nnunetv2_ext.data.voxels import look_at_all, voxel_faults
from nnunetv2_ext.errors import InputError
from tests.data.broken import BROKEN, apply
from tests.data.raw_dataset import AFFINE, CASES, RawDataset, both, describe, rename


@pytest.fixture
def data(tmp_path: Path) -> RawDataset:
    return RawDataset(tmp_path)


def faults_of(data: RawDataset) -> list[Fault]:
    """All faults, those of the voxels, too."""
    raw = examine(data.folder, processes=2)
    if raw.cases:
        raw.faults += voxel_faults(raw, look_at_all(raw, {}, processes=2, progress=False))
    return raw.faults


@pytest.mark.parametrize("name", BROKEN)
def test_a_fault_is_told_and_its_remedy_mends_it(data: RawDataset, name: str) -> None:
    broken = BROKEN[name]
    broken.change(data)
    faults = faults_of(data)
    told = [fault for fault in faults if fault.fatal == broken.fatal]
    assert any(all(text in " ".join(fault[:3]) for text in broken.texts) for fault in told), faults
    assert len([fault for fault in faults if fault.fatal]) <= (1 if name != "2D among 3D" else 2), faults
    if broken.mend:
        broken.mend(data)
    else:
        apply(told[0].remedy, data)
    assert not [fault for fault in faults_of(data) if fault.fatal or not broken.fatal]


def as_png(data: RawDataset) -> None:
    """Colour images of one slice: three channels in a file."""
    for case in CASES:
        data.path(f"imagesTr/{case}_0000.nii.gz").unlink()
        data.path(f"labelsTr/{case}.nii.gz").unlink()
        label = data.label_array()[:, :, 3]
        sitk.WriteImage(sitk.GetImageFromArray(label), str(data.path(f"labelsTr/{case}.png")))
        image = sitk.GetImageFromArray(np.stack([label] * 3, -1), isVector=True)
        sitk.WriteImage(image, str(data.path(f"imagesTr/{case}_0000.png")))
    data.describe(file_ending=".png", channel_names={"0": "R", "1": "G", "2": "B"})


def as_tiff(data: RawDataset) -> None:
    for case in CASES:
        for name in (f"imagesTr/{case}_0000", f"labelsTr/{case}"):
            data.path(f"{name}.nii.gz").unlink()
            tifffile.imwrite(data.path(f"{name}.tif"), data.label_array())
    data.describe(file_ending=".tif")


def as_nrrd(data: RawDataset) -> None:
    for case in CASES:
        for name in (f"imagesTr/{case}_0000", f"labelsTr/{case}"):
            image = sitk.ReadImage(str(data.path(f"{name}.nii.gz")))
            data.path(f"{name}.nii.gz").unlink()
            sitk.WriteImage(image, str(data.path(f"{name}.nrrd")))
    data.describe(file_ending=".nrrd")


def channels_in_one_file(data: RawDataset) -> None:
    for case in CASES:
        image = data.array(f"imagesTr/{case}_0000.nii.gz")
        data.write(f"imagesTr/{case}_0000.nii.gz", np.stack([image, image], -1))
    data.describe(channel_names={"0": "MR", "1": "CT"})


def sheared(data: RawDataset) -> None:
    """Axes that ITK refuses and nibabel reads."""
    affine = AFFINE.copy()
    affine[0, 1] = affine[1, 2] = 0.02
    for path in data.folder.glob("*/*.nii.gz"):
        name = str(path.relative_to(data.folder))
        data.write(name, data.array(name), affine)


def listed_in_description(data: RawDataset) -> None:
    data.folder.joinpath("imagesTr").rename(data.folder / "scans")
    data.describe(
        dataset={case: {"images": [f"scans/{case}_0000.nii.gz"], "label": f"labelsTr/{case}.nii.gz"} for case in CASES}
    )


@pytest.mark.parametrize(
    "change",
    [
        describe(),
        describe(channel_names=None, modality={"0": "MR"}),
        describe(labels={"background": 0, "organ": 1, "ignore": 2}),
        describe(labels={"background": 0, "whole": [1, 2], "lesion": 2}, regions_class_order=[1, 2]),
        describe(labels={"background": 0, "whole": [1, 2], "lesion": [2]}, regions_class_order=[1, 2]),
        describe(overwrite_image_reader_writer="NibabelIOWithReorient"),
        describe(overwrite_image_reader_writer="None"),
        describe(name="Grün", anything={"else": [1]}),
        as_png,
        as_tiff,
        as_nrrd,
        channels_in_one_file,
        listed_in_description,
        lambda data: data.path("imagesTr/notes.txt").write_text("no image"),
        both(
            rename("imagesTr/b_0000.nii.gz", "imagesTr/A_0000.nii.gz"), rename("labelsTr/b.nii.gz", "labelsTr/A.nii.gz")
        ),
    ],
)
def test_what_nnunet_takes_is_no_fault(data: RawDataset, change) -> None:
    change(data)
    assert faults_of(data) == []


def test_a_header_that_only_nibabel_reads_is_worth_a_word(data: RawDataset) -> None:
    sheared(data)
    raw = examine(data.folder)
    assert raw.reader is not None and raw.reader.__name__ == "NibabelIO"
    assert [fault.fatal for fault in faults_of(data)] == [False]
    assert "10 files" in raw.faults[0].got


@pytest.mark.parametrize("content", ["[]", '"text"', "{", "null"])
def test_a_description_that_is_no_object(data: RawDataset, content: str) -> None:
    data.path("dataset.json").write_text(content)
    with pytest.raises(InputError, match=r"dataset\.json"):
        examine(data.folder)


def test_a_label_of_another_name_in_utf_8(data: RawDataset) -> None:
    description = json.loads(data.path("dataset.json").read_text())
    description["labels"] = {"0": "background", "1": "Läsion", "2": "b"}
    data.path("dataset.json").write_text(json.dumps(description, ensure_ascii=False), encoding="utf-8")
    assert '"Läsion": 1' in examine(data.folder).faults[0].remedy


def test_extents_are_those_of_the_headers(data: RawDataset) -> None:
    loaded = nibabel.load(data.path("imagesTr/a_0000.nii.gz"))
    sizes = extents(examine(data.folder))
    assert len(sizes) == len(CASES)
    np.testing.assert_array_equal(sizes[0][0], loaded.shape[::-1])
    np.testing.assert_allclose(sizes[0][1], loaded.header.get_zooms()[::-1])


def test_nothing_is_printed(data: RawDataset, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        faults_of(data)
    assert capfd.readouterr() == ("", "")
