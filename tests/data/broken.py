"""Raw data sets that are broken in one way each, what tells it, and how the remedy mends it."""

import json
import re
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk

from tests.data.raw_dataset import (
    AFFINE,
    CASES,
    DESCRIPTION,
    SHAPE,
    Change,
    RawDataset,
    both,
    change_voxels,
    cut_bytes,
    cut_off,
    describe,
    empty,
    put,
    regrid,
    remove,
    rename,
    write_back,
)


class Broken(NamedTuple):
    """One fault."""

    change: Change
    texts: tuple[str, ...]
    """In the sentence that tells it."""
    mend: Change | None = None
    """What the remedy says, done; by default as it is printed."""
    fatal: bool = True


def labels(**values: Any) -> Change:
    return describe(labels=values)


def without_case(name: str) -> Change:
    def apply(data: RawDataset) -> None:
        for path in (f"imagesTr/{name}_0000.nii.gz", f"labelsTr/{name}.nii.gz"):
            data.path(path).unlink(missing_ok=True)
        data.describe(numTraining=len(CASES) - 1)

    return apply


def colour(data: RawDataset) -> None:
    image = sitk.GetImageFromArray(np.zeros((*SHAPE[::-1], 3), np.uint8), isVector=True)
    sitk.WriteImage(image, str(data.path("imagesTr/a_0000.nii.gz")))


def two_dimensional(data: RawDataset) -> None:
    for name, dtype in (("imagesTr/a_0000.nii.gz", np.float32), ("labelsTr/a.nii.gz", np.uint8)):
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros(SHAPE[1::-1], dtype)), str(data.path(name)))


def all_labels(change: Callable[[np.ndarray], Any]) -> Change:
    return both(*(change_voxels(f"labelsTr/{case}.nii.gz", change, np.uint8) for case in CASES))


def renumber(data: RawDataset) -> None:
    """Labels 0, 1, 3 in files and description."""
    data.describe(labels={"background": 0, "organ": 1, "lesion": 3})
    all_labels(lambda array: np.place(array, array == 2, 3))(data)


def renumbered(data: RawDataset) -> None:
    data.describe()
    all_labels(lambda array: np.place(array, array == 3, 2))(data)


def named_files(image: str) -> Change:
    listing = {case: {"images": [f"imagesTr/{case}_0000.nii.gz"], "label": f"labelsTr/{case}.nii.gz"} for case in CASES}
    listing["a"]["images"] = [image]
    return describe(dataset=listing)


