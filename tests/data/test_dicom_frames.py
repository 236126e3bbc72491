"""DICOM files of several frames: each lies where it says itself, and has the values that its own scale gives."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from nnunetv2_ext.data.sources import open_volume
from nnunetv2_ext.data.volumes import Grid
from nnunetv2_ext.errors import InputError

ENHANCED_CT, DOSE, CAPTURE, REPORT = (f"1.2.840.10008.5.1.4.1.1.{kind}" for kind in ("2.1", "481.2", "7.2", "88.11"))
ARRAY = np.random.default_rng(0).integers(-500, 500, (4, 6, 7)).astype("<i2")
SAGITTAL = (0, 1, 0, 0, 0, -1)


def sequence(**values: Any) -> list[Dataset]:
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return [item]


def write_frames(
    path: Path,
    positions: Any = ((5, -6, 0), (5, -6, 2), (5, -6, 4), (5, -6, 6)),
    *,
    kind: str = ENHANCED_CT,
    orientations: Any = (1, 0, 0, 0, 1, 0),
    scales: Any = (2, -1000),
    thickness: Any = 2,
    **tags: Any,
) -> pydicom.Dataset:
    """Frames of 0.75 x 0.5 mm; orientation, scale and thickness of all of them, or a list with one of each."""
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = UID(kind)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.SeriesInstanceUID, dataset.Modality, dataset.NumberOfFrames = generate_uid(), "CT", len(ARRAY)
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 6, 7, 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.PhotometricInterpretation, dataset.PixelData = "MONOCHROME2", ARRAY.tobytes()
    if kind == ENHANCED_CT:
        shared, frames = Dataset(), [Dataset() for _ in ARRAY]

        def add(group: str, values: Any, of_all: bool, tags: tuple[str, ...]) -> None:
            for frame, value in [(shared, values)] if of_all else zip(frames, values, strict=True):
                setattr(frame, group, sequence(**dict(zip(tags, value, strict=True))))

        add("PlanePositionSequence", [[list(map(float, one))] for one in positions], False, ("ImagePositionPatient",))
        same = np.ndim(orientations) == 1
        values: Any = [[*orientations]] if same else [[[*one]] for one in orientations]
        add("PlaneOrientationSequence", values, same, ("ImageOrientationPatient",))
        same = np.ndim(thickness) == 0
        values = ([0.75, 0.5], thickness) if same else [([0.75, 0.5], one) for one in thickness]
        add("PixelMeasuresSequence", values, same, ("PixelSpacing", "SliceThickness"))
        add("PixelValueTransformationSequence", scales, np.ndim(scales) == 1, ("RescaleSlope", "RescaleIntercept"))
        dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = [shared], frames
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return dataset


def along_z(*heights: float) -> list[tuple[float, float, float]]:
    return [(5, -6, z) for z in heights]


PLACES = {
    "feet to head": (along_z(0, 2, 4, 6), (1, 0, 0, 0, 1, 0), [0, 1, 2, 3]),
    "head to feet": (along_z(6, 4, 2, 0), (1, 0, 0, 0, 1, 0), [3, 2, 1, 0]),
    "in no order": (along_z(2, 0, 6, 4), (1, 0, 0, 0, 1, 0), [1, 0, 3, 2]),
    "an orientation of each": (along_z(0, 2, 4, 6), [(1, 0, 0, 0, 1, 0)] * 4, [0, 1, 2, 3]),
    "sagittal": ([(x, -6, 9) for x in (8, 6, 4, 2)], SAGITTAL, [0, 1, 2, 3]),
}


@pytest.mark.parametrize("scales", [(2, -1000), [(2, -1000), (0.5, 3), (1, 0), (3, 1)]], ids=["one scale", "four"])
@pytest.mark.parametrize(("positions", "orientations", "order"), PLACES.values(), ids=PLACES)
def test_frames_are_slices(tmp_path, positions, orientations, order, scales):
    write_frames(tmp_path / "volume.dcm", positions, orientations=orientations, scales=scales)
    volume = open_volume(tmp_path / "volume.dcm")
    right, down = np.reshape(np.array(orientations[0] if np.ndim(orientations) == 2 else orientations, float), (2, 3))
    direction = np.stack([right, down, np.cross(right, down)], axis=1)
    expected = Grid((7, 6, 4), (0.5, 0.75, 2.0), positions[order[0]], tuple(direction.ravel().tolist()))
    assert volume.grid.differences(expected) == []
    assert volume.thickness == 2
    slopes, intercepts = np.transpose(np.broadcast_to(scales, (4, 2)))
    pixels = pydicom.dcmread(tmp_path / "volume.dcm").pixel_array * slopes[:, None, None] + intercepts[:, None, None]
    np.testing.assert_allclose(volume.read(), pixels[order])


def test_dose(tmp_path):
    places = {"ImagePositionPatient": [5, -6, 7], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    write_frames(
        tmp_path / "dose.dcm", kind=DOSE, PixelSpacing=[0.75, 0.5], GridFrameOffsetVector=[0, 3, 6, 9], **places
    )
    volume = open_volume(tmp_path / "dose.dcm")
    assert volume.grid.spacing == (0.5, 0.75, 3)
    assert volume.grid.origin == (5, -6, 7)
    np.testing.assert_array_equal(volume.read(), ARRAY)


def test_thickness_that_differs_is_none(tmp_path):
    write_frames(tmp_path / "volume.dcm", thickness=[2, 2, 5, 2])
    assert open_volume(tmp_path / "volume.dcm").thickness is None


REFUSED = {
    "missing frame": (
        {"positions": along_z(0, 2, 6, 8)},
        r"uneven slice spacing in .*volume.dcm: from 2 to 4 mm \(between frame 2 and frame 3",
    ),
    "positions twice": ({"positions": along_z(0, 0, 2, 2)}, "uneven slice spacing .*from 0 to 2 mm"),
    "one position": ({"positions": along_z(1, 1, 1, 1)}, "uneven slice spacing .*from 0 to 0 mm"),
    "gantry tilt": (
        {"positions": [(5 + number, -6, 2 * number) for number in range(4)]},
        "volume.dcm that are shifted by up to 3 mm .*gantry tilt",
    ),
    "two orientations": (
        {"orientations": [(1, 0, 0, 0, 1, 0)] * 3 + [SAGITTAL]},
        "frame 4 with size .* beside frame 1 with",
    ),
    "slanted axes": ({"orientations": (1, 0, 0, 0.1, 0.995, 0)}, r"volume.dcm with slanted axes \(84.26.* degrees"),
    "no position": (
        {"kind": CAPTURE},
        "several frames that do not tell where they lie .*export it as a series of slices, or as NIfTI",
    ),
    "a frame without groups": (
        {"PerFrameFunctionalGroupsSequence": sequence(FrameContentSequence=[])},
        "several frames that do not tell where they lie",
    ),
}


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize(("options", "sentence"), REFUSED.values(), ids=REFUSED)
def test_frames_that_are_no_volume(tmp_path, options, sentence):
    write_frames(tmp_path / "volume.dcm", **options)
    with pytest.raises(InputError, match=sentence):
        open_volume(tmp_path / "volume.dcm")


def test_object_without_an_image(tmp_path):
    dataset = write_frames(tmp_path / "report.dcm", kind=REPORT)
    for name in ("PixelData", "Rows", "Columns", "NumberOfFrames"):
        delattr(dataset, name)
    dataset.save_as(tmp_path / "report.dcm", enforce_file_format=True)
    with pytest.raises(InputError, match=r"object without an image, Basic Text SR Storage, in .*report.dcm"):
        open_volume(tmp_path / "report.dcm")
