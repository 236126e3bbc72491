"""`make_thick` on small data sets: what it writes, what it reports, what it refuses."""

import errno
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

import nnunetv2_ext.data.thick
from nnunetv2_ext.cli import main
from nnunetv2_ext.data.thick import average_slabs, majority_slabs
from tests.data.thin_dataset import OBLIQUE, SOURCE, edit_json, files_in, read, write_dataset, write_image


@pytest.fixture
def raw(nnunet_folders):
    """nnU-Net's folders, empty but for two training cases, one test case with and one without label."""
    write_dataset(nnunet_folders / "nnUNet_raw" / SOURCE)
    return nnunet_folders / "nnUNet_raw"


def run(*options: object) -> int:
    return main(["make_thick", *map(str, options), "-np", "2"])


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_whole_data_set(raw, capsys, ending):
    source, made = raw / SOURCE, raw / "Dataset104_SmallThick4"
    shutil.rmtree(source)
    write_dataset(source, ending=ending)
    assert run("-d", 4, "-o", 104, "--factor", 4) == 0

    assert files_in(made) == files_in(source)
    for relative in files_in(source):
        if relative.endswith(".json"):
            assert json.loads((made / relative).read_text()) == json.loads((source / relative).read_text())
            continue
        thin, thick = read(source / relative), read(made / relative)
        slabs = average_slabs if relative.startswith("images") else majority_slabs
        expected = slabs(sitk.GetArrayFromImage(thin), axis=0, factor=4)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(thick), expected)
        wanted = sitk.sitkFloat32 if relative.startswith("images") else sitk.sitkUInt8
        assert thick.GetPixelID() == wanted
        np.testing.assert_allclose(thick.GetSpacing(), (0.8, 0.9, 8.0), rtol=1e-6)
        np.testing.assert_allclose(thick.GetDirection(), OBLIQUE, atol=1e-6)
        centre = thin.TransformContinuousIndexToPhysicalPoint((0, 0, 1.5))
        np.testing.assert_allclose(thick.GetOrigin(), centre, atol=1e-5)
    printed = capsys.readouterr()
    assert "4 cases, 4 slices per slab along array axis 0" in printed.out
    assert "dropped 1 remainder slice at the end of 1 cases: imagesTs/case_c" in printed.out
    assert "dropped 2 remainder slices at the end of 1 cases: imagesTr/case_b" in printed.out
    assert "case_a" not in printed.out
    assert [child.name for child in sorted(raw.iterdir())] == [SOURCE, made.name]
    verify_dataset_integrity(str(made), num_processes=1)


@pytest.mark.parametrize(
    ("spacing", "options", "made", "axis", "factor"),
    [
        ((0.8, 0.9, 2.0), ["--factor", 2], "SmallThick2", 0, 2),
        ((0.8, 0.9, 2.0), ["--thickness", 6], "SmallThick6mm", 0, 3),
        ((0.8, 0.9, 2.5), ["--thickness", 7.5], "SmallThick7.5mm", 0, 3),
        ((0.8, 0.9, 2.0), ["--thickness", 3.97], "SmallThick3.97mm", 0, 2),
        ((0.8, 0.9, 2.0), ["--thickness", 7.4], "SmallThick7.4mm", 0, 3.7),
        ((0.8, 0.9, 2.0), ["--thickness", 3, "--slice-axis", 1], "SmallThick3mm", 1, 3 / 0.9),
        ((0.8, 0.9, 2.0), ["--factor", 2, "--slice-axis", 2, "--name", "Side"], "Side", 2, 2),
        ((3.0, 0.9, 0.9), ["--factor", 2], "SmallThick2", 2, 2),
        ((0.9, 3.0, 0.9), ["--factor", 2], "SmallThick2", 1, 2),
        ((1.0, 1.0, 1.0), ["--factor", 2], "SmallThick2", 0, 2),
        ((1.005, 1.0, 1.0), ["--factor", 2], "SmallThick2", 0, 2),
    ],
)
def test_axis_name_and_factor(raw, spacing, options, made, axis, factor):
    shutil.rmtree(raw / SOURCE)
    write_dataset(raw / SOURCE, Spacing=spacing)
    assert run("-d", SOURCE, "-o", 7, *options) == 0
    thick = read(raw / f"Dataset007_{made}" / "imagesTr" / "case_a_0001.nii.gz")
    expected = list(spacing)
    expected[2 - axis] *= factor
    np.testing.assert_allclose(thick.GetSpacing(), expected, rtol=1e-6)


