"""NIfTI headers that tell a thing twice, not at all, or wrongly: what is refused, and whether the remedy mends it."""

import gzip
import re
import struct
from pathlib import Path
from typing import Any

import nibabel
import nibabel.processing
import numpy as np
import pytest

from nnunetv2_ext.data.volumes import read_grid, read_labels, read_volume, write_volume
from nnunetv2_ext.errors import InputError

FIELDS = {"dim1": (42, "h"), "datatype": (70, "h"), "pixdim3": (88, "f"), "slope": (112, "f"), "qform": (252, "h")}
FIELDS |= {"sform": (254, "h"), "quatern_b": (256, "f"), "srow_x3": (292, "f"), "magic": (344, "4s")}
"""Of the NIfTI-1 header: where they lie and how they are packed."""
VOXELS = np.arange(60, dtype=np.int16).reshape(5, 4, 3)


def written(path: Path, voxels: Any = VOXELS, affine: Any = (1, 2, 4), qform: int = 0, **fields: Any) -> Path:
    """A file with an sform of those lengths (or that affine), then with header fields overwritten byte by byte."""
    affine = np.diag([*affine, 1.0]) if np.ndim(affine) == 1 else affine
    image = nibabel.Nifti1Image(voxels, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, qform)
    content = bytearray(image.to_bytes())
    for name, value in fields.items():
        offset, kind = FIELDS[name]
        struct.pack_into("<" + kind, content, offset, value)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def sheared(cosine: float) -> np.ndarray:
    return np.array([[1, 2 * cosine, 0, 3], [0, 2 * np.sqrt(1 - cosine**2), 0, 4], [0, 0, 4, 5], [0, 0, 0, 1]])


REFUSED = {
    "pixdim against sform": (
        {"pixdim3": 2.5},
        r"tells two spacings: pixdim 1, 2, 2.5 mm, sform 1, 2, 4 mm; .*image.affine @ numpy.diag\(\[1, 1, 0.625, 1\]\)",
    ),
    "by 2 percent": ({"pixdim3": 4.08}, "pixdim 1, 2, 4.08 mm, sform 1, 2, 4 mm"),
    "pixdim 0": ({"pixdim3": 0.0}, "pixdim 1, 2, 0 mm, sform 1, 2, 4 mm.*write it into both."),
    "pixdim nan": ({"pixdim3": np.nan}, "pixdim 1, 2, nan mm"),
    "pixdim below 0": ({"pixdim3": -4.0}, "spacing 1, 2, -4 mm.*expected a spacing above 0; its header is at fault"),
    "sheared": ({"affine": sheared(0.02)}, r"slanted axes \(88.854 degrees instead of 90\).*header is at fault"),
    "sheared a little": ({"affine": sheared(2e-3)}, r"slanted axes \(89.8854 degrees"),
    "sheared too much for ITK alone": ({"affine": sheared(6e-4)}, r"slanted axes \(89.9656 degrees"),
    "sheared beside a straight qform": ({"affine": sheared(0.1), "qform": 1}, r"slanted axes \(84.2608 degrees"),
    "no voxel along an axis": ({"dim1": 0}, "header tells the sizes 0, 4, 3; expected sizes of 1 or more"),
    "data type": ({"datatype": 1536}, "whose data type is 1536; expected a header that SimpleITK reads"),
}


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize(("fields", "sentence"), REFUSED.values(), ids=REFUSED)
def test_headers_that_no_grid_follows(tmp_path, fields, sentence, ending):
    path = written(tmp_path / f"volume{ending}", **fields)
    with pytest.raises(InputError, match=sentence) as refused:
        read_grid(path)
    assert "restore" not in str(refused.value)


@pytest.mark.parametrize(
    "fields",
    [{"pixdim3": 4.03}, {"pixdim3": 3.97}, {"affine": sheared(5e-5)}, {"qform": 1}, {"magic": b"ni1\0"}],
    ids=["pixdim within 1 %", "pixdim within 1 % below", "straight but for rounding", "both forms", "a pair's mark"],
)
def test_headers_that_are_right(tmp_path, fields):
    path = written(tmp_path / "volume.nii", **fields)
    grid = read_grid(path)
    assert grid.doubt == ""
    assert grid.spacing == pytest.approx((1, 2, fields.get("pixdim3", 4)))
    np.testing.assert_array_equal(read_volume(path), VOXELS.T)


