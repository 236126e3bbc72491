"""`convert_thin_thick` on small folders: what it writes, what it reports, what it refuses."""

import errno
import json
import re
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

import nnunetv2_ext.data.thin_thick
from nnunetv2_ext.cli import main
from nnunetv2_ext.data.sidecar import read_sidecar
from nnunetv2_ext.data.volumes import read_grid, read_volume
from nnunetv2_ext.geometry.slabs import centre_slices, covered, slab_matrix
from tests.data.annotated import MADE, NAMES, STRAIGHT, made, report, to_series, write_case, write_image
from tests.data.thin_dataset import in_child


@pytest.fixture
def folders(nnunet_folders):
    """nnU-Net's folders, empty, and beside them the images and annotations of two cases."""
    for case in "ab":
        write_case(nnunet_folders, case)
    return nnunet_folders


def run(folder: Path, *options: object) -> int:
    arguments = ["--images", folder / "images", "--labels", folder / "labels", "-o", 42, "--name", "Liver", "-np", 2]
    names = () if "--label-names" in options else ("--label-names", *NAMES)
    return main(["convert_thin_thick", *map(str, [*arguments, *names, *options])])


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".mhd"])
def test_formats(nnunet_folders, capsys, ending):
    annotation = write_case(nnunet_folders, "a", ending=ending)
    write_case(nnunet_folders, "b", ending=ending, slices=16, thick=4)
    assert run(nnunet_folders) == 0
    folder = made(nnunet_folders)
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*")) == [
        "conversion.csv",
        "dataset.json",
        "imagesTr/a_0000.nii.gz",
        "imagesTr/b_0000.nii.gz",
        "labelsTr/a.nii.gz",
        "labelsTr/b.nii.gz",
        "slabs.json",
    ]
    assert json.loads((folder / "dataset.json").read_text()) == {
        "channel_names": {"0": "image"},
        "labels": {"background": 0, "liver": 1, "tumour": 2},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    for name in ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"):
        assert read_grid(nnunet_folders / f"images/a{ending}").differences(read_grid(folder / name)) == []
    image = read_volume(folder / "imagesTr/a_0000.nii.gz")
    assert image.dtype == np.int16
    np.testing.assert_array_equal(image, read_volume(nnunet_folders / f"images/a{ending}"))
    laid = read_volume(folder / "labelsTr/a.nii.gz")
    assert laid.dtype == np.uint8
    np.testing.assert_array_equal(laid, np.repeat(annotation, 4, axis=0))
    sidecar = read_sidecar(folder, MADE)
    assert sidecar.axis == 0
    np.testing.assert_allclose(sidecar.case("a").slabs, [[0, 8], [8, 16], [16, 24]], atol=1e-4)
    assert (sidecar.case("b").thin_spacing, sidecar.case("b").thin_slices) == (2, 16)
    printed = capsys.readouterr().out
    assert re.search(r"\| a +\| +2 \| +8 \| +8 \| +4 \| +12 \| +3 \| +3 \| +0 \| +as the image \|", printed), printed
    assert f"{folder}: 2 cases, slices along array axis 0" in printed
    assert "training ignores" not in printed
    assert "--channel-names CT" in printed


def test_offset_gaps_and_mixed_ratios(nnunet_folders, capsys):
    """One case sticks out at both ends, one has a ratio of 3.7, one ends before its image does."""
    sticking = write_case(nnunet_folders, "out", start=-3, thick=5)
    broken = write_case(nnunet_folders, "broken", ratio=3.7, slices=15, thick=4)
    short = write_case(nnunet_folders, "short", start=2, thick=2, slices=12)
    assert run(nnunet_folders) == 0
    folder = made(nnunet_folders)
    assert json.loads((folder / "dataset.json").read_text())["labels"]["ignore"] == 3
    laid = {name: read_volume(folder / f"labelsTr/{name}.nii.gz") for name in ("out", "broken", "short")}
    np.testing.assert_array_equal(laid["out"], sticking[[0, *[1] * 4, *[2] * 4, *[3] * 3]])
    np.testing.assert_array_equal(laid["broken"], [*broken[np.repeat(range(4), (4, 3, 4, 4))]])
    np.testing.assert_array_equal(laid["short"][2:10], np.repeat(short, 4, axis=0))
    assert (laid["short"][[0, 1, 10, 11]] == 3).all()
    sidecar = read_sidecar(folder, MADE)
    np.testing.assert_allclose(sidecar.case("out").slabs[[0, -1]], [[-6, 2], [18, 26]], atol=1e-4)
    np.testing.assert_allclose(sidecar.case("broken").slabs[-1], [22.2, 29.6], atol=1e-4)
    for name, annotation in (("out", sticking[:4]), ("broken", broken), ("short", short)):
        case = sidecar.case(name)
        whole = covered(slab_matrix(case.slabs, case.slices))
        read = laid[name][centre_slices(case.slabs, case.slices)[whole]]
        np.testing.assert_array_equal(read, annotation[whole])
    rows = report(nnunet_folders)
    found = {name: tuple(row[key] for key in ("slabs", "covered", "ignored")) for name, row in rows.items()}
    assert found == {"out": ("4", "2", "0"), "broken": ("4", "4", "0"), "short": ("2", "2", "4")}
    assert float(rows["broken"]["ratio"]) == pytest.approx(3.7)
    assert "4 thin slices in no slab have the label 3, which training ignores" in capsys.readouterr().out
    verify_dataset_integrity(str(folder), num_processes=1)


def test_the_id_may_stand_behind_d_too(folders):
    """nnU-Net's letter for a data set."""
    arguments = ["--images", folders / "images", "--labels", folders / "labels", "-d", 42, "--name", "Liver", "-np", 1]
    assert main(["convert_thin_thick", *map(str, arguments), "--label-names", *NAMES]) == 0
    assert [*report(folders)] == ["a", "b"]


def test_unmatched_volumes(folders, capsys):
    shutil.copy(folders / "images/a.nii.gz", folders / "images/c_0000.nii.gz")
    shutil.copy(folders / "images/a.nii.gz", folders / "images/d.nii.gz")
    shutil.copy(folders / "labels/a.nii.gz", folders / "labels/e.nii.gz")
    assert run(folders) == 2
    error = capsys.readouterr().err
    assert "2 images without annotation (c_0000.nii.gz, d.nii.gz); 1 annotations without image (e.nii.gz)" in error
    assert "--skip-unmatched" in error
    assert not made(folders).exists()
    assert run(folders, "--skip-unmatched") == 0
    assert "left out 3 without partner: c_0000.nii.gz, d.nii.gz, e.nii.gz" in capsys.readouterr().out
    assert [*report(folders)] == ["a", "b"]


def test_what_is_no_volume_and_what_a_kill_left_are_told(folders, capsys):
    for name in ("notes.txt", ".hidden", "a.nii.gz.part"):
        (folders / "images" / name).touch()
    child = in_child(
        lambda: run(folders), stop_at=(nnunetv2_ext.data.thin_thick, "write_sidecar"), marker=folders / "there"
    )
    child.kill()
    child.join(30)
    capsys.readouterr()
    assert run(folders) == 0
    printed = capsys.readouterr().out
    assert "left out 2 files (a.nii.gz.part, notes.txt), as no volume" in printed
    assert re.search(r"removed .*nnUNet_raw/\.Dataset042_Liver_\w+, which a killed process had left behind", printed)
    assert [path.name for path in (folders / "nnUNet_raw").iterdir()] == [MADE]


# Each row: what the user does to the folders, the options, what the sentence holds.


def nothing(folder: Path) -> None:
    pass


def case_c(**options):
    def change(folder):
        write_case(folder, "c", **options)

    return change


def annotated(array, **geometry):
    def change(folder):
        origin = (5 + 0.8 * 3, -6.0, 7.5 - 0.6 * 3)
        values = {"spacing": (0.8, 0.9, 8.0), "origin": origin} | geometry
        write_image(folder / "labels/a.nii.gz", array, **values)

    return change


def truncated(name):
    def change(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return change


def header_of(name, *, codes=(1, 1), pixdim=None, shear=0.0):
    def change(folder):
        image = nibabel.load(folder / name)
        affine = image.affine @ np.array([[1, 0, shear, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        image = nibabel.Nifti1Image(np.asarray(image.dataobj), affine, image.header)
        image.set_qform(affine, codes[0])
        image.set_sform(affine, codes[1])
        if pixdim is not None:
            image.header["pixdim"][1:4] = pixdim
        image.to_filename(folder / name)

    return change


def analyze(folder):
    array = np.asarray(nibabel.load(folder / "labels/a.nii.gz").dataobj).astype(np.int16)
    (folder / "labels/a.nii.gz").unlink()
    nibabel.save(nibabel.AnalyzeImage(array, np.diag([0.8, 0.9, 8, 1])), folder / "labels/a.hdr")


def emptied(name):
    def change(folder):
        shutil.rmtree(folder / name)
        (folder / name).mkdir()

    return change


def other_channel(folder):
    for case in "ab":
        shutil.copy(folder / f"images/{case}.nii.gz", folder / f"images/{case}_0001.nii.gz")
    array = np.zeros((11, 10, 8), np.int16)
    write_image(folder / "images/b_0001.nii.gz", array, spacing=(0.8, 0.9, 2.0), origin=(5.0, -6.0, 7.5))


def sagittal(folder):
    """Case c is coarser along another axis."""
    write_image(folder / "images/c.mha", np.zeros((5, 6, 8)), spacing=(1, 1, 1), origin=(0, 0, 0), direction=STRAIGHT)
    label = np.zeros((5, 6, 4), "u1")
    write_image(folder / "labels/c.mha", label, spacing=(2, 1, 1), origin=(0.5, 0, 0), direction=STRAIGHT)


def taken(folder):
    (folder / "nnUNet_results" / "Dataset042_Other").mkdir()


def flat(folder):
    sitk.WriteImage(sitk.Image([8, 8], sitk.sitkInt16), str(folder / "images/a.nii.gz"))


def uneven(folder):
    write_case(folder, "c", direction=STRAIGHT)
    to_series(folder / "images" / "c.nii.gz", uid="1.2.840.3")
    (folder / "images" / "c" / "95.dcm").unlink()


THREE = np.zeros((3, 10, 8), "u1")
REFUSED = {
    "orientation": (annotated(THREE, direction=STRAIGHT), [], "orientation LPS for an image of .* in case a"),
    "apart": (
        annotated(THREE, origin=(500.0, 0.0, 0.0)),
        [],
        "mm of the image in case a; expected volumes that overlap",
    ),
    "field of view": (annotated(np.zeros((3, 9, 8), "u1")), [], r"\[-?\d.*, 8.1\).*, 9\).*case a.*one field of view"),
    "finer": (annotated(np.zeros((12, 10, 8), "u1"), spacing=(0.8, 0.9, 1.0)), [], "case a: the annotation is finer"),
    "equal": (annotated(np.zeros((12, 10, 8), "u1"), spacing=(0.8, 0.9, 2.0)), [], "case a: .*plain training"),
    "unnamed label": (case_c(values=(0, 2, 5, 7)), [], "values 5, 7 in the annotation of case c; expected .*2 tumour"),
    "label is no number": (annotated(THREE + 0.5), [], "values such as 0.5 in .*labels/a.nii.gz"),
    "ignore not named": (case_c(values=(0, 3)), ["--slice-thickness", "4"], "values 3 in the annotation of case c"),
    "image as label": (
        annotated(np.arange(240).reshape(3, 10, 8).astype("f4")),
        [],
        "values 3, 4, 5, 6, 7 and 232 more in",
    ),
    "not annotated": (
        annotated(np.where(np.arange(240) < 3, np.nan, 1).reshape(3, 10, 8).astype("f4")),
        [],
        "3 voxels of NaN or infinity in .*labels/a.nii.gz.*name it ignore",
    ),
    "annotation of two spacings": (
        header_of("labels/a.nii.gz", pixdim=(0.8, 0.9, 4)),
        [],
        "labels/a.nii.gz whose header tells two spacings: pixdim 0.8, 0.9, 4 mm, sform 0.8, 0.9, 8 mm",
    ),
    "annotation without place": (
        header_of("labels/a.nii.gz", codes=(0, 0)),
        [],
        r"labels/a.nii.gz with neither a qform nor an sform .*image.set_sform\(affine, 1\)",
    ),
    "Analyze": (analyze, [], "labels/a.hdr with neither a qform nor an sform"),
    "image without place": (header_of("images/b.nii.gz", codes=(0, 0)), [], "images/b.nii.gz with neither"),
    "sheared image": (
        header_of("images/b.nii.gz", shear=0.02, codes=(0, 1)),
        [],
        r"images/b.nii.gz whose sform has slanted axes \(89.5416 degrees",
    ),
    "overlap": (nothing, ["--slice-thickness", "9"], "9 mm thick every 8 mm in case a, which overlap"),
    "thin slices": (
        nothing,
        ["--slice-thickness", "2"],
        "2 mm thick every 8 mm .*every 2 mm in case a: .*plain training",
    ),
    "thinner slices": (nothing, ["--slice-thickness", "1"], "1 mm thick every 8 mm .*in case a: .*finer"),
    "thickness 0": (nothing, ["--slice-thickness", "0"], "slice thickness 0.0; expected millimetres above 0"),
    "thickness nan": (nothing, ["--slice-thickness", "nan"], "slice thickness nan"),
    "thickness text": (nothing, ["--slice-thickness", "5mm"], "--slice-thickness 5mm; expected a number"),
    "wrong axis": (nothing, ["--slice-axis", "1"], "along the array axis 1, in case a: .*as thin as"),
    "axis 3": (nothing, ["--slice-axis", "3"], "slice axis 3; expected an array axis"),
    "axis text": (nothing, ["--slice-axis", "z"], "--slice-axis z; expected a whole number"),
    "mixed axes": (sagittal, [], "axis 0 in case a and along 2 in case c; expected one slice axis"),
    "uneven series": (uneven, [], "uneven slice spacing in .*images/c: from 2 to 4 mm"),
    "channel grid": (other_channel, [], "channel .*images/b_0001.nii.gz with size"),
    "fewer channels": (case_c(channels=2), [], "1 channels in case a; expected 2, as in other cases"),
    "channel names": (nothing, ["--channel-names", "CT", "PET"], "1 channels in case a; expected 2, one per channel"),
    "no background": (
        nothing,
        ["--label-names", "liver", "tumour"],
        "label names liver tumour; expected background first",
    ),
    "one label": (nothing, ["--label-names", "background"], "label names background; expected"),
    "label twice": (nothing, ["--label-names", "background", "a", "a"], "label names background a a; expected"),
    "ignore first": (nothing, ["--label-names", "background", "ignore", "a"], "ignore only at the end"),
    "no images": (emptied("images"), [], "2 annotations without image .a.nii.gz, b.nii.gz"),
    "no pair, skipped": (emptied("labels"), ["--skip-unmatched"], "2 images without annotation"),
    "both empty": (
        lambda folder: [emptied(name)(folder) for name in ("images", "labels")],
        [],
        "no volume in .*images",
    ),
    "folder missing": (nothing, ["--labels", "nowhere"], "no folder nowhere; expected a folder of volumes"),
    "image truncated": (truncated("images/b.nii.gz"), [], "unreadable file .*images/b.nii.gz"),
    "label truncated": (truncated("labels/b.nii.gz"), [], "unreadable file .*labels/b.nii.gz"),
    "2D": (flat, [], "a.nii.gz with 2 dimensions"),
    "id taken": (taken, [], "output id 42, which .*nnUNet_results/Dataset042_Other has"),
    "no id": (nothing, ["-d", "Dataset042"], "output data set 'Dataset042'.*0 to 999"),
    "name": (nothing, ["--name", "../x"], "name '../x'; expected what follows DatasetXXX_"),
    "no processes": (nothing, ["-np", "0"], "got -np 0; expected 1 or more"),
}


@pytest.mark.parametrize(("change", "options", "sentence"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_one_sentence_and_leaves_nothing(folders, capsys, change, options, sentence):
    change(folders)
    before = sorted(folders.rglob("*"))
    assert run(folders, *options) == 2
    assert sorted(folders.rglob("*")) == before
    error = capsys.readouterr().err.rpartition("nnunetv2_ext convert_thin_thick: ")[2]
    assert error.startswith("got ")
    assert re.search(sentence, error.replace("\n", " ")), error


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), 130), (OSError(errno.ENOSPC, "No space left on device"), 2)]
)
def test_an_end_on_the_way_leaves_nothing(folders, monkeypatch, error, status):
    def ended(*_):
        raise error

    monkeypatch.setattr(nnunetv2_ext.data.thin_thick, "write_sidecar", ended)
    assert run(folders) == status
    assert not [*(folders / "nnUNet_raw").iterdir()]