def test_thickness_that_is_no_multiple(raw, capsys):
    """Slabs of 3 mm from slices of 2 mm: every second slice is shared by two of them."""
    assert run("-d", 4, "-o", 104, "--thickness", 3) == 0
    name = "imagesTr/case_b_0000.nii.gz"
    thin, thick = read(raw / SOURCE / name), read(raw / "Dataset104_SmallThick3mm" / name)
    slices = sitk.GetArrayFromImage(thin).astype(float)
    assert thick.GetSize() == (8, 10, 9)
    np.testing.assert_allclose(thick.GetSpacing(), (0.8, 0.9, 3.0), rtol=1e-6)
    # From the centre of a slice 2 mm thick to that of a slab 3 mm thick that begins where it begins.
    centre = thin.TransformContinuousIndexToPhysicalPoint((0, 0, 0.25))
    np.testing.assert_allclose(thick.GetOrigin(), centre, atol=1e-5)
    for pair in range(4):
        first, shared, last = slices[3 * pair : 3 * pair + 3]
        made = sitk.GetArrayFromImage(thick)[2 * pair : 2 * pair + 2]
        np.testing.assert_allclose(made, [(2 * first + shared) / 3, (shared + 2 * last) / 3], rtol=1e-5, atol=1e-4)
    thin, thick = (read(raw / folder / "labelsTr/case_b.nii.gz") for folder in (SOURCE, "Dataset104_SmallThick3mm"))
    # Two thirds of a slab are one slice, whose label wins.
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(thick), sitk.GetArrayFromImage(thin)[[0, 2, 3, 5, 6, 8, 9, 11, 12]]
    )
    printed = capsys.readouterr().out
    assert "4 cases, 1.5 slices per slab along array axis 0" in printed
    assert "dropped 0.5 remainder slices at the end of 2 cases: imagesTr/case_b, imagesTs/case_d" in printed


def test_many_remainders_are_one_line(raw, capsys):
    array = np.zeros((10, 4, 4), np.int16)
    for number in range(6):
        for channel in range(2):
            name = f"imagesTs/odd_{number}_{channel:04d}.nii.gz"
            write_image(raw / SOURCE / name, array, Spacing=(0.8, 0.9, 2 + number / 10))
    assert run("-d", 4, "-o", 104, "--thickness", 3.3, "--slice-axis", 0) == 0
    printed = capsys.readouterr().out
    assert "10 cases, 1.32, 1.375, 1.435, 1.5, 1.571 and 1 more slices per slab" in printed
    assert re.search(r"dropped [\d.]+ to [\d.]+ remainder slices at the end of \d+ cases\n", printed)
    assert printed.count("dropped") == 1


def test_labels_without_an_image_are_reported(raw, capsys):
    shutil.copy(raw / SOURCE / "labelsTs/case_c.nii.gz", raw / SOURCE / "labelsTs/lost.nii.gz")
    assert run("-d", 4, "-o", 104, "--factor", 4) == 0
    assert "left out 1 label files without an image: labelsTs/lost.nii.gz" in capsys.readouterr().out


# Each row: what the user does to the data set or environment, the options, what the sentence holds.


