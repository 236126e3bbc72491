"""Grids and their differences, and reading and writing that notice damaged files."""

import bz2
import gzip
import lzma
import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from nnunetv2_ext.data.volumes import (
    VOLUME_ENDINGS,
    Grid,
    check_name,
    read_grid,
    read_volume,
    write_label_file,
    write_volume,
)
from nnunetv2_ext.errors import InputError

IDENTITY = tuple(np.eye(3).ravel())
SAGITTAL = (0.0, 0.0, -1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
OBLIQUE = (0.0, 0.6, 0.8, 1.0, 0.0, 0.0, 0.0, 0.8, -0.6)


def cube(size=(30, 20, 10)) -> Grid:
    return Grid(size, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), IDENTITY)


@pytest.mark.parametrize(
    ("direction", "reorient", "axes"),
    [
        (IDENTITY, False, [0, 1, 2]),
        (IDENTITY, True, [0, 1, 2]),
        (SAGITTAL, False, [0, 1, 2]),
        # Index axes of SAGITTAL run along y, -z and -x, thus array axes along -x, -z and y.
        (SAGITTAL, True, [1, 2, 0]),
    ],
)
def test_axis_in_the_file(direction, reorient, axes):
    grid = Grid((4, 4, 4), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), direction)
    assert [grid.file_axis(axis, reorient=reorient) for axis in range(3)] == axes


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, []),
        ({"spacing": (1.0004, 1.0, 2.0), "origin": (0.0, 0.0, 0.0015)}, []),
        ({"spacing": (1.002, 1.0, 2.0)}, ["spacing"]),
        ({"origin": (0.0, 0.0, 0.0025)}, ["origin"]),
        ({"size": (4, 5, 7)}, ["size"]),
        ({"direction": tuple(np.diag([1.0, 1, -1]).ravel())}, ["direction"]),
        ({"size": (4, 5, 7), "origin": (1.0, 0.0, 0.0)}, ["size", "origin"]),
        ({"doubt": "neither a qform nor an sform"}, []),
    ],
)
def test_grid_differences(change, found):
    same: dict[str, Any] = {
        "size": (4, 5, 6),
        "spacing": (1.0, 1.0, 2.0),
        "origin": (0.0, 0.0, 0.0),
        "direction": IDENTITY,
    }
    assert [text.split()[0] for text in Grid(**same).differences(Grid(**(same | change)))] == found


def test_differences_are_told_with_the_digits_that_show_them():
    one = Grid((4, 5, 6), (0.1, 1.0, 2.0), (1234.5678, 0.0, 0.0), IDENTITY)
    other = Grid((4, 5, 6), (0.10012, 1.0, 2.0), (1234.568, 0.0, 0.0), IDENTITY)
    assert one.differences(other) == [
        "spacing (0.10012, 1, 2) instead of (0.1, 1, 2)",
        "origin (1234.568, 0, 0) instead of (1234.5678, 0, 0)",
    ]


@pytest.mark.parametrize(("origin", "found"), [((0.0015, 0.0, 0.0), 0), ((0.0, 0.0, 0.0015), 1)])
def test_origins_differ_in_the_spacing_along_their_axis(origin, found):
    """Slices 2 mm apart along x: a thousandth of them is more there than a thousandth of a pixel in z."""
    same = ((4, 5, 6), (1.0, 1.0, 2.0))
    assert len(Grid(*same, (0.0, 0.0, 0.0), SAGITTAL).differences(Grid(*same, origin, SAGITTAL))) == found


