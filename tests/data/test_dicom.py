"""DICOM series and files as volumes, and what is none."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_ext.data.sources import open_volume
from nnunetv2_ext.data.volumes import Grid
from nnunetv2_ext.errors import InputError

IDENTITY = tuple(np.eye(3).ravel())


def write_series(folder: Path, array: np.ndarray, *, positions=None, **tags: str) -> None:
    """A DICOM series of slices (Z, Y, X), in colours (Z, Y, X, 3), at the given z.

    The files' names do not tell their order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    positions = range(0, 2 * len(array), 2) if positions is None else positions
    for number, (z, pixels) in enumerate(zip(positions, array, strict=True)):
        image = sitk.GetImageFromArray(pixels[None].astype(np.int16), isVector=pixels.ndim == 3)
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
    (tmp_path / "case" / "._000.dcm").write_text("what another system keeps beside a file")
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


def coloured(folder):
    write_series(folder, np.zeros((4, 6, 7, 3)))


def broken_link(folder):
    write_series(folder, np.zeros((4, 6, 7)))
    (folder / "IM28").symlink_to("nowhere")


def contours(folder):
    """An object without pixels, which GDCM cannot read."""
    write_series(folder, np.zeros((1, 6, 7)), t00080060="RTSTRUCT")
    content = (folder / "000.dcm").read_bytes()
    (folder / "000.dcm").write_bytes(content[: content.rindex(b"\xe0\x7f\x10\x00")])


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
    "contours": (contours, "DICOM object of modality RTSTRUCT in .*000.dcm"),
    "colours": (coloured, r"case/000.dcm with 3 values per voxel \(colours\)"),
    "link that leads nowhere": (broken_link, "unreadable file .*IM28"),
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
