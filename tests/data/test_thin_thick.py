"""Thin-thick data sets: what becomes of series, gaps, ratios, axes and real annotations."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_ext.data.sidecar import read_sidecar
from nnunetv2_ext.data.thick import majority_slabs, thick_grid
from nnunetv2_ext.data.thin_thick import convert_thin_thick
from nnunetv2_ext.data.volumes import read_grid, read_volume, write_volume
from nnunetv2_ext.geometry.slabs import centre_slices, covered, slab_matrix
from tests.data.annotated import MADE, NAMES, OBLIQUE, STRAIGHT, made, report, to_series, write_case, write_image


def convert(folder: Path, **options: Any) -> None:
    """The command's own defaults, without what it prints."""
    settings: dict[str, Any] = {"label_names": NAMES, "name": "Liver", "processes": 2} | options
    convert_thin_thick(folder / "images", folder / "labels", 42, **settings)


def test_dicom_series_with_channels(nnunet_folders):
    """Thin images as two series of one case, the annotation as NIfTI and as a series."""
    for case in "ab":
        annotation = write_case(nnunet_folders, case, channels=2, direction=STRAIGHT)
        images = nnunet_folders / "images"
        for channel in range(2):
            to_series(images / f"{case}_{channel:04d}.nii.gz", uid=f"1.2.840.{channel}")
    to_series(nnunet_folders / "labels" / "b.nii.gz", uid="1.2.840.9")
    convert(nnunet_folders, channel_names=["CT", "PET"])
    folder = made(nnunet_folders)
    assert json.loads((folder / "dataset.json").read_text())["channel_names"] == {"0": "CT", "1": "PET"}
    for channel in range(2):
        thin = read_volume(folder / f"imagesTr/b_{channel:04d}.nii.gz")
        np.testing.assert_array_equal(thin, np.arange(12 * 80).reshape(12, 10, 8) + channel)
    np.testing.assert_array_equal(read_volume(folder / "labelsTr/b.nii.gz"), np.repeat(annotation, 4, axis=0))
    assert {name: row["covered"] for name, row in report(nnunet_folders).items()} == {"a": "3", "b": "3"}


def test_slice_thickness_of_dicom_counts(nnunet_folders):
    annotation = write_case(nnunet_folders, "a", direction=STRAIGHT)
    to_series(nnunet_folders / "labels" / "a.nii.gz", uid="1.2.840.9")
    for path in (nnunet_folders / "labels" / "a").iterdir():
        single = sitk.ReadImage(str(path))
        for tag in ("0020|000e", "0020|000d", "0008|0060", "0020|0032", "0020|0037"):
            single.SetMetaData(tag, single.GetMetaData(tag))
        single.SetMetaData("0018|0050", "4.0")
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(path))
        writer.Execute(single)
    convert(nnunet_folders)
    laid = read_volume(made(nnunet_folders) / "labelsTr/a.nii.gz")
    np.testing.assert_array_equal(laid[1::4], annotation)
    assert report(nnunet_folders)["a"]["thickness"] == "4.0"
    assert (laid[::4] == 3).all()


@pytest.mark.parametrize(
    ("names", "values", "ignore"),
    [(NAMES, (0, 1, 2), 3), ((*NAMES, "ignore"), (0, 1, 3), 3)],
    ids=["new ignore label", "the annotation's own"],
)
def test_gaps_between_slices(nnunet_folders, names, values, ignore):
    annotation = write_case(nnunet_folders, "a", values=values)
    convert(nnunet_folders, slice_thickness=4.0, label_names=names)
    laid = read_volume(made(nnunet_folders) / "labelsTr/a.nii.gz")
    for offset in (1, 2):
        np.testing.assert_array_equal(laid[offset::4], annotation)
    for offset in (0, 3):
        assert (laid[offset::4] == ignore).all()
    entries = json.loads((made(nnunet_folders) / "dataset.json").read_text())
    assert entries["labels"] == {"background": 0, "liver": 1, "tumour": 2, "ignore": 3}
    np.testing.assert_allclose(read_sidecar(made(nnunet_folders), MADE).case("a").slabs[0], [2, 6], atol=1e-4)


def test_slices_along_another_axis(nnunet_folders):
    write_image(nnunet_folders / "images/a.mha", np.zeros((5, 6, 8), "f8"), spacing=(1, 1, 1), origin=(0, 0, 0))
    origin = tuple((0.5 * np.reshape(OBLIQUE, (3, 3))[:, 0]).tolist())
    annotation = np.random.default_rng(0).integers(0, 3, (5, 6, 4)).astype("u1")
    write_image(nnunet_folders / "labels/a.mha", annotation, spacing=(2, 1, 1), origin=origin)
    convert(nnunet_folders)
    assert read_sidecar(made(nnunet_folders), MADE).axis == 2
    laid = read_volume(made(nnunet_folders) / "labelsTr/a.nii.gz")
    np.testing.assert_array_equal(laid, np.repeat(annotation, 2, axis=2))
    assert read_volume(made(nnunet_folders) / "imagesTr/a_0000.nii.gz").dtype == np.float32


def test_hippocampus(nnunet_folders, hippocampus):
    """Annotations made thick by majority lie over the truth that they come from."""
    cases = [path.name.removesuffix(".nii.gz") for path in sorted((hippocampus / "labelsTr").glob("*.nii.gz"))[:3]]
    (nnunet_folders / "images").mkdir()
    (nnunet_folders / "labels").mkdir()
    for case, factor in zip(cases, (4, 3.7, 8), strict=True):
        shutil.copy(hippocampus / f"imagesTr/{case}_0000.nii.gz", nnunet_folders / "images")
        path = hippocampus / f"labelsTr/{case}.nii.gz"
        grid, truth = read_grid(path), read_volume(path)
        annotation = majority_slabs(truth, axis=0, factor=factor)
        write_volume(annotation, thick_grid(grid, axis=0, factor=factor), nnunet_folders / f"labels/{case}.nii.gz")
    convert(nnunet_folders, label_names=["background", "anterior", "posterior"], channel_names=["MRI"])
    folder = made(nnunet_folders)
    sidecar = read_sidecar(folder, MADE)
    for case, factor in zip(cases, (4, 3.7, 8), strict=True):
        truth = read_volume(hippocampus / f"labelsTr/{case}.nii.gz")
        annotation = read_volume(nnunet_folders / f"labels/{case}.nii.gz")
        here = sidecar.case(case)
        assert covered(slab_matrix(here.slabs, here.slices)).all()
        assert len(here.slabs) == int(len(truth) / factor)
        laid = read_volume(folder / f"labelsTr/{case}.nii.gz")
        np.testing.assert_array_equal(laid[centre_slices(here.slabs, here.slices)], annotation)
        seen = laid < 3
        volumes = [np.count_nonzero(labels[seen]) for labels in (laid, truth)]
        assert volumes[0] == pytest.approx(volumes[1], rel=0.1)
