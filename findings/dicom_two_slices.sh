#!/usr/bin/env bash
# A whole CT series of two slices. Guessed: dicom2nifti converts it, or its command ends with another status than 0.
# Seen with dicom2nifti 2.6.2: it takes the series for a localiser, logs an exception, writes nothing, and ends with 0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q dicom2nifti==2.6.2 pydicom==3.0.2 numpy
cd "$folder"
venv/bin/python - <<'PYTHON'
import os, subprocess
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

for number in (2, 5):
    series(range(0, 2 * number, 2), range(number))
    os.mkdir("out")
    done = subprocess.run(["venv/bin/dicom2nifti", "series", "out"], capture_output=True, text=True)
    written, said = len(os.listdir("out")), (done.stdout + done.stderr).strip().splitlines()[-1:]
    print(number, "slices: status", done.returncode, "files", written, said)
    assert done.returncode == 0 and written == (number == 5) and ("TOO_FEW_SLICES" in str(said)) == (number == 2)
    os.rename("series", f"series{number}"), os.rename("out", f"out{number}")
PYTHON
