"""Whole data sets made thick: axes, paths, grids of channels, and what an end on the way leaves: nothing."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

from nnunetv2_ext.data.thick import make_thick
from tests.data.thin_dataset import SOURCE, edit_json, read, write_dataset, write_image


@pytest.fixture
def raw(nnunet_folders):
    write_dataset(nnunet_folders / "nnUNet_raw" / SOURCE)
    return nnunet_folders / "nnUNet_raw"


def test_reorienting_reader_names_the_axis(raw):
    """OBLIQUE's first index axis runs from front to back: with nnU-Net's reorienting reader this is array axis 1."""
    edit_json(raw / SOURCE / "dataset.json", overwrite_image_reader_writer="SimpleITKIOWithReorient")
    make_thick(4, 104, factor=2, axis=1, processes=2)
    assert read(raw / "Dataset104_SmallThick2" / "labelsTr" / "case_a.nii.gz").GetSize() == (4, 10, 12)


def test_factor_differs_between_cases_of_different_spacing(raw):
    random = np.random.default_rng(1)
    for name, dtype in (
        ("imagesTr/case_b_0000", np.int16),
        ("imagesTr/case_b_0001", np.int16),
        ("labelsTr/case_b", "u1"),
    ):
        array = random.integers(0, 3, (14, 10, 8)).astype(dtype)
        write_image(raw / SOURCE / f"{name}.nii.gz", array, Spacing=(0.8, 0.9, 1.0))
    make_thick(4, 104, thickness=4, processes=2)
    sizes = [read(raw / f"Dataset104_SmallThick4mm/labelsTr/case_{case}.nii.gz").GetSize()[2] for case in "ab"]
    assert sizes == [12 // 2, 14 // 4]


def test_explicit_paths_become_the_ordinary_layout(raw, monkeypatch):
    source = raw / SOURCE
    (source / "imagesTr").rename(raw / "elsewhere")
    (source / "labelsTr").rename(source / "masks")
    monkeypatch.setenv("ELSEWHERE", str(raw / "elsewhere"))
    files = {
        case: {"images": [f"$ELSEWHERE/{case}_{c:04d}.nii.gz" for c in range(2)], "label": f"masks/{case}.nii.gz"}
        for case in ("case_a", "case_b")
    }
    edit_json(source / "dataset.json", dataset=files, numTraining=2)
    make_thick(4, 104, factor=4, processes=2)
    made = raw / "Dataset104_SmallThick4"
    entries = json.loads((made / "dataset.json").read_text())
    assert "dataset" not in entries
    assert entries["licence"] == "CC0"
    verify_dataset_integrity(str(made), num_processes=1)


def test_channels_within_tolerance_get_one_grid(raw):
    """nnU-Net wants the spacing of all channels to be equal to the last bit."""
    array = np.zeros((12, 10, 8), np.int16)
    write_image(raw / SOURCE / "imagesTr/case_a_0001.nii.gz", array, Spacing=(0.8001, 0.9, 2.0))
    make_thick(4, 104, factor=4, processes=2)
    verify_dataset_integrity(str(raw / "Dataset104_SmallThick4"), num_processes=1)


def test_two_hippocampus_cases(raw, hippocampus):
    source, made = raw / "Dataset005_Hippocampus", raw / "Dataset105_HippocampusThick4"
    labels = sorted((hippocampus / "labelsTr").glob("*.nii.gz"))[:2]
    for label in labels:
        image = label.name.replace(".nii.gz", "_0000.nii.gz")
        for folder, name in (("labelsTr", label.name), ("imagesTr", image)):
            (source / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(hippocampus / folder / name, source / folder / name)
    shutil.copy(hippocampus / "dataset.json", source)
    make_thick(5, 105, factor=4, processes=2)
    assert json.loads((made / "dataset.json").read_text())["numTraining"] == 2
    for label in labels:
        thin, thick = read(label), read(made / "labelsTr" / label.name)
        assert thick.GetSpacing() == (1.0, 1.0, 4.0)
        assert thick.GetSize()[2] == thin.GetSize()[2] // 4
        volumes = [np.prod(i.GetSpacing()) * np.count_nonzero(sitk.GetArrayViewFromImage(i)) for i in (thin, thick)]
        assert volumes[1] == pytest.approx(volumes[0], rel=0.1)
    verify_dataset_integrity(str(made), num_processes=1)