@pytest.mark.parametrize(("remedy", "spacing"), [("image.affine)", 4.0), ("0.625, 1]))", 2.5)])
def test_remedy_for_two_spacings(tmp_path, remedy, spacing):
    """Either line of the sentence, run as it stands, makes a file that both libraries read alike."""
    path = written(tmp_path / "volume.nii.gz", pixdim3=2.5)
    with pytest.raises(InputError) as refused:
        read_grid(path)
    (line,) = (
        line
        for line in re.findall(r"nibabel\.Nifti1Image\(.+?\)(?= where)", str(refused.value))
        if line.endswith(remedy)
    )
    image = nibabel.load(path)
    nibabel.save(eval(line, {"nibabel": nibabel, "numpy": np, "image": image}), tmp_path / "mended.nii.gz")
    assert read_grid(tmp_path / "mended.nii.gz").spacing == pytest.approx((1, 2, spacing))
    assert np.linalg.norm(nibabel.load(tmp_path / "mended.nii.gz").affine[:, 2]) == pytest.approx(spacing)


PAGE = (Path(__file__).parents[2] / "docs/reference-volumes.md").read_text()
REMEDIES: dict[str, Any] = {"nibabel": nibabel, "numpy": np}
for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
    exec(block, REMEDIES)


@pytest.mark.parametrize(("remedy", "spacing"), [("keep_sform", 4.0), ("keep_pixdim", 2.5)])
def test_remedies_of_the_page_for_two_spacings(tmp_path, remedy, spacing):
    path = written(tmp_path / "volume.nii.gz", pixdim3=2.5)
    nibabel.save(REMEDIES[remedy](nibabel.load(path)), tmp_path / "mended.nii.gz")
    assert read_grid(tmp_path / "mended.nii.gz").spacing == pytest.approx((1, 2, spacing))
    assert np.linalg.norm(nibabel.load(tmp_path / "mended.nii.gz").affine[:, 2]) == pytest.approx(spacing)


@pytest.mark.parametrize(("remedy", "x"), [("set_qform", -10), ("set_sform", 0)])
def test_remedies_of_the_page_for_two_places(tmp_path, remedy, x):
    image = nibabel.load(written(tmp_path / "volume.nii.gz", qform=1, srow_x3=10.0))
    getattr(image, remedy)(None, 0)
    nibabel.save(image, tmp_path / "mended.nii.gz")
    grid = read_grid(tmp_path / "mended.nii.gz")
    assert (grid.doubt, grid.origin[0], grid.spacing) == ("", x, (1, 2, 4))


def test_remedy_of_the_page_for_no_place(tmp_path):
    image = nibabel.load(written(tmp_path / "volume.nii.gz", sform=0))
    image.set_sform(np.diag([1.0, 2, 4, 1]), 1)
    nibabel.save(image, tmp_path / "mended.nii.gz")
    assert read_grid(tmp_path / "mended.nii.gz").doubt == ""


def test_remedy_of_the_page_for_slanted_axes(tmp_path):
    path = written(tmp_path / "volume.nii.gz", np.ones((20, 20, 6), np.float32), sheared(0.1))
    image = nibabel.load(path)
    nibabel.save(REMEDIES["straighten"](image), tmp_path / "mended.nii.gz")
    grid = read_grid(tmp_path / "mended.nii.gz")
    assert grid.spacing == pytest.approx((1, 2, 4))
    # The voxels lie where they lay, in SimpleITK's axes: the middle of the volume is the middle of the resampled one.
    middle = (image.affine @ [9.5, 9.5, 2.5, 1])[:3] * [-1, -1, 1]
    moved = np.array(grid.origin) + np.reshape(grid.direction, (3, 3)) @ (
        (np.array(grid.size) - 1) / 2 * np.array(grid.spacing)
    )
    np.testing.assert_allclose(moved, middle, atol=0.75)


