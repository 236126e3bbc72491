"""Grids and their differences, and reading and writing that notice damaged files."""

from typing import Any

import numpy as np
import pytest

from nnunetv2_ext.data.volumes import VOLUME_ENDINGS, Grid, read_grid, read_volume, write_volume
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
    import nibabel

    image = nibabel.Nifti1Image(np.linspace(0, 5, 60).reshape(3, 4, 5), np.eye(4), dtype=np.int16)
    nibabel.save(image, tmp_path / "scaled.nii.gz")
    assert nibabel.load(tmp_path / "scaled.nii.gz").header["scl_slope"] != 1
    assert read_volume(tmp_path / "scaled.nii.gz").max() == pytest.approx(5, abs=1e-3)


def test_writing_into_nowhere_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"on writing .*missing.*free space"):
        write_volume(np.zeros((1, 1, 1), np.float32), cube((1, 1, 1)), tmp_path / "missing" / "volume.nii.gz")
