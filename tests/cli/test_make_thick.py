"""`make_thick` on small data sets: what it writes, what it reports, what its end on the way leaves."""

import errno
import json
import os
import re
import shutil
import signal
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

import nnunetv2_ext.data.thick
from nnunetv2_ext.cli import main
from nnunetv2_ext.data.thick import average_slabs, majority_slabs
from tests.data.thin_dataset import (
    CASE_A,
    OBLIQUE,
    SOURCE,
    files_in,
    header_of,
    in_child,
    read,
    write_dataset,
    write_image,
)


@pytest.fixture
def raw(nnunet_folders):
    """nnU-Net's folders, empty but for two training cases, one test case with and one without label."""
    write_dataset(nnunet_folders / "nnUNet_raw" / SOURCE)
    return nnunet_folders / "nnUNet_raw"


def run(*options: object) -> int:
    return main(["make_thick", *map(str, options), "-np", "2"])


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_whole_data_set(raw, capsys, ending):
    source, made = raw / SOURCE, raw / "Dataset104_SmallThick4"
    shutil.rmtree(source)
    write_dataset(source, ending=ending)
    assert run("-d", 4, "-o", 104, "--factor", 4) == 0

    assert files_in(made) == files_in(source)
    for relative in files_in(source):
        if relative.endswith(".json"):
            assert json.loads((made / relative).read_text()) == json.loads((source / relative).read_text())
            continue
        thin, thick = read(source / relative), read(made / relative)
        slabs = average_slabs if relative.startswith("images") else majority_slabs
        expected = slabs(sitk.GetArrayFromImage(thin), axis=0, factor=4)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(thick), expected)
        wanted = sitk.sitkFloat32 if relative.startswith("images") else sitk.sitkUInt8
        assert thick.GetPixelID() == wanted
        np.testing.assert_allclose(thick.GetSpacing(), (0.8, 0.9, 8.0), rtol=1e-6)
        np.testing.assert_allclose(thick.GetDirection(), OBLIQUE, atol=1e-6)
        centre = thin.TransformContinuousIndexToPhysicalPoint((0, 0, 1.5))
        np.testing.assert_allclose(thick.GetOrigin(), centre, atol=1e-5)
    printed = capsys.readouterr()
    assert "4 cases, 4 slices per slab along array axis 0" in printed.out
    assert "dropped 1 remainder slice at the end of 1 cases: imagesTs/case_c" in printed.out
    assert "dropped 2 remainder slices at the end of 1 cases: imagesTr/case_b" in printed.out
    assert "case_a" not in printed.out
    assert [child.name for child in sorted(raw.iterdir())] == [SOURCE, made.name]
    verify_dataset_integrity(str(made), num_processes=1)


@pytest.mark.parametrize(
    ("spacing", "options", "made", "axis", "factor"),
    [
        ((0.8, 0.9, 2.0), ["--factor", 2], "SmallThick2", 0, 2),
        ((0.8, 0.9, 2.0), ["--thickness", 6], "SmallThick6mm", 0, 3),
        ((0.8, 0.9, 2.5), ["--thickness", 7.5], "SmallThick7.5mm", 0, 3),
        ((0.8, 0.9, 2.0), ["--thickness", 3.97], "SmallThick3.97mm", 0, 2),
        ((0.8, 0.9, 2.0), ["--thickness", 7.4], "SmallThick7.4mm", 0, 3.7),
        ((0.8, 0.9, 2.0), ["--thickness", 3, "--slice-axis", 1], "SmallThick3mm", 1, 3 / 0.9),
        ((0.8, 0.9, 2.0), ["--factor", 2, "--slice-axis", 2, "--name", "Side"], "Side", 2, 2),
        ((3.0, 0.9, 0.9), ["--factor", 2], "SmallThick2", 2, 2),
        ((0.9, 3.0, 0.9), ["--factor", 2], "SmallThick2", 1, 2),
        ((1.0, 1.0, 1.0), ["--factor", 2], "SmallThick2", 0, 2),
        ((1.005, 1.0, 1.0), ["--factor", 2], "SmallThick2", 0, 2),
    ],
)
def test_axis_name_and_factor(raw, spacing, options, made, axis, factor):
    shutil.rmtree(raw / SOURCE)
    write_dataset(raw / SOURCE, Spacing=spacing)
    assert run("-d", SOURCE, "-o", 7, *options) == 0
    thick = read(raw / f"Dataset007_{made}" / "imagesTr" / "case_a_0001.nii.gz")
    expected = list(spacing)
    expected[2 - axis] *= factor
    np.testing.assert_allclose(thick.GetSpacing(), expected, rtol=1e-6)


