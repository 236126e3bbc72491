"""`make_thick` on data that it refuses: one sentence, exit status 2, nothing left behind."""

import re
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_ext.cli import main
from tests.data.thin_dataset import CASE_A, SOURCE, edit_json, header_of, write_dataset, write_image


@pytest.fixture
def raw(nnunet_folders):
    write_dataset(nnunet_folders / "nnUNet_raw" / SOURCE)
    return nnunet_folders / "nnUNet_raw"


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


def folder_for(name):
    def change(raw, monkeypatch):
        path = raw / SOURCE / name
        path.unlink(missing_ok=True)
        path.mkdir()

    return change


def link_to_nothing(raw, monkeypatch):
    (raw / SOURCE / "imagesTr/case_b_0001.nii.gz").unlink()
    (raw / SOURCE / "imagesTr/case_b_0001.nii.gz").symlink_to("nowhere")


def no_folder(raw, monkeypatch):
    shutil.rmtree(raw / SOURCE / "imagesTs")
    (raw / SOURCE / "imagesTs").symlink_to("nowhere")


def without_number(raw, monkeypatch):
    (raw / SOURCE / "imagesTr/case_a_0000.nii.gz").rename(raw / SOURCE / "imagesTr/case_a.nii.gz")


def image_with_nan(raw, monkeypatch):
    """In a format that SimpleITK reads as it is."""
    shutil.rmtree(raw / SOURCE)
    write_dataset(raw / SOURCE, ending=".mha")
    write_image(raw / SOURCE / "imagesTr/case_a_0000.mha", np.full((12, 10, 8), np.nan, np.float32))


def label_of(*values):
    def change(raw, monkeypatch):
        array = np.resize(np.array(values, np.float32), (12, 10, 8))
        write_image(raw / SOURCE / "labelsTr/case_a.nii.gz", array)

    return change


def label_with_nan(raw, monkeypatch):
    """As nibabel writes it."""
    image = nibabel.load(raw / SOURCE / "labelsTr/case_a.nii.gz")
    array = image.get_fdata(dtype=np.float32)
    array[2, 3, 4:6] = np.nan
    nibabel.save(nibabel.Nifti1Image(array, image.affine), raw / SOURCE / "labelsTr/case_a.nii.gz")


SHEARED = np.array([[1, 0.02, 0, 0], [0, 1, 0.02, 0], [0, 0, 4, 0], [0, 0, 0, 1]])
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
    "no processes": (nothing, [*F4, "-np", "0"], "got -np 0; expected 1 or more"),
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
    "channels a list": (json_with(channel_names=["CT"]), F4, r"channel_names \['CT'\] in .*expected names by number"),
    "labels a number": (json_with(labels=3), F4, "labels 3 in .*dataset.json"),
    "ending without a dot": (json_with(file_ending="nii.gz"), F4, "files nii.gz; .*; write .nii.gz into dataset.json"),
    "ending in capitals": (json_with(file_ending=".NII.GZ"), F4, "write .nii.gz into dataset.json, and into the names"),
    "paths no list": (
        json_with(dataset={"case_a": {"images": "imagesTr/case_a_0000.nii.gz", "label": "labelsTr/case_a.nii.gz"}}),
        F4,
        "a faulty 'dataset' entry in",
    ),
    "case elsewhere": (
        json_with(dataset={"../../case": {"images": list(CASE_A[:2]), "label": CASE_A[2]}}),
        F4,
        r"the case '../../case' in 'dataset' of .*dataset.json; expected the name of a case",
    ),
    "case in root": (
        json_with(dataset={"/case": {"images": list(CASE_A[:2]), "label": CASE_A[2]}}),
        F4,
        "the case '/case'",
    ),
    "image with nan": (image_with_nan, F4, "NaN or infinite voxels in .*imagesTr/case_a_0000.mha"),
    "json incomplete": (json_with(labels=None), F4, "dataset.json; expected one with channel_names, labels"),
    "paths faulty": (json_with(dataset={"case_a": {"images": ["x"]}}), F4, "a faulty 'dataset' entry in"),
    "paths missing": (
        json_with(dataset={"a": {"images": ["x", "y"], "label": "z"}}),
        F4,
        "no file .*Dataset004_Small/x",
    ),
    "image a folder": (
        folder_for("imagesTr/case_b_0000.nii.gz"),
        F4,
        "a folder .*imagesTr/case_b_0000.nii.gz; expected a file",
    ),
    "test images no folder": (no_folder, F4, "no folder .*imagesTs, but a file or a dead link"),
    "label a folder": (folder_for("labelsTr/case_b.nii.gz"), F4, "a folder .*labelsTr/case_b.nii.gz; expected a file"),
    "image a link to nothing": (
        link_to_nothing,
        F4,
        "no file but a link or a pipe, .*imagesTr/case_b_0001.nii.gz; expected a",
    ),
    "image without channel": (without_number, F4, "imagesTr/case_a.nii.gz; expected a name that ends in .*CASE_0000"),
    "label with nan": (label_with_nan, F4, "2 voxels of NaN .*labelsTr/case_a.nii.gz.*background.*name it ignore"),
    "label of fractions": (label_of(0, 0.5, 1), F4, "values such as 0.5 in .*labelsTr/case_a.nii.gz"),
    "sheared": (
        header_of(*CASE_A, affine=SHEARED),
        F4,
        r"slanted axes \(88.85.* degrees .*header is at fault: resample",
    ),
    "two spacings": (header_of(*CASE_A, pixdim=(0.8, 0.9, 1.0)), F4, "pixdim 0.8, 0.9, 1 mm, sform 0.8, 0.9, 2 mm"),
    "two places": (
        header_of(*CASE_A, qform=np.diag([0.8, 0.9, 2, 1])),
        F4,
        r"case_a_0000.nii.gz with a qform and an sform that place it .* mm apart.*image.set_qform\(None, 0\) leaves",
    ),
    "label without place": (
        header_of(CASE_A[2], sform=0, qform=0),
        F4,
        r"labelsTr/case_a.nii.gz with neither a qform nor an sform .* beside .*case_a_0000.nii.gz, which has a place",
    ),
    "image without place": (
        header_of(*CASE_A[:2], sform=0, qform=0),
        F4,
        r"imagesTr/case_a_0000.nii.gz with neither .* beside .*labelsTr/case_a.nii.gz, which has a place",
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
