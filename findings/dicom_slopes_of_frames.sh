#!/usr/bin/env bash
# An Enhanced CT image, all frames in one file, each with its own rescale slope. Guessed: readers apply them.
# Seen: SimpleITK 2.5.7 takes the first frame's slope for all frames, without a word; highdicom 0.28.2 applies each.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q SimpleITK==2.5.7 pydicom==3.0.2 highdicom==0.28.2 numpy
cd "$folder"
venv/bin/python - <<'PYTHON'
import highdicom, SimpleITK as sitk
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

STUDY, SERIES, PLACE = generate_uid(), generate_uid(), generate_uid()


def dicom(kind, modality, voxels, **entries):
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = kind
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = STUDY, SERIES, PLACE
    data.Modality, data.PatientName, data.PatientID = modality, "Nobody", "1"
    data.StudyID, data.SeriesNumber, data.AcquisitionNumber, data.SeriesDescription = "1", 1, 1, "series"
    data.StudyDate = data.SeriesDate = data.ContentDate = "20200101"
    data.StudyTime = data.SeriesTime = data.ContentTime = "010101"
    data.Rows, data.Columns = voxels.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.PixelData = voxels.astype("<i2").tobytes()
    for name, value in entries.items():
        setattr(data, name, value)
    return data


def frames(heights, values, slopes):
    """An Enhanced CT image."""
    measures, orientation, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness, measures.SpacingBetweenSlices = [1, 1], 2, 2
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    per_frame = []
    for k, (height, slope) in enumerate(zip(heights, slopes)):
        position, scale, content, group = Dataset(), Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [0.0, 0.0, float(height)]
        scale.RescaleSlope, scale.RescaleIntercept, scale.RescaleType = slope, 0, "US"
        content.StackID, content.InStackPositionNumber, content.DimensionIndexValues = "1", k + 1, [1, k + 1]
        group.PlanePositionSequence, group.PixelValueTransformationSequence = [position], [scale]
        group.FrameContentSequence = [content]
        per_frame.append(group)
    voxels = np.stack([np.full((6, 8), value) for value in values])
    data = dicom("1.2.840.10008.5.1.4.1.1.2.1", "CT", voxels, NumberOfFrames=len(values), InstanceNumber=1,
                 ImageType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], SharedFunctionalGroupsSequence=[shared],
                 PerFrameFunctionalGroupsSequence=per_frame)
    data.save_as("frames.dcm", enforce_file_format=True)

frames([0, 2, 4], [10, 20, 30], slopes=[1, 2, 0.5])
simple = sitk.GetArrayFromImage(sitk.ReadImage("frames.dcm"))[:, 0, 0].tolist()
high = highdicom.imread("frames.dcm").get_frames()[:, 0, 0].tolist()
print("SimpleITK", simple, "highdicom", high)
assert simple == [10, 20, 30] and high == [10, 40, 15]
frames([0, 2, 4], [10, 20, 30], slopes=[2, 1, 1])
simple = sitk.GetArrayFromImage(sitk.ReadImage("frames.dcm"))[:, 0, 0].tolist()
print("SimpleITK, the first slope 2:", simple)
assert simple == [20, 40, 60]
PYTHON