def test_thickness_that_is_no_multiple(raw, capsys):
    """Slabs of 3 mm from slices of 2 mm: every second slice is shared by two of them."""
    assert run("-d", 4, "-o", 104, "--thickness", 3) == 0
    name = "imagesTr/case_b_0000.nii.gz"
    thin, thick = read(raw / SOURCE / name), read(raw / "Dataset104_SmallThick3mm" / name)
    slices = sitk.GetArrayFromImage(thin).astype(float)
    assert thick.GetSize() == (8, 10, 9)
    np.testing.assert_allclose(thick.GetSpacing(), (0.8, 0.9, 3.0), rtol=1e-6)
    # From the centre of a slice 2 mm thick to that of a slab 3 mm thick that begins where it begins.
    centre = thin.TransformContinuousIndexToPhysicalPoint((0, 0, 0.25))
    np.testing.assert_allclose(thick.GetOrigin(), centre, atol=1e-5)
    for pair in range(4):
        first, shared, last = slices[3 * pair : 3 * pair + 3]
        made = sitk.GetArrayFromImage(thick)[2 * pair : 2 * pair + 2]
        np.testing.assert_allclose(made, [(2 * first + shared) / 3, (shared + 2 * last) / 3], rtol=1e-5, atol=1e-4)
    thin, thick = (read(raw / folder / "labelsTr/case_b.nii.gz") for folder in (SOURCE, "Dataset104_SmallThick3mm"))
    # Two thirds of a slab are one slice, whose label wins.
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(thick), sitk.GetArrayFromImage(thin)[[0, 2, 3, 5, 6, 8, 9, 11, 12]]
    )
    printed = capsys.readouterr().out
    assert "4 cases, 1.5 slices per slab along array axis 0" in printed
    assert "dropped 0.5 remainder slices at the end of 2 cases: imagesTr/case_b, imagesTs/case_d" in printed


def test_many_remainders_are_one_line(raw, capsys):
    array = np.zeros((10, 4, 4), np.int16)
    for number in range(6):
        for channel in range(2):
            name = f"imagesTs/odd_{number}_{channel:04d}.nii.gz"
            write_image(raw / SOURCE / name, array, Spacing=(0.8, 0.9, 2 + number / 10))
    assert run("-d", 4, "-o", 104, "--thickness", 3.3, "--slice-axis", 0) == 0
    printed = capsys.readouterr().out
    assert "10 cases, 1.32, 1.375, 1.435, 1.5, 1.571 and 1 more slices per slab" in printed
    assert re.search(r"dropped [\d.]+ to [\d.]+ remainder slices at the end of \d+ cases\n", printed)
    assert printed.count("dropped") == 1


def test_files_of_no_case_are_reported(raw, capsys):
    shutil.copy(raw / SOURCE / "labelsTs/case_c.nii.gz", raw / SOURCE / "labelsTs/lost.nii.gz")
    (raw / SOURCE / "imagesTr/case_a_0000.nii").touch()
    (raw / SOURCE / "imagesTr/.hidden").touch()
    assert run("-d", 4, "-o", 104, "--factor", 4) == 0
    assert "left out 2 files of no case: imagesTr/case_a_0000.nii, labelsTs/lost.nii.gz" in capsys.readouterr().out


def test_volumes_without_a_place_get_none(raw):
    """Their codes stay 0: SimpleITK and nibabel guess differently, and neither guess is made the truth."""
    header_of(*CASE_A, sform=0, qform=0)(raw, None)
    assert run("-d", 4, "-o", 104, "--factor", 4) == 0
    for name in CASE_A:
        made = nibabel.load(raw / "Dataset104_SmallThick4" / name)
        assert (int(made.header["qform_code"]), int(made.header["sform_code"])) == (0, 0)
        np.testing.assert_allclose(made.header.get_zooms(), (0.8, 0.9, 8), rtol=1e-6)
    thin = np.asarray(nibabel.load(raw / SOURCE / CASE_A[0]).dataobj, float)
    thick = nibabel.load(raw / "Dataset104_SmallThick4" / CASE_A[0]).get_fdata()
    np.testing.assert_allclose(thick, thin.reshape(8, 10, 3, 4).mean(axis=3), atol=1e-3)