@pytest.mark.parametrize("ending", VOLUME_ENDINGS)
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_volume_round_trip(tmp_path, ending, dtype):
    array = np.random.default_rng(2).integers(0, 200, (5, 6, 7)).astype(dtype)
    direction = IDENTITY if ending == ".gipl" else OBLIQUE
    grid = Grid((7, 6, 5), (0.5, 0.75, 4.0), (10.0, -20.0, 30.0), direction)
    path = tmp_path / f"volume{ending}"
    write_volume(array, grid, path)
    assert grid.differences(read_grid(path)) == []
    read = read_volume(path)
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("ending", [*VOLUME_ENDINGS, ".gipl.gz", ".mrc", ".vtk"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.97])
def test_truncated_volume_is_refused(tmp_path, ending, kept):
    array = np.random.default_rng(3).integers(0, 200, (10, 20, 30)).astype(np.int16)
    path = tmp_path / f"volume{ending}"
    write_volume(array, cube(), path)
    np.testing.assert_array_equal(read_volume(path), array)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(InputError, match=f"unreadable file .*volume{ending}"):
        read_volume(path)


@pytest.mark.parametrize(("header", "data"), [(".hdr", ".img"), (".hdr.gz", ".img.gz"), (".mhd", ".zraw")])
def test_truncated_second_file_is_refused(tmp_path, header, data):
    array = np.random.default_rng(4).integers(0, 200, (10, 20, 30)).astype(np.int16)
    write_volume(array, cube(), tmp_path / f"volume{header}")
    np.testing.assert_array_equal(read_volume(tmp_path / f"volume{header}"), array)
    path = tmp_path / f"volume{data}"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 9 // 10])
    with pytest.raises(InputError, match=f"unreadable file .*volume{header}"):
        read_volume(tmp_path / f"volume{header}")


def test_small_volume_in_text_is_complete(tmp_path):
    """Fewer bytes than its voxels take in memory."""
    head = "# vtk DataFile Version 3.0\nvolume\nASCII\nDATASET STRUCTURED_POINTS\nDIMENSIONS 40 20 10\nSPACING 1 1 1\n"
    head += "ORIGIN 0 0 0\nPOINT_DATA 8000\nSCALARS scalars float 1\nLOOKUP_TABLE default\n"
    (tmp_path / "volume.vtk").write_text(head + "1 " * 8000)
    assert (read_volume(tmp_path / "volume.vtk") == 1).all()


def test_scaled_nifti_is_no_truncated_one(tmp_path):
    """ITK reports a wider type than the file's where the header scales the values."""
    image = nibabel.Nifti1Image(np.linspace(0, 5, 60).reshape(3, 4, 5), np.eye(4), dtype=np.int16)
    nibabel.save(image, tmp_path / "scaled.nii.gz")
    assert nibabel.load(tmp_path / "scaled.nii.gz").header["scl_slope"] != 1
    assert read_volume(tmp_path / "scaled.nii.gz").max() == pytest.approx(5, abs=1e-3)


def test_writing_into_nowhere_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"on writing .*missing.*free space"):
        write_volume(np.zeros((1, 1, 1), np.float32), cube((1, 1, 1)), tmp_path / "missing" / "volume.nii.gz")


def test_grid_that_the_format_cannot_hold(tmp_path):
    grid = Grid((7, 6, 5), (0.5, 0.75, 4.0), (10.0, -20.0, 30.0), OBLIQUE)
    with pytest.raises(InputError, match=r"volume.gipl that holds direction .*choose .nii.gz"):
        write_volume(np.zeros((5, 6, 7), np.uint8), grid, tmp_path / "volume.gipl")


def test_name_that_is_no_utf8():
    with pytest.raises(InputError, match=r"file name 'a\\udcff.nii'; expected a name in UTF-8"):
        check_name(Path("a\udcff.nii"))


# Files that are whole, but that SimpleITK does not read, and headers that tell no grid.

ARRAY = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
NIFTI = nibabel.Nifti1Image(ARRAY.T, np.eye(4)).to_bytes()


def rewritten(ending: str, *changes: tuple[str, str]):
    """A volume whose text header is edited."""

    def write(path: Path) -> Path:
        path = path.with_name(f"volume{ending}")
        sitk.WriteImage(sitk.GetImageFromArray(ARRAY), str(path))
        content = path.read_bytes()
        for pattern, replacement in changes:
            content, count = re.subn(pattern.encode(), replacement.encode(), content, count=1)
            assert count == 1
        path.write_bytes(content)
        return path

    return write


