#!/usr/bin/env bash
# A CT series of slices every 2 mm that lacks one. Guessed: a reader refuses it, or takes the first step as the spacing.
# Seen: SimpleITK 2.5.7 takes the mean (2.5 mm) and warns on stderr alone, so that no slice but the ends lies where it was.
# dcm2niix 1.0.20260724 writes two files with status 0: one without a gap, whose later slices lie too low, and "_Eq_1",
# where the lacking slice is the mean of its neighbours. In a series of labels that is a label nobody drew.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q SimpleITK==2.5.7 pydicom==3.0.2 dcm2niix==1.0.20260724 nibabel==5.4.2 numpy
cd "$folder"
venv/bin/python - <<'PYTHON'
import glob, os, subprocess
import nibabel, SimpleITK as sitk
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

series([0, 2, 6, 8, 10], [1, 1, 3, 3, 3])
image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames("series"))
print("SimpleITK: spacing", image.GetSpacing()[2])
assert image.GetSpacing()[2] == 2.5
os.mkdir("out")
done = subprocess.run(["venv/bin/dcm2niix", "-f", "image", "-o", "out", "series"], stdout=subprocess.DEVNULL)
seen = {}
for path in sorted(glob.glob("out/*.nii")):
    loaded = nibabel.load(path)
    seen[os.path.basename(path)] = [float(value) for value in loaded.get_fdata()[0, 0]]
    print("dcm2niix:", os.path.basename(path), "spacing", loaded.header.get_zooms()[2], "values", seen[os.path.basename(path)])
assert done.returncode == 0
assert seen == {"image.nii": [1, 1, 3, 3, 3], "image_Eq_1.nii": [1, 1, 2, 3, 3, 3]}
PYTHON
