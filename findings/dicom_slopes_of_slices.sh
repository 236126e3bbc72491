#!/usr/bin/env bash
# A PET series, each slice with a slope of its own, as scanners write it. Guessed: the values come out as they are.
# Seen with SimpleITK 2.5.7: the first slice decides the type of all. Where its slope is a whole number, the others are cut
# to whole numbers without a word: a slope of 0.25 and the stored 50 give 12 in place of 12.5. Read alone, the slice has it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q SimpleITK==2.5.7 pydicom==3.0.2 numpy
cd "$folder"
venv/bin/python - <<'PYTHON'
import os
import SimpleITK as sitk
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


def series(heights, values, modality="CT", kind="1.2.840.10008.5.1.4.1.1.2", slopes=None):
    os.mkdir("series")
    for k, (height, value) in enumerate(zip(heights, values)):
        slope = 1 if slopes is None else slopes[k]
        data = dicom(kind, modality, np.full((6, 8), value), InstanceNumber=k + 1, PixelSpacing=[1, 1],
                     ImagePositionPatient=[0.0, 0.0, float(height)], ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
                     SliceThickness=2, RescaleIntercept=0, RescaleSlope=slope, ImageType=["ORIGINAL", "PRIMARY", "AXIAL"])
        data.save_as(f"series/{k:03}.dcm", enforce_file_format=True)

series([0, 2, 4], [10, 30, 50], "PT", "1.2.840.10008.5.1.4.1.1.128", slopes=[1, 0.5, 0.25])
names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames("series")
together, alone = sitk.ReadImage(names), sitk.ReadImage(names[2])
values = sitk.GetArrayFromImage(together)[:, 0, 0].tolist()
print("the series:", together.GetPixelIDTypeAsString(), values)
print("its last slice alone:", alone.GetPixelIDTypeAsString(), sitk.GetArrayFromImage(alone)[0, 0, 0])
assert values == [10, 15, 12] and sitk.GetArrayFromImage(alone)[0, 0, 0] == 12.5
PYTHON