IMAGE, LABEL = "imagesTr/b_0000.nii.gz", "labelsTr/b.nii.gz"
shifted = AFFINE.copy()
shifted[0, 3] = 5.0
BROKEN = {
    # dataset.json
    "labels as in v1": Broken(
        describe(labels={"0": "background", "1": "organ", "2": "lesion"}), ("as nnU-Net v1 had it", '"organ": 1')
    ),
    "no labels": Broken(describe(labels=None), ("no labels in",), describe()),
    "labels a list": Broken(describe(labels=["organ"]), ("labels = ['organ']",), describe()),
    "no background": Broken(labels(organ=1, lesion=2), ("no label background among organ, lesion",)),
    "Background": Broken(
        labels(Background=0, organ=1, lesion=2), ("no label background", 'instead of "Background": 0')
    ),
    "background not 0": Broken(labels(background=3, organ=1, lesion=2), ('the label "background": 3',)),
    "labels 0, 1, 3": Broken(renumber, ("the label values 0, 1, 3", "consecutive ones, 0, 1, 2"), renumbered),
    "ignore in between": Broken(
        labels(background=0, organ=1, lesion=3, ignore=2), ("the label values 0, 1, 3",),
        labels(background=0, organ=1, lesion=2, ignore=3),
    ),
    "ignore too high": Broken(
        labels(background=0, organ=1, lesion=2, ignore=9), ('"ignore": 9 beside the values 0, 1, 2',),
        labels(background=0, organ=1, lesion=2, ignore=3),
    ),
    "ignore a list": Broken(
        labels(background=0, organ=1, lesion=2, ignore=[3]), ('the label "ignore": [3]',),
        labels(background=0, organ=1, lesion=2, ignore=3),
    ),
    "a label in quotes": Broken(
        labels(background=0, organ="1", lesion=2), ('the label "organ": "1"', "a whole number")
    ),
    "a label of 1.0": Broken(labels(background=0, organ=1.0, lesion=2), ('the label "organ": 1.0',)),
    "a label of 1.5": Broken(labels(background=0, organ=1.5, lesion=2), ('the label "organ": 1.5',), describe()),
    "two names of a value": Broken(
        labels(background=0, organ=1, lesion=2, tumour=2), ("one value for lesion, tumour",), describe(), fatal=False
    ),
    "background alone": Broken(labels(background=0), ("no label beside background",), describe()),
    "regions without order": Broken(
        labels(background=0, whole=[1, 2], lesion=2), ("no regions_class_order", "2 label values"),
    ),
    "regions of another order": Broken(
        describe(labels={"background": 0, "whole": [1, 2], "lesion": 2}, regions_class_order=[1, 2, 3]),
        ("regions_class_order = [1, 2, 3]",),
    ),
    "no channel_names": Broken(describe(channel_names=None), ("no channel_names in",)),
    "channel_names a list": Broken(describe(channel_names=["MR"]), ("channel_names = ['MR']",)),
    "channels from 1": Broken(describe(channel_names={"1": "MR"}), ("the channels 1 in", "0, 1, ...")),
    "a channel's name is a number": Broken(describe(channel_names={"0": 7}), ("names as texts",), describe()),
    "no numTraining": Broken(describe(numTraining=None), ("no numTraining in",)),
    "numTraining in quotes": Broken(describe(numTraining="5"), ("numTraining = '5'",)),
    "another numTraining": Broken(describe(numTraining=9), ("numTraining = 9", "and 5 cases")),
    "no file_ending": Broken(describe(file_ending=None), ("no file_ending in",)),
    "file_ending without a dot": Broken(describe(file_ending="nii.gz"), ("file_ending = 'nii.gz'",)),
    "file_ending of other files": Broken(describe(file_ending=".nii"), ("no files *.nii in", "5 of *.nii.gz")),
    "file_ending that nothing reads": Broken(describe(file_ending=".dcm"), ("file_ending = '.dcm'",), describe()),
    "an unknown reader": Broken(
        describe(overwrite_image_reader_writer="MyIO"), ("overwrite_image_reader_writer = 'MyIO'",), describe()
    ),
    "dataset a list": Broken(describe(dataset=["a"]), ('an entry "dataset"', "does not name"), describe()),
    "a case named as a path": Broken(
        describe(numTraining=1, dataset={"../a": {"images": ["imagesTr/a_0000.nii.gz"], "label": "labelsTr/a.nii.gz"}}),
        ("the case ../a in", "names without /"), describe(),
    ),
    "dataset names no files": Broken(describe(dataset={"a": {"images": "x"}}), ('an entry "dataset"',), describe()),
    "dataset names a missing file": Broken(
        named_files("imagesTr/z_0000.nii.gz"), ("1 missing file (imagesTr/z_0000.nii.gz)",),
        named_files("imagesTr/a_0000.nii.gz"),
    ),
    # files
    "no labelsTr": Broken(
        lambda data: data.path("labelsTr").rename(data.path("labels")), ("no folder", "labelsTr"),
        lambda data: data.path("labels").rename(data.path("labelsTr")),
    ),
    "no label file": Broken(remove(LABEL), ("no label file for 1 case (b)",), without_case("b")),
    "no image": Broken(remove(IMAGE), ("no image for 1 label file (b)", "passes over"), without_case("b")),
    "no number of a channel": Broken(
        both(*(rename(f"imagesTr/{case}_0000.nii.gz", f"imagesTr/{case}.nii.gz") for case in CASES)),
        ("5 images (a.nii.gz, b.nii.gz, c.nii.gz and 2 more) without the number of a channel",),
        both(*(rename(f"imagesTr/{case}.nii.gz", f"imagesTr/{case}_0000.nii.gz") for case in CASES)),
    ),
    "one image without number": Broken(
        rename(IMAGE, "imagesTr/b.nii.gz"), ("1 image (b.nii.gz) without the number of a channel",)
    ),
    "a channel's number on a label": Broken(
        rename(LABEL, "labelsTr/b_0000.nii.gz"), ("1 label file (b_0000.nii.gz) with the number of a channel",)
    ),
    "a gap between channels": Broken(
        rename(IMAGE, "imagesTr/b_0001.nii.gz"), ("no channel _0000 in 1 case (b)",),
        rename("imagesTr/b_0001.nii.gz", IMAGE),
    ),
    "a channel missing in all": Broken(
        describe(channel_names={"0": "MR", "1": "CT"}), ("another number of channels than the 2", "a: 1"), describe()
    ),
    "a channel too many": Broken(
        lambda data: shutil.copy(data.path(IMAGE), data.path("imagesTr/b_0001.nii.gz")),
        ("another number of channels than the 1 of dataset.json in 1 case (b: 2)",),
        remove("imagesTr/b_0001.nii.gz"),
    ),
    "a file of another ending": Broken(
        lambda data: data.write("imagesTr/z_0000.nii", np.zeros(SHAPE)), ("1 file (z_0000.nii)", "passes over"),
        remove("imagesTr/z_0000.nii"), fatal=False,
    ),
    # headers
    "a file of 0 bytes": Broken(empty(IMAGE), (f"{IMAGE} (empty, 0 bytes)",), without_case("b")),
    "the first file of 0 bytes": Broken(
        empty("imagesTr/a_0000.nii.gz"), ("imagesTr/a_0000.nii.gz (empty, 0 bytes)",), without_case("a")
    ),
    "no image format": Broken(
        lambda data: data.path(IMAGE).write_text("no image"), ("a header or voxels that cannot be used", IMAGE),
        without_case("b"),
    ),
    "cut off within gzip": Broken(cut_off(IMAGE), (IMAGE, "2272 bytes of 4192"), write_back(IMAGE)),
    "cut off by few bytes": Broken(
        cut_off(IMAGE, keep=-100), (IMAGE, "4092 bytes of 4192"), write_back(IMAGE)
    ),
    "cut off by a copy": Broken(cut_bytes(IMAGE), (IMAGE, "Compressed file ended"), write_back(IMAGE)),
    "a label file cut off": Broken(cut_off(LABEL), (LABEL, "832 bytes of 1312"), write_back(LABEL)),
    "a label of another size": Broken(
        regrid(LABEL, (12, 10, 9)), ("a label file on another grid in 1 case (b: size (12, 10, 9)",), write_back(LABEL)
    ),
    "a label of another spacing": Broken(
        regrid(LABEL, affine=np.diag([1, 1, 5.0, 1])), ("a label file on another grid", "(1, 1, 5)"), write_back(LABEL)
    ),
    "a label of another origin": Broken(
        lambda data: data.write(LABEL, data.label_array(), shifted), ("a label file in another place", "origin"),
        write_back(LABEL), fatal=False,
    ),
    "a label of another direction": Broken(
        lambda data: data.write(LABEL, data.label_array(), np.diag([-1, 1, 4.0, 1])),
        ("a label file in another place", "direction"), write_back(LABEL), fatal=False,
    ),
    "channels of two sizes": Broken(
        both(
            describe(channel_names={"0": "MR", "1": "CT"}),
            *(regrid(f"imagesTr/{case}_0001.nii.gz", (12, 10, 9 if case == "b" else 8)) for case in CASES),
        ),
        ("channels on another grid in 1 case (b: size (12, 10, 9)",),
        regrid("imagesTr/b_0001.nii.gz"),
    ),
    "a colour image": Broken(colour, ("imagesTr/a_0000.nii.gz: 3 values per voxel, a colour",), without_case("a")),
    "2D among 3D": Broken(two_dimensional, ("2D images in 1 case (a) among others",), without_case("a")),
    # voxels
    "an unnamed label value": Broken(
        put(3), ("the label value 3 in 1 label file (labelsTr/a.nii.gz)", "does not name"),
        labels(background=0, organ=1, lesion=2, other=3),
    ),
    "a far label value": Broken(put(200), ("the label value 200 in 1 label file",), write_back("labelsTr/a.nii.gz")),
    "a negative label value": Broken(
        put(-1, np.int16), ("the label value -1 in 1 label file",), write_back("labelsTr/a.nii.gz")
    ),
    "a label value of 0.5": Broken(
        put(0.5, np.float32), ("no whole numbers (0.5) in 1 label file",), write_back("labelsTr/a.nii.gz")
    ),
    "NaN in a label file": Broken(
        put(np.nan, np.float32), ("which nnU-Net reads as 0, the background in 1 file (labelsTr/a.nii.gz: 1)",),
        write_back("labelsTr/a.nii.gz"),
    ),
    "NaN in an image": Broken(
        put(np.nan, np.float32, IMAGE), (f"which nnU-Net reads as 0 in 1 file ({IMAGE}: 1)",), write_back(IMAGE),
        fatal=False,
    ),
    "NaN in an image of NibabelIO": Broken(
        both(put(np.nan, np.float32, IMAGE), describe(overwrite_image_reader_writer="NibabelIO")),
        (f"voxels that are NaN (no number) in 1 file ({IMAGE}: 1)",), write_back(IMAGE),
    ),
    "infinite in an image of NibabelIO": Broken(
        both(put(np.inf, np.float32, IMAGE), describe(overwrite_image_reader_writer="NibabelIO")),
        (f"voxels that are infinite in 1 file ({IMAGE}: 1)",), write_back(IMAGE),
    ),
    "labels all empty": Broken(
        all_labels(lambda array: array.fill(0)), ("no label beside the background in any of the 5 label files",),
        write_back(LABEL),
    ),
    "a label that no case holds": Broken(
        labels(background=0, organ=1, lesion=2, other=3), ("no voxel of the label value 3 in any case",), describe(),
        fatal=False,
    ),
}  # fmt: skip


def apply(remedy: str, data: RawDataset) -> None:
    """Do what a printed remedy says: write an entry into dataset.json, or rename a file."""
    renaming = re.search(r"rename (\S+) to (\S+)", remedy)
    if renaming:
        data.path(renaming[1]).rename(data.path(renaming[2]))
        return
    start = re.search(r'"\w+": ', remedy)
    assert start, remedy
    key = json.loads(start[0].rstrip(": "))
    value, _ = json.JSONDecoder().raw_decode(remedy[start.end() :])
    content = json.loads(data.path("dataset.json").read_text())
    if key in DESCRIPTION or key == "regions_class_order":
        content[key] = value
    else:
        content["labels"] = {key: value, **{k: v for k, v in content["labels"].items() if k.lower() != key}}
    data.path("dataset.json").write_text(json.dumps(content))