def test_labels_that_vanish_are_told(raw, capsys):
    """A lesion of one slice in four is gone, by numpy's own count; an organ of all slices stays."""
    for case, slices in (("Tr/case_a", 12), ("Tr/case_b", 14), ("Ts/case_c", 9)):
        labels = np.zeros((slices, 10, 8), np.uint8)
        labels[:, 2:5, 2:5] = 1
        labels[5, 7, 1:3] = labels[2, 7, 6] = 2
        if case == "Tr/case_b":
            labels[8:12, 9, 4] = 2
        write_image(raw / SOURCE / f"labels{case}.nii.gz", labels)
    assert run("-d", 4, "-o", 104, "--factor", 4) == 0
    printed = capsys.readouterr().out
    rows = {
        row.split("|")[1].strip(): row.replace(" ", "").strip("|").split("|")
        for row in printed.splitlines()
        if "|" in row
    }
    voxel = 0.8 * 0.9 * 2 / 1000
    organ, thick_organ = (9 * count * voxel for count in (12 + 14 + 9, 12 + 12 + 8))
    assert rows["organ"][1:] == ["3", "0", f"{organ:.4g}", f"{thick_organ:.4g}", "3", "3", "0"]
    assert rows["lesion"][1:] == ["3", "2", f"{13 * voxel:.4g}", f"{4 * voxel:.4g}", "7", "1", "6"]
    assert "warning: the label lesion is gone in 2 of 3 cases that have it: case_a, case_c" in printed
    assert "warning: the label organ" not in printed


@pytest.mark.parametrize(
    ("number", "status", "left"), [(signal.SIGTERM, 143, 0), (signal.SIGHUP, 129, 0), (signal.SIGKILL, -9, 1)]
)
def test_a_kill_leaves_nothing_for_long(raw, capsys, number, status, left):
    child = in_child(
        lambda: run("-d", 4, "-o", 104, "--factor", 4),
        stop_at=(nnunetv2_ext.data.thick, "write_dataset_json"),
        marker=raw.parent / "there",
    )
    hidden = [path for path in raw.iterdir() if path.name.startswith(".Dataset104_")]
    assert [len([*path.rglob("*.nii.gz")]) for path in hidden] == [11]
    assert run("-d", 4, "-o", 104, "--factor", 2) == 2
    told = rf"got the making of Dataset104_.* while process {child.pid} on \S+ runs the making of .*; expected one at"
    assert re.search(told, capsys.readouterr().err)
    assert hidden[0].is_dir()
    assert child.pid is not None
    os.kill(child.pid, number)
    child.join(30)
    assert child.exitcode == status
    assert [path for path in raw.iterdir() if path.name != SOURCE] == hidden[:left]
    assert run("-d", 4, "-o", 104, "--factor", 4) == 0
    assert ("killed process" in capsys.readouterr().out) == bool(left)
    assert sorted(path.name for path in raw.iterdir()) == [SOURCE, "Dataset104_SmallThick4"]


def test_what_another_machine_left_stays(raw):
    """Whether its process has ended cannot be told from here."""
    folder = raw / ".Dataset104_SmallThick4_abcdefgh"
    folder.mkdir()
    (folder / ".filled.running.json").write_text('{"host": "elsewhere", "process": 17}')
    assert run("-d", 4, "-o", 104, "--factor", 4) == 0
    assert folder.is_dir()


def test_interruption_leaves_nothing(raw, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(nnunetv2_ext.data.thick, "majority_slabs", interrupted)
    assert run("-d", 4, "-o", 104, "--factor", 4) == 130
    assert [child.name for child in raw.iterdir()] == [SOURCE]


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_half_written_file_is_noticed(raw, monkeypatch, capsys, ending):
    """What ITK does on a full disk: no error, and half a file."""
    shutil.rmtree(raw / SOURCE)
    write_dataset(raw / SOURCE, ending=ending)
    write_all = sitk.WriteImage

    def write_half(image, path, compress):
        write_all(image, path, compress)
        Path(path).write_bytes(Path(path).read_bytes()[: Path(path).stat().st_size // 2])

    monkeypatch.setattr(sitk, "WriteImage", write_half)
    assert run("-d", 4, "-o", 104, "--factor", 4) == 2
    assert re.search("got an error on writing .*expected a writable folder with free space", capsys.readouterr().err)
    assert [child.name for child in raw.iterdir()] == [SOURCE]


def test_error_of_the_file_system_is_a_sentence(raw, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    assert run("-d", 4, "-o", 104, "--factor", 4) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert [child.name for child in raw.iterdir()] == [SOURCE]
