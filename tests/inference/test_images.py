"""The images to predict: which cases there are, and what is wrong with one."""

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.inference.images import check_channels, find_images, read_image

ONE = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
TWO = {"channel_names": {"0": "T1", "1": "T2"}, "file_ending": ".nii.gz"}


def write(path: Path, shape: tuple[int, ...] = (3, 4, 5), *, spacing: float = 1.0, value: float = 1.0) -> Path:
    image = sitk.GetImageFromArray(np.full(shape, value, np.float32))
    image.SetSpacing([spacing] * len(shape))
    sitk.WriteImage(image, str(path))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a_0000", "a_0001", "b_0000", "b_0001"):
        (tmp_path / f"{name}.nii.gz").touch()
    (tmp_path / "notes.txt").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("", {"a": ["a_0000", "a_0001"], "b": ["b_0000", "b_0001"]}),
        ("b_0000.nii.gz", {"b": ["b_0000", "b_0001"]}),
        ("b_0001.nii.gz", {"b": ["b_0000", "b_0001"]}),
    ],
)
def test_cases(folder: Path, source: str, found: dict[str, list[str]]) -> None:
    images = find_images(folder / source, ".nii.gz")
    assert {case: [path.name.removesuffix(".nii.gz") for path in files] for case, files in images.items()} == found


def test_labels_in_the_place_of_images(tmp_path: Path) -> None:
    for name in ("imagesTr", "labelsTr"):
        (tmp_path / name).mkdir()
    (tmp_path / "labelsTr" / "a.nii.gz").touch()
    told = f"a folder of labels by its name; .*; give the images, {tmp_path / 'imagesTr'} for instance"
    with pytest.raises(InputError, match=told):
        find_images(tmp_path / "labelsTr", ".nii.gz")


def test_a_file_without_number(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.nii.gz")
    assert find_images(path, ".nii.gz") == {"scan": [path]}


def _labels(folder: Path) -> None:
    folder.mkdir()
    folder.with_name("imagesTr").mkdir()
    (folder / "a.nii.gz").touch()


@pytest.mark.parametrize(
    ("make", "source", "told"),
    [
        (lambda folder: None, "nowhere", "no folder"),
        (lambda folder: None, "", r"no files \*.nii.gz"),
        (lambda folder: (folder / "a_0000.mha").touch(), "", r"no files \*.nii.gz in .*, but \*.mha"),
        (lambda folder: (folder / "a.nii.gz").touch(), "", r"1 image \(a.nii.gz\) without the number .*a_0000"),
        (lambda folder: _labels(folder / "labelsTr"), "labelsTr", "a folder of labels .* give the images, .*imagesTr"),
        (lambda folder: (folder / "a.mha").touch(), "a.mha", "one of the model's kind"),
    ],
)
def test_no_images(tmp_path: Path, make: Callable[[Path], None], source: str, told: str) -> None:
    make(tmp_path)
    with pytest.raises(InputError, match=told):
        find_images(tmp_path / source, ".nii.gz")


def test_a_channel_that_is_left_out(tmp_path: Path) -> None:
    check_channels([tmp_path / "a_0000.nii.gz", tmp_path / "a_0001.nii.gz"], ".nii.gz")
    with pytest.raises(InputError, match="without a gap"):
        check_channels([tmp_path / "a_0000.nii.gz", tmp_path / "a_0002.nii.gz"], ".nii.gz")


def test_what_the_reader_gives(tmp_path: Path) -> None:
    files = [write(tmp_path / f"a_000{number}.nii.gz", value=number) for number in range(2)]
    image = read_image(files, SimpleITKIO(), TWO)
    assert image.voxels.shape == (2, 3, 4, 5) and image.voxels[1].min() == 1
    assert image.properties["spacing"] == [1.0, 1.0, 1.0]


def nan(path: Path) -> Path:
    return write(path, value=float("nan"))


def cut(path: Path) -> Path:
    path.write_bytes(write(path).read_bytes()[:-20])
    return path


def two_dimensions(path: Path) -> Path:
    return write(path, (4, 5))


def four_dimensions(path: Path) -> Path:
    nibabel.save(nibabel.Nifti1Image(np.zeros((5, 4, 3, 2), np.float32), np.eye(4)), path)
    return path


def folder_in_place(path: Path) -> Path:
    path.mkdir()
    return path


def text(path: Path) -> Path:
    path.write_text("no volume")
    return path


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (nan, "60 voxels of a_0000.nii.gz that are NaN or infinite"),
        (cut, "unreadable file"),
        (text, "unreadable file"),
        (folder_in_place, "a folder .*; expected an image"),
        (two_dimensions, "of 2 dimensions; expected the 3 of the model"),
        (four_dimensions, "2 channels; expected the 1 channels CT"),
        (lambda path: path, "a_0000.nii.gz"),
    ],
)
@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO])
def test_a_bad_image(tmp_path: Path, make: Callable[[Path], Path], told: str, reader: type) -> None:
    if reader is NibabelIO and make in (two_dimensions, four_dimensions):
        told = "dimensions"
    with pytest.raises(InputError, match=told):
        read_image([make(tmp_path / "a_0000.nii.gz")], reader(), ONE, dimensions=3)


@pytest.mark.parametrize(
    ("header", "voxels"),
    [
        ("NRRD0004\ntype: float\ndimension: 3\nsizes: 2 2 2\nencoding: raw\nendian: little\n\n", ".nrrd"),
        ("ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_FLOAT\nElementDataFile = LOCAL\n", ".mha"),
    ],
)
def test_an_image_without_spacing(tmp_path: Path, header: str, voxels: str) -> None:
    path = tmp_path / f"a_0000{voxels}"
    path.write_bytes(header.encode() + bytes(32))
    with pytest.raises(InputError, match="no spacing in its header"):
        read_image([path], SimpleITKIO(), {**ONE, "file_ending": voxels})


@pytest.mark.parametrize(
    ("second", "told"),
    [
        ({"shape": (3, 4, 6)}, "size .* instead of"),
        ({"spacing": 2.0}, "spacing"),
        (None, "1 file .* of 1 channel; expected the 2 channels T1, T2"),
    ],
)
def test_channels_that_do_not_fit(tmp_path: Path, second: dict | None, told: str) -> None:
    files = [write(tmp_path / "a_0000.nii.gz")]
    if second is not None:
        files.append(write(tmp_path / "a_0001.nii.gz", **second))
    with pytest.raises(InputError, match=told):
        read_image(files, SimpleITKIO(), TWO)
