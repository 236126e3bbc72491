"""`look` on small volumes: which cases it draws, what it says of them, what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from nnunetv2_ext.cli import main
from nnunetv2_ext.cli.look import CT_WINDOW
from nnunetv2_ext.evaluation.palette import COLOURS
from nnunetv2_ext.report import cases as report_cases

SHAPE, SPACING = (6, 16, 16), (1.0, 1.0, 5.0)
CASES = ("a", "b", "c", "d", "e")
DESCRIPTION = {
    "channel_names": {"0": "CT", "1": "MR"},
    "labels": {"background": 0, "liver": 1, "lesion": 2},
    "numTraining": 5,
    "file_ending": ".nii.gz",
}


def write(array, path, *, spacing=SPACING, origin=(0.0, 0.0, 0.0)):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    path.parent.mkdir(exist_ok=True)
    sitk.WriteImage(image, str(path))


def boxes(missed: int) -> np.ndarray:
    """A liver of 4 x 8 x 8 voxels without so many of its slices, and a lesion beside it."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[1 : 5 - missed, 4:12, 2:10] = 1
    labels[2:4, 4:8, 11:15] = 2
    return labels


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Case a is the best, e the worst."""
    monkeypatch.chdir(tmp_path)
    for missed, case in enumerate(CASES):
        image = np.random.default_rng(missed).normal(0, 300, SHAPE).astype(np.float32)
        write(image, tmp_path / "images" / f"{case}_0000.nii.gz")
        write(-image, tmp_path / "images" / f"{case}_0001.nii.gz")
        write(boxes(min(missed, 3)), tmp_path / "predictions" / f"{case}.nii.gz")
        write(boxes(0), tmp_path / "labels" / f"{case}.nii.gz")
    lesion = sitk.GetArrayFromImage(sitk.ReadImage("predictions/e.nii.gz")) * (boxes(0) != 2)
    write(lesion, tmp_path / "predictions" / "e.nii.gz")
    (tmp_path / "predictions" / "dataset.json").write_text(json.dumps(DESCRIPTION))
    return tmp_path


@pytest.fixture
def drawn(monkeypatch):
    """What is handed to the picture, which is not drawn."""
    kept: dict = {}
    monkeypatch.setattr(
        report_cases,
        "save_cases",
        lambda cases, labels, path, **options: kept.update(options, cases=cases, labels=labels),
    )
    return kept


def look(*more):
    return main(["look", "-i", "images", "-p", "predictions", "-o", "cases.png", *more])


def test_the_best_the_median_and_the_worst_with_a_truth(folders, drawn, capsys):
    assert look("-r", "labels") == 0
    assert capsys.readouterr().out == "cases.png: a, c, e\n"
    assert [case.title.splitlines()[:2] for case in drawn["cases"]] == [
        ["Best case", "a"],
        ["Median case", "c"],
        ["Worst case", "e"],
    ]
    # voxels of 5 mm3: of 256 in the liver, case c predicts 128; the lesion has 32
    assert drawn["cases"][1].title.splitlines()[3:] == [
        "mean Dice 0.83",
        "liver: 0.67, 0.64 ml (truth 1.28)",
        "lesion: 1.00, 0.16 ml (truth 0.16)",
    ]
    assert drawn["cases"][2].title.splitlines()[3:] == [
        "mean Dice 0.20",
        "liver: 0.40, 0.32 ml (truth 1.28)",
        "lesion: 0.00, 0.00 ml (truth 0.16)",
    ]
    assert drawn["labels"] == {"liver": 1, "lesion": 2}
    assert drawn["window"] == CT_WINDOW
    assert drawn["cases"][0].spacing == (5.0, 1.0, 1.0)


def test_the_picture_holds_the_labels_colours(folders):
    assert look("-r", "labels", "--cases", "c") == 0
    picture = imread("cases.png")[..., :3]
    for colour in COLOURS[:2]:
        assert (np.abs(picture - to_rgb(colour)).max(axis=-1) < 0.08).sum() > 100


@pytest.mark.parametrize(
    ("options", "cases"),
    [
        ((), "a, c, e"),
        (("--cases", "1"), "c"),
        (("--cases", "2"), "a, e"),
        (("--cases", "4"), "a, b, d, e"),
        (("--cases", "d", "b"), "d, b"),
    ],
)
def test_cases_without_a_truth(folders, drawn, capsys, options, cases):
    assert look(*options) == 0
    assert capsys.readouterr().out == f"cases.png: {cases}\n"
    assert all(case.truth is None for case in drawn["cases"])
    assert drawn["cases"][0].title.splitlines()[:2] == [cases[0], ""]
    assert "ml" in drawn["cases"][0].title and "Dice" not in drawn["cases"][0].title


def test_channel_window_and_names(folders, drawn):
    assert look("--channel", "1", "--cases", "a") == 0
    assert drawn["window"] is None  # MR
    np.testing.assert_allclose(
        drawn["cases"][0].image.mean(), -np.random.default_rng(0).normal(0, 300, SHAPE).mean(), rtol=1e-4
    )
    assert look("--cases", "a", "--window", "-5", "7.5") == 0
    assert drawn["window"] == (-5, 7.5)
    assert "from -5 to 7.5" in drawn["note"]
    (folders / "predictions" / "dataset.json").unlink()
    assert look("--cases", "a") == 0
    assert drawn["labels"] == {"label 1": 1, "label 2": 2}
    assert drawn["window"] is None
    named = {**DESCRIPTION, "labels": {"background": 0, "both": [1, 2], "lesion": 2}, "regions_class_order": [1, 2]}
    (folders / "other.json").write_text(json.dumps(named))
    assert look("--cases", "a", "-djfile", "other.json") == 0
    assert drawn["labels"] == {"both": (1, 2), "lesion": 2}


def test_values_that_no_name_is_known_of_are_drawn(folders, drawn):
    write(boxes(0) * 2, folders / "predictions" / "a.nii.gz")
    assert look("--cases", "a") == 0
    assert drawn["labels"] == {"liver": 1, "lesion": 2, "label 4": 4}


def test_cases_without_any_label_have_no_rank(folders, drawn):
    for case in CASES[:4]:
        for folder in ("labels", "predictions"):
            write(np.zeros(SHAPE, np.uint8), folders / folder / f"{case}.nii.gz")
    assert look("-r", "labels") == 0
    assert [case.title.splitlines()[0] for case in drawn["cases"]] == ["e"]
    write(np.zeros(SHAPE, np.uint8), folders / "labels" / "e.nii.gz")
    write(np.zeros(SHAPE, np.uint8), folders / "predictions" / "e.nii.gz")
    assert look("-r", "labels", "--cases", "2") == 0
    assert [case.title.splitlines() for case in drawn["cases"]] == [[case, "", "nothing predicted"] for case in "ae"]


def test_volumes_are_shown_upright(folders, drawn):
    """As one looks at a patient, whatever way the voxels lie in the file."""
    for name in ("images/a_0000", "predictions/a"):
        path = str(folders / f"{name}.nii.gz")
        sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(path), "PIR"), path)
    assert look("--cases", "a") == 0
    (case,) = drawn["cases"]
    assert case.spacing == (5.0, 1.0, 1.0)
    np.testing.assert_array_equal(case.prediction, boxes(0))
    np.testing.assert_allclose(case.image, np.random.default_rng(0).normal(0, 300, SHAPE), rtol=1e-4)


def test_images_of_one_file_and_another_format(folders, drawn, capsys):
    for path in sorted((folders / "images").iterdir()):
        if path.name.endswith("_0000.nii.gz"):
            sitk.WriteImage(sitk.ReadImage(str(path)), str(path.parent / path.name.replace("_0000.nii.gz", ".mha")))
        path.unlink()
    assert look() == 0
    assert capsys.readouterr().out == "cases.png: a, c, e\n"


def in_tiff(folders, spacing='{"spacing": [5, 1, 1]}'):
    """The volumes in TIFF, as nnU-Net has them: the spacing in CASE.json beside."""
    for path in folders.glob("*/*.nii.gz"):
        name = path.name.removesuffix(".nii.gz")
        tifffile.imwrite(path.with_name(f"{name}.tif"), sitk.GetArrayFromImage(sitk.ReadImage(str(path))))
        path.with_name(name.removesuffix("_0000").removesuffix("_0001") + ".json").write_text(spacing)
        path.unlink()


@pytest.mark.parametrize("channel", ["0", "1"])
def test_tiff_is_read_as_the_other_formats_are(folders, drawn, channel):
    flags = ("-r", "labels", "--channel", channel)
    assert look(*flags) == 0
    before = drawn["cases"]
    in_tiff(folders)
    assert look(*flags) == 0
    for one, other in zip(before, drawn["cases"], strict=True):
        assert (one.title, one.spacing) == (other.title, other.spacing)
        for name in ("image", "truth", "prediction"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def empty(folder):
    for path in folder.iterdir():
        path.unlink()


def damage(name: str):
    def cut(folders):
        path = folders / name
        path.write_bytes(path.read_bytes()[:100])

    return cut


def flat(folders):
    empty(folders / "predictions")
    write(np.zeros((16, 16), np.uint8), folders / "predictions" / "a.nii.gz", spacing=(1.0, 1.0), origin=(0.0, 0.0))


def replace(folder: str, array: np.ndarray, **grid):
    return lambda folders: write(array, folders / folder / "a.nii.gz", **grid)


A = ("--cases", "a")


@pytest.mark.parametrize(
    ("change", "options", "told"),
    [
        (None, ("-i", "nowhere"), "no folder nowhere"),
        (lambda folders: empty(folders / "images"), (), "no volume in images"),
        (lambda folders: empty(folders / "predictions"), (), "no volume in predictions"),
        (
            lambda folders: [(path.rename(path.with_name("x" + path.name))) for path in (folders / "images").iterdir()],
            (),
            "no case in common",
        ),
        (
            lambda folders: [(path.rename(path.with_name("x" + path.name))) for path in (folders / "labels").iterdir()],
            ("-r", "labels"),
            "no case in common",
        ),
        (replace("predictions", np.zeros((5, 16, 16), np.uint8)), A, "predictions/a.nii.gz with size"),
        (replace("predictions", boxes(0), spacing=(1.0, 1.0, 4.0)), A, "predictions/a.nii.gz with spacing"),
        (replace("predictions", boxes(0), origin=(1.0, 0.0, 0.0)), A, "predictions/a.nii.gz with origin"),
        (replace("labels", boxes(0), spacing=(1.0, 1.0, 4.0)), ("-r", "labels"), "labels/a.nii.gz with spacing"),
        (replace("predictions", boxes(0) + np.float32(0.5)), A, "a whole number in every voxel"),
        (flat, (), "2 dimensions"),
        (damage("predictions/a.nii.gz"), A, "predictions/a.nii.gz"),
        (damage("images/a_0000.nii.gz"), A, "images/a_0000.nii.gz"),
        (damage("predictions/dataset.json"), (), "a damaged file"),
        (None, ("--cases", "x"), "1 case (x) that not every folder holds"),
        (None, ("--cases", "0"), "expected 1 to 4"),
        (None, ("--cases", "5"), "expected 1 to 4"),
        (None, ("--cases", *CASES), "expected 1 to 4"),
        (None, ("--channel", "2"), "--channel 2, where a has 2"),
        (None, ("--channel", "first"), "expected a whole number"),
        (None, ("--window", "5", "5"), "the lower value first"),
        (None, ("--window", "dark", "5"), "--window dark 5"),
        (None, ("--window", "0", "nan"), "the lower value first"),
        (None, ("-o", "predictions/a.png"), "-o predictions/a.png, inside -p predictions"),
        (None, ("-o", "images/a.png"), "-o images/a.png, inside -i images"),
        (None, ("-r", "labels", "-o", "labels/a.png"), "-o labels/a.png, inside -r labels"),
        (lambda folders: in_tiff(folders, '{"spacing": [4, 1]}'), (), "got the spacing [4, 1] in images/a.json"),
        (lambda folders: [in_tiff(folders), damage("images/a_0000.tif")(folders)], A, "images/a_0000.tif"),
        (None, ("-o", "cases.jpg"), "a file .png"),
        (None, ("-o", "nowhere/cases.png"), "an existing folder"),
        (None, ("-o", "/proc/cases.png"), "an error on writing"),
        (None, ("-djfile", "none.json"), "no file none.json"),
    ],
)
def test_bad_input(folders, capsys, change, options, told):
    if change is not None:
        change(folders)
    assert look(*options) == 2
    error = capsys.readouterr().err
    assert told in error and error.startswith("nnunetv2_ext look: got ")
    assert not Path("cases.png").exists()