def nothing(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pass


def unset(raw, monkeypatch):
    monkeypatch.delenv("nnUNet_raw")


def taken_in(variable):
    def change(raw, monkeypatch):
        (raw.parent / variable / "Dataset104_Other").mkdir()

    return change


def only_preprocessed(raw, monkeypatch):
    (raw.parent / "nnUNet_preprocessed" / "Dataset009_Gone").mkdir()


def relabelled(*, shape=(12, 10, 8), **geometry):
    def change(raw, monkeypatch):
        write_image(raw / SOURCE / "labelsTr/case_a.nii.gz", np.zeros(shape, np.uint8), **geometry)

    return change


def other_channel(raw, monkeypatch):
    write_image(raw / SOURCE / "imagesTs/case_d_0001.nii.gz", np.zeros((7, 10, 8), np.int16))


def json_with(**changes):
    def change(raw, monkeypatch):
        edit_json(raw / SOURCE / "dataset.json", **changes)

    return change


def truncated(name):
    def change(raw, monkeypatch):
        content = (raw / SOURCE / name).read_bytes()
        (raw / SOURCE / name).write_bytes(content[: len(content) // 2])

    return change


def removed(name):
    def change(raw, monkeypatch):
        path = raw / SOURCE / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def flat(raw, monkeypatch):
    image = sitk.Image([8, 8], sitk.sitkInt16)
    sitk.WriteImage(image, str(raw / SOURCE / "imagesTr/case_a_0000.nii.gz"))


def coloured(raw, monkeypatch):
    image = sitk.Image([8, 8, 8], sitk.sitkVectorUInt8, 3)
    sitk.WriteImage(image, str(raw / SOURCE / "imagesTr/case_a_0000.nii.gz"))


F4 = ["--factor", "4"]
REFUSED = {
    "output in raw": (taken_in("nnUNet_raw"), F4, "output id 104.*nnUNet_raw/Dataset104_Other has"),
    "output in results": (taken_in("nnUNet_results"), F4, "output id 104.*Dataset104_Other has"),
    "output is source": (nothing, [*F4, "-o", "4"], "output id 4, which .*Dataset004_Small has"),
    "output no id": (nothing, [*F4, "-o", "Dataset104_New"], "output data set 'Dataset104_New'.*0 to 999"),
    "output too high": (nothing, [*F4, "-o", "1000"], "output data set '1000'.*0 to 999"),
    "output negative": (nothing, [*F4, "-o", "-1"], "output data set '-1'.*0 to 999"),
    "factor 0": (nothing, ["--factor", "0"], "factor 0; expected a whole number of 2 or more"),
    "factor 1": (nothing, ["--factor", "1"], "factor 1; expected a whole number of 2 or more"),
    "factor negative": (nothing, ["--factor", "-3"], "factor -3; expected a whole number of 2 or more"),
    "factor fraction": (nothing, ["--factor", "2.5"], "--factor 2.5; expected a whole number"),
    "factor text": (nothing, ["--factor", "four"], "--factor four; expected a whole number"),
    "factor too large": (nothing, ["--factor", "9"], "9 slices for case case_d, which has 8 along"),
    "factor too large on axis": (
        nothing,
        ["--factor", "9", "--slice-axis", "2"],
        "case case_a, which has 8 along its array axis 2",
    ),
    "factor and thickness": (nothing, [*F4, "--thickness", "4"], "both factor and thickness"),
    "neither": (nothing, [], "neither factor nor thickness"),
    "thickness of one slice": (
        nothing,
        ["--thickness", "2"],
        "thickness 2 mm for case case_a .*every 2 mm; expected slabs thicker .*choose more than 2.0202 mm",
    ),
    "thickness of a slice and rounding": (
        nothing,
        ["--thickness", "2.02"],
        "thickness 2.02 mm.*choose more than 2.0202",
    ),
    "thickness too small": (nothing, ["--thickness", "0.5"], "thickness 0.5 mm.*choose more than 2.0202 mm"),
    "thickness fraction too large": (
        nothing,
        ["--thickness", "17"],
        "slabs of 8.5 slices for case case_d, which has 8",
    ),
    "thickness too large": (nothing, ["--thickness", "40"], "slabs of 20 slices for case case_a, which has 12"),
    "thickness 0": (nothing, ["--thickness", "0"], "thickness 0.0; expected millimetres above 0"),
    "thickness nan": (nothing, ["--thickness", "nan"], "thickness nan; expected millimetres above 0"),
    "thickness infinite": (nothing, ["--thickness", "inf"], "thickness inf; expected millimetres above 0"),
    "thickness text": (nothing, ["--thickness", "5mm"], "--thickness 5mm; expected a number"),
    "axis 3": (nothing, [*F4, "--slice-axis", "3"], "axis 3; expected an array axis: 0, 1 or 2"),
    "axis negative": (nothing, [*F4, "--slice-axis", "-1"], "axis -1; expected an array axis"),
    "axis text": (nothing, [*F4, "--slice-axis", "z"], "--slice-axis z; expected a whole number"),
    "name with slash": (nothing, [*F4, "--name", "../x"], "name '../x'; expected what follows DatasetXXX_"),
    "name empty": (nothing, [*F4, "--name", ""], "name ''; expected"),
    "name with id": (nothing, [*F4, "--name", "Dataset104_A"], "name 'Dataset104_A'; expected"),
    "no processes": (nothing, [*F4, "-np", "0"], "0 processes; expected 1 or more"),
    "source missing": (nothing, [*F4, "-d", "77"], "no data set 77; expected one folder Dataset077_"),
    "source not in raw": (only_preprocessed, [*F4, "-d", "9"], "no file .*Dataset009_Gone/dataset.json.*nnUNet_raw"),
    "source unset": (unset, F4, "no value of nnUNet_raw.*export nnUNet_raw="),
    "label size": (relabelled(shape=(11, 10, 8)), F4, r"label map .*case_a.nii.gz with size \(8, 10, 11\) instead of"),
    "label spacing": (relabelled(Spacing=(0.8, 0.9, 2.1)), F4, "label map .*case_a.nii.gz with spacing"),
    "label origin": (relabelled(Origin=(5.0, -6.0, 7.6)), F4, "label map .*case_a.nii.gz with origin"),
    "label direction": (relabelled(Direction=tuple(np.eye(3).ravel())), F4, "label map .*case_a.nii.gz with direction"),
    "channel size": (other_channel, F4, "channel .*imagesTs/case_d_0001.nii.gz with size"),
    "channel missing": (removed("imagesTs/case_d_0001.nii.gz"), F4, "1 image files for case case_d.*expected 2"),
    "label missing": (removed("labelsTr/case_a.nii.gz"), F4, "no file .*labelsTr/case_a.nii.gz"),
    "images missing": (removed("imagesTr"), F4, "no training case in .*Dataset004_Small"),
    "natural images": (json_with(file_ending=".png"), F4, "files .png; expected volumes"),
    "other ending": (json_with(file_ending=".mha"), F4, r"no training case .*imagesTr/\*_0000.mha"),
    "2D": (flat, F4, "case_a_0000.nii.gz with 2 dimensions .*; expected 3D volumes"),
    "colours": (coloured, F4, "case_a_0000.nii.gz with 3 dimensions and 3 values per voxel; expected 3D volumes"),
    "image truncated": (truncated("imagesTs/case_c_0001.nii.gz"), F4, "unreadable file .*imagesTs/case_c_0001.nii.gz"),
    "label truncated": (truncated("labelsTr/case_b.nii.gz"), F4, "unreadable file .*labelsTr/case_b.nii.gz"),
    "json truncated": (truncated("dataset.json"), F4, "damaged file .*dataset.json"),
    "json incomplete": (json_with(labels=None), F4, "dataset.json; expected one with channel_names, labels"),
    "paths faulty": (json_with(dataset={"case_a": {"images": ["x"]}}), F4, "a faulty 'dataset' entry in"),
    "paths missing": (
        json_with(dataset={"a": {"images": ["x", "y"], "label": "z"}}),
        F4,
        "no file .*Dataset004_Small/x",
    ),
    "splits truncated": (truncated("splits_final.json"), F4, "damaged file .*splits_final.json"),
}


@pytest.mark.parametrize(("change", "options", "sentence"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_one_sentence_and_leaves_nothing(raw, monkeypatch, capsys, change, options, sentence):
    change(raw, monkeypatch)
    before = sorted(raw.parent.rglob("*"))
    assert main(["make_thick", "-d", "4", "-o", "104", "-np", "2", *options]) == 2
    assert sorted(raw.parent.rglob("*")) == before
    error = capsys.readouterr().err.rpartition("nnunetv2_ext make_thick: ")[2]
    assert error.startswith("got ")

    assert re.search(sentence, error.replace("\n", " ")), error


def test_interruption_leaves_nothing(raw, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(nnunetv2_ext.data.thick, "majority_slabs", interrupted)
    assert run("-d", 4, "-o", 104, "--factor", 4) == 130
    assert [child.name for child in raw.iterdir()] == [SOURCE]


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_half_written_file_is_noticed(raw, monkeypatch, capsys, ending):
    """What ITK does on a full disk: no error, and half a file."""
    shutil.rmtree(raw / SOURCE)
    write_dataset(raw / SOURCE, ending=ending)
    write_all = sitk.WriteImage

    def write_half(image, path, compress):
        write_all(image, path, compress)
        Path(path).write_bytes(Path(path).read_bytes()[: Path(path).stat().st_size // 2])

    monkeypatch.setattr(sitk, "WriteImage", write_half)
    assert run("-d", 4, "-o", 104, "--factor", 4) == 2
    assert re.search("got an error on writing .*expected a writable folder with free space", capsys.readouterr().err)
    assert [child.name for child in raw.iterdir()] == [SOURCE]


def test_error_of_the_file_system_is_a_sentence(raw, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    assert run("-d", 4, "-o", 104, "--factor", 4) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert [child.name for child in raw.iterdir()] == [SOURCE]