def holding(content: bytes, name: str = "volume.nii.gz"):
    def write(path: Path) -> Path:
        path = path.with_name(name)
        path.write_bytes(content)
        return path

    return write


def without_voxels(ending: str, data: str):
    def write(path: Path) -> Path:
        path = rewritten(ending)(path)
        path.with_name(data).unlink()
        return path

    return write


def folder(path: Path) -> Path:
    path.mkdir()
    return path


NO_GRID = {
    "empty": (holding(b""), r"volume.nii.gz \(empty, 0 bytes\); expected a complete volume; restore"),
    "text": (holding(b"hello"), "begins with b'hello'"),
    "web page": (holding(b"<!DOCTYPE html><html>" + bytes(600)), "web page.*download it again"),
    "git lfs": (holding(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"), "Git LFS.*run git lfs pull"),
    "bzip2": (holding(bz2.compress(NIFTI)), "packed by bzip2.*unpack it"),
    "xz": (holding(lzma.compress(NIFTI)), "packed by xz.*unpack it"),
    "gzip twice": (holding(gzip.compress(gzip.compress(NIFTI))), "packed by gzip twice.*gunzip on it once"),
    "gzip by another name": (holding(gzip.compress(NIFTI), "volume.nii"), "rename it to volume.nii.gz"),
    "checksum": (
        holding(gzip.compress(NIFTI)[:-8] + bytes(8)),
        "unreadable file .*CRC check failed.*expected a complete volume; restore",
    ),
    "version 2": (
        holding(gzip.compress(nibabel.Nifti2Image(ARRAY.T, np.eye(4)).to_bytes())),
        r"version 2 of NIfTI.*the file is whole: save it with nibabel as nibabel.Nifti1Image.from_image",
    ),
    "folder": (folder, "a folder .*volume.nii.gz; expected a file"),
    "sheared NRRD": (
        rewritten(".nrrd", (r"\(0,1,0\)", "(0.1,0.99499,0)")),
        r"slanted axes \(84.26.* degrees instead of 90\).*header is at fault.*SimpleITK.Resample\(",
    ),
    "NRRD sheared a little": (rewritten(".nrrd", (r"\(0,1,0\)", "(0.0015,1,0)")), r"slanted axes \(89.9141 degrees"),
    "sheared MetaImage": (
        rewritten(".mha", ("TransformMatrix = 1 0 0 0 1 0 0 0 1", "TransformMatrix = 1 0 0 0.6 0.8 0 0 0 1")),
        r"slanted axes \(53.1301 degrees",
    ),
    "MetaImage of long directions": (
        rewritten(".mha", ("TransformMatrix = 1 0 0 0 1 0 0 0 1", "TransformMatrix = 1 0 0 0 1 0 0 0 2")),
        "direction vectors of the lengths 1, 1, 2; expected directions of length 1",
    ),
    "NRRD without directions": (
        rewritten(".nrrd", (r"space directions: .*", "space directions: (1,0,0) (0,1,0) none")),
        "the space directions: .*none; expected a header that tells the spacing along each axis; its header",
    ),
    "NRRD without space": (
        rewritten(".nrrd", (r"space: .*\n", ""), (r"space dir.*\n", ""), (r"space or.*\n", "")),
        "no spacing",
    ),
    "NIfTI without spacing": (
        holding(NIFTI[:84] + bytes(4) + NIFTI[88:252] + bytes(4) + NIFTI[256:], "volume.nii"),
        r"no spacing in its header \(pixdim 1, 0, 1\)",
    ),
    "MetaImage without spacing": (rewritten(".mha", (r"ElementSpacing.*\n", "")), "no spacing in its header"),
    "MetaImage without voxels": (
        without_voxels(".mhd", "volume.raw"),
        "no file .*volume.raw, which .*volume.mhd names",
    ),
    "NRRD without voxels": (without_voxels(".nhdr", "volume.raw"), "no file .*volume.raw, which .*volume.nhdr names"),
    "Analyze without voxels": (without_voxels(".hdr", "volume.img"), "no file .*volume.img, which holds"),
}


@pytest.mark.parametrize(("write", "sentence"), NO_GRID.values(), ids=NO_GRID)
def test_what_is_wrong_with_a_file(tmp_path, write, sentence):
    path = write(tmp_path / "volume.nii.gz")
    with pytest.raises(InputError, match=sentence):
        read_grid(path)
        read_volume(path)


def test_remedy_for_slanted_axes(tmp_path):
    """The volume of the remedy, on straight axes, shows each place in space what the slanted one shows there."""
    axes = np.array([[1, 0.1, 0], [0, np.sqrt(0.99), 0], [0, 0, 1]])
    places = np.einsum("ij,jzyx->izyx", axes, np.array(np.meshgrid(*[np.arange(20.0)] * 3, indexing="ij"))[::-1])
    slanted = sitk.GetImageFromArray(places[0].astype(np.float32))
    slanted.SetDirection(axes.ravel())
    image = sitk.Resample(
        slanted,
        slanted.GetSize(),
        sitk.Transform(),
        sitk.sitkLinear,
        slanted.GetOrigin(),
        slanted.GetSpacing(),
        [1, 0, 0, 0, 1, 0, 0, 0, 1],
    )
    sitk.WriteImage(image, str(tmp_path / "mended.mha"))
    assert read_grid(tmp_path / "mended.mha").size == (20, 20, 20)
    inside = read_volume(tmp_path / "mended.mha")[:, :19, 3:18]
    np.testing.assert_allclose(inside, np.broadcast_to(np.arange(3, 18), inside.shape), atol=1e-4)


WRITERS = [(".nii.gz", SimpleITKIO), (".nrrd", SimpleITKIO), (".mha", SimpleITKIO), (".gipl", SimpleITKIO)]
WRITERS += [(".nii.gz", NibabelIO), (".nii", NibabelIOWithReorient), (".tif", Tiff3DIO), (".png", NaturalImage2DIO)]


@pytest.mark.parametrize(("ending", "writer"), WRITERS)
def test_label_files_of_nnunets_writers_are_whole_or_an_error(ending, writer, tmp_path, monkeypatch):
    labels = np.random.default_rng(0).integers(0, 3, (1 if ending == ".png" else 5, 6, 7)).astype(np.uint8)
    place = {"spacing": (1.0, 1.0, 2.0), "origin": (3.0, 4.0, 5.0), "direction": IDENTITY}
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    nibabel_stuff = {"original_affine": affine, "reoriented_affine": np.diag([1.0, 1.0, 2.0, 1.0])}
    properties = {"sitk_stuff": place, "nibabel_stuff": nibabel_stuff, "spacing": (2.0, 1.0, 1.0)}
    path = tmp_path / f"a{ending}"
    write_label_file(writer(), labels, path, properties)
    written = writer().read_seg(str(path))[0].reshape(labels.shape)
    assert np.array_equal(written, labels)
    if writer in (SimpleITKIO, NibabelIO):
        del properties["sitk_stuff" if writer is SimpleITKIO else "nibabel_stuff"]
        with pytest.raises(InputError, match=f"properties for a{ending} that {writer.__name__} cannot write"):
            write_label_file(writer(), labels, path, properties)
        properties = {"sitk_stuff": place, "nibabel_stuff": nibabel_stuff}
    if writer is SimpleITKIO:
        write, length = sitk.WriteImage, path.stat().st_size
        for short in (0, length // 2, length - 9):  # NRRD may lack the checksum of 8 bytes, not voxels

            def full(image, name, packed, short=short):
                """What ITK does on a full disk: no error, and less of the file."""
                write(image, name, packed)
                Path(name).write_bytes(Path(name).read_bytes()[:short])

            monkeypatch.setattr(sitk, "WriteImage", full)
            with pytest.raises(OSError, match=f"could not write .*a{ending}"):
                write_label_file(writer(), labels, path, properties)
