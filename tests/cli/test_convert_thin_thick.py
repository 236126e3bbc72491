"""The command on small folders: what it writes, what it reports, what it refuses."""

import csv
import errno
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

import nnunetv2_ext.data.thin_thick
from nnunetv2_ext.cli import main
from nnunetv2_ext.data.sidecar import read_sidecar
from nnunetv2_ext.data.thick import majority_slabs, thick_grid
from nnunetv2_ext.data.volumes import read_grid, read_volume, write_volume
from nnunetv2_ext.geometry.slabs import centre_slices, covered, slab_matrix

MADE = "Dataset042_Liver"
OBLIQUE = (0.0, 0.6, 0.8, 1.0, 0.0, 0.0, 0.0, 0.8, -0.6)
STRAIGHT = tuple(np.eye(3).ravel())
NAMES = ("background", "liver", "tumour")


@pytest.fixture
def folders(nnunet_folders):
    """nnU-Net's folders, empty, and beside them the images and annotations of two cases."""
    for case in "ab":
        write_case(nnunet_folders, case)
    return nnunet_folders


def write_image(path: Path, array: np.ndarray, *, spacing, origin, direction=OBLIQUE) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def write_case(
    folder: Path,
    case: str,
    *,
    ending: str = ".nii.gz",
    channels: int | None = None,
    slices: int = 12,
    thick: int = 3,
    ratio: float = 4,
    start: float = 0,
    values: tuple = (0, 1, 2),
    direction=OBLIQUE,
) -> np.ndarray:
    """Thin images of 2 mm slices and a thick annotation that begins `start` thin slices after them."""
    random = np.random.default_rng(len(case) + slices)
    for channel in range(channels or 1):
        name = case if channels is None else f"{case}_{channel:04d}"
        array = random.integers(-500, 500, (slices, 10, 8)).astype(np.int16)
        geometry = {"spacing": (0.8, 0.9, 2.0), "origin": (5.0, -6.0, 7.5), "direction": direction}
        write_image(folder / "images" / f"{name}{ending}", array, **geometry)
    centre = np.reshape(direction, (3, 3))[:, 2] * 2 * (start - 0.5 + ratio / 2)
    annotation = random.choice(np.array(values), (thick, 10, 8)).astype(np.uint8)
    geometry = {"spacing": (0.8, 0.9, 2 * ratio), "origin": tuple(np.add((5.0, -6.0, 7.5), centre).tolist())}
    write_image(folder / "labels" / f"{case}{ending}", annotation, **geometry, direction=direction)
    return annotation


def run(folder: Path, *options: object) -> int:
    arguments = ["--images", folder / "images", "--labels", folder / "labels", "-d", 42, "--name", "Liver", "-np", 2]
    names = () if "--label-names" in options else ("--label-names", *NAMES)
    return main(["convert_thin_thick", *map(str, [*arguments, *names, *options])])


def made(folder: Path) -> Path:
    return folder / "nnUNet_raw" / MADE


def report(folder: Path) -> dict[str, dict[str, str]]:
    with (made(folder) / "conversion.csv").open(newline="") as stream:
        return {row["case"]: row for row in csv.DictReader(stream)}


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


def test_dicom_series_with_channels(nnunet_folders):
    """Thin images as two series of one case, the annotation as NIfTI and as a series."""
    for case in "ab":
        annotation = write_case(nnunet_folders, case, channels=2, direction=STRAIGHT)
        images = nnunet_folders / "images"
        for channel in range(2):
            to_series(images / f"{case}_{channel:04d}.nii.gz", uid=f"1.2.840.{channel}")
    to_series(nnunet_folders / "labels" / "b.nii.gz", uid="1.2.840.9")
    assert run(nnunet_folders, "--channel-names", "CT", "PET") == 0
    folder = made(nnunet_folders)
    assert json.loads((folder / "dataset.json").read_text())["channel_names"] == {"0": "CT", "1": "PET"}
    for channel in range(2):
        thin = read_volume(folder / f"imagesTr/b_{channel:04d}.nii.gz")
        np.testing.assert_array_equal(thin, np.arange(12 * 80).reshape(12, 10, 8) + channel)
    np.testing.assert_array_equal(read_volume(folder / "labelsTr/b.nii.gz"), np.repeat(annotation, 4, axis=0))
    assert {name: row["covered"] for name, row in report(nnunet_folders).items()} == {"a": "3", "b": "3"}


