"""Laying annotations on thin grids, and volumes as users keep them: files and DICOM series."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_ext.data.slabs import average, covered, slab_matrix, slice_edges
from nnunetv2_ext.data.thick import Grid, majority_slabs, read_grid, read_volume
from nnunetv2_ext.data.thin_thick import (
    centre_slices,
    find_volumes,
    holding_slabs,
    lay_grids,
    open_volume,
    pair_by_name,
)
from nnunetv2_ext.errors import InputError

IDENTITY = tuple(np.eye(3).ravel())
OBLIQUE = (0.0, 0.6, 0.8, 1.0, 0.0, 0.0, 0.0, 0.8, -0.6)


def grid(size=(8, 10, 12), spacing=(0.8, 0.9, 1.0), origin=(0.0, 0.0, 0.0), direction=IDENTITY) -> Grid:
    """A thin grid in SimpleITK's order (x, y, z)."""
    return Grid(size, spacing, origin, direction)


# Slices and slabs.


@pytest.mark.parametrize(
    ("slabs", "options", "slices", "centres", "holders"),
    [
        pytest.param((3, 4), {}, (12, 1), [2, 6, 10], [0] * 4 + [1] * 4 + [2] * 4, id="even ratio: the later slice"),
        pytest.param((2, 3), {}, (6, 1), [1, 4], [0, 0, 0, 1, 1, 1], id="odd ratio"),
        pytest.param((2, 3.7), {}, (8, 1), [1, 5], [0, 0, 0, 0, 1, 1, 1, -1], id="3.7"),
        pytest.param((2, 2), {}, (5, 0.8), [1, 3], [0, 0, 1, 1, 1], id="slices of 0.8 mm"),
        pytest.param(
            (2, 3), {"origin": 1.5}, (8, 1), [3, 6], [-1, 0, 0, 0, 1, 1, 1, -1], id="centres on edges: the later slab"
        ),
        pytest.param(
            (2, 5), {"thickness": 2}, (10, 1), [2, 7], [-1, 0, 0, -1, -1, -1, 1, 1, -1, -1], id="gaps, edges on centres"
        ),
        pytest.param((2, 4), {"origin": -6}, (4, 1), [0, 0], [1, 1, -1, -1], id="before the image"),
        pytest.param((2, 4), {"origin": 6}, (4, 1), [3, 3], [-1] * 4, id="after the image"),
    ],
)
@pytest.mark.parametrize("noise", [0, 1e-5, -1e-5])
def test_centre_and_holder(slabs, options, slices, centres, holders, noise):
    edges = slice_edges(*slabs, **options) + noise
    assert centre_slices(edges, slice_edges(*slices)).tolist() == centres
    assert holding_slabs(edges, slice_edges(*slices)).tolist() == holders


@pytest.mark.parametrize("ratio", [1.02, 1.5, 2, 3, 3.7, 4, 8.25])
@pytest.mark.parametrize("offset", [0, 0.25, 0.5, -0.5, 1])
def test_slice_at_the_centre_lies_in_the_slab(ratio, offset):
    slices = slice_edges(40, 0.7)
    slabs = slice_edges(int(40 / ratio), 0.7 * ratio, origin=0.7 * offset)
    inside = covered(slab_matrix(slabs, slices))
    assert inside.sum() > len(slabs) / 2
    holders = holding_slabs(slabs, slices)
    assert holders[centre_slices(slabs, slices)][inside].tolist() == np.flatnonzero(inside).tolist()


# The annotation on the grid.


