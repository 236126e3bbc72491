"""A small raw data set of thin slices in nnU-Net's folders, to be made thick."""

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType

import nibabel
import numpy as np
import SimpleITK as sitk

SOURCE = "Dataset004_Small"
CASE_A = ("imagesTr/case_a_0000.nii.gz", "imagesTr/case_a_0001.nii.gz", "labelsTr/case_a.nii.gz")
OBLIQUE = (0.0, 0.6, 0.8, 1.0, 0.0, 0.0, 0.0, 0.8, -0.6)


def write_image(path: Path, array: np.ndarray, **changes) -> None:
    geometry = {"Spacing": (0.8, 0.9, 2.0), "Origin": (5.0, -6.0, 7.5), "Direction": OBLIQUE} | changes
    image = sitk.GetImageFromArray(array)
    for name, value in geometry.items():
        getattr(image, f"Set{name}")(value)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), True)


def write_dataset(folder: Path, *, ending: str = ".nii.gz", slices: Iterable[int] = (12, 14, 9, 8), **geometry) -> None:
    random = np.random.default_rng(0)
    cases = [("Tr", "case_a", True), ("Tr", "case_b", True), ("Ts", "case_c", True), ("Ts", "case_d", False)]
    for (part, case, labelled), depth in zip(cases, slices, strict=True):
        for channel in range(2):
            array = random.integers(-500, 500, (depth, 10, 8)).astype(np.int16)
            write_image(folder / f"images{part}" / f"{case}_{channel:04d}{ending}", array, **geometry)
        if labelled:
            labels = random.integers(0, 3, (depth, 10, 8)).astype(np.uint8)
            write_image(folder / f"labels{part}" / f"{case}{ending}", labels, **geometry)
    entries = {"channel_names": {"0": "CT", "1": "noNorm"}, "labels": {"background": 0, "organ": 1, "lesion": 2}}
    entries |= {"numTraining": 2, "file_ending": ending, "licence": "CC0"}
    entries["overwrite_image_reader_writer"] = "SimpleITKIO"
    (folder / "dataset.json").write_text(json.dumps(entries))
    (folder / "splits_final.json").write_text('[{"train": ["case_a"], "val": ["case_b"]}]')


def edit_json(path: Path, **changes) -> None:
    entries = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in entries.items() if value is not None}))


def read(path: Path) -> sitk.Image:
    return sitk.ReadImage(str(path))


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def in_child(command: Callable[[], object], *, stop_at: tuple[ModuleType, str], marker: Path) -> BaseProcess:
    """A forked process that runs a command up to a function of a module, where it makes `marker` and stays."""

    def stay(*_: object, **__: object) -> None:
        marker.touch()
        time.sleep(60)

    def run() -> None:
        setattr(*stop_at, stay)
        os._exit(run_to_end())

    def run_to_end() -> int:
        try:
            return int(command() is not None)
        except SystemExit as end:
            return int(end.code or 0)

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    end = time.monotonic() + 30
    while not marker.exists():
        assert time.monotonic() < end and child.is_alive()
        time.sleep(0.01)
    return child


def header_of(*names, sform=None, qform=None, pixdim=None, affine=None):
    """Codes or fields of the headers changed, the voxels kept."""

    def change(raw, monkeypatch):
        for name in names:
            image = nibabel.load(raw / SOURCE / name)
            image = nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
            if affine is not None:
                image.set_sform(affine, 1)
                image.set_qform(affine, 0)
            if qform is not None:
                image.set_qform(qform if isinstance(qform, np.ndarray) else image.affine, 1 if np.ndim(qform) else 0)
            if sform is not None:
                image.set_sform(image.affine, sform)
            if pixdim is not None:
                image.header["pixdim"][1:4] = pixdim
            image.to_filename(raw / SOURCE / name)

    return change