def to_series(path: Path, *, uid: str) -> None:
    """Replace a volume by a folder of DICOM slices; images get voxels of their own, labels keep theirs."""
    volume = sitk.ReadImage(str(path), sitk.sitkInt16)
    if path.parent.name == "images":
        array = np.arange(volume.GetNumberOfPixels()).reshape(volume.GetSize()[::-1]) + int(uid[-1])
        thin = sitk.GetImageFromArray(array.astype(np.int16))
        thin.CopyInformation(volume)
        volume = thin
    folder = path.parent / path.name.removesuffix(".nii.gz")
    folder.mkdir()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number in range(volume.GetSize()[2]):
        single = volume[:, :, number : number + 1]
        single.SetMetaData("0008|0060", "CT")
        single.SetMetaData("0020|000d", "1.2.840.7")
        single.SetMetaData("0020|000e", uid)
        single.SetMetaData("0018|0050", str(volume.GetSpacing()[2]))
        single.SetMetaData("0020|0032", "\\".join(map(str, single.GetOrigin())))
        single.SetMetaData("0020|0037", "1\\0\\0\\0\\1\\0")
        writer.SetFileName(str(folder / f"{99 - number}.dcm"))
        writer.Execute(single)
    path.unlink()


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
    assert run(nnunet_folders) == 0
    laid = read_volume(made(nnunet_folders) / "labelsTr/a.nii.gz")
    np.testing.assert_array_equal(laid[1::4], annotation)
    assert report(nnunet_folders)["a"]["thickness"] == "4.0"
    assert (laid[::4] == 3).all()


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


@pytest.mark.parametrize(
    ("names", "values", "ignore"),
    [(NAMES, (0, 1, 2), 3), ((*NAMES, "ignore"), (0, 1, 3), 3)],
    ids=["new ignore label", "the annotation's own"],
)
def test_gaps_between_slices(nnunet_folders, names, values, ignore):
    annotation = write_case(nnunet_folders, "a", values=values)
    assert run(nnunet_folders, "--slice-thickness", 4, "--label-names", *names) == 0
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
    assert run(nnunet_folders) == 0
    assert read_sidecar(made(nnunet_folders), MADE).axis == 2
    laid = read_volume(made(nnunet_folders) / "labelsTr/a.nii.gz")
    np.testing.assert_array_equal(laid, np.repeat(annotation, 2, axis=2))
    assert read_volume(made(nnunet_folders) / "imagesTr/a_0000.nii.gz").dtype == np.float32


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


def test_hippocampus(nnunet_folders, hippocampus):
    """Annotations made thick by majority lie over the truth that they come from."""
    cases = [path.name.removesuffix(".nii.gz") for path in sorted((hippocampus / "labelsTr").glob("*.nii.gz"))[:3]]
    (nnunet_folders / "images").mkdir()
    (nnunet_folders / "labels").mkdir()
    for case, factor in zip(cases, (4, 3.7, 8), strict=True):
        shutil.copy(hippocampus / f"imagesTr/{case}_0000.nii.gz", nnunet_folders / "images")
        grid, truth = (read(hippocampus / f"labelsTr/{case}.nii.gz") for read in (read_grid, read_volume))
        annotation = majority_slabs(truth, axis=0, factor=factor)
        write_volume(annotation, thick_grid(grid, axis=0, factor=factor), nnunet_folders / f"labels/{case}.nii.gz")
    assert run(nnunet_folders, "--label-names", "background", "anterior", "posterior", "--channel-names", "MRI") == 0
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
    "label is no number": (annotated(THREE + 0.5), [], "values 0.5 in the annotation of case a"),
    "ignore not named": (case_c(values=(0, 3)), ["--slice-thickness", "4"], "values 3 in the annotation of case c"),
    "image as label": (
        annotated(np.arange(240).reshape(3, 10, 8).astype("f4")),
        [],
        "values 3, 4, 5, 6, 7 and 232 others in",
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
    "no processes": (nothing, ["-np", "0"], "0 processes; expected 1 or more"),
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
