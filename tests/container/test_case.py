"""One case: TIFF of every kind, the type of labels, files that are cut off."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from nnunetv2_ext.container.case import predict_case, write_image
from nnunetv2_ext.container.sockets import write_output
from nnunetv2_ext.errors import InputError
from tests.container.conftest import image

VOXELS = np.random.default_rng(0).integers(0, 60000, (7, 26, 28)).astype(np.uint16)


def written_tiff(path: Path, how: str) -> Path:
    """Voxels (z, y, x) in one of the ways in which programs write them."""
    more: dict[str, Any] = {
        "tiled": {"tile": (16, 16)},
        "zstd": {"compression": "zstd"},
        "big-endian": {"byteorder": ">"},
    }
    match how:
        case "SimpleITK":
            sitk.WriteImage(sitk.GetImageFromArray(VOXELS), str(path))
        case "slice by slice" | "packed slices":
            with tifffile.TiffWriter(path) as file:
                for one in VOXELS:
                    file.write(one, compression="zlib" if how == "packed slices" else None)
        case "ImageJ":
            tifffile.imwrite(path, VOXELS, imagej=True)
        case "2D":
            tifffile.imwrite(path, VOXELS[0])
        case "colours":
            tifffile.imwrite(path, np.zeros((26, 28, 3), np.uint8), photometric="rgb")
        case "colours of slices":
            tifffile.imwrite(path, np.zeros((7, 26, 28, 3), np.uint8), photometric="rgb")
        case "complex":
            tifffile.imwrite(path, VOXELS.astype(np.complex64))
        case _:
            tifffile.imwrite(path, VOXELS, **more.get(how, {}))
    return path


class Itself:
    """In the place of a predictor: its labels are the image."""

    file_ending = ".mha"

    def predict(self, parts: list[Any]) -> Any:
        return parts[0]


@pytest.mark.parametrize(
    "how", ["plain", "SimpleITK", "slice by slice", "packed slices", "ImageJ", "tiled", "zstd", "big-endian"]
)
def test_every_kind_of_tiff_is_read_whole_or_refused(tmp_path: Path, how: str) -> None:
    path = written_tiff(tmp_path / "a.tif", how)
    labels = predict_case(Itself(), [path], (3.5, 1.2, 0.9))  # type: ignore[arg-type]
    np.testing.assert_array_equal(sitk.GetArrayFromImage(labels), VOXELS)
    assert labels.GetSpacing() == (0.9, 1.2, 3.5)
    whole = path.read_bytes()
    for share in (0.01, 0.3, 0.5, 0.8, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(InputError, match="an unreadable file"):
            predict_case(Itself(), [path], (3.5, 1.2, 0.9))  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["2D", "colours", "colours of slices", "complex"])
def test_tiff_that_is_no_volume_is_refused(tmp_path: Path, how: str) -> None:
    path = written_tiff(tmp_path / "a.tif", how)
    with pytest.raises(InputError, match="expected a stack of slices of one number per voxel"):
        predict_case(Itself(), [path], (3.5, 1.2, 0.9))  # type: ignore[arg-type]


@pytest.mark.parametrize(("most", "kind"), [(1, sitk.sitkUInt8), (255, sitk.sitkUInt8), (256, sitk.sitkUInt16)])
def test_labels_have_the_least_type_that_holds_them(tmp_path: Path, most: int, kind: int) -> None:
    voxels = np.zeros((4, 5, 6), np.int16)
    voxels[1, 2, 3] = most
    made = sitk.GetImageFromArray(voxels)
    write_image(made, tmp_path / "a.mha")
    reading = type("Reading", (Itself,), {"predict": lambda self, parts: sitk.ReadImage(str(parts[0]))})()
    labels = predict_case(reading, [tmp_path / "a.mha"], None)
    assert labels.GetPixelID() == kind and sitk.GetArrayFromImage(labels)[1, 2, 3] == most


def test_a_nifti_file_that_is_cut_off_becomes_no_other_format(tmp_path: Path) -> None:
    sitk.WriteImage(image(), str(tmp_path / "whole.nii"))
    whole = (tmp_path / "whole.nii").read_bytes()
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(whole[:-3000]))
    with pytest.raises(InputError, match=r"a\.nii\.gz"):
        predict_case(Itself(), [path], None)  # type: ignore[arg-type]


def half_written(one: sitk.Image, path: str, *_: object) -> None:
    """As ITK on a full disk: no error."""
    write(one, path)
    Path(path).write_bytes(Path(path).read_bytes()[:-1000])


write = sitk.WriteImage


def test_labels_that_are_not_whole_do_not_appear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "images" / "output.mha"
    write_output(image(1), target)
    before = target.read_bytes()
    monkeypatch.setattr(sitk, "WriteImage", half_written)
    with pytest.raises(InputError, match="an error on writing"):
        write_output(image(2), target)
    assert target.read_bytes() == before and [path.name for path in target.parent.iterdir()] == ["output.mha"]
