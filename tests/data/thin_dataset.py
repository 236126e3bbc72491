"""A small raw data set of thin slices in nnU-Net's folders, to be made thick."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import SimpleITK as sitk

SOURCE = "Dataset004_Small"
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