@pytest.mark.parametrize(
    ("fields", "doubt"),
    [
        ({"sform": 0}, "neither a qform nor an sform"),
        ({"qform": 1, "srow_x3": 10.0}, "a qform and an sform that place it 10 mm apart"),
        ({"qform": 1, "quatern_b": 2.0}, "a qform and an sform that place it differently"),
    ],
)
def test_place_in_doubt(tmp_path, fields, doubt):
    assert read_grid(written(tmp_path / "volume.nii", **fields)).doubt.startswith(doubt)


def test_analyze_has_no_place(tmp_path):
    nibabel.save(nibabel.AnalyzeImage(VOXELS, np.diag([1, 2, 4, 1.0])), tmp_path / "volume.hdr")
    grid = read_grid(tmp_path / "volume.hdr")
    assert grid.spacing == (1, 2, 4)
    assert grid.doubt.startswith("neither")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.int64])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_what_has_no_place_is_written_without_one(tmp_path, ending, dtype):
    grid = read_grid(written(tmp_path / "volume.nii", sform=0))
    path = tmp_path / f"made{ending}"
    write_volume(VOXELS.T.astype(dtype), grid, path)
    made = nibabel.load(path)
    assert (int(made.header["qform_code"]), int(made.header["sform_code"])) == (0, 0)
    assert made.header.get_zooms() == (1, 2, 4)
    assert made.get_data_dtype() == dtype
    np.testing.assert_array_equal(np.asarray(made.dataobj), VOXELS)
    np.testing.assert_array_equal(read_volume(path), VOXELS.T)


CONTENT = gzip.compress(nibabel.Nifti1Image(VOXELS, np.eye(4)).to_bytes())
PLAIN = gzip.decompress(CONTENT)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain.nii.gz", PLAIN),
        ("followed.nii.gz", CONTENT + b"more than a volume"),
        ("padded.nii.gz", CONTENT + bytes(100)),
        ("members.nii.gz", gzip.compress(PLAIN[:400]) + gzip.compress(PLAIN[400:])),
        ("long.nii", PLAIN + b"more"),
        (
            "big_endian.nii",
            nibabel.Nifti1Image(VOXELS, np.eye(4), nibabel.Nifti1Header(endianness=">")).to_bytes(),
        ),
        ("time.nii", nibabel.Nifti1Image(VOXELS[..., None], np.eye(4)).to_bytes()),
    ],
)
def test_whole_volumes_that_nnunet_reads_are_read(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert read_grid(tmp_path / name).size == VOXELS.shape
    np.testing.assert_array_equal(read_volume(tmp_path / name), VOXELS.T)


def test_members_that_end_early(tmp_path):
    path = tmp_path / "volume.nii.gz"
    path.write_bytes(gzip.compress(PLAIN[:400]) + gzip.compress(PLAIN[400:-20]))
    with pytest.raises(InputError, match=f"unreadable file .*{len(PLAIN) - 20} bytes of {len(PLAIN)}"):
        read_volume(path)


@pytest.mark.parametrize(
    ("values", "options", "sentence"),
    [
        ([0, 1, np.nan], {}, "1 voxels of NaN or infinity .*nnU-Net reads NaN in NIfTI as background.*name it ignore"),
        ([0, np.inf, np.nan], {}, "2 voxels of NaN"),
        ([0, 0.5, 1], {}, "values such as 0.5 in .*expected a whole number in every voxel"),
        ([0, np.nextafter(np.float32(1), 0), 2], {}, "values such as 0.99999994"),
        ([0, 1, 2], {"slope": 0.3}, r"values such as 0.3\d*, 0.6\d* .*scl_slope"),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_labels_that_are_no_whole_numbers(tmp_path, values, options, sentence, dtype):
    path = written(tmp_path / "labels.nii.gz", np.array(values, dtype)[:, None, None], **options)
    with pytest.raises(InputError, match=sentence):
        read_labels(path)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_labels(tmp_path, dtype):
    np.testing.assert_array_equal(read_labels(written(tmp_path / "labels.nii.gz", VOXELS.astype(dtype))), VOXELS.T)
