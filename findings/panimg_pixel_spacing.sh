#!/usr/bin/env bash
# A CT series whose pixels are 0.5 mm wide and 2 mm high, through panimg, which makes the .mha that an algorithm on
# Grand Challenge is given. Guessed: spacing 0.5 x 2 x 5 mm, as SimpleITK reads it (DICOM names the distance of the rows first).
# Seen with panimg 0.18.2: 2 x 0.5 x 5 mm, without a word: the picture is four times as wide and a quarter as high.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q panimg==0.18.2 pydicom==3.0.2 SimpleITK==2.5.7
cd "$folder"
mkdir series out
venv/bin/python - <<'PYTHON'
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from panimg import convert
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

STUDY, SERIES = generate_uid(), generate_uid()
for k in range(4):
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = CTImageStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.StudyInstanceUID, data.SeriesInstanceUID, data.Modality, data.InstanceNumber = STUDY, SERIES, "CT", k + 1
    data.PixelSpacing, data.SliceThickness = [2.0, 0.5], 5  # rows are 2 mm apart, columns 0.5 mm
    data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 5 * k]
    data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = 4, 6, 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.PixelData = np.full((4, 6), k, "<i2").tobytes()
    data.save_as(f"series/{k}.dcm", enforce_file_format=True)

files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames("series")
simpleitk = sitk.ReadImage(files).GetSpacing()
made = convert(input_directory=Path("series"), output_directory=Path("out"))
panimg = sitk.ReadImage([str(image.file) for image in made.new_image_files if image.file.suffix == ".mha"][0]).GetSpacing()
print("x, y, z in mm: SimpleITK", simpleitk, "panimg", panimg)
assert np.allclose(simpleitk, (0.5, 2, 5)) and np.allclose(panimg, (2, 0.5, 5))
PYTHON