@pytest.mark.parametrize("direction", [IDENTITY, OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize(("axis", "ratio"), [*itertools.product((0, 1, 2), (2, 3.7)), (0, 4)])
@pytest.mark.parametrize("start", [-3.0, 0.0, 1.3])
def test_slabs_are_where_the_voxels_lie_in_space(direction, axis, ratio, start):
    """An annotation that begins `start` slices after the image, by SimpleITK's own geometry."""
    thin = grid(origin=(-50.5, 20.25, 300.0), direction=direction)
    index = 2 - axis
    image = sitk.Image(thin.size, sitk.sitkUInt8)
    image.SetSpacing(thin.spacing)
    image.SetOrigin(thin.origin)
    image.SetDirection(direction)
    size, spacing, centre = list(thin.size), list(thin.spacing), [0.0, 0.0, 0.0]
    size[index], spacing[index], centre[index] = 4, spacing[index] * ratio, start - 0.5 + ratio / 2
    thick = Grid(tuple(size), tuple(spacing), image.TransformContinuousIndexToPhysicalPoint(centre), direction)
    laying = lay_grids("case", thin, thick)
    assert laying.axis == axis
    begin, step = start * thin.spacing[index], ratio * thin.spacing[index]
    np.testing.assert_allclose(laying.slabs, [[begin + k * step, begin + (k + 1) * step] for k in range(4)], atol=1e-4)
    annotation = np.random.default_rng(0).integers(0, 3, size[::-1]).astype(np.uint8)
    laid = laying.lay(annotation, ignore=7, dtype=np.dtype(np.uint8))
    assert laid.shape == thin.size[::-1]
    for s in range(thin.size[index]):
        slab = int(np.floor((s + 0.5 - start) / ratio + 1e-6))
        expected = annotation.take(slab, axis) if 0 <= slab < 4 else np.full_like(annotation.take(0, axis), 7)
        np.testing.assert_array_equal(laid.take(s, axis), expected)


@pytest.mark.parametrize(
    ("thickness", "slabs", "ignored"),
    [
        (None, [[0, 4], [4, 8], [8, 12]], []),
        (4.03, [[0, 4], [4, 8], [8, 12]], []),
        (3.97, [[0, 4], [4, 8], [8, 12]], []),
        (2.0, [[1, 3], [5, 7], [9, 11]], [0, 3, 4, 7, 8, 11]),
        (1.5, [[1.25, 2.75], [5.25, 6.75], [9.25, 10.75]], [0, 3, 4, 7, 8, 11]),
    ],
)
def test_slice_thickness(thickness, slabs, ignored):
    laying = lay_grids("case", grid(), grid((8, 10, 3), (0.8, 0.9, 4.0), (0.0, 0.0, 1.5)), thickness=thickness)
    np.testing.assert_allclose(laying.slabs, slabs)
    assert np.flatnonzero(laying.indices[0] < 0).tolist() == ignored


@pytest.mark.parametrize(
    ("size", "spacing", "origin", "y", "x"),
    [
        pytest.param((8, 10), (0.8, 0.9), (0.39, -0.44), range(10), range(8), id="shifted by less than half a voxel"),
        pytest.param(
            (4, 5), (1.6, 1.8), (0.4, 0.45), np.repeat(range(5), 2), np.repeat(range(4), 2), id="twice as coarse"
        ),
        pytest.param((16, 10), (0.4, 0.9), (-0.2, 0.0), range(10), range(1, 16, 2), id="finer in x"),
        pytest.param((5, 10), (1.28, 0.9), (0.24, 0.0), range(10), [0, 0, 1, 2, 2, 3, 4, 4], id="1.6 times as coarse"),
    ],
)
def test_another_grid_within_the_slices(size, spacing, origin, y, x):
    laying = lay_grids("case", grid(), grid((*size, 3), (*spacing, 4.0), (*origin, 1.5)), axis=0)
    assert [index.tolist() for index in laying.indices[1:]] == [[*y], [*x]]


def thick(**changes) -> Grid:
    return grid(**{"size": (8, 10, 3), "spacing": (0.8, 0.9, 4.0), "origin": (0.0, 0.0, 1.5)} | changes)


FLIPPED = (1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, -1.0)
TILTED = (1.0, 0.0, 0.0, 0.0, 0.8, -0.6, 0.0, 0.6, 0.8)
REFUSED = {
    "flipped": (thick(direction=FLIPPED), {}, "orientation LAI for an image of orientation LPS.*case.*DICOMOrient"),
    "turned": (thick(direction=TILTED), {}, "annotation of orientation .*direction 1, 0, 0, 0, 0.8, -0.6"),
    "behind": (thick(origin=(0.0, 0.0, 20.0)), {}, r"\[18.5, 30.5\) x .*\[0, 12\) x .*case.*overlap in space"),
    "beside": (thick(origin=(10.0, 0.0, 1.5)), {}, r"\[10, 16.4\) mm.*overlap in space"),
    "other field of view": (
        thick(size=(8, 12, 3)),
        {},
        r"\[0, 10.8\) x \[0, 6.4\) mm .* of the annotation, .*\[0, 9\).*image in case case; expected one field of view",
    ),
    "half a voxel": (thick(origin=(0.4, 0.0, 1.5)), {}, "expected one field of view"),
    "no slab inside": (thick(size=(8, 10, 1), origin=(0.0, 0.0, 0.0)), {}, r"1 annotated slices over \[-1.5, 2.5\) mm"),
    "finer": (thick(spacing=(0.8, 0.9, 0.5)), {}, "0.5, 0.9, 0.8 mm .* 1, 0.9, 0.8 mm.*case case.*finer"),
    "equal": (thick(size=(8, 10, 12), spacing=(0.8, 0.9, 1.005)), {}, "case case: .*as thin as.*plain training"),
    "equal along axis": (thick(), {"axis": 2}, "along the array axis 2, in case case: .*as thin as"),
    "finer along axis": (thick(spacing=(0.5, 0.9, 4.0)), {"axis": 2}, "axis 2, in case case: .*finer"),
    "two axes": (
        thick(size=(4, 10, 3), spacing=(1.6, 0.9, 4.0)),
        {},
        r"4, 0.9, 1.6 mm \(z, y, x\) .* along the array axes 0, 2.*--slice-axis",
    ),
    "thinner slices": (thick(), {"thickness": 0.5}, "0.5 mm thick every 4 mm .*every 1 mm in case case: .*finer"),
    "thin slices": (thick(), {"thickness": 1.0}, "1 mm thick every 4 mm .*every 1 mm in case case: .*as thin as"),
    "overlap": (thick(), {"thickness": 5.0}, "5 mm thick every 4 mm in case case, which overlap.*--slice-thickness"),
}


@pytest.mark.parametrize(("annotation", "options", "sentence"), REFUSED.values(), ids=REFUSED)
def test_grids_that_do_not_fit(annotation, options, sentence):
    with pytest.raises(InputError, match=sentence):
        lay_grids("case", grid(), annotation, **options)


@pytest.mark.parametrize("factor", [3, 3.7, 4])
def test_hippocampus(hippocampus, factor):
    """Labels averaged over slabs and laid agree with the thin truth where they should."""
    for path in sorted((hippocampus / "labelsTr").glob("*.nii.gz"))[:3]:
        thin, truth = read_grid(path), read_volume(path)
        annotation = majority_slabs(truth, axis=0, factor=factor)
        laying = lay_grids(path.name, thin, thin.thick(axis=0, factor=factor))
        laid = laying.lay(annotation, ignore=9, dtype=np.dtype(np.uint8))
        slices = slice_edges(thin.size[2], thin.spacing[2])
        assert covered(slab_matrix(laying.slabs, slices)).all()
        np.testing.assert_array_equal(laid[centre_slices(laying.slabs, slices)], annotation)

        # The laid labels are those of the truth wherever that does not change over a slab.
        weights = slab_matrix(laying.slabs, slices)
        shares = np.stack([average(truth == label, weights) for label in range(3)])
        in_a_slab = laying.indices[0] >= 0
        constant = (shares.max(axis=0) > 1 - 1e-6)[laying.indices[0][in_a_slab]]
        assert 0.8 < constant.mean() < 1
        np.testing.assert_array_equal(laid[in_a_slab][constant], truth[in_a_slab][constant])
        # Of the labels averaged over the slabs, each voxel's annotation has the largest share.
        np.testing.assert_allclose(np.take_along_axis(shares, annotation[None].astype(int), 0)[0], shares.max(axis=0))
        assert (laid[~in_a_slab] == 9).all()
        assert np.count_nonzero(~in_a_slab) <= factor


# Volumes as users keep them.


def write_series(folder: Path, array: np.ndarray, *, positions=None, **tags: str) -> None:
    """A DICOM series of slices (Z, Y, X) at the given z, in files whose names do not tell their order."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    positions = range(0, 2 * len(array), 2) if positions is None else positions
    for number, (z, pixels) in enumerate(zip(positions, array, strict=True)):
        image = sitk.GetImageFromArray(pixels[None].astype(np.int16))
        values = {
            "0008|0060": "CT",
            "0020|000d": "1.2.840.1",
            "0020|000e": "1.2.840.2",
            "0020|0013": str(number),
            "0020|0032": f"5\\-6\\{z}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0018|0050": "2.0",
        }
        for tag, value in (values | {f"{key[1:5]}|{key[5:]}": value for key, value in tags.items()}).items():
            image.SetMetaData(tag, value)
        image.SetSpacing((0.5, 0.75, 1.0))
        writer.SetFileName(str(folder / f"{(number * 7) % 97:03d}.dcm"))
        writer.Execute(image)


@pytest.mark.parametrize("nested", ["", "study/series"])
def test_series_is_read_in_order(tmp_path, nested):
    array = np.random.default_rng(0).integers(-50, 50, (15, 6, 7)).astype(np.int16)
    positions = 7.5 + 2 * np.arange(15)[::-1]
    write_series(tmp_path / "case" / nested, array, positions=positions)
    (tmp_path / "case" / "readme.txt").write_text("no slice")
    volume = open_volume(tmp_path / "case")
    assert volume.grid.differences(Grid((7, 6, 15), (0.5, 0.75, 2.0), (5.0, -6.0, 7.5), IDENTITY)) == []
    assert volume.thickness == 2
    np.testing.assert_array_equal(volume.read(), array[::-1])


def other_size(folder):
    write_series(folder, np.zeros((4, 6, 7)))
    write_series(folder / "more", np.zeros((1, 6, 8)), positions=[8])


def two_series(folder):
    write_series(folder / "a", np.zeros((4, 6, 7)))
    write_series(folder / "b", np.zeros((3, 6, 7)), t0020000e="1.2.840.3")


def series(**options):
    def write(folder):
        positions = options.get("positions", range(0, 8, 2))
        write_series(folder, np.zeros((len(positions), 6, 7)), **options)

    return write


def tilted(folder):
    for number in range(4):
        place = {"t00200032": f"{5 + number}\\-6\\{2 * number}"}
        write_series(folder / str(number), np.zeros((1, 6, 7)), positions=[0], **place)


SERIES_REFUSED = {
    "missing slice": (
        series(positions=[0, 2, 4, 8, 10]),
        r"uneven slice spacing in .*case: from 2 to 4 mm \(between 014.dcm",
    ),
    "two spacings": (series(positions=[0, 1, 2, 4, 6]), "uneven slice spacing .*from 1 to 2 mm"),
    "slices twice": (series(positions=[0, 0, 2, 2, 4, 4]), "uneven slice spacing .*from 0 to 2 mm"),
    "one place": (series(positions=[3, 3, 3]), "uneven slice spacing .*from 0 to 0 mm"),
    "gantry tilt": (tilted, "shifted by up to 3 mm .*gantry tilt"),
    "two series": (two_series, r"2 DICOM series in .*case \(4 files, 3 files\); expected one"),
    "no series": (lambda folder: folder.mkdir(), "0 DICOM series in .*case; expected one"),
    "other size": (other_size, r"size \(8, 6\).* with \(7, 6\)|size \(7, 6\).* with \(8, 6\)"),
    "one slice": (series(positions=[0]), "one DICOM slice .*000.dcm"),
    "segmentation object": (series(t00080060="SEG"), "DICOM object of modality SEG in .*000.dcm"),
}


@pytest.mark.parametrize(("write", "sentence"), SERIES_REFUSED.values(), ids=SERIES_REFUSED)
def test_series_that_is_no_volume(tmp_path, write, sentence):
    write(tmp_path / "case")
    with pytest.raises(InputError, match=sentence):
        open_volume(tmp_path / "case")


def test_slightly_rounded_positions_are_even(tmp_path):
    write_series(tmp_path / "case", np.zeros((7, 6, 7)), positions=[0, 0.7, 1.3, 2, 2.7, 3.3, 4])
    assert open_volume(tmp_path / "case").grid.spacing[2] == pytest.approx(2 / 3)


@pytest.mark.parametrize("name", ["021.dcm", "IM21"])
@pytest.mark.parametrize("kept", [0.05, 0.5, 0.99])
def test_truncated_last_slice_is_refused(tmp_path, name, kept):
    """Left out, it would make a volume that is complete to the eye."""
    write_series(tmp_path / "case", np.ones((4, 60, 70)))
    path = (tmp_path / "case" / "021.dcm").rename(tmp_path / "case" / name)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(InputError, match=f"unreadable file .*{name}"):
        open_volume(tmp_path / "case").read()


# Pairing.


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        if "." in name:
            sitk.WriteImage(sitk.Image([2, 2, 2], sitk.sitkUInt8), str(folder / name))
        else:
            (folder / name).mkdir()
    return folder


@pytest.mark.parametrize(
    ("images", "labels", "pairs", "unmatched"),
    [
        pytest.param(["a.nii.gz", "b.mha"], ["a.nrrd", "b.nii"], {"a": ["a"], "b": ["b"]}, [], id="same name"),
        pytest.param(
            ["a_0000.nii.gz", "a_0001.nrrd", "b_0000.mha", "b_0001"],
            ["a.nii.gz", "b.mha"],
            {"a": ["a_0000", "a_0001"], "b": ["b_0000", "b_0001"]},
            [],
            id="channels",
        ),
        pytest.param(
            ["a_0001.mha", "a_0002.mha"],
            ["a_0001.mha", "a_0002.mha"],
            {"a_0001": ["a_0001"], "a_0002": ["a_0002"]},
            [],
            id="numbers that are no channels",
        ),
        pytest.param(["a.1.mha", "b"], ["a.1.nii.gz", "b.mha"], {"a.1": ["a.1"], "b": ["b"]}, [], id="dots, folders"),
        pytest.param(
            ["a.mha", "c.mha"], ["a.mha", "d.mha"], {"a": ["a"]}, ["images/c.mha", "labels/d.mha"], id="unmatched"
        ),
        pytest.param(["a_000.mha"], ["a.mha"], {}, ["images/a_000.mha", "labels/a.mha"], id="three digits"),
    ],
)
def test_pairs(tmp_path, images, labels, pairs, unmatched):
    found, left = pair_by_name(touch(tmp_path / "images", *images), touch(tmp_path / "labels", *labels))
    assert {pair.name: [path.name.split(".m")[0].split(".n")[0] for path in pair.images] for pair in found} == pairs
    assert [str(path.relative_to(tmp_path)) for path in left] == unmatched


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (["a.mha", "a.nrrd"], "a.mha and a.nrrd in .*images; expected one volume of a name"),
        (["a.mha", "a_0000.mha"], "a.mha and a_0000.mha for channel 0 of case a"),
        (["a_0000.mha", "a_0002.mha"], "the channels 0, 2 of case a in .*images"),
        (["a_0001.mha"], "the channels 1 of case a in .*images"),
    ],
)
def test_ambiguous_pairs(tmp_path, images, sentence):
    with pytest.raises(InputError, match=sentence):
        pair_by_name(touch(tmp_path / "images", *images), touch(tmp_path / "labels", "a.mha"))


def test_files_that_are_no_volumes(tmp_path):
    folder = touch(tmp_path / "images", "a.mhd", "b.hdr", "c.gipl")
    for name in ("notes.txt", "table.csv", "dataset.json", ".hidden.mha"):
        shutil.copy(folder / "c.gipl", folder / ".hidden.mha") if name[0] == "." else (folder / name).write_text("1")
    (folder / "d.nii.gz").write_bytes(b"")
    assert {name: path.name for name, path in find_volumes(folder).items()} == {
        "a": "a.mhd",
        "b": "b.hdr",
        "c": "c.gipl",
        "d": "d.nii.gz",
    }
    with pytest.raises(InputError, match=r"unreadable file .*d.nii.gz"):
        open_volume(folder / "d.nii.gz")


def test_missing_folder(tmp_path):
    with pytest.raises(InputError, match=r"no folder .*nowhere"):
        find_volumes(tmp_path / "nowhere")
